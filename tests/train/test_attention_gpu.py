"""What only a GPU shows: the kernels' own masks and gradients, and that nothing waits for it.

transformers itself waits where a batch has images (`get_image_features` reads the grids back,
`get_placeholder_mask` counts placeholders, deepstack indexes by a mask), so packs here are text,
and the vision tower runs by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omr_io.batches.boundaries import HostBoundaries
from omr_io.train.attention import share_prefixes, use_varlen
from omr_io.train.attention import varlen as kernels
from tests.train import tiny_models as tiny
from tests.train.test_attention import planned_vision
from tests.train.test_prefix_attention import dense
from tests.train.test_shared_prefix import ASKED, completions_of, shared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = [300, 77, 1, 129, 64, 255, 40]
PREFIXES = [None, 0, 0, 0, None, 4, None]
FORMS = ["packed", "shared"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@contextmanager
def no_sync() -> Iterator[None]:
    """Any wait for the GPU inside is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_sync_is_seen() -> None:
    value = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"), no_sync():
        value.item()


def with_gradients(attention: Any, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = attention(*inputs)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=g).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


@pytest.mark.parametrize("backend", ["flash_attn", "torch"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_kernels_masks_and_gradients(
    backend: str, dtype: torch.dtype, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment with more keys than queries is masked at the bottom right, in every kernel."""
    if backend == "flash_attn" and kernels.flash_attn_function() is None:
        pytest.skip("flash-attn is not installed")
    if backend == "torch":
        monkeypatch.setattr(kernels, "flash_attn_function", lambda: None)
    g = torch.Generator().manual_seed(0)
    n = sum(LENGTHS)
    shapes = ((n, 4, 64), (n, key_heads, 64), (n, key_heads, 64))
    inputs = [torch.randn(*shape, generator=g).to("cuda", dtype) for shape in shapes]
    plan = share_prefixes(LENGTHS, PREFIXES).to("cuda")

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels._prefix_attention(
            q, k, v, plan, flash=True, causal=True, scale=0.3, dropout=0.0
        )

    found = with_gradients(ours, inputs)
    truth = with_gradients(
        lambda q, k, v: dense(q, k, v, LENGTHS, PREFIXES), [x.float() for x in inputs]
    )
    unit = torch.finfo(dtype).eps
    for a, b in zip(found, truth, strict=True):
        error = float((a.float() - b).abs().max())
        assert error < 4 * unit * float(b.abs().max())


def batch_of(form: str, model: Any, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The inputs of a text-only step on the GPU, and the rows of its loss."""
    if form == "shared":
        batch, _ = shared(prompts=[ASKED[2]] * 3, completions=completions_of([5, 1, 9] * 3))[0]
        batch = batch.pin_memory().to("cuda")
        return batch.model_inputs(), batch.label_rows
    samples = [tiny.tiny_sample([], text, seed=text) for text in (7, 3, 12, 7)]
    packed = tiny.pack(model, [samples], seq_len=64)
    inputs = {
        name: value.to("cuda") if isinstance(value, Tensor) else value
        for name, value in packed.model_inputs().items()
    }
    inputs["text_boundaries"] = HostBoundaries((tuple(packed.cu_seqlens.tolist()),))
    return inputs, torch.arange(20, device="cuda")


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_never_waits_for_the_gpu(family: str, form: str, dtype: torch.dtype) -> None:
    model = tiny.tiny_model(family, head_dim=16)
    use_varlen(model)
    inputs, rows = batch_of(form, model, dtype)
    model = model.to("cuda", dtype)

    def step() -> None:
        hidden = model.model(**inputs).last_hidden_state.flatten(0, 1).index_select(0, rows)
        hidden.float().square().sum().backward()

    step()  # kernels are loaded and memory is allocated once
    with no_sync():
        step()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all())
        for p in model.model.language_model.parameters()
    )


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vision_tower_never_waits_for_the_gpu(family: str, dtype: torch.dtype) -> None:
    model = tiny.tiny_model(family, head_dim=16)
    use_varlen(model)
    grids = torch.tensor([[1, 4, 6], [1, 8, 4], [1, 4, 4]])
    planned = planned_vision(model, grids)
    names = [name for name in planned if name.endswith(("_cu_seqlens", "_cu_window_seqlens"))]
    host = HostBoundaries(tuple(tuple(planned[name].tolist()) for name in names))
    arguments = {
        name.removeprefix("image_"): x.to("cuda") if isinstance(x, Tensor) else x
        for name, x in planned.items()
    }
    tower = model.model.visual.to("cuda", dtype)
    patches = int(grids.prod(dim=1).sum())
    pixels = torch.randn(patches, 96, device="cuda", dtype=dtype)
    grid = grids.to("cuda")

    def step() -> None:
        output = tower(pixels, grid_thw=grid, host_boundaries=host, **arguments)
        output.pooler_output.float().square().sum().backward()

    step()
    with no_sync():
        step()


@pytest.mark.parametrize("family", tiny.EVERY_FAMILY)
def test_shared_prompts_in_bfloat16_are_as_near_the_truth_as_unshared_ones(family: str) -> None:
    """The truth is float32, each completion by itself."""
    truth_model = tiny.tiny_model(family, head_dim=16).eval()
    model = copy.deepcopy(truth_model)
    use_varlen(model)
    model = model.to("cuda", torch.bfloat16)
    prompt = tiny.tiny_sample([], 4, seed=3)
    made = completions_of([5, 1, 9])
    samples = [
        tiny.Sample(
            torch.cat([prompt.input_ids, torch.from_numpy(c.ids).long()]),
            prompt.pixel_values,
            prompt.image_grid_thw,
            len(prompt.input_ids),
        )
        for c in made
    ]
    with torch.no_grad():
        truth = torch.cat(
            [tiny.alone(truth_model, s)[s.num_prompt_tokens - 1 : -1] for s in samples]
        )
        batch, members = shared(prompts=[ASKED[2]], completions=made)[0]
        assert members == [0, 1, 2]
        batch = batch.to("cuda")
        found = model(**batch.model_inputs()).logits.flatten(0, 1)[batch.label_rows].float().cpu()
        packed = tiny.pack(model, [samples])
        inputs = {
            name: value.to("cuda") if isinstance(value, Tensor) else value
            for name, value in packed.model_inputs().items()
        }
        targets = packed.labels.flatten()[1:]
        rows = np.flatnonzero(targets.numpy() != -100)
        plain = model(**inputs).logits.flatten(0, 1)[rows].float().cpu()
    shared_error = float((found - truth).pow(2).mean().sqrt())
    plain_error = float((plain - truth).pow(2).mean().sqrt())
    assert plain_error > 0
    assert shared_error < 1.5 * plain_error
