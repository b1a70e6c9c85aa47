from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omr_io.batches import Batch, make_batch
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, SourceError, TrainingError
from omr_io.ops import pack_implementation
from omr_io.train.attention import use_varlen
from omr_io.train.model import (
    DemoModelConfig,
    TokenIds,
    build_demo_model,
    forward,
    label_log_probs,
    load_model,
    model_folder,
)
from omr_io.types import EncodedSample
from tests.train import tiny_models as tiny

IDS = TokenIds(tiny.IMAGE, tiny.VIDEO, tiny.START, tiny.END, tiny.EOS, tiny.PAD)


def test_the_demo_model_is_small_and_the_same_for_a_seed() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (build_demo_model(2000, IDS, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert 1.5e6 < sum(p.numel() for p in a.parameters()) < 2.1e6
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y, _ in pairs)
    assert any(not torch.equal(x, z) for x, _, z in pairs)
    assert a.config.image_token_id == tiny.IMAGE
    rope = a.config.text_config.rope_parameters
    assert rope["mrope_section"] == [6, 5, 5]
    assert a.model.language_model.rotary_emb.mrope_section == [6, 5, 5]


def test_rows_of_the_head_that_no_token_has_are_banned() -> None:
    model = build_demo_model(2000, IDS, seed=0)
    assert IDS.for_model(model, 2000) == IDS
    fewer = IDS.for_model(model, 1990)
    assert fewer.banned == (*IDS.banned, *range(1990, 2000))
    assert fewer.eos == IDS.eos


def test_wrong_configurations_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 6"):
        build_demo_model(6, IDS, seed=0)
    with pytest.raises(ConfigError, match="half of head_dim"):
        DemoModelConfig(mrope_section=(4, 4, 4))
    with pytest.raises(ConfigError, match="square"):
        DemoModelConfig(num_position_embeddings=200)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="'llama' is not one of"):
        load_model(tmp_path)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """transformers would fill a weight that is missing with random numbers, and warn."""
    tiny.tiny_model("qwen3_vl").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert load_model(tmp_path)
    whole, weights = file.read_bytes(), load_file(file)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    lacking = {key: value for key, value in weights.items() if key != name}
    save_file(lacking, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=rf"1 weights of .* are absent, the first is {name}"):
        load_model(tmp_path)
    narrow = {**weights, name: weights[name][:5].contiguous()}
    save_file(narrow, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=rf"are of another shape, the first is {name}"):
        load_model(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cannot be loaded: .*\. Copy or download"):
        load_model(tmp_path)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    with pytest.raises(SourceError, match=r"cannot be loaded: .*model-1\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match=r"no file named model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="not a valid JSON file"):
        load_model(tmp_path)


def test_a_model_is_a_folder_or_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here = tmp_path / "owner/tiny"
    here.mkdir(parents=True)
    assert model_folder(here) == here
    monkeypatch.chdir(tmp_path)
    assert model_folder("owner/tiny") == Path("owner/tiny")  # a folder comes first
    for path in ("owner/other", "owner/other@v1"):
        with pytest.raises(SourceError, match=rf"model {path} is no folder here.*HF_HUB_OFFLINE"):
            model_folder(path)
    for path in ("nowhere", "./owner/other", "/a/b", "a/b/c", "owner/x y"):
        with pytest.raises(ConfigError, match="is no folder"):
            model_folder(path)
    held = cache / "models--owner--other"
    for commit, name in (("a" * 40, "main"), ("b" * 40, "v1")):
        (held / "refs").mkdir(parents=True, exist_ok=True)
        (held / "refs" / name).write_text(commit)
        (held / "snapshots" / commit).mkdir(parents=True)
    assert model_folder("owner/other").name == "a" * 40
    assert model_folder("owner/other@v1", download=False).name == "b" * 40


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_a_folder_gives_the_model_back(family: str, tmp_path: Path) -> None:
    model = tiny.tiny_model(family).eval()
    model.save_pretrained(tmp_path)
    loaded: Any = load_model(tmp_path).eval()
    batch = tiny.pack(model, [[tiny.tiny_sample([(4, 6)], 5, 0), tiny.tiny_sample([(4, 4)], 3, 1)]])
    use_varlen(model)
    assert torch.equal(forward(model, batch), forward(loaded, batch))
    model.bfloat16().save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half", "auto").dtype == torch.bfloat16
    assert load_model(tmp_path / "half").dtype == torch.float32


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_label_log_probs_equal_one_sample_at_a_time(family: str) -> None:
    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    samples = [tiny.tiny_sample([(4, 4 + 2 * i)], 3 + i, i) for i in range(4)]
    # Four rows of two packs; sample 1 ends its pack without padding.
    batch = tiny.pack(model, [samples[:2], samples[2:]])
    got = label_log_probs(model, batch).log_probs
    expected = []
    for sample in samples:
        logprobs = tiny.alone(oracle, sample).log_softmax(-1)
        for position, label in enumerate(sample.labels.tolist()):
            if label != -100:
                expected.append(logprobs[position - 1, label])
    assert torch.allclose(got, torch.stack(expected), atol=1e-5)


def test_labels_that_are_not_those_counted_are_refused() -> None:
    model = tiny.tiny_model("qwen3_vl")
    use_varlen(model)
    batch = tiny.pack(model, [[tiny.tiny_sample([(4, 4)], 3, 0)]])
    miscounted = dataclasses.make_dataclass("Miscounted", [])
    miscounted.num_label_tokens = 1
    miscounted.__getattr__ = lambda self, name: getattr(batch, name)
    with pytest.raises(TrainingError, match="2 label rows and 2 targets, but the batch counts 1"):
        label_log_probs(model, miscounted())


class Adapted(torch.nn.Module):
    """A head as peft wraps it: its weight is not all that it computes."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight


def test_a_head_that_is_more_than_its_weight_is_refused() -> None:
    model = tiny.tiny_model("qwen3_vl")
    use_varlen(model)
    batch = tiny.pack(model, [[tiny.tiny_sample([], 6, 0)]])
    label_log_probs(model, batch)
    plain = model.lm_head
    model.lm_head = Adapted(plain)
    with pytest.raises(ConfigError, match="lm_head is a Adapted with more than a weight"):
        label_log_probs(model, batch)
    model.lm_head = torch.nn.Linear(plain.in_features, plain.out_features)
    with pytest.raises(ConfigError, match="lm_head is a Linear with more than a weight"):
        label_log_probs(model, batch)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_without_images_gives_the_vision_tower_zero_gradients(family: str) -> None:
    model = tiny.tiny_model(family)
    use_varlen(model)
    words = tiny.pack(model, [[tiny.tiny_sample([], 6, 0)]])
    assert "pixel_values" not in words.model_inputs()
    plain = model.model(**words.model_inputs()).last_hidden_state
    hidden = forward(model, words)
    assert torch.equal(hidden, plain)
    hidden.sum().backward()
    unused = [n for n, p in model.model.named_parameters() if p.grad is None]
    assert unused == []
    grads = [p.grad for p in model.model.visual.parameters()]
    assert all(bool((g == 0).all()) for g in grads if g is not None)


def loader_batch(samples: list[list[tiny.Sample]], family: str, seq_len: int) -> Batch:
    """What the loader makes of these samples: its own packer, positions and vision metadata."""
    encoded = [
        [
            EncodedSample(
                "k",
                s.input_ids.int().numpy(),
                (s.labels != -100).numpy(),
                s.pixel_values.numpy(),
                s.image_grid_thw.numpy(),
            )
            for s in row
        ]
        for row in samples
    ]
    arrays = pack_implementation()(
        encoded, seq_len=seq_len, pad_id=tiny.PAD, image_token_id=tiny.IMAGE, merge_size=2
    )
    return make_batch(
        arrays,
        encoded,
        vision=VisionConfig(family=family, patch_size=4),  # type: ignore[arg-type]
        step_label_tokens=arrays.num_label_tokens,
        epoch=0,
        step=0,
        micro_step=0,
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_batches_of_the_loader_give_the_logprobs_of_single_samples(family: str) -> None:
    oracle = tiny.tiny_model(family).eval()
    model = copy.deepcopy(oracle)
    use_varlen(model)
    samples = [tiny.tiny_sample([(4, 4 + 2 * i), (8, 4)][: 1 + i % 2], 3 + i, i) for i in range(4)]
    samples.append(tiny.tiny_sample([], 5, 9))
    batch = loader_batch([samples[:3], samples[3:]], family, seq_len=80)
    got = label_log_probs(model, batch).log_probs
    expected = []
    for sample in samples:
        logprobs = tiny.alone(oracle, sample).log_softmax(-1)
        trained = sample.labels[1:] != -100
        expected.append(logprobs[:-1][trained].gather(1, sample.labels[1:][trained][:, None])[:, 0])
    assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    # The tower was given its metadata and computed none of it.
    names = set(batch.vision_inputs(num_position_embeddings=16)) | set(batch.model_inputs())
    assert {"image_cu_seqlens", "image_interp_indices", "cu_seq_lens_q"} <= names


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loaders_dummy_batch_gives_zero_gradients(family: str) -> None:
    model = tiny.tiny_model(family)
    use_varlen(model)
    batch = loader_batch([[tiny.tiny_sample([], 6, 0)]], family, seq_len=16)
    assert batch.has_dummy_image
    label_log_probs(model, batch).log_probs.sum().backward()
    grads = [p.grad for p in model.model.visual.parameters()]
    assert all(g is not None and bool((g == 0).all()) for g in grads)
