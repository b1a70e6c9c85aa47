"""Every backend against plain bfloat16 torch's own error, and what each must refuse."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from omr_io.errors import ConfigError, OmrWarning
from omr_io.reference.log_probs import plain_log_probs
from omr_io.train import log_prob_backends
from omr_io.train.log_prob_backends import apply_backend, shortfall
from omr_io.train.log_prob_tolerance import errors, excess, random_problem
from omr_io.train.log_probs import log_probs

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KERNELS = [
    pytest.param(name, marks=[pytest.mark.gpu, gpu]) for name in ("torch-cuda", "liger", "cce")
]
PACKAGES = {"liger": "liger_kernel", "cce": "cut_cross_entropy"}


def candidate(backend: str, *, entropy: bool, chunk: int | None = None) -> Any:
    name: Any = backend.removesuffix("-cuda")

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        got = log_probs(hidden, weight, targets, entropy=entropy, backend=name, chunk=chunk)
        return got.log_probs, got.entropy

    return run


# The tolerance, once, for all backends


@pytest.mark.parametrize("backend", ["torch", *KERNELS])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(("rows", "vocabulary"), [(700, 1000), (300, 5003), (60, 32_000)])
def test_as_exact_as_plain_torch(backend: str, extreme: bool, rows: int, vocabulary: int) -> None:
    if backend in PACKAGES:
        pytest.importorskip(PACKAGES[backend])
        if less := shortfall(backend, torch.device("cuda")):
            pytest.skip(f"refused here, since {less}")
    problem = random_problem(
        rows, vocabulary, extreme=extreme, device="cpu" if backend == "torch" else "cuda"
    )
    has_entropy = backend not in PACKAGES
    for chunk in (None,) if backend in PACKAGES else (None, 37):
        run = candidate(backend, entropy=has_entropy, chunk=chunk)
        assert excess(run, problem, entropy=has_entropy) == {}
    if has_entropy:
        assert excess(candidate(backend, entropy=False, chunk=37), problem, entropy=False) == {}


@pytest.mark.parametrize("chunk", [37, None])
def test_the_weighted_sums_gradients_are_the_same_to_the_bit(chunk: int | None) -> None:
    problem = random_problem(150, 1000, extreme=True)
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    scores = log_probs(hidden, weight, problem.targets, chunk=chunk).log_probs
    slow = torch.autograd.grad((scores * problem.grad).sum(), (hidden, weight))
    total = log_probs(
        hidden, weight, problem.targets, chunk=chunk, row_weights=problem.grad
    ).weighted_sum
    assert total is not None
    fast = torch.autograd.grad(total, (hidden, weight))
    assert torch.equal(fast[0], slow[0])
    # Chunks are added up in another order, in float32.
    torch.testing.assert_close(fast[1], slow[1], rtol=2**-7, atol=1e-6)


def in_bfloat16(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax in bfloat16: what the tolerance must not let pass."""
    scores = (hidden @ weight.T).log_softmax(1)
    entropy = -(scores.exp() * scores).sum(1)
    return scores.gather(1, targets[:, None]).squeeze(1), entropy


def adding_up_in_bfloat16(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, None]:
    """The weight's gradient as a sum of rounded chunks."""
    parts = zip(hidden.split(50), targets.split(50), strict=True)
    return torch.cat([plain_log_probs(h, weight, t)[0] for h, t in parts]), None


def test_the_tolerance_catches_what_is_worse() -> None:
    problem = random_problem(700, 1000)
    assert {"log_probs", "entropy"} <= set(excess(in_bfloat16, problem))
    assert set(excess(adding_up_in_bfloat16, problem, entropy=False)) == {"weight"}
    not_a_number = excess(lambda h, w, t: (plain_log_probs(h, w, t)[0] * float("nan"), None),
                          problem, entropy=False)  # fmt: skip
    assert set(not_a_number) == {"log_probs", "hidden", "weight"}


def test_errors_are_those_of_rounding() -> None:
    """Plain bfloat16 has an error in everything, float32 by our function next to none."""
    problem = random_problem(100, 1000)
    found, plain = errors(
        lambda h, w, t: candidate("torch", entropy=True)(h.float(), w.float(), t), problem
    )
    assert min(error.mean for error in plain.values()) > 1e-4
    assert found["log_probs"].greatest < 1e-5
    assert found["entropy"].greatest < 1e-5


# Choosing


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("liger", {"entropy": True}, "'liger' gives no entropy in float32"),
        ("cce", {"entropy": True}, "'cce' gives no entropy in float32"),
        ("liger", {"banned": (3,)}, "'liger' cannot ban ids"),
        ("cce", {"banned": (3,)}, "'cce' cannot ban ids"),
        ("cce", {"temperature": 0.7}, "'cce' has no temperature, and 0.7 is asked for"),
        ("liger", {"temperature": 0.7}, "'liger' is for CUDA in bfloat16, not for cpu"),
        ("cce", {}, "'cce' is for CUDA in bfloat16, not for cpu"),
    ],
)
def test_what_a_backend_cannot_give_is_refused(
    backend: Any, options: dict[str, Any], message: str
) -> None:
    problem = random_problem(5, 20)
    targets = problem.targets.clamp(min=4)
    with pytest.raises(ConfigError, match=message):
        log_probs(problem.hidden, problem.weight, targets, backend=backend, **options)


def test_auto_is_torch_without_a_gpu() -> None:
    problem = random_problem(5, 20)
    auto = log_probs(problem.hidden, problem.weight, problem.targets, backend="auto", entropy=True)
    torch_own = log_probs(problem.hidden, problem.weight, problem.targets, entropy=True)
    assert torch.equal(auto.log_probs, torch_own.log_probs)


