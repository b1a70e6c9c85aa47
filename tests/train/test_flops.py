"""FLOPs of a step against torch's own count of what was run, and against the cost model."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omr_io.batches.boundaries import pack_boundaries
from omr_io.errors import ConfigError
from omr_io.packing import CostModel
from omr_io.train import flops
from omr_io.train.attention import use_varlen
from omr_io.train.flops import StepFlops
from tests.train.tiny_models import EVERY_FAMILY, pack, tiny_model, tiny_sample

GRIDS = [[(4, 6)], [(12, 8), (4, 4)], []]
SEQ_LEN = 90


def samples():
    return [tiny_sample(grids, 9 + 4 * i, i) for i, grids in enumerate(GRIDS)]


def as_batch(chosen):
    """What `StepFlops.of` reads of a batch: two packs, both with a padded tail."""
    packs = [chosen[:2], chosen[2:]]
    lengths = [[len(s.input_ids) for s in one] for one in packs]
    return SimpleNamespace(
        num_tokens=sum(map(sum, lengths)),
        num_label_tokens=sum(int((s.labels[1:] != -100).sum()) for s in chosen),
        num_images=3,
        grids=tuple(tuple(g) for s in chosen for g in s.image_grid_thw.tolist()),
        boundaries=pack_boundaries(lengths, SEQ_LEN),
        keys=tuple(tuple("s" for _ in one) for one in packs),
        input_ids=torch.zeros(2, SEQ_LEN),
    )


def run(model, chosen) -> dict[str, float]:
    """Counted by torch in a forward and backward of the packs: matrix products by kind."""
    packed = pack(model, [chosen], sum(len(s.input_ids) for s in chosen))
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hidden = model.model(**packed.model_inputs()).last_hidden_state.flatten(0, 1)
        loss = model.lm_head(hidden[packed.label_rows]).float().logsumexp(-1).sum()
        if loss.requires_grad:
            loss.backward()
    found: dict[str, float] = {"weights": 0.0, "attention": 0.0}
    for op, count in counter.get_flop_counts()["Global"].items():
        kind = "attention" if "bmm" in str(op) or "attention" in str(op) else "weights"
        found[kind] += count
    return found


def freeze_vision(model):
    model.model.visual.requires_grad_(False)


def freeze_tower(model):
    freeze_vision(model)
    model.model.visual.merger.requires_grad_(True)


def freeze_text(model):
    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)


def freeze_all_but_head(model):
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)


def freeze_nothing(model):
    pass


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize(
    "freeze", [freeze_nothing, freeze_vision, freeze_tower, freeze_text, freeze_all_but_head]
)
def test_weights_cost_what_torch_counts(family, freeze):
    model = tiny_model(family)
    use_varlen(model)
    freeze(model)
    made = StepFlops.from_model(model)
    chosen = samples()
    batch = as_batch(chosen)
    patches = sum(h * w for grids in GRIDS for h, w in grids)
    weights = made.token * batch.num_tokens + made.label * batch.num_label_tokens
    weights += (made.patch + made.merged / made.merge**2) * patches
    assert weights == run(model, chosen)["weights"]


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("freeze", [freeze_nothing, freeze_vision, freeze_all_but_head])
def test_attention_costs_what_torch_counts(family, freeze):
    """A causal half apart: torch's plain attention computes the whole square."""
    model = tiny_model(family)
    use_varlen(model)
    freeze(model)
    made = StepFlops.from_model(model)
    chosen = samples()
    batch = as_batch(chosen)
    square = sum(len(s.input_ids) ** 2 for s in chosen) * made.token_pair
    causal = sum(len(s.input_ids) * (len(s.input_ids) + 1) / 2 for s in chosen) * made.token_pair
    patches = sum(h * w for grids in GRIDS for h, w in grids)
    weights = made.token * batch.num_tokens + made.label * batch.num_label_tokens
    weights += (made.patch + made.merged / made.merge**2) * patches
    attention = made.of(batch) - weights
    assert attention + square - causal == pytest.approx(run(model, chosen)["attention"], rel=1e-9)
    assert (made.window_pair > 0) == (family == "qwen2_5_vl")


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_forward_pass_is_the_cost_models(family):
    model = tiny_model(family)
    model.requires_grad_(False)
    made = StepFlops.from_model(model)
    costs = CostModel.from_config(model.config.to_dict())
    assert round((made.token + made.label) / 1000) == costs.text_linear
    assert round(made.token_pair / 2 / 1000) == costs.text_quadratic
    patch = made.patch + made.merged / made.merge**2
    if made.window:
        patch += made.window_pair * (made.window * made.merge) ** 2
    assert round(patch / 1000) == costs.vision_linear
    assert round(made.patch_pair / 1000) == costs.vision_quadratic
    trained = StepFlops.from_model(tiny_model(family))
    assert trained.token == 3 * made.token
    assert trained.token_pair == 3 * made.token_pair
    assert trained.patch_pair == 3 * made.patch_pair


def test_lora_counts_frozen_weights_without_their_gradient():
    peft = pytest.importorskip("peft")
    model = tiny_model("qwen3_vl")
    use_varlen(model)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(
        r=4, target_modules=rf".*language_model.*\.({'|'.join(names)})", lora_dropout=0.0
    )
    wrapped = peft.get_peft_model(model, config)
    made = StepFlops.from_model(wrapped)
    chosen = samples()
    batch = as_batch(chosen)
    patches = sum(h * w for grids in GRIDS for h, w in grids)
    weights = made.token * batch.num_tokens + made.label * batch.num_label_tokens
    weights += (made.patch + made.merged / made.merge**2) * patches
    assert weights == run(wrapped.base_model.model, chosen)["weights"]


def test_padding_and_dummy_images_are_not_work():
    made = StepFlops.from_model(tiny_model("qwen3_vl"))
    batch = as_batch(samples())
    padded = SimpleNamespace(**vars(batch) | {"input_ids": torch.zeros(2, SEQ_LEN + 50)})
    lengths = [[len(s.input_ids) for s in samples()[:2]], [len(samples()[2].input_ids)]]
    padded.boundaries = pack_boundaries(lengths, SEQ_LEN + 50)
    assert made.of(padded) == made.of(batch)
    blind = SimpleNamespace(**vars(batch) | {"num_images": 0})
    assert made.of(batch) - made.of(blind) > sum(h * w for g in GRIDS for h, w in g) * made.patch


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_peaks_by_name(name, teraflops):
    peak = flops.named_peak(name)
    assert peak == (teraflops * 1e12 if teraflops else None)


def test_a_cpu_has_no_peak_but_the_recipes():
    cpu = torch.device("cpu")
    assert flops.peak_flops(cpu) is None
    assert flops.peak_flops(cpu, 1.5) == 1.5e12


def test_other_models_are_refused():
    model = SimpleNamespace(config=SimpleNamespace(model_type="llama"))
    with pytest.raises(ConfigError, match="llama"):
        StepFlops.from_model(model)
