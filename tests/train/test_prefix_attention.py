"""Attention with shared prefixes, and the kernels behind it, against a dense mask."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omr_io.batches.boundaries import HostBoundaries
from omr_io.errors import ConfigError
from omr_io.train.attention import (
    SharedPrefixes,
    segment_attention,
    share_prefixes,
    varlen_attention,
)
from omr_io.train.attention import varlen as kernels
from omr_io.train.attention.prefixes import gather_rows

LENGTHS = [4, 3, 1, 3, 5, 2, 6]
PREFIXES = [None, 0, 0, 0, None, 4, None]


def rows(lengths: list[int], key_heads: int = 2, dtype: Any = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(lengths))
    n = sum(lengths)
    shapes = ((n, 4, 8), (n, key_heads, 8), (n, key_heads, 8))
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def dense(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], prefixes: list[int | None]
) -> Tensor:
    """The definition: one mask over all rows, spelled out."""
    segment = [s for s, length in enumerate(lengths) for _ in range(length)]
    sees = [
        [(a == b and j <= i) or prefixes[a] == b for j, b in enumerate(segment)]
        for i, a in enumerate(segment)
    ]
    share = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(share, 1) for x in (k, v))
    scores = 0.3 * torch.einsum("ihd,jhd->hij", q, k)
    scores = scores.masked_fill(~torch.tensor(sees), -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)


def ours(q: Tensor, k: Tensor, v: Tensor, prefixes: SharedPrefixes) -> Tensor:
    """Through the function that transformers calls, as one pack."""
    module = torch.nn.Module()
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return varlen_attention(module, q, k, v, None, scaling=0.3, shared_prefixes=prefixes)[0][0]


def with_gradients(attention: Any, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = attention(*inputs)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64)
    grads = torch.autograd.grad((out * weights).sum(), inputs)
    return [out.detach(), *grads]


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], list[int | None]]:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any))
    prefixes: list[int | None] = []
    for number in range(len(lengths)):
        roots = [n for n in range(number) if prefixes[n] is None]
        prefixes.append(draw(st.sampled_from([None, *roots])))
    return lengths, prefixes


@settings(max_examples=60, deadline=None)
@given(plan=plans(), key_heads=st.sampled_from([1, 2, 4]))
def test_outputs_and_gradients_are_those_of_a_dense_mask(plan: Any, key_heads: int) -> None:
    """In float64, to its rounding: nothing is approximated."""
    lengths, prefixes = plan
    shared = share_prefixes(lengths, prefixes)
    inputs = rows(lengths, key_heads)
    found = with_gradients(lambda q, k, v: ours(q, k, v, shared), inputs)
    expected = with_gradients(lambda q, k, v: dense(q, k, v, lengths, prefixes), inputs)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_the_plan_spelled_out() -> None:
    plan = share_prefixes([2, 1, 0, 3], [None, 0, 0, None])
    assert plan.bounds == (0, 2, 3, 6)
    assert plan.key_bounds == (0, 2, 5, 8)
    assert plan.key_rows.tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    assert plan.cu_seqlens.tolist() == list(plan.bounds)
    assert plan.cu_key_seqlens.tolist() == list(plan.key_bounds)
    assert plan.cu_seqlens.dtype == plan.cu_key_seqlens.dtype == torch.int32
    assert (plan.max_seqlen, plan.max_key_seqlen) == (3, 3)


@pytest.mark.parametrize(
    ("lengths", "prefixes"),
    [
        ([2, 2], [None]),
        ([2, -1], [None, None]),
        ([2, 2], [None, 1]),  # itself
        ([2, 2], [1, None]),  # stands after
        ([2, 2, 2], [None, 0, 1]),  # a prefix of a prefix
        ([2, 2], [None, -1]),
    ],
)
def test_wrong_plans_are_errors(lengths: list[int], prefixes: list[int | None]) -> None:
    with pytest.raises(ConfigError):
        share_prefixes(lengths, prefixes)


def test_what_does_not_fit_the_plan_is_an_error() -> None:
    plan = share_prefixes(LENGTHS, PREFIXES)
    q, k, v = rows([*LENGTHS, 1])
    with pytest.raises(ConfigError, match=r"cover 24 rows .* are 25 rows"):
        ours(q, k, v, plan)
    module = torch.nn.Module()
    x = torch.zeros(1, 2, 24, 4)
    cu = torch.tensor([0, 24])
    with pytest.raises(ConfigError, match="either cu_seq_lens_q or shared_prefixes"):
        varlen_attention(module, x, x, x, None, cu_seq_lens_q=cu, shared_prefixes=plan)
    module.is_causal = False  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="causal is False"):
        varlen_attention(module, x, x, x, None, shared_prefixes=plan)
    with pytest.raises(ConfigError, match="2 queries and only 1 keys"):
        segment_attention(x[0, 0, :2, None], x[0, 0, :1, None], x[0, 0, :1, None], (0, 2),
                          key_bounds=(0, 1), causal=True)  # fmt: skip
    with pytest.raises(ConfigError, match="of keys end at 4, but there are 3 rows"):
        segment_attention(x[0, 0, :2, None], x[0, 0, :3, None], x[0, 0, :3, None], (0, 2),
                          key_bounds=(0, 4), causal=True)  # fmt: skip


def test_the_vision_tower_takes_no_notice_of_shared_prefixes() -> None:
    """Its calls get the forward's keyword arguments too, and say is_causal=False."""
    plan = share_prefixes(LENGTHS, PREFIXES)
    x = torch.randn(1, 2, 6, 4)
    cu = torch.tensor([0, 2, 6], dtype=torch.int32)
    options: dict[str, Any] = {"is_causal": False, "cu_seq_lens_q": cu}
    module = torch.nn.Module()
    plain = varlen_attention(module, x, x, x, None, **options)[0]
    given_both = varlen_attention(module, x, x, x, None, shared_prefixes=plan, **options)[0]
    assert torch.equal(plain, given_both)


