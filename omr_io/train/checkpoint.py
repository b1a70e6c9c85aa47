"""Checkpoints: everything a run needs to go on, bit for bit, without pickle.

A checkpoint is a folder `checkpoint-NNNNNN`:

    model.safetensors    the model's tensors by name
    state.safetensors    all other tensors: the optimiser's, the random state's
    state.json           everything that is not a tensor, with references to them
    manifest.json        bytes and SHA-256 of the files above

It is written under another name, synced, and renamed last, so a folder with its final name is
complete. Loading trusts nothing: a file more or less, or one changed bit, and the checkpoint is
named, skipped, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DiskError, IntegrityError, OmrWarning, TrainingError, Where

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{6,})")
_TEMPORARY = ".writing-"
_FILES = ("model.safetensors", "state.json", "state.safetensors")


class CheckpointWarning(OmrWarning):
    """A checkpoint that is not valid was skipped."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """What a checkpoint holds. All but the tensors must be JSON values, tuples, or dicts with
    string or integer keys.

    Attributes:
        model: `model.state_dict()`.
        optimizer: `optimizer.state_dict()`.
        progress: the rest of the run: phase, step, history, schedule, `loader.state_dict()`.
        rng: from `random_state()`.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    progress: Mapping[str, Any]
    rng: Mapping[str, Any] = field(default_factory=lambda: random_state())


def random_state() -> dict[str, Any]:
    """The random state of torch (CPU and every CUDA device), NumPy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), torch.from_numpy(np.array(keys)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave. CUDA states are put back where the device count agrees."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, gauss))
    random.setstate(state["python"])


def save_checkpoint(folder: str | Path, state: CheckpointState, *, keep: int = 2) -> Path:
    """Write the next checkpoint into `folder` and delete all but the newest `keep`.

    Call it on one process. It returns when the bytes are on the disk.

    Raises:
        ConfigError: a value that cannot be stored without pickle, or keep < 1.
        DiskError: writing failed; earlier checkpoints are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if keep < 1:
        raise ConfigError(f"keep must be at least 1, not {keep}")
    tensors: dict[str, Tensor] = {}
    rest = {"optimizer": state.optimizer, "progress": state.progress, "rng": state.rng}
    weights: dict[str, Tensor] = {}
    tree = {
        "state": _to_json(rest, tensors),
        "model": _to_json(state.model, weights, names=True),
    }
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        number = max((n for n, _ in _numbered(root)), default=0) + 1
        final = root / f"checkpoint-{number:06d}"
        work = root / f"{_TEMPORARY}{final.name}"
        work.mkdir()
        save_file(weights, work / "model.safetensors")
        save_file(tensors, work / "state.safetensors")
        (work / "state.json").write_text(json.dumps(tree), encoding="utf-8")
        (work / "manifest.json").write_bytes(_manifest({name: work / name for name in _FILES}))
        for name in (*_FILES, "manifest.json"):
            _sync(work / name)
        _sync(work)
        work.rename(final)
        _sync(root)
        for _, old in _numbered(root)[:-keep]:
            # Renamed first: a kill in between leaves no half-deleted checkpoint under its name.
            shutil.rmtree(old.rename(root / f"{_TEMPORARY}old-{old.name}"))
    except (OSError, SafetensorError) as error:
        raise DiskError(
            f"writing a checkpoint failed: {error}", where=Where(source=str(root)),
            mend="Make room or choose another folder; earlier checkpoints are untouched",
        ) from error  # fmt: skip
    return final


