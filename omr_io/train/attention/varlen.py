"""The attention function that transformers calls, and the kernels it chooses from.

bfloat16 and float16 on CUDA: flash_attn when it is installed, else torch.nn.attention.varlen; one
call a layer and no sync. Otherwise `segment_attention`, by plain SDPA.

Legend: B packs, T tokens, H heads, K key heads, D head width, N rows (B * T, or patches),
M rows of keys, S segments.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from omr_io.batches.boundaries import HostBoundaries
from omr_io.errors import ConfigError
from omr_io.train.attention.prefixes import SharedPrefixes, gather_rows
from omr_io.train.attention.sdpa import segment_attention


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Segments of queries and keys as a variable-length kernel takes them: on the device, int32."""

    cu_seqlens: Tensor
    cu_key_seqlens: Tensor
    max_seqlen: int
    max_key_seqlen: int


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
    shared_prefixes: SharedPrefixes | None = None,
    text_boundaries: HostBoundaries | None = None,
    host_boundaries: HostBoundaries | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """The function behind both registered names; causal if `module.is_causal` (text) says so.

    On CUDA in bf16 or fp16 one FlashAttention call and no sync; otherwise `segment_attention`
    (on CUDA in fp32 that copies the boundaries to the host once a layer unless the batch
    brings them).

    Args:
        is_causal: False from the vision tower, which shares the forward's keyword arguments with
            the text model: then `shared_prefixes` is not meant for this call.
        cu_seq_lens_q: (S + 1,) boundaries over the flattened B * T rows, padding included. The text
            model needs either these or `shared_prefixes`.
        max_length_q: the longest segment; needed on CUDA only.
        shared_prefixes: segments of which some see another before themselves.
        text_boundaries: cu_seq_lens_q of the text model on the host.
        host_boundaries: those of the vision tower, which the model's forward takes as
            `image_host_boundaries`.

    Returns:
        (B, T, H, D) and no weights, as transformers expects.

    Raises:
        ConfigError: no boundaries, a mask, a sliding window, or keys longer than queries (a KV
            cache): answering anyway would let samples see each other.
    """
    text = is_causal is not False
    prefixes = shared_prefixes if text else None
    cached = key_BKTD.shape[2] != query_BHTD.shape[2]
    if (cu_seq_lens_q is None) == (prefixes is None) or attention_mask is not None or cached:
        raise ConfigError(
            "omr_varlen attention takes either cu_seq_lens_q or shared_prefixes, no mask and no KV "
            "cache",
            mend="Pass batch.model_inputs(); to generate, use rollout.generate or sdpa attention",
        )
    if _kwargs.get("sliding_window") is not None:
        raise ConfigError(
            "omr_varlen attention has no sliding window", mend="Set use_sliding_window to false"
        )
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query_BHTD, key_BKTD, value_BKTD))
    options: dict[str, Any] = {"causal": causal, "scale": scaling, "dropout": dropout}
    flash = query_BHTD.is_cuda and query_BHTD.dtype in (torch.bfloat16, torch.float16)
    if prefixes is not None:
        output_NHD = _prefix_attention(q, k, v, prefixes, flash=flash, **options)
    elif cu_seq_lens_q is not None and flash:
        if max_length_q is None:
            raise ConfigError("max_length_q is missing", mend="Pass batch.model_inputs()")
        cu = cu_seq_lens_q.to(dtype=torch.int32, device=q.device)
        length = int(max_length_q)
        output_NHD = flash_varlen(q, k, v, Boundaries(cu, cu, length, length), **options)
    elif cu_seq_lens_q is not None:
        known = text_boundaries if text else host_boundaries
        bounds = None if known is None else known.of(len(cu_seq_lens_q))
        output_NHD = segment_attention(q, k, v, bounds or tuple(cu_seq_lens_q.tolist()), **options)
    batch, _, tokens, _ = query_BHTD.shape
    return output_NHD.reshape(batch, tokens, *output_NHD.shape[1:]), None