def fake(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """Liger's package with one function of another's making."""
    package, ops = ModuleType("liger_kernel"), ModuleType("liger_kernel.ops")
    ops.LigerFusedLinearScaledCrossEntropyFunction = type(  # type: ignore[attr-defined]
        "Fused", (), {"apply": staticmethod(function)}
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)
    monkeypatch.setattr(log_prob_backends.importlib.util, "find_spec", lambda name: object())
    forget()


def forget() -> None:
    log_prob_backends._tried_and_taken.cache_clear()
    log_prob_backends.shortfall.cache_clear()


def fail(*_: Any) -> Tensor:
    raise RuntimeError("no kernel image is available")


def taken(*, trained: bool = True) -> bool:
    try:
        return log_prob_backends._tried_and_taken("liger", torch.device("cpu"), trained)
    finally:
        forget()


def test_auto_takes_only_what_it_has_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        log_prob_backends, "random_problem",
        lambda rows, vocabulary, **options: random_problem(500, 600, **options),
    )  # fmt: skip
    fake(monkeypatch, lambda h, w, t, _: -plain_log_probs(h, w, t)[0])
    assert taken()
    fake(monkeypatch, lambda h, w, t, _: -adding_up_in_bfloat16(h, w, t)[0])
    with pytest.warns(OmrWarning, match="does not use it on cpu: its weight is off by"):
        assert not taken()
    assert taken(trained=False)  # a frozen weight has no gradient to be wrong
    fake(monkeypatch, fail)
    with pytest.warns(OmrWarning, match="RuntimeError: no kernel image"):
        assert not taken()
    monkeypatch.setattr(log_prob_backends.importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not taken()  # not installed: nothing to say


# Adapters


def test_ligers_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def function(*arguments: Any) -> Tensor:
        seen.append(arguments[3:])
        return -plain_log_probs(*arguments[:3], temperature=arguments[3])[0]

    fake(monkeypatch, function)
    p = random_problem(9, 30)
    got = apply_backend("liger", p.hidden, p.weight, p.targets, 0.5)
    assert torch.equal(got, plain_log_probs(p.hidden, p.weight, p.targets, temperature=0.5)[0])
    assert seen == [(0.5,)]
    fake(monkeypatch, lambda h, w, t, _: h.sum())
    with pytest.raises(ConfigError, match=r"'liger' gave torch\.bfloat16"):
        apply_backend("liger", p.hidden, p.weight, p.targets, 1.0)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", None)
    with pytest.raises(ConfigError, match=r"pip install 'omr_io\[liger\]'"):
        apply_backend("liger", p.hidden, p.weight, p.targets, 1.0)


def test_ligers_own_function_on_the_cpu() -> None:
    """Its chunked torch, which GPUs other than Hopper run too: signature, sign, gradients."""
    pytest.importorskip("liger_kernel")
    problem = random_problem(300, 1000, extreme=True)

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, None]:
        return apply_backend("liger", hidden, weight, targets, 1.0), None

    assert excess(run, problem, entropy=False) == {}
    hidden, weight = problem.hidden.float(), problem.weight.float()
    warm = apply_backend("liger", hidden, weight, problem.targets, 0.7)
    expected = plain_log_probs(hidden, weight, problem.targets, temperature=0.7)[0]
    torch.testing.assert_close(warm, expected, rtol=1e-4, atol=1e-4)
    # Beyond its chunk of 512 rows it adds up in bfloat16: for trained weights it is refused.
    forget()
    assert shortfall("liger", torch.device("cpu")).startswith("its weight is off by")
    assert shortfall("liger", torch.device("cpu"), trained=False) == ""


def test_apples_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("cut_cross_entropy")
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    seen: dict[str, Any] = {}

    def apples(
        e: Tensor, c: Tensor, targets: Tensor, bias: Tensor | None = None,
        reduction: str = "mean", filter_eps: Any = "auto",
        accum_e_fp32: bool = False, accum_c_fp32: bool = False, impl: str = "cce",
    ) -> Tensor:  # fmt: skip
        seen.update(reduction=reduction, filter_eps=filter_eps, accum=(accum_e_fp32, accum_c_fp32))
        return -plain_log_probs(e, c, targets)[0]

    def index(e: Tensor, c: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        raise AssertionError("must not be called")

    p = random_problem(9, 30)
    package.linear_cross_entropy = apples  # type: ignore[attr-defined]
    got = apply_backend("cce", p.hidden, p.weight, p.targets, 1.0)
    assert torch.equal(got, plain_log_probs(p.hidden, p.weight, p.targets)[0])
    assert seen == {"reduction": "none", "filter_eps": None, "accum": (True, True)}
    package.linear_cross_entropy = index  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no accum_c_fp32 and no accum_e_fp32: it adds up"):
        apply_backend("cce", p.hidden, p.weight, p.targets, 1.0)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    with pytest.raises(ConfigError, match="Apple's repository"):
        apply_backend("cce", p.hidden, p.weight, p.targets, 1.0)


# On a GPU


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_no_look_from_the_host(row_weights: float | None) -> None:
    """Forward and backward make the host wait for nothing."""
    problem = random_problem(300, 5000, device="cuda")
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    rows = torch.arange(300, device="cuda")
    targets = problem.targets.clamp(min=5)
    for step in range(2):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            got = log_probs(
                hidden, weight, targets, rows=rows, chunk=64, banned=(1, 2, 4), entropy=True,
                row_weights=row_weights,
            )  # fmt: skip
            total = got.log_probs.sum() if got.weighted_sum is None else got.weighted_sum
            total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
