"""What was said to be read soon, in its order, and what that says about the blocks of files."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from omr_io.remote_storage.units import Unit

MAX_GAP = 1 << 16
"""Bytes between two ranges that are read over rather than asked for apart."""

_RECENT = 4096  # ranges whose files are taken for what is at work now
_MAX_COUNTED = 1 << 20  # blocks; beyond them counting starts anew
_SHARE = 16  # a block is taken whole once 1/16 of it is wanted


@dataclass(slots=True, eq=False)
class Hint:
    """A range that will be read.

    Attributes:
        position: the bytes of all hints before it.
        launched: it is being fetched, or was; or it is done with.
        first, last: whether the byte at that end was read. done: both were; or it was overtaken.
        units: that hold its bytes.
    """

    name: str
    start: int
    stop: int
    position: int
    launched: bool = False
    first: bool = False
    last: bool = False
    done: bool = False
    units: list[Unit] = field(default_factory=list)


class Hints:
    """The hints that were not read yet. Not thread-safe.

    Args:
        sizes: of the files, in bytes, as far as known.
        block_bytes: of the blocks that files are cut into.
        max_lag: a hint is given up once so many bytes of later ones were told before one that was
            read. Threads of a loader read their batches side by side, so order is a loose thing.
    """

    def __init__(self, sizes: Mapping[str, int], block_bytes: int, max_lag: int) -> None:
        self._sizes = sizes
        self._block_bytes = block_bytes
        self._max_lag = max_lag
        self._queue: list[tuple[int, Hint]] = []  # a heap: nobody sees to them yet
        self._order: deque[Hint] = deque()  # all that live, and some that are done
        self._live: dict[str, list[tuple[int, Hint]]] = {}  # sorted by start
        self._position = 0
        self._recent: deque[str] = deque()
        self._recent_counts: Counter[str] = Counter()
        self._wanted: Counter[tuple[str, int]] = Counter()
        self.working_bytes = 0
        """Sizes of the files that the last 4096 ranges are of, added up."""

    def add(self, name: str, start: int, stop: int) -> None:
        """A range will be read after all that were added before."""
        hint = Hint(name, start, stop, self._position)
        self._position += stop - start
        heappush(self._queue, (hint.position, hint))
        self._order.append(hint)
        insort(self._live.setdefault(name, []), (start, hint), key=_start)
        self.want(name, start, stop)

    def want(self, name: str, start: int, stop: int) -> None:
        """Count a range that is read, told before or not."""
        self._recent.append(name)
        self._recent_counts[name] += 1
        if self._recent_counts[name] == 1:
            self.working_bytes += self._sizes.get(name, 0)
        if len(self._recent) > _RECENT:
            old = self._recent.popleft()
            self._recent_counts[old] -= 1
            if not self._recent_counts[old]:
                del self._recent_counts[old]
                self.working_bytes -= self._sizes.get(old, 0)
        if len(self._wanted) > _MAX_COUNTED:
            self._wanted.clear()
        for block in blocks(start, stop, self._block_bytes):
            begin = block * self._block_bytes
            overlap = min(stop, begin + self._block_bytes) - max(start, begin)
            self._wanted[name, block] += overlap

    def is_wanted(self, name: str, block: int, size: int) -> bool:
        """Whether so much of a block of `size` bytes is wanted that it may as well come whole.

        Until then its ranges are fetched on their own: the first batches of a shuffled corpus need
        a little of every block. What that costs twice is at most a sixteenth.
        """
        return self._wanted[name, block] * _SHARE >= size

    def forget_block(self, name: str, block: int) -> None:
        """A block is in the cache: start counting anew."""
        self._wanted.pop((name, block), None)

    def next(self) -> Hint | None:
        """The first hint that nobody sees to yet."""
        while self._queue and self._queue[0][1].launched:
            heappop(self._queue)
        return self._queue[0][1] if self._queue else None

    def park(self, hint: Hint) -> None:
        """Take the first hint off the queue; `unpark` puts it back."""
        assert self._queue[0][1] is hint
        heappop(self._queue)

    def unpark(self, hints: list[Hint]) -> None:
        """Put hints that were parked back to where they were."""
        for hint in hints:
            heappush(self._queue, (hint.position, hint))

    def give_up(self, name: str, start: int, stop: int) -> None:
        """Fetching these bytes failed: who reads them will see for himself."""
        for begin, hint in self._live.get(name, []):
            if begin < stop and hint.stop > start:
                hint.launched = True

    def near(self, hint: Hint, max_bytes: int, max_lag: int) -> tuple[int, int]:
        """The run of bytes around a hint in which others that wait lie close to each other.

        Args:
            max_bytes: of the run. max_lag: bytes of hints between this one and one taken in.
        """
        live = self._live.get(hint.name, [])
        place = bisect_left(live, hint.start, key=_start)
        last = hint.position + max_lag
        start, stop = hint.start, hint.stop
        for _, other in live[place:]:
            if other.start > stop + MAX_GAP or max(stop, other.stop) - start > max_bytes:
                break
            if not other.launched and other.position <= last:
                stop = max(stop, other.stop)
        for begin, other in reversed(live[:place]):
            if other.stop < start - MAX_GAP or stop - begin > max_bytes:
                break
            if not other.launched and other.position <= last:
                start = min(start, begin)
        return start, stop

    def within(self, name: str, start: int, stop: int) -> Iterator[Hint]:
        """The hints that wait and lie whole within some bytes."""
        live = self._live.get(name, [])
        for begin, hint in live[bisect_left(live, start, key=_start) :]:
            if begin >= stop:
                return
            if hint.stop <= stop and not hint.launched:
                yield hint

    def find(self, name: str, offset: int) -> Hint | None:
        """The hint that a byte belongs to; of equal ones the first."""
        live = self._live.get(name, [])
        place = bisect_right(live, offset, key=_start) - 1
        if place < 0:
            return None
        hint = live[bisect_left(live, live[place][0], key=_start)][1]
        return hint if hint.stop > offset else None

    def read(self, hint: Hint, start: int, stop: int) -> list[Hint]:
        """A range of a hint's file was read; gives the hints that are done with by that."""
        hint.first |= start <= hint.start
        hint.last |= stop >= hint.stop
        if hint.done or not (hint.first and hint.last):
            return []
        finished = [hint]
        self._drop(hint)
        while self._order:
            oldest = self._order[0]
            if not oldest.done and oldest.position >= hint.position - self._max_lag:
                break
            if not oldest.done:
                self._drop(oldest)
                finished.append(oldest)
            self._order.popleft()
        return finished

    def _drop(self, hint: Hint) -> None:
        hint.launched = hint.done = True
        live = self._live[hint.name]
        place = bisect_left(live, hint.start, key=_start)
        while live[place][1] is not hint:
            place += 1
        del live[place]
        if not live:
            del self._live[hint.name]


def blocks(start: int, stop: int, block_bytes: int) -> range:
    """The numbers of the blocks that a range lies in."""
    return range(start // block_bytes, -(-stop // block_bytes))


def _start(item: tuple[int, Hint]) -> int:
    return item[0]