def load_latest(folder: str | Path) -> CheckpointState | None:
    """The newest valid checkpoint in `folder`, tensors on the CPU; None if there is none at all.

    A checkpoint that is not valid is named in a CheckpointWarning and skipped.

    Raises:
        TrainingError: there are checkpoints, but not one is valid: starting over without a word
            would be worse.
    """
    found = _numbered(Path(folder))
    for _, path in reversed(found):
        try:
            return load_checkpoint(path)
        except IntegrityError as error:
            warnings.warn(f"skipped {path.name}: {error}", CheckpointWarning, stacklevel=2)
    if found:
        raise TrainingError(
            f"none of the {len(found)} checkpoints is valid", where=Where(source=str(folder)),
            mend="Move the folder away to start over",
        )  # fmt: skip
    return None


def load_checkpoint(path: str | Path) -> CheckpointState:
    """One checkpoint, verified against its manifest before anything is read from it.

    Raises:
        IntegrityError: a file is missing, too many, or not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    root = Path(path)
    _verify(root)
    try:
        tree = json.loads((root / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(root / "state.safetensors")
        weights = load_file(root / "model.safetensors")
        rest = _from_json(tree["state"], tensors)
        return CheckpointState(model=_from_json(tree["model"], weights), **rest)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise IntegrityError(f"unreadable: {error!r}", where=Where(source=str(root))) from error


def _numbered(root: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by number, oldest first."""
    if not root.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(files: Mapping[str, Path]) -> bytes:
    entries = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entries[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return json.dumps({"format": FORMAT, "files": entries}, sort_keys=True).encode()


def _verify(root: Path) -> None:
    where = Where(source=str(root))
    try:
        names = {path.name for path in root.iterdir()}
        if names != {*_FILES, "manifest.json"}:
            raise IntegrityError(f"its files are {sorted(names)}", where=where)
        written = (root / "manifest.json").read_bytes()
        # The manifest made again from the files must be the one that was written, byte for byte.
        if written != _manifest({name: root / name for name in _FILES}):
            raise IntegrityError("its files are not those of its manifest", where=where)
    except OSError as error:
        raise IntegrityError(f"unreadable: {error}", where=where) from error


def _to_json(value: Any, tensors: dict[str, Tensor], *, names: bool = False) -> Any:
    """A value as JSON, its tensors moved to `tensors`. Tuples and integer keys are kept as such.

    The same tensor twice (tied weights) is stored once. With `names` a flat mapping of tensors
    keeps its names in the file.
    """
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()

    def store(tensor: Tensor, name: str) -> dict[str, str]:
        pointer = tensor.untyped_storage().data_ptr()
        key = (pointer, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if not tensor.numel() or key not in seen:
            seen[key] = name
            # Two views of one storage: safetensors refuses shared memory.
            copy = tensor.detach().cpu().contiguous()
            tensors[name] = copy.clone() if pointer in storages else copy
            storages.add(pointer)
            return {"tensor": name}
        return {"tensor": seen[key]}

    def walk(item: Any, path: str) -> Any:
        if isinstance(item, Tensor):
            return store(item, path if names else f"t{len(tensors)}")
        if item is None or isinstance(item, bool | int | float | str):
            return item
        if isinstance(item, tuple):
            return {"tuple": [walk(x, path) for x in item]}
        if isinstance(item, list):
            return [walk(x, path) for x in item]
        if isinstance(item, Mapping) and all(type(k) in (str, int) for k in item):
            # Pairs, so that integer keys stay integers and no key is mistaken for a tag.
            return {"dict": [[k, walk(v, str(k))] for k, v in item.items()]}
        raise ConfigError(
            f"cannot store a {type(item).__name__} in a checkpoint at {path or 'the top'!r}",
            mend="Use JSON values, tuples and tensors",
        )

    return walk(value, "")


def _from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(x, tensors) for x in value]
    if isinstance(value, dict):
        (tag, content), *more = value.items()
        if more or tag not in ("tensor", "tuple", "dict"):
            raise ValueError(f"unknown tag {tag!r}")
        if tag == "tensor":
            return tensors[content]
        if tag == "tuple":
            return tuple(_from_json(x, tensors) for x in content)
        return {k: _from_json(v, tensors) for k, v in content}
    return value


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
