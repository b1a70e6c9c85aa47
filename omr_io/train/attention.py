"""Attention over packs: one call a layer, and no token sees another sample.

Legend: B packs, T tokens, H heads, K key heads, D head width, N rows (B * T, or patches),
S segments, L length of a segment, G segments of equal length.

transformers calls an attention function as ``f(module, query_BHTD, key_BKTD, value_BKTD,
attention_mask, dropout=, scaling=, **kwargs)`` and takes back ``(output_BTHD, None)``. Names it
does not know skip its mask building, so a pack costs no (T, T) mask; the boundaries arrive as
``cu_seq_lens_q``. The vision tower calls once a layer, instead of once an image, when its
implementation's name contains "flash".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from omr_io.errors import ConfigError

TEXT_ATTENTION = "omr_varlen"
VISION_ATTENTION = "omr_flash_varlen"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """How segments are grouped into calls.

    Attributes:
        groups: (G, L) for each call: G segments of L rows, shortest first.
        order: (N,) int64, rows sorted by group; None when they stand so already.
        inverse: (N,) int64, undoes `order`.
    """

    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None


@lru_cache(maxsize=64)
def plan_segments(cu_seqlens: tuple[int, ...]) -> SegmentPlan:
    """Group segments by length, so that equal ones share a call. Integers only, cached: all layers
    of a step ask for the same plan.

    Args:
        cu_seqlens: S + 1 boundaries, from 0, never decreasing. Empty segments are dropped.

    Raises:
        ConfigError: the boundaries do not start at 0, or decrease.
    """
    spans = [(end - start, start) for start, end in pairwise(cu_seqlens)]
    if not cu_seqlens or cu_seqlens[0] != 0 or any(length < 0 for length, _ in spans):
        raise ConfigError(f"cu_seqlens must start at 0 and never decrease, not {cu_seqlens[:8]}...")
    spans = sorted(span for span in spans if span[0] > 0)
    counts: dict[int, int] = {}
    for length, _ in spans:
        counts[length] = counts.get(length, 0) + 1
    groups = tuple((count, length) for length, count in counts.items())
    starts = [start for _, start in spans]
    if starts == sorted(starts):
        return SegmentPlan(groups, None, None)
    # The plan outlives this call: made in inference mode, its tensors would break a later backward.
    with torch.inference_mode(False):
        order = torch.cat([torch.arange(start, start + length) for length, start in spans])
        return SegmentPlan(groups, order, torch.argsort(order))


def segment_attention(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    cu_seqlens: tuple[int, ...],
    *,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention inside each segment; (N, H, D), in the rows' own order.

    Plain SDPA a group of equal segments: exact, differentiable, on any device. K may divide H
    (grouped queries).

    Raises:
        ConfigError: the segments do not cover the N rows exactly.
    """
    plan = plan_segments(cu_seqlens)
    if cu_seqlens[-1] != query_NHD.shape[0]:
        raise ConfigError(
            f"cu_seqlens end at {cu_seqlens[-1]}, but there are {query_NHD.shape[0]} rows",
            mend="cu_seqlens run over the flattened B x T tokens, padding included",
        )
    rows = [query_NHD, key_NKD, value_NKD]
    if plan.order is not None:
        order = plan.order.to(query_NHD.device)
        rows = [row.index_select(0, order) for row in rows]
    outputs: list[Tensor] = []
    start = 0
    for count, length in plan.groups:
        end = start + count * length
        q, k, v = (
            row[start:end].reshape(count, length, *row.shape[1:]).transpose(1, 2) for row in rows
        )
        output_GHLD = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=causal, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(output_GHLD.transpose(1, 2).flatten(0, 1))
        start = end
    output_NHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.inverse is None:
        return output_NHD
    return output_NHD.index_select(0, plan.inverse.to(output_NHD.device))


def _cuda_varlen(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """FlashAttention's variable-length kernel: flash_attn if it is installed, else torch's own."""
    cu = cu_seqlens.to(dtype=torch.int32, device=query_NHD.device)
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

        out: Tensor = flash_attn_varlen_func(
            query_NHD, key_NKD, value_NKD, cu, cu, max_seqlen, max_seqlen,
            dropout_p=dropout, softmax_scale=scale, causal=causal,
        )  # fmt: skip
        return out
    if dropout > 0:
        raise ConfigError(
            "torch's variable-length attention has no dropout",
            mend="Set attention_dropout to 0, or install flash-attn",
        )
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ConfigError(
            f"torch {torch.__version__} has no variable-length attention for CUDA",
            mend="Use torch 2.13 or later, or install flash-attn",
        ) from error
    output: Tensor = varlen_attn(  # type: ignore[assignment,unused-ignore]
        query_NHD, key_NKD, value_NKD, cu, cu, max_seqlen, max_seqlen,
        scale=scale, window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query_NHD.shape[1] != key_NKD.shape[1],
    )  # fmt: skip
    return output


def varlen_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """The function behind both registered names; causal if `module.is_causal` (text) says so.

    On CUDA in bf16 or fp16 one FlashAttention call and no sync; otherwise `segment_attention`
    (on CUDA in fp32 that copies the boundaries to the host once a layer: for checks, not training).

    Args:
        cu_seq_lens_q: (S + 1,) boundaries over the flattened B * T rows, padding included.
        max_length_q: the longest segment; needed on CUDA only.

    Returns:
        (B, T, H, D) and no weights, as transformers expects.

    Raises:
        ConfigError: no boundaries, a mask, a sliding window, or keys longer than queries (a KV
            cache): answering anyway would let samples see each other.
    """
    cached = key_BKTD.shape[2] != query_BHTD.shape[2]
    if cu_seq_lens_q is None or attention_mask is not None or cached:
        raise ConfigError(
            "omr_varlen attention takes cu_seq_lens_q, no mask and no KV cache",
            mend="Pass batch.model_inputs(); to generate, use rollout.generate or sdpa attention",
        )
    if _kwargs.get("sliding_window") is not None:
        raise ConfigError(
            "omr_varlen attention has no sliding window", mend="Set use_sliding_window to false"
        )
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BKTD, value_BKTD))
    options: dict[str, Any] = {"causal": causal, "scale": scaling, "dropout": dropout}
    if query_BHTD.is_cuda and query_BHTD.dtype in (torch.bfloat16, torch.float16):
        if max_length_q is None:
            raise ConfigError("max_length_q is missing", mend="Pass batch.model_inputs()")
        output_NHD = _cuda_varlen(q, k, v, cu_seq_lens_q, int(max_length_q), **options)
    else:
        output_NHD = segment_attention(q, k, v, tuple(cu_seq_lens_q.tolist()), **options)
    batch, _, tokens, _ = query_BHTD.shape
    return output_NHD.reshape(batch, tokens, *output_NHD.shape[1:]), None


def register_varlen() -> None:
    """Make both names known to transformers. Calling it again is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(TEXT_ATTENTION, varlen_attention)
    AttentionInterface.register(VISION_ATTENTION, varlen_attention)


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