class HostOnly(torch.Tensor):
    """A tensor whose values nobody may read on the host."""

    def tolist(self) -> Any:
        raise AssertionError("the boundaries were copied to the host")


def test_boundaries_from_the_host_are_used_as_they_are() -> None:
    known: dict[str, Any] = {
        "text_boundaries": HostBoundaries(((0, 4, 6),)),
        "host_boundaries": HostBoundaries(((0, 2, 4, 6), (0, 6))),
    }
    module = torch.nn.Module()
    x = torch.randn(1, 2, 6, 4)
    for bounds, causal in (((0, 4, 6), None), ((0, 2, 4, 6), False), ((0, 6), False)):
        cu = torch.tensor(bounds, dtype=torch.int32)
        expected = varlen_attention(module, x, x, x, None, is_causal=causal, cu_seq_lens_q=cu)[0]
        unread = cu.as_subclass(HostOnly)
        found = varlen_attention(
            module, x, x, x, None, is_causal=causal, cu_seq_lens_q=unread, **known
        )[0]
        assert torch.equal(found, expected)
        with pytest.raises(AssertionError, match="copied to the host"):
            varlen_attention(module, x, x, x, None, is_causal=causal, cu_seq_lens_q=unread)


def test_gathered_gradients_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 and 256 times 2^-9: added one by one in bfloat16, as on a GPU, all but the 1 is lost.

    The CPU's sum hides that, so the sum's dtype is looked at too.
    """
    dtypes = []
    add = torch.Tensor.index_add_

    def noting(self: Tensor, *args: Any) -> Tensor:
        dtypes.append(self.dtype)
        return add(self, *args)

    monkeypatch.setattr(torch.Tensor, "index_add_", noting)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x = torch.zeros(2, 1, 1, dtype=dtype, requires_grad=True)
        gradient = torch.full((257, 1, 1), 2.0**-9, dtype=dtype)
        gradient[0] = 1
        gather_rows(x, torch.zeros(257, dtype=torch.int64)).backward(gradient)
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert x.grad.flatten().tolist() == [1.5, 0.0]
        assert dtypes.pop() == wide


# The kernels' calls, with doubles in their place that do what the kernels' documents say.

FLASH_ATTN = """
__version__ = "{version}"
from .flash_attn_interface import flash_attn_varlen_func
"""
INTERFACE = """
calls = []

def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           dropout_p=0.0, softmax_scale=None, causal=False):
    from tests.train.test_prefix_attention import kernel_double
    calls.append((dropout_p, softmax_scale, causal))
    return kernel_double(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                         softmax_scale, causal)
