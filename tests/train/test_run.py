"""The parts of a run that train_example.py only calls."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, ResumeError
from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.loader.samples import SampleEncoder
from omr_io.packing import CostModel
from omr_io.tokenizer import train_bpe
from omr_io.train.recipe import load_recipe
from omr_io.train.rewards import parse_answer
from omr_io.train.rollout import Completion
from omr_io.train.run import (
    Run,
    blind,
    cached_json,
    get_cost,
    majority_of,
    pack_rollouts,
    split_for_rl,
)
from omr_io.types import Option
from tests.shard_sets import record, write
from tests.train import tiny_models as tiny

VISION = VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64)


@pytest.fixture(scope="module")
def encoder(shards, records):
    tokenizer = train_bpe([r.question for r in records], vocab_size=400)
    with ShardSet.open(shards) as opened:
        chat = ChatFormat.for_family("qwen3_vl", tokenizer)
        yield SampleEncoder(opened, chat, VISION, CpuDecoder())


def test_every_completion_token_is_a_label_in_the_order_of_members(encoder) -> None:
    prompts = [encoder.prompt(i) for i in range(6)]  # with none, one and two images
    rng = np.random.default_rng(0)
    completions = [
        Completion(rng.integers(10, 300, n).astype(np.int32), np.zeros(n, np.float32), True)
        for n in rng.integers(1, 30, 12)
    ]
    seen: list[int] = []
    packed = pack_rollouts(
        prompts, completions, group=2, seq_len=400, packs_per_batch=2, encoder=encoder
    )
    for batch, members in packed:
        assert batch.input_ids.shape[1] == 400
        assert batch.step_label_tokens == sum(len(c.ids) for c in completions)
        wanted = np.concatenate([completions[i].ids for i in members])
        np.testing.assert_array_equal(batch.label_targets.numpy(), wanted)
        keys = [key for row in batch.keys for key in row]
        assert keys == [prompts[i // 2].key for i in members]
        assert batch.num_images == sum(len(prompts[i // 2].image_grid_thw) for i in members)
        seen += members
    assert sorted(seen) == list(range(12))


def test_control_tokens_of_a_completion_cost_it_its_form(encoder) -> None:
    """All but the end token that finished it, of which there can be only one."""
    tokenizer = encoder.chat.tokenizer
    run: Any = SimpleNamespace(held_out=encoder)
    right = "<think>It is bright.</think><answer>A</answer>"
    options = (Option("A", "yes"), Option("B", "no"))
    end, pad = (tokenizer.token_id(name) for name in ("<|im_end|>", "<|endoftext|>"))
    for after, finished, letter in (
        ([end], True, "A"), ([], False, "A"), ([pad], False, None), ([pad, pad, end], True, None),
    ):  # fmt: skip
        ids = np.concatenate([tokenizer.encode(right), np.array(after, np.int32)]).astype(np.int32)
        text = Run.text(run, Completion(ids, np.zeros(len(ids), np.float32), finished))
        assert text == right + "<|endoftext|>" * after.count(pad)
        assert parse_answer(text, options, strict=True).letter == letter
        assert parse_answer(text, options, strict=False).letter == "A"


def test_a_models_cost_is_its_own_and_less_where_vision_is_frozen(tmp_path) -> None:
    tiny.tiny_model("qwen2_5_vl").save_pretrained(tmp_path)
    own = CostModel.from_config(tmp_path)
    assert get_cost(tmp_path, ()) == own != CostModel()
    assert get_cost(tmp_path, ("merger",)) == own
    assert get_cost(tmp_path, ("vision", "merger")) == own.with_frozen_vision()
    assert get_cost(None, ()) == CostModel()


def test_blind_takes_the_images_and_nothing_else(encoder) -> None:
    for number in range(6):
        prompt = encoder.prompt(number)
        without = blind(prompt, encoder)
        np.testing.assert_array_equal(without.input_ids, prompt.input_ids)
        np.testing.assert_array_equal(without.image_grid_thw, prompt.image_grid_thw)
        if prompt.pixel_values is None or not len(prompt.pixel_values):
            assert without is prompt
            continue
        assert without.pixel_values.shape == prompt.pixel_values.shape
        assert prompt.pixel_values.std() > 0.1
        assert without.pixel_values.std() < 1e-6


def test_split_for_rl(tmp_path) -> None:
    text = (
        "name: x\ndata: {train: a, test: b, seq_len: 8, packs_per_step: 1}\n"
        "sft: {steps: 1, lr: 1}\n"
        "rl: {steps: 1, lr: 1, prompts_per_step: 1, group: 2, max_new_tokens: 1%s}\n"
        "evaluation: {max_new_tokens: 1}\n"
    )

    def split(extra: str, count: int) -> tuple[list[int], list[int]]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text % extra)
        sft, rl = split_for_rl(load_recipe(path), count)
        return sft.tolist(), rl.tolist()

    assert split("", 3) == ([0, 1, 2], [0, 1, 2])
    assert split(", samples: 2", 5) == ([0, 1, 2], [3, 4])
    with pytest.raises(ConfigError, match="the training split has 2"):
        split(", samples: 2", 2)


def test_cached_json_is_made_once(tmp_path) -> None:
    made = [cached_json(tmp_path / "x.json", lambda n=n: [{"n": n}]) for n in (1, 2)]
    assert made == [[{"n": 1}], [{"n": 1}]]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_cached_json_of_another_recipe_is_refused(tmp_path) -> None:
    path = tmp_path / "x.json"

    def get(samples: int) -> object:
        return cached_json(path, lambda: samples, depends_on={"samples": samples, "prompts": 7})

    assert get(2) == 2
    assert get(2) == 2
    with pytest.raises(ResumeError, match=r"recipe: samples \(kept 2, here 3\) \(source .*x.json"):
        get(3)
    assert get(2) == 2


def test_the_majority_letters_are_those_of_samples_with_options(tmp_path) -> None:
    many = [record(n, options=(), answer="a knee", reasoning="") for n in range(5)]
    write(tmp_path / "mixed", [*many, record(5), record(6), record(7)])
    with ShardSet.open(tmp_path / "mixed") as opened:
        assert majority_of(opened) == {0: "B", 2: "B"}
    write(tmp_path / "open", many)
    with ShardSet.open(tmp_path / "open") as opened:
        assert majority_of(opened) is None
