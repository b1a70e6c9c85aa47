"""Which bytes are fetched next, and as what: integers only, no network. Not thread-safe."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from omr_io.remote_storage.block_cache import BlockCache
from omr_io.remote_storage.hints import MAX_GAP, Hint, Hints
from omr_io.remote_storage.options import RemoteOptions
from omr_io.remote_storage.units import State, Unit, UnitTable

_MAX_RUN = 8 << 20  # bytes of a request for several ranges
_FIRST_AHEAD = (
    256 << 10
)  # of a file that is read in order without a hint; doubled with each request
_MAX_AHEAD = 4 << 20
_MIN_LAG = 64 << 20


class Planner:
    """Decides what is fetched, from hints and reads.

    Args:
        sizes: of the files in bytes, filled in as they become known; a file must be there before
            anything of it is planned.
        cache: None: all stays in memory.
        key: (name, block) → the block's key in the cache.
        options: see there.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        cache: BlockCache | None,
        key: Callable[[str, int], str],
        options: RemoteOptions,
    ) -> None:
        self._sizes, self._cache, self._key = sizes, cache, key
        self._block_bytes = options.block_bytes
        self.units = UnitTable(options.read_ahead_bytes)
        lag = max(options.read_ahead_bytes, _MIN_LAG)
        self.hints = Hints(sizes, options.block_bytes, lag)
        self._max_run = min(_MAX_RUN, options.read_ahead_bytes // (2 * options.threads))
        self._streams: dict[str, tuple[int, int]] = {}  # name → where a read ended, bytes ahead
        self._blocks: deque[tuple[int, int]] = deque()  # fetched ahead: hint's position, bytes
        self._block_bytes_ahead = 0

    # Reads

    def begin_read(self, name: str, start: int, stop: int) -> Hint | None:
        """A read begins; gives the hint that told of it."""
        hint = self.hints.find(name, start)
        if hint is None:
            self.hints.want(name, start, stop)
            end, ahead = self._streams.get(name, (-1, 0))
            in_order = end >= 0 and 0 <= start - end <= MAX_GAP
            self._streams[name] = (stop, max(ahead, _FIRST_AHEAD // 2) if in_order else 0)
        return hint

    def end_read(self, hint: Hint, start: int, stop: int) -> bool:
        """A range that a hint told of was read; gives whether there may be room for others now."""
        for done in self.hints.read(hint, start, stop):
            for unit in done.units:
                unit.readers -= 1
                if not unit.readers and self._is_held(unit):
                    self.units.remove(unit)  # it was told of, and all who were told have read it
            done.units.clear()
        if hint.done:
            while self._blocks and self._blocks[0][0] <= hint.position:
                self._block_bytes_ahead -= self._blocks.popleft()[1]
        return hint.done

    def unit_to_wait_for(self, name: str, start: int, stop: int, hint: Hint | None) -> Unit:
        """A new unit for a reader that waits, where none is."""
        unit = self._unit(name, start, stop, ahead=False)
        if hint is None and not unit.block and not self._takes_blocks():
            end, ahead = self._streams[name]
            if ahead:
                ahead = min(2 * ahead, _MAX_AHEAD)
                self._streams[name] = (end, ahead)
                unit.stop = self._clip(name, unit.start, unit.stop + ahead)
        # It is fetched even if there is no room: as many as there are readers, and no more.
        self.units.make_room(unit.size, -1 if hint is None else hint.position)
        self.units.add(unit)
        if hint is not None and not hint.done:
            self._attach(hint, unit)
        return unit

    # Reading ahead

    def next_ahead(self, hint: Hint) -> Unit | None:
        """The next unit that a hint needs.

        None: it needs no more, and is launched now; or, where it is not, there is no room for it.
        """
        at, stop = hint.start, min(hint.stop, self._sizes[hint.name])
        while at < stop:
            unit = self.units.at(hint.name, at)
            if unit is not None:
                at = unit.stop
            elif self._is_cached(hint.name, at):
                at = (at // self._block_bytes + 1) * self._block_bytes
            else:
                return self._ahead(hint, at, stop)
        self._see_to(hint)
        return None

    def finish(self, unit: Unit) -> None:
        """A unit is done, or failed."""
        unit.state = State.DONE
        if unit.error is not None:
            self.hints.give_up(unit.name, unit.start, unit.stop)
        if self.units.at(unit.name, unit.start) is unit:
            if unit.data is None:
                self.units.remove(unit)  # it is in the cache, or to be asked for again
            else:
                self.units.file(unit)

    def _ahead(self, hint: Hint, at: int, stop: int) -> Unit | None:
        unit = self._unit(hint.name, at, stop, ahead=True)
        if unit.block:
            assert self._cache is not None
            ahead = self._block_bytes_ahead + unit.size
            if self._block_bytes_ahead and ahead > self._cache.max_bytes // 2:
                return None
        else:
            self._extend(hint, unit)
        if not self.units.make_room(unit.size) and self.units.held_bytes:
            return None
        if unit.block:
            self._blocks.append((hint.position, unit.size))
            self._block_bytes_ahead += unit.size
        self.units.add(unit)
        for other in list(self.hints.within(hint.name, unit.start, unit.stop)):
            self._see_to(other)
        return unit

    def _extend(self, hint: Hint, unit: Unit) -> None:
        """Let a range take in what lies near it and will be read too."""
        start, stop = self.hints.near(hint, self._max_run, self.units.max_bytes // 2)
        start, stop = min(start, unit.start), max(stop, unit.stop)
        if self._takes_blocks():
            begin = unit.start // self._block_bytes * self._block_bytes
            start, stop = max(start, begin), min(stop, begin + self._block_bytes)
        if not self.units.between(unit.name, start, stop):
            unit.start, unit.stop = start, min(stop, self._sizes[unit.name])

    def _unit(self, name: str, start: int, stop: int, *, ahead: bool) -> Unit:
        """A unit with a byte that no unit holds: its whole block, or from there on."""
        if self._takes_blocks():
            block = start // self._block_bytes
            begin = block * self._block_bytes
            end = min(begin + self._block_bytes, self._sizes[name])
            wanted = self.hints.is_wanted(name, block, end - begin)
            if wanted and self._free(name, begin, end):
                return Unit(name, begin, end, block=True, ahead=ahead)
            stop = min(stop, end)
        return Unit(name, start, self._clip(name, start, stop), block=False, ahead=ahead)

    def _takes_blocks(self) -> bool:
        """Whether the files that are read from at present fit in half of the cache."""
        return self._cache is not None and (self.hints.working_bytes <= self._cache.max_bytes // 2)

    def _free(self, name: str, start: int, stop: int) -> bool:
        """Make way for a block that holds the same bytes; not for what is being fetched."""
        there = self.units.between(name, start, stop)
        if any(unit.state is not State.DONE for unit in there):
            return False
        for unit in there:
            self.units.remove(unit)
        return True

    def _clip(self, name: str, start: int, stop: int) -> int:
        next_start = self.units.next_start(name, start)
        stop = min(stop, self._sizes[name])
        return stop if next_start is None else min(stop, next_start)

    def _is_cached(self, name: str, at: int) -> bool:
        block = at // self._block_bytes
        if self._cache is None or not self._cache.has(self._key(name, block)):
            return False
        self.hints.forget_block(name, block)
        return True

    def _see_to(self, hint: Hint) -> None:
        """All that a hint needs is there, or being fetched."""
        hint.launched = True
        for unit in self.units.between(hint.name, hint.start, hint.stop):
            self._attach(hint, unit)

    def _attach(self, hint: Hint, unit: Unit) -> None:
        if unit not in hint.units:
            hint.units.append(unit)
            unit.readers += 1
            unit.position = max(unit.position, hint.position)
            if self._is_held(unit):
                self.units.file(unit)

    def _is_held(self, unit: Unit) -> bool:
        done = unit.state is State.DONE
        return done and self.units.at(unit.name, unit.start) is unit
