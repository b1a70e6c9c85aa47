"""A model as a Hugging Face folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError
from omr_io.storage import fsync_folder, writing
from omr_io.train.checkpoint.folder import remove

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

    It grows in a hidden folder beside it, which is renamed when all of it is on the disk: a folder
    of this name is whole, however an export ends. An earlier export of the name is replaced then.

    Args:
        weights: whole and by their names in transformers, where the model's own are sharded or
            adapted; None: the model's.

    Raises:
        ConfigError: the folder holds what no export writes, and would be lost.
        DiskError: no space, or another input/output error. An earlier export is as it was.
    """
    root = Path(folder).resolve()  # beside what a link points to: on the disk that was chosen
    work, old = (root.with_name(f".{state}-{root.name}") for state in ("writing", "old"))
    with _writing(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not root.exists():
            old.rename(root)  # a kill came between the two renames below
        _check_replaceable(root)
        remove(work)
        work.mkdir()
        try:
            _write(work, model, tokenizer, vision, weights)
            _sync(work)
            _replace(root, work, old)
        finally:
            with suppress(OSError):  # not instead of what failed
                remove(work)


def _check_replaceable(root: Path) -> None:
    if not root.exists():
        return
    kinds = {".json", ".safetensors", ".jinja", ".txt"}
    names = sorted(path.name for path in root.iterdir() if path.suffix not in kinds)
    if names:
        raise ConfigError(
            f"{root} holds {names[0]}, which no export writes, and an export replaces the folder",
            mend="Move it away, or export to another folder",
        )


def _replace(root: Path, work: Path, old: Path) -> None:
    remove(old)
    if root.exists():
        root.rename(old)
    try:
        work.rename(root)
    except OSError:
        if old.exists():
            old.rename(root)
        raise
    fsync_folder(root.parent)
    remove(old)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Say what failed as a DiskError; safetensors has an error of its own for a full disk."""
    from safetensors import SafetensorError

    try:
        with writing(root):
            yield
    except SafetensorError as error:
        raise DiskError(
            f"writing {root} failed: {error}", mend="Free space there or choose another folder"
        ) from error


def _sync(folder: Path) -> None:
    """Force all files of a folder, and their names, to the disk; all with config.json's rights.

    safetensors lets only the owner read what it writes: whoever may read the rest may read weights.
    """
    rights = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(rights)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(folder)


def _write(
    root: Path,
    model: PreTrainedModel,
    tokenizer: SavedTokenizer,
    vision: VisionConfig,
    weights: Mapping[str, Tensor] | None,
) -> None:
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
