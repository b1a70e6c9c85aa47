"""Other packages' kernels for `omr_io.train.log_probs`, and which of them may be used.

| name | package | refused |
|---|---|---|
| liger | liger-kernel >= 0.8.2 (the extra "liger") | entropy, banned ids |
| cce | Apple's cut_cross_entropy, from its own repository | entropy, banned ids, temperature |

Liger's LigerFusedLinearScaledCrossEntropyFunction rounds its entropy to bfloat16 (by up to 0.03 at
8 nats), so it is not offered. It adds up the weight's gradient in bfloat16, by 512 or 1,024 rows;
on compute capability 9.0 it needs its extra "cutedsl", elsewhere it runs chunked torch. It checks
targets by a look from the host, so it syncs. The cut-cross-entropy on the package index (25.1.1,
January 2025) differs from that repository: it adds up all gradients in bfloat16, always.

So a kernel is tried out before its first use, on the GPU it is to run on: see `shortfall`. Neither
was run on a GPU here.

Legend: R rows, H hidden width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from omr_io.errors import ConfigError, OmrWarning
from omr_io.train.log_prob_tolerance import excess, random_problem

Backend = Literal["torch", "liger", "cce", "auto"]


def _liger(hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, temperature: float) -> Tensor:
    try:
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Fused
    except ImportError as error:
        raise ConfigError(
            f"backend 'liger' cannot be loaded: {error}",
            mend="It needs liger-kernel 0.8.2 or newer: pip install 'omr_io[liger]'",
        ) from error
    losses_R: Tensor = Fused.apply(hidden_RH, weight_VH, targets_R, float(temperature))
    return -losses_R


def _cce(hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, temperature: float) -> Tensor:
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise ConfigError(
            f"backend 'cce' cannot be loaded: {error}",
            mend="Install cut-cross-entropy from Apple's repository, ml-cross-entropy",
        ) from error
    missing = {"accum_e_fp32", "accum_c_fp32"} - set(
        inspect.signature(linear_cross_entropy).parameters
    )
    if missing:
        raise ConfigError(
            f"this cut_cross_entropy has no {' and no '.join(sorted(missing))}: it adds up "
            "gradients in 16 bits",
            mend="Install cut-cross-entropy from Apple's repository, ml-cross-entropy, instead of "
            "the package index' 25.1.1",
        )
    # filter_eps=None: no part of the gradient is left out for being small.
    losses_R: Tensor = linear_cross_entropy(
        hidden_RH, weight_VH, targets_R, reduction="none", impl="cce",
        filter_eps=None, accum_e_fp32=True, accum_c_fp32=True,
    )  # fmt: skip
    return -losses_R


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One adapter: its package, its function, and what it can do."""

    package: str
    apply: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    temperature: bool


_KERNELS: Mapping[str, _Kernel] = MappingProxyType(
    {
        "liger": _Kernel("liger_kernel", _liger, temperature=True),
        "cce": _Kernel("cut_cross_entropy", _cce, temperature=False),
    }
)


def apply_backend(
    name: str, hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor, temperature: float
) -> Tensor:
    """Log-probabilities, (R,) float32, by an external kernel; differentiable.

    Args:
        hidden_RH, weight_VH: of one dtype, on one CUDA device; R at least 1.

    Raises:
        ConfigError: the package is not installed, or too old.
    """
    scores_R = _KERNELS[name].apply(hidden_RH, weight_VH, targets_R, temperature)
    if scores_R.shape != targets_R.shape or scores_R.dtype != torch.float32:
        raise ConfigError(
            f"backend {name!r} gave {scores_R.dtype} {tuple(scores_R.shape)} where float32 "
            f"{tuple(targets_R.shape)} was expected",
            mend="Its package has changed: use backend 'torch'",
        )
    return scores_R


