"""Rollout engines: the model itself, and vLLM as far as a strict stand-in can tell."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, TrainingError
from omr_io.images.patches import to_patches
from omr_io.images.pixel_values import as_array
from omr_io.images.sizes import smart_resize
from omr_io.train.attention import use_varlen
from omr_io.train.checkpoint import export_hf
from omr_io.train.engines import SamplingSettings, TransformersEngine, VllmEngine
from omr_io.train.engines.unpatch import collapsed, images_of, processor_bounds
from omr_io.train.engines.vllm_engine import weights_of
from omr_io.train.model import label_log_probs
from omr_io.train.ranks import Ranks
from omr_io.train.rollout import Completion, generate
from omr_io.types import EncodedSample
from tests.images.pixel_cases import processor
from tests.train import tiny_models as tiny
from tests.train.fake_vllm import Log, make_module

BANNED = (tiny.IMAGE, tiny.VIDEO, tiny.START, tiny.END)
VISION = VisionConfig(patch_size=4, min_pixels=16 * 16, max_pixels=32 * 32)
SETTINGS = SamplingSettings(
    max_new_tokens=6, eos=tiny.EOS, banned=BANNED, temperature=0.8, group=3, seed=11
)


def encoded(
    sizes: list[tuple[int, int]], seed: int, vision: VisionConfig = VISION
) -> EncodedSample:
    """A prompt with images of these sizes, in the layout that a chat format gives."""
    rng = np.random.default_rng(seed)
    patches, grids, ids = [], [], rng.integers(10, tiny.VOCAB, 3).tolist()
    for height, width in sizes:
        patches.append(to_patches(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), vision))
        rows, columns = smart_resize(height, width, vision)
        grid = (1, rows // vision.patch_size, columns // vision.patch_size)
        grids.append(grid)
        ids += [tiny.START, *[tiny.IMAGE] * (grid[1] * grid[2] // 4), tiny.END]
    ids += rng.integers(10, tiny.VOCAB, 2).tolist()
    return EncodedSample(
        key=f"case-{seed}",
        input_ids=np.array(ids, np.int32),
        trained=np.zeros(len(ids), np.bool_),
        pixel_values=np.concatenate(patches) if patches else None,
        image_grid_thw=np.array(grids, np.int64).reshape(-1, 3),
    )


PROMPTS = [encoded([(20, 31)], 1), encoded([], 2), encoded([(9, 9), (60, 17)], 3)]


def same(a: list[Completion], b: list[Completion]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.ids, y.ids) and np.allclose(x.logprobs, y.logprobs, atol=1e-5)
        for x, y in zip(a, b, strict=True)
    )


def policy(seed: int = 0) -> Any:
    model = tiny.tiny_model("qwen3_vl", seed=seed)
    use_varlen(model)
    return model


# The model itself


def test_the_default_engine_is_the_model() -> None:
    model = policy()
    engine = TransformersEngine(model)
    engine.update_weights(model)
    made = engine.generate(PROMPTS, SETTINGS)
    engine.rest()
    again = generate(
        model, PROMPTS, max_new_tokens=6, eos=tiny.EOS, banned=BANNED, temperature=0.8,
        group_size=3, seed=11,
    )  # fmt: skip
    assert engine.exact
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(made, again, strict=True))
    assert same(made, again)
    assert not {*np.concatenate([c.ids for c in made]).tolist()} & {*BANNED}
    engine.close()


def test_ranks_sample_what_one_would_have() -> None:
    """A completion depends on its prompt's place among all, not on which rank makes it."""
    engine = TransformersEngine(policy())
    whole = engine.generate(PROMPTS, SETTINGS)
    for world_size in (2, 3):
        shares: dict[int, list[Completion]] = {}
        for rank in range(world_size):
            places = tuple(range(rank, len(PROMPTS), world_size))
            mine = dataclasses.replace(SETTINGS, places=places, of=len(PROMPTS))
            made = engine.generate([PROMPTS[i] for i in places], mine)
            shares |= {p: made[3 * i : 3 * i + 3] for i, p in enumerate(places)}
        assert same([c for i in range(len(PROMPTS)) for c in shares[i]], whole)
    wrong = dataclasses.replace(SETTINGS, places=(0, 1, 3), of=3)
    with pytest.raises(ConfigError, match="places"):
        engine.generate(PROMPTS, wrong)


def test_a_rollout_can_be_left() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TransformersEngine(policy()).generate(PROMPTS, SETTINGS, between=leave)


# Patches back to images


