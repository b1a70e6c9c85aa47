"""The chunked log-probabilities against plain torch, torch.distributions and loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omr_io.errors import ConfigError, TrainingError
from omr_io.reference.log_probs import plain_log_probs
from omr_io.train import chunked_log_probs
from omr_io.train.log_probs import log_probs
from omr_io.train.objectives import grpo_loss, sft_loss

H, V = 6, 11


def head(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, H, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(4, V, (rows,), generator=g)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


# The oracle


@pytest.mark.parametrize(("temperature", "banned"), [(1.0, ()), (0.7, (0, 2, 3)), (1.3, (1,))])
def test_the_oracle_equals_a_loop_and_torch_distributions(
    temperature: float, banned: tuple[int, ...]
) -> None:
    hidden, weight, targets = head(7, dtype=torch.float64)
    scores, entropy = plain_log_probs(
        hidden, weight, targets, temperature=temperature, banned=banned
    )
    for row in range(7):
        shares = torch.tensor(
            [
                0.0 if v in banned else torch.exp(hidden[row] @ weight[v] / temperature).item()
                for v in range(V)
            ],
            dtype=torch.float64,
        )
        shares = shares / shares.sum()
        assert scores[row].exp().item() == pytest.approx(shares[targets[row]].item())
        distribution = torch.distributions.Categorical(probs=shares)
        assert entropy[row].item() == pytest.approx(distribution.entropy().item())


# Values and gradients


@pytest.mark.parametrize("chunk", [*range(1, 8), 100, None])
@pytest.mark.parametrize(("temperature", "banned"), [(1.0, ()), (0.7, ()), (1.3, (0, 2, 3))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_plain_torch(
    chunk: int | None, temperature: float, banned: tuple[int, ...], dtype: torch.dtype
) -> None:
    hidden, weight, targets = head(7, dtype=dtype)
    options: Any = {"temperature": temperature, "banned": banned}
    got = log_probs(hidden, weight, targets, entropy=True, chunk=chunk, **options)
    scores, entropy = plain_log_probs(hidden, weight, targets, **options)
    assert got.weighted_sum is None
    assert got.entropy is not None
    assert got.log_probs.dtype == got.entropy.dtype == dtype
    tight = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 2e-6}
    torch.testing.assert_close(got.log_probs, scores, **{"rtol": 1e-5, **tight})
    torch.testing.assert_close(got.entropy, entropy, **{"rtol": 1e-5, **tight})
    above = torch.linspace(-1, 2, 7, dtype=dtype), torch.linspace(1, -3, 7, dtype=dtype)
    pairs = [
        (got.log_probs, scores, above[0]),
        (got.entropy, entropy, above[1]),
    ]
    for terms in (pairs, pairs[:1], pairs[1:]):
        fast, slow = (
            torch.autograd.grad(
                [pair[which] for pair in terms],
                (hidden, weight),
                [pair[2] for pair in terms],
                retain_graph=True,
            )
            for which in (0, 1)
        )
        for a, b in zip(fast, slow, strict=True):
            torch.testing.assert_close(a, b, **{"rtol": 1e-5, **tight})


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("banned", [(), (0, 2, 3)])
def test_gradcheck(chunk: int, banned: tuple[int, ...]) -> None:
    hidden, weight, targets = head(5, dtype=torch.float64)

    def both(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        got = log_probs(
            hidden, weight, targets, entropy=True, chunk=chunk, temperature=0.8, banned=banned
        )
        assert got.entropy is not None
        return got.log_probs, got.entropy

    # Gradients of log-probabilities, entropy and their mixtures against finite differences.
    assert torch.autograd.gradcheck(both, (hidden, weight))


@given(
    rows=st.integers(0, 40),
    vocabulary=st.integers(2, 300),
    width=st.integers(1, 33),
    chunk=st.none() | st.integers(1, 50),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    bans=st.integers(0, 5),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_any_shape(
    rows: int, vocabulary: int, width: int, chunk: int | None, temperature: float,
    bans: int, scale: float, seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(rows, width, generator=g)).double().requires_grad_()
    weight = torch.randn(vocabulary, width, generator=g).double().requires_grad_()
    order = torch.randperm(vocabulary, generator=g).tolist()
    banned = tuple(order[: min(bans, vocabulary - 1)])
    allowed = torch.tensor(order[len(banned) :])
    targets = allowed[torch.randint(len(allowed), (rows,), generator=g)]
    weights = torch.randn(rows, generator=g).double()
    options: Any = {"temperature": temperature, "banned": banned}
    scores, entropy = plain_log_probs(hidden, weight, targets, **options)
    slow = torch.autograd.grad((scores * weights).sum(), (hidden, weight))
    two_ways = [
        log_probs(hidden, weight, targets, entropy=True, chunk=chunk, row_weights=given, **options)
        for given in (None, weights)
    ]
    for got in two_ways:
        assert got.entropy is not None
        torch.testing.assert_close(got.log_probs.detach(), scores.detach())
        torch.testing.assert_close(got.entropy.detach(), entropy.detach(), atol=1e-9, rtol=1e-7)
    total = two_ways[1].weighted_sum
    assert total is not None
    for loss in ((two_ways[0].log_probs * weights).sum(), total):
        for a, b in zip(torch.autograd.grad(loss, (hidden, weight)), slow, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_no_rows_give_zeros() -> None:
    hidden, weight, targets = head(0)
    for row_weights in (None, 1.0):
        got = log_probs(hidden, weight, targets, entropy=True, row_weights=row_weights)
        assert got.entropy is not None
        assert got.log_probs.shape == got.entropy.shape == (0,)
        loss = got.log_probs.sum() if got.weighted_sum is None else got.weighted_sum
        assert loss.item() == 0.0
        grads = torch.autograd.grad(loss, (hidden, weight))
        # Zeros, not None: the collectives of sharded training wait for every rank's gradient.
        assert grads[0].shape == (0, H)
        assert torch.equal(grads[1], torch.zeros(V, H))


def test_logits_of_any_size() -> None:
    """Logits of thousands, and a row that is certain: no overflow, nothing lost to cancellation."""
    weight = torch.tensor([[5e3], [5e3 - 0.5], [-5e3]], requires_grad=True)
    hidden = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    got = log_probs(hidden, weight, torch.tensor([1, 2, 0]), entropy=True)
    shares = torch.tensor([0.5, 0.0]).softmax(0)
    expected = torch.tensor([shares[1].log(), 0.0, -torch.tensor(3.0).log()])
    torch.testing.assert_close(got.log_probs, expected)
    assert got.entropy is not None
    uncertain = -(shares * shares.log()).sum()
    torch.testing.assert_close(got.entropy, torch.tensor([uncertain, 0.0, torch.tensor(3.0).log()]))
    grads = torch.autograd.grad(got.log_probs.sum() + got.entropy.sum(), (hidden, weight))
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_what_is_not_finite_stays_so() -> None:
    hidden, weight, targets = head(3)
    with torch.no_grad():
        hidden[1, 0] = float("nan")
    got = log_probs(hidden, weight, targets, banned=(0,))
    assert got.log_probs.isnan().tolist() == [False, True, False]


# Losses


@pytest.mark.parametrize("chunk", [2, None])
def test_losses_are_those_of_plain_torch(chunk: int | None) -> None:
    """SFT against F.cross_entropy; GRPO, clipped and with KL, against the same loss of plain."""
    hidden, weight, targets = head(9)
    mean = F.cross_entropy(hidden @ weight.T, targets)
    expected = torch.autograd.grad(mean, (hidden, weight))
    for row_weights in (None, 1.0):
        labels = log_probs(hidden, weight, targets, chunk=chunk, row_weights=row_weights)
        loss = sft_loss(labels, 9)
        torch.testing.assert_close(loss, mean)
        for a, b in zip(torch.autograd.grad(loss, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    g = torch.Generator().manual_seed(1)
    options: Any = {"temperature": 0.8, "banned": (0, 2)}
    plain = plain_log_probs(hidden, weight, targets, **options)[0]
    old = plain.detach() + 0.4 * torch.randn(9, generator=g)
    rest: Any = {"beta": 0.1, "reference_logprobs": plain.detach() + 0.2}
    mask = torch.ones(9, dtype=torch.bool)
    advantages = torch.randn(9, generator=g)
    ours = log_probs(hidden, weight, targets, chunk=chunk, **options).log_probs
    fast, slow = (grpo_loss(s, old, advantages, mask, 20, **rest) for s in (ours, plain))
    assert 0 < slow.clip_share.item() < 9 / 20
    torch.testing.assert_close(fast.loss, slow.loss)
    torch.testing.assert_close(fast.kl, slow.kl)
    grads = (torch.autograd.grad(policy.loss, (hidden, weight)) for policy in (fast, slow))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# How it is called


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_frozen_and_tied_weights(chunk: int, row_weights: float | None) -> None:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        got = log_probs(hidden, weight, targets, chunk=chunk, row_weights=row_weights)
        return got.log_probs.sum() if got.weighted_sum is None else got.weighted_sum

    hidden, weight, targets = head(5)
    slow = torch.autograd.grad(plain_log_probs(hidden, weight, targets)[0].sum(), (hidden, weight))
    frozen = weight.detach()
    with largest() as seen:
        (fast,) = torch.autograd.grad(loss(hidden, frozen, targets), hidden)
    torch.testing.assert_close(fast, slow[0])
    assert (V, H) not in seen.shapes  # no gradient of a frozen weight
    (fast,) = torch.autograd.grad(loss(hidden.detach(), weight, targets), weight)
    torch.testing.assert_close(fast, slow[1])
    ids = torch.tensor([4, 5, 9, 10, 4])
    tied = weight.detach().clone().requires_grad_()
    (fast,) = torch.autograd.grad(loss(F.embedding(ids, tied).tanh(), tied, targets), tied)
    plain = plain_log_probs(F.embedding(ids, tied).tanh(), tied, targets)[0].sum()
    torch.testing.assert_close(fast, torch.autograd.grad(plain, tied)[0])


def test_rows_are_taken_from_all_positions() -> None:
    _, weight, targets = head(4)
    everything = torch.randn(2, 5, H, requires_grad=True)
    rows = torch.tensor([0, 3, 4, 8])
    got = log_probs(everything, weight, targets, rows=rows).log_probs
    expected, _ = plain_log_probs(everything.flatten(0, 1)[rows], weight, targets)
    torch.testing.assert_close(got, expected)
    fast, slow = (torch.autograd.grad(s.sum(), everything)[0] for s in (got, expected))
    torch.testing.assert_close(fast, slow)
    unlabelled = torch.ones(10, dtype=torch.bool)
    unlabelled[rows] = False
    assert (fast.flatten(0, 1)[unlabelled] == 0).all()
    assert (fast.flatten(0, 1)[rows] != 0).all()


def test_without_gradients() -> None:
    hidden, weight, targets = head(5)
    expected = log_probs(hidden, weight, targets, chunk=2)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            for row_weights in (None, 1.0):
                got = log_probs(hidden, weight, targets, chunk=2, row_weights=row_weights)
                assert torch.equal(got.log_probs, expected.log_probs)
                assert not got.log_probs.requires_grad
    got = log_probs(hidden, weight, targets, row_weights=1.0, entropy=True)
    assert got.entropy is not None
    assert got.weighted_sum is not None
    assert not got.log_probs.requires_grad
    assert not got.entropy.requires_grad
    assert got.weighted_sum.requires_grad


def test_a_graph_that_is_used_twice() -> None:
    """The kept logits are overwritten by the first pass: the second must not read them."""
    hidden, weight, targets = head(5)
    for chunk in (2, 100):
        got = log_probs(hidden, weight, targets, chunk=chunk, entropy=True)
        assert got.entropy is not None
        total = got.log_probs.sum() + got.entropy.sum()
        first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
        second = torch.autograd.grad(total, (hidden, weight))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    sum_once = log_probs(hidden, weight, targets, row_weights=1.0).weighted_sum
    assert sum_once is not None
    torch.autograd.grad(sum_once, hidden, retain_graph=True)
    with pytest.raises(TrainingError, match="already differentiated"):
        torch.autograd.grad(sum_once, hidden)


def test_weighted_sum_takes_what_comes_from_above() -> None:
    hidden, weight, targets = head(5)
    row_weights = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    got = log_probs(hidden, weight, targets, row_weights=row_weights, chunk=2).weighted_sum
    plain = (plain_log_probs(hidden, weight, targets)[0] * row_weights).sum()
    assert got is not None
    fast, slow = (
        torch.autograd.grad((total * 0.3) ** 2, (hidden, weight)) for total in (got, plain)
    )
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_a_second_derivative_is_refused(row_weights: float | None) -> None:
    hidden, weight, targets = head(3)
    got = log_probs(hidden, weight, targets, row_weights=row_weights)
    total = got.log_probs.sum() if got.weighted_sum is None else got.weighted_sum
    with pytest.raises(TrainingError, match="no second derivative"):
        torch.autograd.grad(total, hidden, create_graph=True)


@pytest.mark.parametrize("chunk", [2, 100])
def test_autocast_is_that_of_a_linear_layer(chunk: int) -> None:
    """float32 parameters under autocast: products in bfloat16, gradients in float32."""
    hidden, weight, targets = head(6)
    with torch.autocast("cpu", torch.bfloat16):
        got = log_probs(hidden, weight, targets, chunk=chunk, entropy=True)
        logits = F.linear(hidden, weight)
    assert logits.dtype == torch.bfloat16
    expected = logits.float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(got.log_probs, expected)
    fast, slow = (torch.autograd.grad(s.sum(), (hidden, weight)) for s in (got.log_probs, expected))
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    plain = log_probs(hidden, weight, targets).log_probs
    assert not torch.equal(plain, got.log_probs)  # so autocast was heard


def test_bfloat16_states_under_a_float32_weight() -> None:
    hidden, weight, targets = head(6)
    half = hidden.detach().bfloat16().requires_grad_()
    got = log_probs(half, weight, targets, chunk=4).log_probs
    expected, _ = plain_log_probs(half, weight.bfloat16(), targets)
    torch.testing.assert_close(got, expected)
    grads = torch.autograd.grad(got.sum(), (half, weight))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]


# Memory


class Allocations(TorchDispatchMode):
    """New tensors that operations make: the largest, and all shapes. Counts products too."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.products = 0
        self.shapes: set[tuple[int, ...]] = set()
        self.most_bytes = 0  # of all that lived at a time
        self._living: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, leaf.numel())
                self.shapes.add(tuple(leaf.shape))
                storage = leaf.untyped_storage()
                self._living[StorageWeakRef(storage)] = storage.nbytes()
                del storage
        self._living = {ref: size for ref, size in self._living.items() if not ref.expired()}
        self.most_bytes = max(self.most_bytes, sum(self._living.values()))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return result


