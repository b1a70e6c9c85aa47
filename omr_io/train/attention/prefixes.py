"""Which keys each segment sees, planned on the host: its own, and those of a segment it shares.

A group of RL is one prompt and its completions. Laid out once as [prompt][completion 1]
[completion 2]..., each completion attends to the prompt and to itself, causally. Its keys are then
the rows [prompt + completion], gathered for one layer at a time, and a variable-length kernel with
more keys than queries and a causal mask aligned to the bottom right computes exactly what the
unshared layout [prompt + completion 1][prompt + completion 2]... would. All that is linear in
tokens (projections, MLP, the vision tower) and the prompt's own attention is done once.

The other way, merging attention to the prompt and to oneself by their log-sum-exp, needs no
gathered keys, but neither flash_attn nor torch gives gradients through the log-sum-exp they return
(torch.nn.attention.varlen drops them silently): it would take their private backward functions.

Legend: N rows, S segments, K key heads, D head width, M gathered rows of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_io.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefixes:
    """Segments of queries and the keys of each; made by `share_prefixes`.

    The keyword argument `shared_prefixes` of the model's forward. Only the text model's attention
    looks at it; the vision tower has boundaries of its own.

    Attributes:
        bounds, key_bounds: S + 1 bounds of the segments over N rows of queries, and over M gathered
            rows of keys; on the host.
        key_rows: (M,) int64, the row of each gathered key; ascending within a segment.
        cu_seqlens, cu_key_seqlens: (S + 1,) int32, the bounds on the device.
        max_seqlen, max_key_seqlen: the longest segment of queries, and of keys.
    """

    bounds: tuple[int, ...]
    key_bounds: tuple[int, ...]
    key_rows: Tensor
    cu_seqlens: Tensor
    cu_key_seqlens: Tensor
    max_seqlen: int
    max_key_seqlen: int

    def to(self, device: torch.device | str, non_blocking: bool = True) -> SharedPrefixes:
        """The same with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SharedPrefixes:
        """The same with its tensors in page-locked memory; needs a CUDA device."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> SharedPrefixes:
        return dataclasses.replace(
            self,
            key_rows=change(self.key_rows),
            cu_seqlens=change(self.cu_seqlens),
            cu_key_seqlens=change(self.cu_key_seqlens),
        )


def share_prefixes(lengths: Sequence[int], prefixes: Sequence[int | None]) -> SharedPrefixes:
    """Plan attention where segments see a prefix, which is another segment, before themselves.

    Args:
        lengths: of S segments that follow one another, padding included. Empty ones are left out.
        prefixes: for each the number of the segment it sees in full, or None. A prefix stands
            before what sees it and has no prefix itself.

    Raises:
        ConfigError: the two do not fit each other, or a prefix is no such segment.
    """
    if len(lengths) != len(prefixes) or any(length < 0 for length in lengths):
        raise ConfigError(f"{len(lengths)} lengths, none negative, and {len(prefixes)} prefixes")
    starts = [0, *accumulate(lengths)]
    rows: list[Any] = []
    query_lengths: list[int] = []
    key_lengths: list[int] = []
    for number, (length, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        if prefix is not None and not (0 <= prefix < number and prefixes[prefix] is None):
            raise ConfigError(
                f"segment {number} has segment {prefix} as its prefix",
                mend="A prefix stands before the segments that see it and has none itself",
            )
        if length == 0:
            continue
        before = 0 if prefix is None else lengths[prefix]
        if prefix is not None:
            rows.append(np.arange(starts[prefix], starts[prefix] + before))
        rows.append(np.arange(starts[number], starts[number] + length))
        query_lengths.append(length)
        key_lengths.append(before + length)
    bounds = (0, *accumulate(query_lengths))
    key_bounds = (0, *accumulate(key_lengths))
    return SharedPrefixes(
        bounds=bounds,
        key_bounds=key_bounds,
        key_rows=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows])),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        cu_key_seqlens=torch.tensor(key_bounds, dtype=torch.int32),
        max_seqlen=max(query_lengths, default=0),
        max_key_seqlen=max(key_lengths, default=0),
    )


def gather_rows(rows_NKD: Tensor, index_M: Tensor) -> Tensor:
    """rows_NKD[index_M], (M, K, D), whose gradient is summed in float32.

    A prompt's row is gathered once a completion; in bfloat16 that many gradients added one by one
    would lose bits that the unshared layout keeps.
    """
    out: Tensor = _GatherRows.apply(rows_NKD, index_M)  # type: ignore[no-untyped-call]
    return out


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_NKD: Tensor, index_M: Tensor) -> Tensor:
        ctx.save_for_backward(index_M)
        ctx.count = len(rows_NKD)
        return rows_NKD.index_select(0, index_M)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_MKD: Tensor) -> tuple[Tensor, None]:
        (index_M,) = ctx.saved_tensors
        dtype = gradient_MKD.dtype
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        sums_NKD = gradient_MKD.new_zeros((ctx.count, *gradient_MKD.shape[1:]), dtype=wide)
        return sums_NKD.index_add_(0, index_M, gradient_MKD.to(wide)).to(dtype), None