@given(
    sizes=st.lists(st.tuples(st.integers(4, 90), st.integers(4, 90)), max_size=3),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    clip=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_images_become_the_same_patches_again(
    sizes: list[tuple[int, int]], seed: int, dtype: torch.dtype, clip: bool
) -> None:
    """By transformers' own processor, which must not resize what was resized already."""
    vision = VISION
    if clip:
        constants = {
            "image_mean": (0.48145466, 0.4578275, 0.40821073),
            "image_std": (0.26862954, 0.26130258, 0.27577711),
        }
        vision = dataclasses.replace(vision, **constants)
    sample = encoded(sizes, seed, vision)
    if sample.pixel_values is not None:
        values = torch.from_numpy(sample.pixel_values).to(dtype)
        sample = dataclasses.replace(sample, pixel_values=as_array(values))
    images = images_of(sample, vision)
    assert len(images) == len(sizes)
    if not images:
        return
    least, most = processor_bounds(vision)
    wide: Any = processor(dataclasses.replace(vision, min_pixels=least, max_pixels=most))
    made = wide(images, return_tensors="np")
    assert np.array_equal(made["image_grid_thw"], sample.image_grid_thw)
    assert torch.equal(torch.from_numpy(made["pixel_values"]).float().to(dtype), values)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    bounds=st.tuples(st.integers(1, 40), st.integers(0, 60)),
)
@settings(max_examples=100, deadline=None)
def test_a_processor_within_the_bounds_keeps_every_planned_size(
    height: int, width: int, bounds: tuple[int, int]
) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    least = bounds[0] * 32 * 32
    vision = VisionConfig(min_pixels=least, max_pixels=least + bounds[1] * 32 * 32)
    size = smart_resize(height, width, vision)
    low, high = processor_bounds(vision)
    wide = dataclasses.replace(vision, min_pixels=low, max_pixels=high)
    assert smart_resize(*size, wide) == size


def test_other_constants_are_an_error_not_other_pixels() -> None:
    other = dataclasses.replace(VISION, image_mean=(0.4, 0.5, 0.5))
    with pytest.raises(DataError, match="case-1"):
        images_of(PROMPTS[0], other)


def test_placeholders_collapse_to_one_an_image() -> None:
    short = collapsed(PROMPTS[2], VISION, tiny.IMAGE)
    assert short.count(tiny.IMAGE) == 2
    assert [i for i in short if i != tiny.IMAGE] == [
        i for i in PROMPTS[2].input_ids.tolist() if i != tiny.IMAGE
    ]
    wrong = dataclasses.replace(PROMPTS[0], image_grid_thw=PROMPTS[2].image_grid_thw)
    with pytest.raises(ConfigError, match="placeholders of case-1"):
        collapsed(wrong, VISION, tiny.IMAGE)


# vLLM