@contextlib.contextmanager
def largest() -> Iterator[Allocations]:
    with Allocations() as seen:
        yield seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_no_tensor_is_larger_than_a_chunks_logits(
    dtype: torch.dtype, row_weights: float | None
) -> None:
    rows, vocabulary, chunk = 64, 5000, 8
    hidden = torch.randn(rows, H).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, H).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    with largest() as seen:
        got = log_probs(hidden, weight, targets, chunk=chunk, entropy=True, row_weights=row_weights)
        total = got.weighted_sum
        if total is None:
            assert got.entropy is not None
            total = got.log_probs.sum() + got.entropy.sum()
        total.backward()
    assert seen.numel == chunk * vocabulary
    with largest() as seen:
        plain_log_probs(hidden, weight, targets)[0].sum().backward()
    assert seen.numel == rows * vocabulary  # so the mode sees what there is to see


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_weights", [None, 1.0])
def test_working_memory_is_twice_a_chunks_logits(
    dtype: torch.dtype, row_weights: float | None
) -> None:
    rows, vocabulary, chunk = 32, 20_000, 8
    hidden = torch.randn(rows, 4).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 4).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,))
    with largest() as seen:
        got = log_probs(hidden, weight, targets, chunk=chunk, entropy=True, row_weights=row_weights)
        total = got.weighted_sum
        if total is None:
            assert got.entropy is not None
            total = got.log_probs.sum() + got.entropy.sum()
        total.backward()
    assert 1.9 < seen.most_bytes / (4 * chunk * vocabulary) < 2.02


