"""Attention in segments by plain SDPA: exact, differentiable, on any device and in any dtype.

Legend: N rows of queries, M rows of keys, H heads, K key heads, D head width, S segments,
G segments of equal lengths, L queries and E keys of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from omr_io.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """How segments are grouped into calls.

    Attributes:
        groups: (G, L, E) for each call: G segments of L queries and E keys, shortest first.
        order: (N,) int64, rows of queries sorted by group; None when they stand so already.
        key_order: (M,) int64, the same for rows of keys.
        inverse: (N,) int64, undoes `order`.
    """

    groups: tuple[tuple[int, int, int], ...]
    order: Tensor | None
    key_order: Tensor | None
    inverse: Tensor | None


@lru_cache(maxsize=64)
def plan_segments(
    bounds: tuple[int, ...], key_bounds: tuple[int, ...] | None = None
) -> SegmentPlan:
    """Group segments by lengths, so that equal ones share a call. Integers only, cached: all layers
    of a step ask for the same plan.

    Args:
        bounds: S + 1 boundaries, from 0, never decreasing. Empty segments are dropped.
        key_bounds: those of the keys; None when queries and keys are the same rows.

    Raises:
        ConfigError: boundaries do not start at 0, or decrease, or are not as many for keys; or a
            segment has fewer keys than queries.
    """
    keys = bounds if key_bounds is None else key_bounds
    for given in (bounds, keys):
        if not given or given[0] != 0 or any(end < start for start, end in pairwise(given)):
            raise ConfigError(f"cu_seqlens must start at 0 and never decrease, not {given[:8]}...")
    if len(bounds) != len(keys):
        raise ConfigError(f"{len(bounds) - 1} segments of queries, {len(keys) - 1} of keys")
    spans = sorted(
        (end - start, key_end - key_start, start, key_start)
        for (start, end), (key_start, key_end) in zip(pairwise(bounds), pairwise(keys), strict=True)
        if end > start
    )
    counts: dict[tuple[int, int], int] = {}
    for length, key_length, *_ in spans:
        if key_length < length:
            raise ConfigError(f"a segment has {length} queries and only {key_length} keys")
        counts[length, key_length] = counts.get((length, key_length), 0) + 1
    groups = tuple((count, *lengths) for lengths, count in counts.items())
    # The plan outlives this call: made in inference mode, its tensors would break a later backward.
    with torch.inference_mode(False):
        order = _sorted_rows([(start, length) for length, _, start, _ in spans])
        inverse = None if order is None else torch.argsort(order)
        key_order = order
        if key_bounds is not None:
            key_order = _sorted_rows([(start, length) for _, length, _, start in spans])
        return SegmentPlan(groups, order, key_order, inverse)


def _sorted_rows(spans: Sequence[tuple[int, int]]) -> Tensor | None:
    """The rows of (start, length) spans one after the other; None if that is 0, 1, 2, ..."""
    ends = [0, *(start + length for start, length in spans)]
    if all(start == end for (start, _), end in zip(spans, ends, strict=False)):
        return None
    return torch.cat([torch.arange(start, start + length) for start, length in spans])


def segment_attention(
    query_NHD: Tensor,
    key_MKD: Tensor,
    value_MKD: Tensor,
    bounds: tuple[int, ...],
    *,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
    key_bounds: tuple[int, ...] | None = None,
) -> Tensor:
    """Scaled dot-product attention inside each segment; (N, H, D), in the rows' own order.

    One SDPA a group of equal segments. K may divide H (grouped queries).

    Args:
        bounds: S + 1 bounds of segments over the N rows.
        causal: no query sees a later key. Where keys are more than queries the last ones match:
            query i of L sees keys 0 to E - L + i.
        key_bounds: S + 1 bounds over the M rows of keys; None: those of the queries.

    Raises:
        ConfigError: the segments do not cover the rows exactly; see also `plan_segments`.
    """
    plan = plan_segments(bounds, key_bounds)
    for name, end, rows in (
        ("cu_seqlens", bounds[-1], len(query_NHD)),
        ("cu_seqlens of keys", (key_bounds or bounds)[-1], len(key_MKD)),
    ):
        if end != rows:
            raise ConfigError(
                f"{name} end at {end}, but there are {rows} rows",
                mend="cu_seqlens run over the flattened B x T tokens, padding included",
            )
    query_NHD = _take(query_NHD, plan.order)
    key_MKD, value_MKD = _take(key_MKD, plan.key_order), _take(value_MKD, plan.key_order)
    outputs: list[Tensor] = []
    start = key_start = 0
    for count, length, key_length in plan.groups:
        end, key_end = start + count * length, key_start + count * key_length
        q = query_NHD[start:end].reshape(count, length, *query_NHD.shape[1:]).transpose(1, 2)
        k, v = (
            rows[key_start:key_end].reshape(count, key_length, *rows.shape[1:]).transpose(1, 2)
            for rows in (key_MKD, value_MKD)
        )
        mask_LE = None
        if causal and length != key_length:
            mask_LE = torch.ones(length, key_length, dtype=torch.bool, device=q.device)
            mask_LE = mask_LE.tril(key_length - length)
        output_GHLD = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask_LE, dropout_p=dropout, is_causal=causal and mask_LE is None,
            scale=scale, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(output_GHLD.transpose(1, 2).flatten(0, 1))
        start, key_start = end, key_end
    if not outputs:
        return query_NHD  # of no rows
    output_NHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _take(output_NHD, plan.inverse)


def _take(rows: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return rows
    if rows.is_cuda:  # from page-locked memory, since a plain copy would wait for the GPU
        index = index.pin_memory().to(rows.device, non_blocking=True)
    return rows.index_select(0, index)