class SavedTokenizer:
    def save(self, folder: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sft-model")
    export_hf(path, tiny.tiny_model("qwen3_vl"), SavedTokenizer(), VISION)
    return path


CUDA: Any = Ranks(device=torch.device("cuda"))


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[VllmEngine, Log]:
    log = Log()
    monkeypatch.setitem(sys.modules, "vllm", make_module(log, policy(9), **options))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the engine sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    return make_engine(folder), log


def make_engine(folder: Path, ranks: Any = CUDA, **changes: Any) -> VllmEngine:
    arguments: dict[str, Any] = {
        "vision": VISION, "image_token_id": tiny.IMAGE, "vocab_size": tiny.VOCAB,
        "max_model_len": 96, "memory": 0.3, "ranks": ranks,
    }  # fmt: skip
    return VllmEngine(folder, **(arguments | changes))


def test_vllm_is_called_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, log = start(folder, monkeypatch)
    assert log.calls == ["LLM", "sleep 1"]
    wake = [
        "wake_up weights", "load_weights", "wake_up kv_cache", "reset_prefix_cache",
        "reset_mm_cache", "reset_encoder_cache",
    ]  # fmt: skip
    for _ in range(2):
        log.calls.clear()
        engine.update_weights(policy())
        engine.generate(PROMPTS, SETTINGS)
        engine.generate(PROMPTS[:1], SETTINGS)  # a second round of dynamic sampling
        engine.rest()
        assert log.calls == [*wake, "generate", "generate", "sleep 1"]
    assert log.options["distributed_executor_backend"] == "external_launcher"
    assert log.options["logprobs_mode"] == "processed_logprobs"
    assert log.options["enable_sleep_mode"] is True
    assert log.options["max_model_len"] == 96
    assert log.options["gpu_memory_utilization"] == 0.3
    engine.close()
    engine.close()


def test_vllm_samples_the_trained_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, pixels, prompts, bans and log-probabilities, against our own forward pass."""
    engine, log = start(folder, monkeypatch)
    first: list[Completion] = []
    for seed in (0, 1):  # the second time images are in the encoder's cache
        model = policy(seed)
        engine.update_weights(model)
        made = engine.generate(PROMPTS, SETTINGS)
        assert len(made) == 9
        for i, completion in enumerate(made):
            prompt = PROMPTS[i // 3]
            ids = np.concatenate([prompt.input_ids, completion.ids])
            pixels = prompt.pixel_values
            empty = torch.empty(0, 3 * 2 * 4 * 4)
            sample = tiny.Sample(
                torch.from_numpy(ids).long(),
                empty if pixels is None else torch.from_numpy(pixels),
                torch.from_numpy(prompt.image_grid_thw),
                len(prompt.input_ids),
            )
            batch = tiny.pack(model, [[sample]])
            with torch.no_grad():
                labels = label_log_probs(model, batch, temperature=0.8, banned=BANNED)
            assert np.allclose(completion.logprobs, labels.log_probs.numpy(), atol=2e-5)
            assert completion.finished == (completion.ids[-1] == tiny.EOS)
            assert not set(completion.ids.tolist()) & set(BANNED)
        ours = [torch.from_numpy(p.pixel_values) for p in PROMPTS if p.pixel_values is not None]
        for theirs, own in zip(log.pixels, ours, strict=True):
            assert torch.equal(theirs, own)
        log.pixels.clear()
        assert not same(made, first)
        first = made
        engine.rest()
    assert log.stale == 0
    assert not engine.exact


def test_the_stand_in_would_see_a_stale_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, log = start(folder, monkeypatch)
    monkeypatch.setattr(
        "omr_io.train.engines.vllm_engine._RESETS", ("reset_prefix_cache", "reset_mm_cache")
    )
    for seed in (0, 1):
        engine.update_weights(policy(seed))
        engine.generate(PROMPTS, SETTINGS)
        engine.rest()
    assert log.stale == 3


def test_vllm_is_asked_for_what_the_policy_is_trained_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, log = start(folder, monkeypatch)
    engine.update_weights(policy())
    engine.generate(PROMPTS, SETTINGS)
    seeds = [params.seed for params in log.sampling]
    for params in log.sampling:
        assert params.n == 3
        assert (params.temperature, params.max_tokens, params.logprobs) == (0.8, 6, 0)
        assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (1, 0, 0, 1)
        assert (params.stop_token_ids, params.ignore_eos) == ([tiny.EOS], True)
        assert params.allowed_token_ids is not None
        assert set(range(tiny.VOCAB)) - set(params.allowed_token_ids) == set(BANNED)
    # vLLM gives the completions of a prompt seed, seed + 1, ...: no two are alike.
    assert len({seed + i for seed in seeds for i in range(3)}) == 9
    log.sampling.clear()
    places = dataclasses.replace(SETTINGS, places=(2, 0), of=3)
    engine.generate([PROMPTS[2], PROMPTS[0]], places)
    assert [params.seed for params in log.sampling] == [seeds[2], seeds[0]]
    assert engine.generate([], SETTINGS) == []
    log.sampling.clear()
    engine.generate(PROMPTS, dataclasses.replace(SETTINGS, seed=SETTINGS.seed + 2**32))
    assert not {params.seed for params in log.sampling} & set(seeds)  # a step's second round


def test_weights_that_are_not_the_policys_are_not_sampled_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, log = start(folder, monkeypatch)
    with pytest.raises(TrainingError, match="update_weights"):
        engine.generate(PROMPTS, SETTINGS)
    engine.update_weights(policy())
    engine.rest()
    with pytest.raises(TrainingError, match="update_weights"):
        engine.generate(PROMPTS, SETTINGS)
    assert "generate" not in log.calls


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("prompt", "took a prompt of"),
        ("banned", r"banned ids \[[0-9]+\]"),
        ("nan", "not finite"),
        ("logprobs", "no log-probability"),
        ("count", "2 completions of 3"),
    ],
)
def test_wrong_answers_of_vllm_are_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, message: str
) -> None:
    engine, log = start(folder, monkeypatch)
    engine.update_weights(policy())
    log.spoil = spoil
    with pytest.raises(TrainingError, match=message) as found:
        engine.generate(PROMPTS, SETTINGS)
    assert "case-1" in str(found.value)


def test_what_vllm_cannot_do_is_said_before_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="never run against a real vLLM"):
        make_engine(folder)
    one_frame = dataclasses.replace(VISION, temporal_patch_size=1)
    with pytest.raises(ConfigError, match="temporal_patch_size 1"):
        make_engine(folder, vision=one_frame)
    with pytest.raises(ConfigError, match="reset_encoder_cache"):
        start(folder, monkeypatch, resets=("reset_prefix_cache", "reset_mm_cache"))
    with pytest.raises(ConfigError, match="never run against a real vLLM"):
        make_engine(folder, Ranks())


def test_adapters_are_merged_on_the_way() -> None:
    peft = pytest.importorskip("peft")
    model = policy()
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"])
    plain = {name: value.clone() for name, value in model.named_parameters()}
    peft.inject_adapter_in_model(config, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    batch = tiny.pack(model, [[tiny.tiny_sample([(4, 4)], 5, 1)]])
    with torch.no_grad():
        expected = label_log_probs(model, batch).log_probs
    merged = dict(weights_of(model))
    assert merged.keys() == plain.keys()
    moved = {name for name in plain if not torch.equal(merged[name], plain[name])}
    assert moved == {n for n in plain if n.endswith(("q_proj.weight", "down_proj.weight"))}
    bare = policy(3)
    bare.load_state_dict(merged, strict=False)
    with torch.no_grad():
        assert torch.allclose(label_log_probs(bare, batch).log_probs, expected, atol=1e-5)
