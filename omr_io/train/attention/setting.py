"""Our attention on a model: registered with transformers, set, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omr_io.errors import ConfigError
from omr_io.train.attention.varlen import varlen_attention

TEXT_ATTENTION = "omr_varlen"
VISION_ATTENTION = "omr_flash_varlen"


def register_varlen() -> None:
    """Make both names known to transformers. Calling it again changes nothing.

    What stands under them by then stays: `omr_io.train.parallel.shard` keeps ours out of compiling.
    """
    from transformers import AttentionInterface

    known = AttentionInterface().valid_keys()  # type: ignore[no-untyped-call]
    for name in (TEXT_ATTENTION, VISION_ATTENTION):
        if name not in known:
            AttentionInterface.register(name, varlen_attention)


def _set_attention(model: Any, text: str, vision: str) -> None:
    # set_attn_implementation refuses names it does not know for the vision tower; the property of
    # the configuration does not, and takes a name a part.
    model.config._attn_implementation = {"": text, "text_config": text, "vision_config": vision}
    model.model.language_model.config._attn_implementation = text
    model.model.visual.config._attn_implementation = vision


def use_varlen(model: Any) -> None:
    """Register our attention and set it on a Qwen VLM, text and vision.

    From then on the model takes packs only: `cu_seq_lens_q` is required in every forward.
    """
    register_varlen()
    _set_attention(model, TEXT_ATTENTION, VISION_ATTENTION)


def require_varlen(model: Any) -> None:
    """Refuse a model whose text part is not under our attention.

    Others take no notice of `shared_prefixes`: a completion would silently see the ones before it,
    or nothing of its prompt.

    Raises:
        ConfigError: it is under another.
    """
    name = model.model.language_model.config._attn_implementation
    if name != TEXT_ATTENTION:
        raise ConfigError(
            f"packs with shared prompts need {TEXT_ATTENTION} attention, the model has {name}",
            mend="Call omr_io.train.attention.use_varlen(model) first",
        )


@contextmanager
def text_attention(model: Any, name: str) -> Iterator[None]:
    """Run the text model under another attention ("sdpa" to generate), and put the old one back."""
    text = model.model.language_model.config._attn_implementation
    vision = model.model.visual.config._attn_implementation
    _set_attention(model, name, vision)
    try:
        yield
    finally:
        _set_attention(model, text, vision)
