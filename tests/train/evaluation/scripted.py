"""A model whose answers are known, and shard sets to ask it about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omr_io.train.evaluation.models import Ask
from omr_io.train.evaluation.scoring import Said
from omr_io.types import Option
from tests.shard_sets import encoded, record, write

Script = Callable[[Ask, int], str | Said]
"""(what is asked, run) -> what the model says."""


class Scripted:
    """Says what its script says, and remembers what it was asked."""

    def __init__(self, name: str, script: Script, **made_by: Any) -> None:
        self.name = name
        self.script = script
        self.made_by = {"weights": name, **made_by}
        self.about = {"model_path": f"folder of {name}"}
        self.asked: list[Ask] = []
        self.blocks: list[tuple[int, int]] = []
        self.closed = 0

    def answer(self, shards, asks: Sequence[Ask], *, runs: int, seed: int) -> list[list[Said]]:
        self.asked += asks
        self.blocks.append((len(asks), seed))
        said = [[self.script(ask, run) for run in range(runs)] for ask in asks]
        return [[Said(one) if isinstance(one, str) else one for one in own] for own in said]

    def close(self) -> None:
        self.closed += 1


def answer(letter: str) -> str:
    return f"<think>So it is.</think><answer>{letter}</answer>"


def right(ask: Ask, run: int = 0) -> str:
    return answer(ask.record.answer)


def always(letter: str) -> Script:
    return lambda ask, run: answer(letter)


WORDS = ("liver", "spleen", "heart", "lung", "kidney", "brain")


def question(number: int, options: int = 4, image: int | None = None, right: int | None = None):
    """A record whose right option is `right` (default: number modulo options)."""
    place = number % options if right is None else right
    texts = [f"{word} {number}" for word in WORDS[:options]]
    lines = "".join(f"\n{'ABCDEF'[i]}. {text}" for i, text in enumerate(texts))
    return record(
        number,
        [] if image is None else [encoded(image)],
        question=f"Which organ, {number}?{lines}",
        options=tuple(Option("ABCDEF"[i], text) for i, text in enumerate(texts)),
        answer="ABCDEF"[place],
        reasoning=answer("ABCDEF"[place]),
    )


def write_questions(folder: Path, count: int, **options: Any) -> Path:
    write(folder, [question(i, image=i, **options) for i in range(count)])
    return folder
