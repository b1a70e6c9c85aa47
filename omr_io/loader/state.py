"""The loader's state: position and fingerprints as plain JSON, and its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig, fingerprint
from omr_io.errors import ConfigError, ResumeError
from omr_io.images.patches import installed_pass_order
from omr_io.packing import Lengths
from omr_io.sample_set import SampleSet

FORMAT = 2
"""Version of the state. It changes whenever the same state would give another stream."""

MOST = 2**31 - 1
"""The largest number that a position may have: what is larger was not counted, but is damaged."""

_OTHER_FORMATS = {1: "a position without windows, in an order that this release does not make"}


@dataclass(frozen=True, slots=True)
class Position:
    """The batch that comes next, all counted from 0.

    Attributes:
        epoch: counts whole passes.
        window: of the epoch: samples that are shuffled and packed together.
        step: optimiser step within the window.
        micro_step: batch within the step.
        steps_before: steps in the epoch's earlier windows, so that the step within the epoch is
            known without planning them.
    """

    epoch: int = 0
    window: int = 0
    step: int = 0
    micro_step: int = 0
    steps_before: int = 0

    @property
    def epoch_step(self) -> int:
        """The optimiser step within the epoch."""
        return self.steps_before + self.step

    def __str__(self) -> str:
        window = f" (window {self.window}, its step {self.step})" if self.window else ""
        return f"epoch {self.epoch}, step {self.epoch_step}{window}, micro step {self.micro_step}"


def fingerprints(
    shards: SampleSet,
    chat: ChatFormat,
    vision: VisionConfig,
    lengths: Lengths,
    samples: str,
    planning: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the stream of batches depends on besides the position, by name.

    Args:
        vision: is taken with the pass order that the installed Pillow gives it.
        samples: stands for what decides which samples an epoch has.
        planning: options of the plan, numbers and short texts.
    """
    resolved = dataclasses.replace(vision, pass_order=vision.pass_order or installed_pass_order())
    return {
        "corpus": shards.fingerprint,
        "tokenizer": chat.tokenizer.fingerprint,
        "chat": chat.fingerprint,
        "vision": fingerprint(resolved),
        "lengths": lengths.digest(),
        "samples": samples,
        **planning,
    }


def to_dict(
    position: Position, layout: Mapping[str, int | str], names: Mapping[str, Any]
) -> dict[str, Any]:
    """The state as plain JSON, under 1 KB."""
    return {
        "format": FORMAT,
        **dataclasses.asdict(position),
        "layout": dict(layout),
        "fingerprint": dict(names),
    }


def from_dict(
    saved: Mapping[str, Any], layout: Mapping[str, int | str], names: Mapping[str, Any]
) -> Position:
    """The position in a saved state, if it belongs to a loader with this layout and fingerprint.

    Raises:
        ResumeError: it does not, or it is no state at all; names what differs.
    """
    if not isinstance(saved, Mapping):
        raise ResumeError(
            f"a {type(saved).__name__} is no loader's state",
            mend="Give what state_dict() gave; without a state, leave load_state_dict out",
        )
    found = saved.get("format")
    if found != FORMAT or type(found) is not int:
        known_as = _OTHER_FORMATS.get(found) if type(found) is int else None
        raise ResumeError(
            f"the loader's state has format {found!r}{f' ({known_as})' if known_as else ''}, "
            f"this omr_io reads {FORMAT}",
            mend="Go on with the omr_io that saved it, or begin a new epoch: set_epoch(N)",
        )
    numbers = [saved.get(field.name) for field in dataclasses.fields(Position)]
    known, old_layout = saved.get("fingerprint"), saved.get("layout")
    if (
        any(type(number) is not int or not 0 <= number <= MOST for number in numbers)
        or not isinstance(known, Mapping)
        or not isinstance(old_layout, Mapping)
    ):
        raise ResumeError("this is not a loader's state: a field is missing or of a wrong type")
    _check_names(known, names)
    position = Position(*(int(number) for number in numbers if number is not None))
    if not position.window and position.steps_before:
        raise ResumeError(f"{position} does not exist: no window comes before the first")
    if position.micro_step and dict(old_layout) != dict(layout):
        raise ResumeError(
            f"the state stands inside an optimiser step ({position}), where the layout must stay: "
            f"saved {_listed(old_layout)}, here {_listed(layout)}",
            mend="Save at the end of a step to go on with another world size, packs_per_batch or "
            "cost",
        )
    return position


def check_same(states: Sequence[Mapping[str, Any]], world_size: int) -> None:
    """Refuse the states of ranks that do not share one plan, or stand at different places.

    Args:
        states: of all ranks, in their order.

    Raises:
        ConfigError: they differ, or are not as many as there are ranks; names what and where.
    """
    if len(states) != world_size:
        raise ConfigError(f"{len(states)} states of {world_size} ranks")
    flat = [_flat(state) for state in states]
    found = [
        f"{name} (rank 0 {flat[0].get(name, 'absent')}, rank {rank} {one.get(name, 'absent')})"
        for rank, one in enumerate(flat)
        for name in {**flat[0], **one}
        if one.get(name) != flat[0].get(name)
    ]
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise ConfigError(
            f"the ranks would not share one plan; what differs: {', '.join(found[:4])}{more}",
            mend="Give every rank the same shards, tokenizer, options and state; copies of a set "
            "on several machines must be equal",
        )


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in state.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


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

    def __init__(self, shards: SampleSet) -> None:
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