def _prefix_attention(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    prefixes: SharedPrefixes,
    *,
    flash: bool,
    **options: Any,
) -> Tensor:
    """One call in which segments have more keys than queries: their prefix's rows, then their own.

    Raises:
        ConfigError: the segments do not cover the rows, or attention is not causal.
    """
    if not options["causal"] or prefixes.bounds[-1] != len(query_NHD):
        raise ConfigError(
            f"shared_prefixes cover {prefixes.bounds[-1]} rows and are for causal attention; here "
            f"are {len(query_NHD)} rows, causal is {options['causal']}",
            mend="Pass the model_inputs() of one batch, padding included",
        )
    index_M = prefixes.key_rows.to(query_NHD.device)
    key_MKD, value_MKD = gather_rows(key_NKD, index_M), gather_rows(value_NKD, index_M)
    if not flash:
        return segment_attention(
            query_NHD, key_MKD, value_MKD, prefixes.bounds, key_bounds=prefixes.key_bounds,
            **options,
        )  # fmt: skip
    boundaries = Boundaries(
        prefixes.cu_seqlens.to(query_NHD.device),
        prefixes.cu_key_seqlens.to(query_NHD.device),
        prefixes.max_seqlen,
        prefixes.max_key_seqlen,
    )
    return flash_varlen(query_NHD, key_MKD, value_MKD, boundaries, **options)


def flash_varlen(
    query_NHD: Tensor,
    key_MKD: Tensor,
    value_MKD: Tensor,
    boundaries: Boundaries,
    *,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """FlashAttention's variable-length kernel: flash_attn if it is installed, else torch's own.

    Where a segment has more keys than queries, the causal mask is aligned to the bottom right, in
    both: flash_attn since 2.1, and torch's kernel is that of flash_attn 2 and later.

    Raises:
        ConfigError: neither can do what is asked.
    """
    b = boundaries
    lengths = (b.cu_seqlens, b.cu_key_seqlens, b.max_seqlen, b.max_key_seqlen)
    installed = flash_attn_function()
    if installed is not None:
        out: Tensor = installed(
            query_NHD, key_MKD, value_MKD, *lengths,
            dropout_p=dropout, softmax_scale=scale, causal=causal,
        )  # fmt: skip
        return out
    if dropout > 0:
        raise ConfigError(
            "torch's variable-length attention has no dropout",
            mend="Set attention_dropout to 0, or install flash-attn",
        )
    output: Tensor = _torch_varlen()(
        query_NHD, key_MKD, value_MKD, *lengths,
        scale=scale, window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query_NHD.shape[1] != key_MKD.shape[1],
    )  # fmt: skip
    return output


@lru_cache(maxsize=1)
def flash_attn_function() -> Callable[..., Any] | None:
    """flash_attn's `flash_attn_varlen_func`; None if flash-attn 2 is not installed.

    Looked up once: a search of all import paths took as long as a small kernel, each layer.

    Raises:
        ConfigError: it is installed but cannot be imported, or is older than 2.1, whose causal mask
            is aligned to the top left: that would silently be another attention.
    """
    try:
        # flash-attn 4 installs a package of this name too, without this module.
        if importlib.util.find_spec("flash_attn.flash_attn_interface") is None:
            return None
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return None
        raise _broken_flash_attn(error) from error
    except ImportError as error:
        raise _broken_flash_attn(error) from error
    try:
        package = importlib.import_module("flash_attn")
        function: Callable[..., Any] = package.flash_attn_varlen_func
    except (ImportError, AttributeError) as error:
        raise _broken_flash_attn(error) from error
    version = str(getattr(package, "__version__", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (2, 1):
        raise ConfigError(
            f"flash-attn {version} aligns causal masks to the top left",
            mend="Install 2.1 or later, or uninstall it: torch's own kernel is used then",
        )
    return function


def _broken_flash_attn(error: Exception) -> ConfigError:
    return ConfigError(
        f"flash-attn is installed but cannot be imported: {error}",
        mend="Install a build for this torch and CUDA, or uninstall it: torch's own kernel is used "
        "then",
    )


def _torch_varlen() -> Callable[..., Any]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ConfigError(
            f"torch {torch.__version__} has no variable-length attention for CUDA",
            mend="Use torch 2.13 or later, or install flash-attn",
        ) from error
    function: Callable[..., Any] = varlen_attn
    return function
