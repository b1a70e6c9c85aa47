"""The types of a loader's arguments, checked first: what is wrong is named, and what to give.

What a number or a name may be is checked by whoever uses it (`options`, `Blend`, `ops`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omr_io.blend import Blend
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode import Decoder
from omr_io.index import ShardSet
from omr_io.loader.quarantine import FailureBudget
from omr_io.packing import CostModel
from omr_io.remote_storage import RemoteOptions
from omr_io.tokenizer import Tokenizer
from omr_io.types import Int64Array

_WHOLE = ("seq_len", "packs_per_step", "seed", "num_threads", "prefetch", "prefetch_bytes")
_WHOLE_OR_NONE = ("rank", "world_size", "packs_per_batch", "window")

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "shards": (
        (str, Path, ShardSet, Blend),
        "Give a folder or a URL, an open ShardSet, or of several sets a "
        "Blend([Source(FOLDER), Source(FOLDER)])",
    ),
    "vision": (
        (VisionConfig,),
        "Give omr_io.VisionConfig.from_pretrained(FOLDER), or VisionConfig(...)",
    ),
    "tokenizer": ((str, Path, Tokenizer, type(None)), "Give a folder or an omr_io Tokenizer"),
    "chat": ((ChatFormat, type(None)), "Give ChatFormat.for_family(FAMILY, TOKENIZER), or None"),
    "too_long": ((str,), 'Give "error" or "drop"'),
    "truncate": ((str,), 'Give "refuse" or "completion"'),
    "cache": (
        (bool,),
        "Give True or False; where it is kept is said by the variable OMR_IO_CACHE_DIR",
    ),
    "remote": ((RemoteOptions, type(None)), "Give omr_io.RemoteOptions(cache=FOLDER), or None"),
    "cost": (
        (CostModel, type(None)),
        "Give omr_io.packing.CostModel.from_config(MODEL_FOLDER), or None",
    ),
    "failure_budget": (
        (FailureBudget, type(None)),
        "Give omr_io.FailureBudget(count=10, rate=0.001), or None",
    ),
    "device": ((str, torch.device), 'Give "cpu", "cuda" or a torch.device'),
    "implementation": ((str,), 'Give "auto", or a name of omr_io.ops.PACK'),
    "pixel_dtype": ((torch.dtype,), "Give torch.float32, torch.bfloat16 or torch.float16"),
    "pin_memory": ((bool, type(None)), "Give True, False or None"),
}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, numbers as Python's int and samples as an array.

    NumPy's numbers would be refused by JSON, which a state is written in.

    Raises:
        ConfigError: one is of another type.
    """
    made = dict(given)
    for name in _WHOLE:
        made[name] = whole(name, given[name])
    for name in _WHOLE_OR_NONE:
        made[name] = None if given[name] is None else whole(name, given[name])
    for name, (kinds, mend) in _KINDS.items():
        if not isinstance(given[name], kinds):
            raise _wrong(name, given[name], mend)
    decoder = given["decoder"]
    if not isinstance(decoder, str) and not _is_decoder(decoder):
        mend = 'Give "cpu", "auto", "dali" or "nvimgcodec", or what make_decoder gives'
        raise _wrong("decoder", decoder, mend)
    if given["samples"] is not None:
        made["samples"] = sample_numbers(given["samples"])
    return made


def sample_numbers(samples: Any) -> Int64Array:
    """Numbers of samples as an array: of an array, a list, a range, a tensor.

    Raises:
        ConfigError: they are no whole numbers in one dimension.
    """
    mend = "Give numbers in the index, such as [0, 3, 7] or np.arange(1000)"
    if not isinstance(samples, Sequence | np.ndarray | torch.Tensor) or isinstance(samples, str):
        raise _wrong("samples", samples, mend)
    try:
        made = np.asarray(samples)
    except (ValueError, TypeError, RuntimeError):  # ragged; on a GPU
        raise _wrong("samples", samples, mend) from None
    if not made.size and made.ndim == 1:
        return np.empty(0, np.int64)
    if made.dtype.kind == "b":
        mend = "Of a mask give np.flatnonzero(mask)"
    if made.ndim != 1 or made.dtype.kind not in "iu":
        what = f"samples has {made.dtype} of shape {made.shape}, not whole numbers in a row"
        raise ConfigError(what, mend=mend)
    if made.dtype.kind == "u" and made.max() > np.iinfo(np.int64).max:
        raise ConfigError(f"samples has the number {made.max()}", mend=mend)
    return made.astype(np.int64)


def whole(name: str, value: Any) -> int:
    """The number as Python's int.

    Raises:
        ConfigError: it is no whole number.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise _wrong(name, value, "Give a whole number")
    return int(value)


def _is_decoder(value: Any) -> bool:
    names = (name for name in vars(Decoder) if not name.startswith("_"))
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _wrong(name: str, value: Any, mend: str) -> ConfigError:
    shown = f" ({value!r})" if isinstance(value, str | int | float) else ""
    return ConfigError(f"{name} is a {type(value).__name__}{shown}", mend=mend)