def test_the_default_chunk_keeps_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_log_probs, "MAX_LOGITS", 10 * V + 3)
    hidden, weight, targets = head(64)
    with largest() as seen:
        log_probs(hidden, weight, targets).log_probs.sum().backward()
    chunks = {shape[0] for shape in seen.shapes if shape[1:] == (V,)}
    assert chunks == {9, 10}  # 64 rows in 7 chunks, nearly equal


@pytest.mark.parametrize(
    ("row_weights", "frozen", "products"),
    # 4 chunks; hidden and weight gradients are a product each. Without weights three chunks'
    # logits are computed twice; the last one's are kept.
    [(None, False, 15), (None, True, 11), (1.0, False, 12), (1.0, True, 8)],
)
def test_how_many_products(row_weights: float | None, frozen: bool, products: int) -> None:
    hidden, weight, targets = head(8)
    weight = weight.detach() if frozen else weight
    with largest() as seen:
        got = log_probs(hidden, weight, targets, chunk=2, row_weights=row_weights)
        total = got.log_probs.sum() if got.weighted_sum is None else got.weighted_sum
        total.backward()
    assert seen.products == products


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"banned": (V,)}, "inside a vocabulary"),
        ({"banned": (-1,)}, "inside a vocabulary"),
        ({"banned": tuple(range(V))}, "not all of it"),
        ({"hidden": torch.zeros(3, H + 1)}, "do not fit each other"),
        ({"hidden": torch.zeros(1, 3, H)}, r"should be \(R, H\)"),
        ({"targets_R": torch.zeros(2, dtype=torch.int64)}, "do not fit each other"),
        ({"targets_R": torch.zeros(3)}, "targets int64"),
        ({"weight_VH": torch.zeros(V, H, dtype=torch.int8)}, "not quantised"),
        ({"row_weights": torch.ones(2)}, "one weight a row"),
        ({"row_weights": torch.ones(3, requires_grad=True)}, "detached"),
        ({"backend": "cuda"}, "there is no backend 'cuda'"),
    ],
)
def test_wrong_arguments_are_errors(change: dict[str, Any], message: str) -> None:
    hidden, weight, targets = head(3)
    right: dict[str, Any] = {"hidden": hidden, "weight_VH": weight, "targets_R": targets}
    log_probs(**right)
    with pytest.raises(ConfigError, match=message):
        log_probs(**(right | change))


@pytest.mark.parametrize(("target", "banned"), [(3, (0, 3)), (V, ()), (-100, ())])
def test_targets_that_cannot_have_been_sampled(target: int, banned: tuple[int, ...]) -> None:
    hidden, weight, targets = head(4)
    targets[2] = target
    with pytest.raises(TrainingError, match=f"the target of row 2 is {target}"):
        log_probs(hidden, weight, targets, banned=banned)


def test_a_banned_target_that_cannot_be_seen_makes_the_loss_infinite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What CUDA would give, where targets are not looked at: training stops at such a loss."""
    monkeypatch.setattr("omr_io.train.log_probs._check_targets", lambda *_: None)
    hidden, weight, targets = head(4)
    targets[2] = 3
    for row_weights in (None, 1.0):
        got = log_probs(hidden, weight, targets, banned=(0, 3), row_weights=row_weights)
        assert got.log_probs.isneginf().tolist() == [False, False, True, False]
        if got.weighted_sum is not None:
            assert got.weighted_sum.isneginf()
