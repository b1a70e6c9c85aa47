"""What is fetched: runs of bytes of a file, each fetched once, held in memory within a bound."""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum, auto


class State(Enum):
    """Of a unit: it waits for a thread, is at work, or is done (or failed)."""

    WAITING = auto()
    RUNNING = auto()
    DONE = auto()


@dataclass(slots=True, eq=False)
class Unit:
    """Bytes start:stop of a file, fetched by one request.

    Attributes:
        block: an aligned block, which goes to the cache; else a range, which memory holds.
        state, error: how it went. data: its bytes; None once done: they are in the cache, or
            somebody else put them there.
        ahead: nobody waited for it when it went to work.
        readers: hints on what it holds that were not read yet. position: of the last of them, in
            the order of all hints.
        ready: set when it is done.
        busy_since: when another process was first found to be fetching it.
    """

    name: str
    start: int
    stop: int
    block: bool
    ahead: bool
    state: State = State.WAITING
    error: BaseException | None = None
    data: bytes | memoryview | None = None
    readers: int = 0
    position: int = -1
    ready: threading.Event = field(default_factory=threading.Event)
    busy_since: float | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    def slice(self, start: int, stop: int) -> bytes:
        """Bytes of the file that the unit holds."""
        assert self.data is not None
        return bytes(memoryview(self.data)[start - self.start : stop - self.start])


class UnitTable:
    """Units by place, never overlapping, and how much memory they take. Not thread-safe.

    Args:
        max_bytes: of the memory that units may take, those at work included.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._places: dict[str, list[tuple[int, Unit]]] = {}  # sorted by start
        # Done, and in memory. Spent: nobody is known to want them still; in the order of that.
        self._spent: OrderedDict[Unit, None] = OrderedDict()
        self._unread: OrderedDict[Unit, None] = OrderedDict()

    def at(self, name: str, offset: int) -> Unit | None:
        """The unit that holds a byte."""
        places = self._places.get(name, ())
        place = bisect_right(places, offset, key=_start) - 1
        if place >= 0 and places[place][1].stop > offset:
            return places[place][1]
        return None

    def next_start(self, name: str, offset: int) -> int | None:
        """Where the next unit from here on begins, if there is one."""
        places = self._places.get(name, ())
        place = bisect_right(places, offset - 1, key=_start)
        return places[place][0] if place < len(places) else None

    def between(self, name: str, start: int, stop: int) -> list[Unit]:
        """The units that hold any of these bytes."""
        places = self._places.get(name, ())
        place = max(bisect_right(places, start, key=_start) - 1, 0)
        found = []
        for begin, unit in places[place:]:
            if begin >= stop:
                break
            if unit.stop > start:
                found.append(unit)
        return found

    def add(self, unit: Unit) -> None:
        """Add a unit where none is; its bytes count from now on."""
        insort(self._places.setdefault(unit.name, []), (unit.start, unit), key=_start)
        self.held_bytes += unit.size

    def remove(self, unit: Unit) -> None:
        """Forget a unit; whoever still has it keeps its bytes."""
        places = self._places[unit.name]
        place = bisect_right(places, unit.start, key=_start) - 1
        assert places[place][1] is unit
        del places[place]
        if not places:
            del self._places[unit.name]
        self._spent.pop(unit, None)
        self._unread.pop(unit, None)
        self.held_bytes -= unit.size

    def file(self, unit: Unit) -> None:
        """Put a unit that is done where it belongs: unread, or spent."""
        self._spent.pop(unit, None)
        self._unread.pop(unit, None)
        (self._unread if unit.readers else self._spent)[unit] = None

    def make_room(self, size: int, before: int = -1) -> bool:
        """Forget units until `size` more bytes fit; gives whether they do.

        What is spent goes first.

        Args:
            before: the position of a reader that waits. What was to be read before that and was not
                goes too, and eight times as much as is needed: most likely it is of an order that
                was given up.
        """
        wanted = self.max_bytes - size
        while self.held_bytes > wanted and self._spent:
            self.remove(next(iter(self._spent)))
        if self.held_bytes > wanted:
            for unit in [unit for unit in self._unread if unit.position < before]:
                if self.held_bytes <= wanted - 7 * size:
                    break
                self.remove(unit)
        return self.held_bytes <= wanted

    def all(self) -> list[Unit]:
        """All of them."""
        return [unit for places in self._places.values() for _, unit in places]


def _start(item: tuple[int, Unit]) -> int:
    return item[0]
