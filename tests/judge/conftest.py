"""A shard set with a rubric, completions to it, and judges that do not wait long."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from omr_io.index import ShardSet
from omr_io.judge import AskOptions, Endpoint, Judge
from omr_io.remote.retries import RetryPolicy
from omr_io.types import RubricUnit
from tests.judge.judge_server import JudgeServer, Script
from tests.shard_sets import encoded, record, write

KEY = "sk-a/very+secret-key_0123456789"
# Quick to try again; patient with a server on a machine that has much else to do.
QUICK = RetryPolicy(tries=4, first_wait=0.01, max_wait=0.05, timeout=100.0)

# By record: axis, claim. The claims tell units apart in prompts.
UNITS = (
    (("perception", "p00"), ("perception", "p01"), ("knowledge", "k00"), ("rationale", "r00")),
    (("perception", "p10"), ("rationale", "r10")),
    (),
    (("perception", "p30"), ("knowledge", "k30"), ("knowledge", "k31")),
    (("perception", "p40"), ("knowledge", "k40")),
)
TRACES = ("<think>It is bright.</think>", "trace one", "trace two", "trace three", "  \n")


def rubric_unit(axis: str, claim: str) -> RubricUnit:
    return RubricUnit(
        axis=axis, unit_id=f"id-{claim}", topic="t", claim=claim, presence_question="p?",
        correctness_question="c?", source_quote="q", importance="high",
    )  # fmt: skip


@dataclass
class Place:
    """What there is to judge: the set's folder, keys in order, a file of completions."""

    shards: Path
    keys: list[str]
    completions: Path
    images: list[bytes]

    def lines(self, model: str, traces: list[str], **more: object) -> list[dict]:
        with ShardSet.open(self.shards) as opened:
            answers = opened.answers()
        return [
            {
                "key": key, "set": "test", "model": model, "run": 0, "variant": "plain",
                "completion": trace, "letter": "A", "how": "answer-tag", "answer": answer,
                "correct": answer == "A", **more,
            }
            for key, trace, answer in zip(self.keys, traces, answers, strict=True)
        ]  # fmt: skip


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Five records; the third has no rubric, the last an empty trace."""
    kinds = ("JPEG", "PNG", "JPEG", "WEBP", "JPEG")
    images = [encoded(number, kind) for number, kind in enumerate(kinds)]
    units = [tuple(rubric_unit(*unit) for unit in own) for own in UNITS]
    records = [
        record(number, [images[number]], rubric=units[number]) for number in range(len(units))
    ]
    write(tmp_path / "test", records, check="header", keep_metadata=True)
    with ShardSet.open(tmp_path / "test") as opened:
        keys = [opened.key(number) for number in range(len(opened))]
    place = Place(tmp_path / "test", keys, tmp_path / "run" / "completions.jsonl", images)
    blind = place.lines("lab/model-a", list(TRACES), variant="blind")
    header = {"header": True, "format": 1}
    write_lines(place.completions, [header, *place.lines("lab/model-a", list(TRACES)), *blind[:2]])
    return place


@pytest.fixture
def serve() -> Iterator[Callable[[Script], JudgeServer]]:
    """A function: script → a running server."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(JudgeServer(script))


@pytest.fixture
def judge_of(tmp_path: Path) -> Callable[..., Judge]:
    """A function: (server, options of AskOptions or Endpoint) → a judge with a cache."""

    def make(server: JudgeServer, **changes: object) -> Judge:
        endpoint = {
            name: changes.pop(name) for name in ("key", "name", "settings") if name in changes
        }
        cache_bytes = changes.pop("cache_bytes", 1 << 24)
        options = AskOptions(**({"policy": QUICK, "deadline": 300.0} | changes))
        who = Endpoint(server.url, "judge-1", **({"key": KEY} | endpoint))
        return Judge(who, options, cache_folder=tmp_path / "cache", cache_bytes=cache_bytes)

    return make
