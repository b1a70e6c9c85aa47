"""A model as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omr_io.config import VisionConfig
from omr_io.train.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SavedTokenizer(Protocol):
    """What `export_hf` needs of `omr_io.tokenizer.Tokenizer`."""

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and its companions."""


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one for a single small file; put back as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def export_hf(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: SavedTokenizer,
    vision: VisionConfig,
    *,
    ranks: Ranks | None = None,
) -> None:
    """Write a Hugging Face folder: config, safetensors weights, tokenizer, image processor.

    `load_model`, `Tokenizer.from_pretrained`, `VisionConfig.from_pretrained` and transformers
    itself read it. Our attention's names are not written, so others can load it without us.

    Args:
        ranks: with several, the call is collective: what is sharded is gathered on the first
            rank's host, tensor by tensor, and the first rank writes; all return when it has.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    ranks = ranks or Ranks()
    root = Path(folder)
    state = None
    if ranks.world_size > 1:
        # With cpu_offload only the first rank gets the tensors, on its host.
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=whole)
    if ranks.is_first:
        root.mkdir(parents=True, exist_ok=True)
        with _without_progress_bar():
            model.save_pretrained(root, state_dict=state)
        _save_companions(root, tokenizer, vision)
    ranks.barrier()


def _save_companions(root: Path, tokenizer: SavedTokenizer, vision: VisionConfig) -> None:
    tokenizer.save(root)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "size": {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "rescale_factor": vision.rescale_factor,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "resample": 3,
    }  # fmt: skip
    (root / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
