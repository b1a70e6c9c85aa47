"""What a rank's rollouts need before a run, and when they are made."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import train_example
from omr_io.chat import ChatFormat
from omr_io.errors import IntegrityError, SampleTooLongError
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.packing import CostModel
from omr_io.train.dynamic_sampling import Group
from omr_io.train.rewards import Reward
from omr_io.train.rollout import Completion
from omr_io.train.rollouts import Rollouts, check_prompt_lengths, update_cost
from omr_io.types import EncodedSample, ImageFailure
from tests.train.test_reinforce import RECIPE

NEW = 9


@pytest.mark.parametrize("sides", [1, 3])
def test_prompts_have_room_for_their_completions_or_are_refused(
    shards: Path, tokenizer: Any, vision: Any, sides: int
) -> None:
    """To the token: with one less of seq_len the longest prompt of RL does not fit."""
    rl_vision = dataclasses.replace(vision, max_pixels=vision.max_pixels * sides**2)
    samples = np.arange(7, 37)
    with ShardSet.open(shards) as opened, closing(make_decoder("cpu", vision)) as decoder:
        chat = ChatFormat.for_family("qwen3_vl", tokenizer)
        encoder = SampleEncoder(opened, chat, rl_vision, decoder)
        lengths = np.array([len(encoder.prompt(int(i)).input_ids) for i in samples])
        assert len(set(lengths)) > 5
        with DataLoader(
            opened, chat=chat, vision=vision, seq_len=4096, packs_per_step=1, cache=False
        ) as loader:
            for room in (0, -1, -7):
                recipe: Any = SimpleNamespace(
                    data=SimpleNamespace(seq_len=int(lengths.max()) + NEW + room),
                    rl=SimpleNamespace(max_new_tokens=NEW),
                    rl_vision=rl_vision,
                )
                if room == 0:
                    check_prompt_lengths(recipe, loader, chat, opened, samples)
                    continue
                over = int((lengths > lengths.max() + room).sum())
                with pytest.raises(SampleTooLongError, match=f"{over} of RL's 30") as error:
                    check_prompt_lengths(recipe, loader, chat, opened, samples)
                assert f"longest has {lengths.max()} tokens" in str(error.value)
                assert opened.key(int(samples[lengths.argmax()])) in str(error.value)


def test_a_run_is_refused_before_its_first_step(
    tmp_path: Path, write_shards: Any, make_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards([r for r in make_records(20) if len(r.images) == 1])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "long.yaml"
    text = RECIPE.format(name="long", shards=shards, options="updates: 1")
    path.write_text(text.replace("max_new_tokens: 5,", "max_new_tokens: 500,"))
    with pytest.raises(SampleTooLongError, match=r"max_new_tokens 500 within data: seq_len 512"):
        train_example.train(path)
    assert not (tmp_path / "runs/long/history.jsonl").exists()


def test_a_prompt_that_cannot_be_read_again_is_an_error_not_a_blank(
    shards: Path, tokenizer: Any, vision: Any
) -> None:
    """Its completions were sampled, on another rank, of the image."""
    with ShardSet.open(shards) as opened, closing(make_decoder("cpu", vision)) as decoder:
        chat = ChatFormat.for_family("qwen3_vl", tokenizer)
        number = next(i for i in range(len(opened)) if opened.images(i))
        encoder = SampleEncoder(opened, chat, vision, decoder)
        made = (Completion(np.array([9], np.int32), np.zeros(1, np.float32), True),) * 2
        group = Group(0, number, made, (Reward(0, 0, 0), Reward(1, 1, 1.5)))
        sound = Rollouts.of([group], {}, encoder, scale=True)
        assert sound.asked[0].pixel_values is not None
        broken = SampleEncoder(opened, chat, vision, BlindDecoder())
        with pytest.raises(IntegrityError, match="image-corrupt: too dark") as error:
            Rollouts.of([group], {}, broken, scale=True)
        assert opened.key(number) in str(error.value)
        assert Rollouts.of([group], {0: sound.asked[0]}, broken, scale=True).asked == sound.asked


class BlindDecoder:
    """Decodes nothing."""

    name = "cpu"
    device = "cpu"

    def decode(self, images: Any, _infos: Any) -> list[ImageFailure]:
        return [ImageFailure("image-corrupt", "too dark") for _ in images]


@pytest.mark.parametrize("model", [CostModel(), CostModel().with_frozen_vision()])
def test_a_groups_cost_is_that_of_its_samples(model: CostModel) -> None:
    """What is shared counts once: less than unshared by all other copies of the prompt."""
    prompt = EncodedSample(
        key="k",
        input_ids=np.zeros(300, np.int32),
        trained=np.zeros(300, np.bool_),
        pixel_values=None,
        image_grid_thw=np.array([[1, 8, 10], [1, 4, 6]], np.int64),
    )
    lengths = (5, 512, 77)
    made = [Completion(np.zeros(n, np.int32), np.zeros(n, np.float32), True) for n in lengths]

    def cost(tokens: int, patches: int) -> int:
        return int(model.cost(np.array([tokens]), np.array([patches]))[0])

    def of(completions: list[Completion], shared_prefix: bool) -> int:
        return update_cost(model, prompt, completions, shared=shared_prefix)

    alone = [cost(300 + n, 104) for n in lengths]
    assert of(made, shared_prefix=False) == sum(alone)
    assert of(made, shared_prefix=True) == sum(alone) - 2 * cost(300, 104)
    assert of(made[:1], shared_prefix=True) == of(made[:1], shared_prefix=False) == alone[0]
