"""Evaluation within the recipe: a split of any size, a few prompts in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import train_example
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.images.decode import CpuDecoder
from omr_io.index import ShardSet
from omr_io.loader.samples import SampleEncoder
from omr_io.tokenizer import train_bpe
from omr_io.train.ranks import Ranks
from omr_io.train.rollout import Completion


@contextmanager
def never_interrupted() -> Iterator[Callable[[], None]]:
    yield lambda: None


@pytest.mark.parametrize(("group", "batch", "most"), [(1, 1, 4), (2, 4, 8), (2, 1, 4), (1, 99, 11)])
def test_a_split_is_asked_a_part_at_a_time(
    shards: Any, records: Any, monkeypatch: pytest.MonkeyPatch, group: int, batch: int, most: int
) -> None:
    """What is said of a sample is its place and the number of the completion."""
    asked: list[int] = []

    def answer(_: Any, prompts: Sequence[Any], *, places: Any, of: int, **options: Any) -> Any:
        assert (of, options["group_size"], options["batch_size"]) == (11, group, batch)
        assert len(prompts) == len(places)
        asked.append(len(prompts))
        return [
            Completion(np.asarray([place, k], np.int32), np.zeros(2, np.float32), finished=True)
            for place in places
            for k in range(group)
        ]

    monkeypatch.setattr(train_example, "generate", answer)
    tokenizer = train_bpe([r.question for r in records], vocab_size=400)
    with ShardSet.open(shards) as opened:
        vision = VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64)
        chat = ChatFormat.for_family("qwen3_vl", tokenizer)
        encoder = SampleEncoder(opened, chat, vision, CpuDecoder())
        evaluation = SimpleNamespace(
            batch=batch, max_new_tokens=2, cluster_field=None, task_field=None
        )
        run: Any = SimpleNamespace(
            recipe=SimpleNamespace(evaluation=evaluation, seed=0),
            ranks=Ranks(),
            model=None,
            ids=SimpleNamespace(eos=0, banned=()),
            stopping=SimpleNamespace(interruptible=never_interrupted),
            text=lambda completion: str(completion.ids.tolist()),
        )
        numbers = list(range(10, -1, -1))
        items = train_example.completions_of(run, encoder, numbers, temperature=1.0, group=group)
        assert max(asked) == most
        assert sum(asked) == 11
        assert [item.key for item in items] == [
            opened.key(n) for n in numbers for _ in range(group)
        ]
    said = [item.completion for item in items]
    assert said == [str([place, k]) for place in range(11) for k in range(group)]
