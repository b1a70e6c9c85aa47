"""A model as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from omr_io.config import VisionConfig

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
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder: config, safetensors weights, tokenizer, image processor.

    `load_model`, `Tokenizer.from_pretrained`, `VisionConfig.from_pretrained` and transformers
    itself read it. Our attention's names are not written, so others can load it without us.

    Args:
        weights: whole and by their names in transformers, where the model's own are sharded or
            adapted; None: the model's.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    with _without_progress_bar():
        model.save_pretrained(root, state_dict=None if weights is None else dict(weights))
    if weights is not None:  # the model's own dtype is its masters'
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
        dtypes = {
            str(w.dtype).removeprefix("torch.") for w in weights.values() if w.is_floating_point()
        }
        if len(dtypes) == 1:
            config["dtype"] = dtypes.pop()
            (root / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
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