def choose_backend(
    backend: Backend,
    hidden_RH: Tensor,
    weight_VH: Tensor,
    dtype: torch.dtype,
    *,
    entropy: bool,
    temperature: float,
    banned: tuple[int, ...],
) -> str:
    """The implementation to use: "torch" or the name of an external kernel.

    Raises:
        ConfigError: no such backend, or it cannot give what is asked (by name).
    """
    if backend == "torch":
        return "torch"
    trained = weight_VH.requires_grad
    if backend == "auto":
        usable = hidden_RH.is_cuda and len(hidden_RH) and dtype == torch.bfloat16
        for name in _KERNELS if usable else ():
            wanting = _refusal(name, entropy=entropy, temperature=temperature, banned=banned)
            if wanting is None and _tried_and_taken(name, hidden_RH.device, trained):
                return name
        return "torch"
    if backend not in _KERNELS:
        raise ConfigError(f"there is no backend {backend!r}: torch, auto, {', '.join(_KERNELS)}")
    wanting = _refusal(backend, entropy=entropy, temperature=temperature, banned=banned)
    if wanting is None and not (hidden_RH.is_cuda and dtype == torch.bfloat16):
        wanting = f"is for CUDA in bfloat16, not for {hidden_RH.device} in {dtype}"
    if wanting is None and (less := shortfall(backend, hidden_RH.device, trained)):
        wanting = f"is less exact than plain torch on {hidden_RH.device}: {less}"
    if wanting is not None:
        raise ConfigError(f"backend {backend!r} {wanting}", mend="Use backend 'torch' for that")
    # Both kernels refuse a call without rows; a rank's batch without labels is legal.
    return backend if len(hidden_RH) else "torch"


def _refusal(
    name: str, *, entropy: bool, temperature: float, banned: tuple[int, ...]
) -> str | None:
    """What a kernel cannot give of what is asked."""
    if entropy:
        return "gives no entropy in float32"
    if banned:
        return "cannot ban ids"
    if temperature != 1.0 and not _KERNELS[name].temperature:
        return f"has no temperature, and {temperature} is asked for"
    return None


@lru_cache(maxsize=16)
def _tried_and_taken(name: str, device: torch.device, trained: bool) -> bool:
    """Whether "auto" may use a kernel; says once why it does not use one that is installed."""
    if importlib.util.find_spec(_KERNELS[name].package) is None:
        return False
    try:
        less = shortfall(name, device, trained)
    except ConfigError as error:
        less = str(error)
    if less:
        warnings.warn(
            f"{name} is installed, but backend 'auto' does not use it on {device}: {less}. "
            "Use backend 'torch' to be rid of this warning",
            OmrWarning,
            stacklevel=2,
        )
    return not less


@lru_cache(maxsize=16)
def shortfall(name: str, device: torch.device, trained: bool = True) -> str:
    """Where a kernel is less exact than plain bfloat16 torch on a device, or fails; "" if nowhere.

    Tried out on two random problems, once in a process: about a second.

    Args:
        trained: the weight's gradient is needed; without it, its errors do not count.

    Raises:
        ConfigError: the package is not installed, or too old.
    """

    def candidate(
        hidden_RH: Tensor, weight_VH: Tensor, targets_R: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return apply_backend(name, hidden_RH, weight_VH, targets_R, 1.0), None

    try:
        for extreme in (False, True):
            # More rows than its chunk, so that the adding up of gradients is tried as well.
            problem = random_problem(3072, 4096, width=256, extreme=extreme, device=device)
            with torch.enable_grad():
                beyond = excess(candidate, problem, entropy=False)
            for quantity, (found, plain) in beyond.items():
                if trained or quantity != "weight":
                    return (
                        f"its {quantity} is off by {found.mean:.2g} on average (greatest "
                        f"{found.greatest:.2g}), plain torch's by {plain.mean:.2g} "
                        f"({plain.greatest:.2g})"
                    )
    except ConfigError:
        raise
    except Exception as error:  # whatever another package's kernel may raise
        return f"{type(error).__name__}: {error}"
    return ""