"""


def kernel_double(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
    scale: float, causal: bool,
) -> Tensor:  # fmt: skip
    """A variable-length kernel: query i of L sees keys up to E - L + i."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == max(b - a for a, b in pairwise(cu_q.tolist()))
    assert max_k == max(b - a for a, b in pairwise(cu_k.tolist()))
    out = []
    bounds = zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)
    for (start, end), (key_start, key_end) in bounds:
        share = q.shape[1] // k.shape[1]
        keys, values = (x[key_start:key_end].repeat_interleave(share, 1) for x in (k, v))
        scores = scale * torch.einsum("ihd,jhd->hij", q[start:end], keys)
        if causal:
            last = torch.arange(end - start)[:, None] + len(keys) - (end - start)
            scores = scores.masked_fill(torch.arange(len(keys))[None] > last, -torch.inf)
        out.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), values))
    return torch.cat(out)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Forget which kernel was found, before and after."""

    def forget() -> None:
        kernels.flash_attn_function.cache_clear()
        for name in [n for n in sys.modules if n.split(".")[0] == "flash_attn"]:
            del sys.modules[name]

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    package = folder / "flash_attn"
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def through_the_kernel(plan: SharedPrefixes) -> list[Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels._prefix_attention(
            q, k, v, plan, flash=True, causal=True, scale=0.3, dropout=0.0
        )

    return with_gradients(attention, rows(LENGTHS))


def expected() -> list[Tensor]:
    return with_gradients(lambda q, k, v: dense(q, k, v, LENGTHS, PREFIXES), rows(LENGTHS))


def test_flash_attn_is_chosen_when_installed(fresh: Any, tmp_path: Path) -> None:
    install(tmp_path, fresh, __init__=FLASH_ATTN.format(version="2.8.3"),
            flash_attn_interface=INTERFACE)  # fmt: skip
    found = through_the_kernel(share_prefixes(LENGTHS, PREFIXES))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected(), strict=True))
    assert sys.modules["flash_attn.flash_attn_interface"].calls == [(0.0, 0.3, True)]


def test_torch_varlen_is_chosen_otherwise(fresh: Any) -> None:
    from torch.nn.attention import varlen

    calls: list[Any] = []

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, scale: float,
                    window_size: tuple[int, int], enable_gqa: bool) -> Tensor:  # fmt: skip
        calls.append((window_size, enable_gqa))
        return kernel_double(q, k, v, *lengths, scale, window_size == (-1, 0))

    fresh.setattr(varlen, "varlen_attn", varlen_attn)
    assert kernels.flash_attn_function() is None
    found = through_the_kernel(share_prefixes(LENGTHS, PREFIXES))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected(), strict=True))
    assert calls == [((-1, 0), True)]
    with pytest.raises(ConfigError, match="no dropout"):
        kernels._prefix_attention(
            *rows(LENGTHS), share_prefixes(LENGTHS, PREFIXES), flash=True, causal=True, scale=0.3,
            dropout=0.1,
        )  # fmt: skip


def test_the_kernels_here_take_these_arguments() -> None:
    """The doubles above stand for signatures that exist."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} < set(names)


def test_an_old_or_broken_flash_attn_is_refused(fresh: Any, tmp_path: Path) -> None:
    install(tmp_path, fresh, __init__=FLASH_ATTN.format(version="2.0.9"),
            flash_attn_interface=INTERFACE)  # fmt: skip
    with pytest.raises(ConfigError, match=r"flash-attn 2.0.9 aligns causal masks to the top left"):
        kernels.flash_attn_function()


@pytest.mark.parametrize(
    "files",
    [
        {"__init__": "raise ImportError('undefined symbol: x')", "flash_attn_interface": ""},
        {"__init__": "", "flash_attn_interface": ""},
        {"__init__": "import einops_that_is_missing", "flash_attn_interface": ""},
    ],
)
def test_a_broken_flash_attn_is_refused(fresh: Any, tmp_path: Path, files: dict[str, str]) -> None:
    install(tmp_path, fresh, **files)
    with pytest.raises(ConfigError, match="installed but cannot be imported"):
        kernels.flash_attn_function()


def test_another_package_of_that_name_is_not_flash_attn_2(fresh: Any, tmp_path: Path) -> None:
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    fresh.syspath_prepend(str(tmp_path))
    assert kernels.flash_attn_function() is None
