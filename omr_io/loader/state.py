"""The loader's state: position and fingerprints as plain JSON, and its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig, fingerprint
from omr_io.errors import ResumeError
from omr_io.images.patches import installed_pass_order
from omr_io.index import ShardSet
from omr_io.packing import Lengths
from omr_io.types import Int64Array

FORMAT = 1
"""Version of the state. It changes whenever the same state would give another stream."""


@dataclass(frozen=True, slots=True)
class Position:
    """The batch that comes next: micro step of step of epoch, all from 0."""

    epoch: int
    step: int
    micro_step: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}, micro step {self.micro_step}"


def fingerprints(
    shards: ShardSet,
    chat: ChatFormat,
    vision: VisionConfig,
    lengths: Lengths,
    samples: Int64Array | None,
    planning: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the stream of batches depends on besides the position, by name.

    `vision` is taken with the pass order that the installed Pillow gives it.
    """
    resolved = dataclasses.replace(vision, pass_order=vision.pass_order or installed_pass_order())
    return {
        "corpus": shards.fingerprint,
        "tokenizer": chat.tokenizer.fingerprint,
        "chat": chat.fingerprint,
        "vision": fingerprint(resolved),
        "lengths": lengths.digest(),
        "samples": "all" if samples is None else fingerprint(samples.tolist()),
        **planning,
    }


def to_dict(
    position: Position, layout: Mapping[str, int], names: Mapping[str, Any]
) -> dict[str, Any]:
    """The state as plain JSON."""
    return {
        "format": FORMAT,
        **dataclasses.asdict(position),
        "layout": dict(layout),
        "fingerprint": dict(names),
    }


def from_dict(
    saved: Mapping[str, Any], layout: Mapping[str, int], names: Mapping[str, Any]
) -> Position:
    """The position in a saved state, if it belongs to a loader with this layout and fingerprint.

    Raises:
        ResumeError: it does not, or it is no state at all; names what differs.
    """
    if saved.get("format") != FORMAT:
        raise ResumeError(
            f"the loader's state has format {saved.get('format')!r}, this omr_io reads {FORMAT}",
            mend="Go on with the omr_io that saved it",
        )
    numbers = [saved.get(field.name) for field in dataclasses.fields(Position)]
    known, old_layout = saved.get("fingerprint"), saved.get("layout")
    if (
        any(type(number) is not int or number < 0 for number in numbers)
        or not isinstance(known, Mapping)
        or not isinstance(old_layout, Mapping)
    ):
        raise ResumeError("this is not a loader's state: a field is missing or of a wrong type")
    _check_names(known, names)
    position = Position(*(int(number) for number in numbers if number is not None))
    if position.micro_step and dict(old_layout) != dict(layout):
        raise ResumeError(
            f"the state stands inside an optimiser step ({position}), where the layout must stay: "
            f"saved {_listed(old_layout)}, here {_listed(layout)}",
            mend="Save at the end of a step to go on with another world size or packs_per_batch",
        )
    return position


def check_range(position: Position, num_steps: int, micro_steps: int) -> None:
    """Refuse a position that the epoch does not have.

    Raises:
        ResumeError: as said.
    """
    if position.step >= num_steps or position.micro_step >= micro_steps:
        raise ResumeError(
            f"{position} does not exist: the epoch has {num_steps} steps of {micro_steps} batches"
        )


def _check_names(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    absent = "absent"
    differing = [
        f"{name} (saved {saved.get(name, absent)}, here {here.get(name, absent)})"
        for name in [*here, *(name for name in saved if name not in here)]
        if saved.get(name, absent) != here.get(name, absent)
    ]
    if differing:
        raise ResumeError(
            f"the state is of another stream of batches; what differs: {', '.join(differing)}",
            mend="Give the loader what the saved run had, or begin a new run",
        )


def _listed(layout: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())


class Keys(Sequence[str]):
    """The keys of a shard set's samples, read only when asked for."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self._shards.key(i) for i in range(*number.indices(len(self)))]
        return self._shards.key(number)

    def __len__(self) -> int:
        return len(self._shards)
