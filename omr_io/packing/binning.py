"""Two ways to put lengths into the fewest bins; `omr_io.packing.plan` takes the better one.

`best_fit` on decreasing lengths is the classic. It leaves every bin with less room than the
shortest length still to come, some 2% on samples a tenth of seq_len. `exact_fill` closes each bin
with one or two lengths that fit exactly, which a corpus nearly always has: a bit set of the lengths
still there answers "which two add up to r?" with one shift and one AND. It also mixes long and
short samples at random. Where a bin holds only two or three samples, best fit decreasing can win.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_WASTE = 32  # tokens a closing pair may leave free before a bin goes on filling


def fewest_bins(decreasing: Sequence[int], order: Sequence[int], seq_len: int) -> list[int]:
    """Bin numbers from the better of both rules; `exact_fill` on a tie, since it mixes lengths.

    Args:
        decreasing: lengths, longest first, each 1 to seq_len.
        order: a random order of range(len(decreasing)), see `exact_fill`.
        seq_len: capacity of a bin.
    """
    filled = exact_fill(decreasing, order, seq_len)
    fitted = best_fit(decreasing, seq_len)
    return fitted if max(fitted) < max(filled) else filled


def best_fit(lengths: Sequence[int], seq_len: int) -> list[int]:
    """Best fit: each length goes into the fullest bin that still takes it, else into a new one.

    Args:
        lengths: in the order to place them, each 1 to seq_len; decreasing makes it best fit
            decreasing, which needs at most 11/9 of the optimum plus a constant (Johnson 1973).
        seq_len: capacity of a bin.

    Returns:
        the bin of each, bins numbered from 0 as they are opened. Among equally full bins the one
        that came to that room last is taken.
    """
    bins_by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    # Bit r is set when a bin with room r is open. The lowest set bit at or above a length is the
    # best fit: one shift and one isolation of 8192 bits cost less than a tree walk in Python.
    rooms = 0
    num_bins = 0
    bin_of = []
    for length in lengths:
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            stack = bins_by_room[room]
            chosen = stack.pop()
            if not stack:
                rooms ^= 1 << room
        else:
            room = seq_len
            chosen = num_bins
            num_bins += 1
        left = room - length
        if left:
            stack = bins_by_room[left]
            if not stack:
                rooms |= 1 << left
            stack.append(chosen)
        bin_of.append(chosen)
    return bin_of


def exact_fill(lengths: Sequence[int], order: Sequence[int], seq_len: int) -> list[int]:
    """Fill one bin after the other: the longest length left, others at random, an exact ending.

    Once the room left is at most twice the longest or three times the mean length, the bin is
    closed by one or two lengths that leave at most a few tokens free; where there are none, it
    takes the longest length that fits and tries again.

    Args:
        lengths: each 1 to seq_len.
        order: a random order of range(len(lengths)): how the middles of bins are drawn.
        seq_len: capacity of a bin.

    Returns:
        the bin of each length, bins numbered from 0 as they are filled.
    """
    pool = _Pool(lengths, seq_len)
    drawn = iter(order)
    mean3 = 3 * sum(lengths) // len(lengths)
    bin_of = [-1] * len(lengths)
    number = 0
    while pool.present:
        room = seq_len
        while room >= pool.shortest():
            if room == seq_len:
                taken = [pool.take(pool.longest(room))]
            elif room > 2 * pool.longest(seq_len) and room > mean3:
                taken = [pool.draw(drawn)]
            else:
                taken = pool.take_ending(room) or [pool.take(pool.longest(room))]
            for index in taken:
                bin_of[index] = number
                room -= lengths[index]
        number += 1
    return bin_of


class _Pool:
    """The lengths not yet in a bin. `present` has bit l set while a length l is there, `mirrored`
    has bit seq_len - l, so that present & (mirrored >> (seq_len - r)) are the l that have a partner
    r - l."""

    def __init__(self, lengths: Sequence[int], seq_len: int) -> None:
        self._lengths = lengths
        self._seq_len = seq_len
        self._taken = bytearray(len(lengths))
        self._stacks: list[list[int]] = [[] for _ in range(seq_len + 1)]
        for index, length in enumerate(lengths):
            self._stacks[length].append(index)
        self._counts = [len(stack) for stack in self._stacks]
        self.present = sum(1 << length for length in range(seq_len + 1) if self._counts[length])
        self.mirrored = sum(
            1 << (seq_len - length) for length in range(seq_len + 1) if self._counts[length]
        )

    def shortest(self) -> int:
        """The shortest length there is; over seq_len when there is none."""
        if not self.present:
            return self._seq_len + 1
        return (self.present & -self.present).bit_length() - 1

    def longest(self, room: int) -> int:
        """The longest length of at most `room`; there must be one."""
        return (self.present & ((2 << room) - 1)).bit_length() - 1

    def take(self, length: int) -> int:
        """Take a sample of this length; returns its index."""
        stack = self._stacks[length]
        while self._taken[stack[-1]]:  # taken by draw(), which leaves the stacks alone
            stack.pop()
        index = stack.pop()
        self._remove(index)
        return index

    def draw(self, drawn: Iterator[int]) -> int:
        """Take the next sample of the random order that is still there; returns its index."""
        index = next(i for i in drawn if not self._taken[i])
        self._remove(index)
        return index

    def take_ending(self, room: int) -> list[int]:
        """Take one sample, or two, that leave fewer than _WASTE tokens of room; [] if none do."""
        for total in range(room, max(room - _WASTE, 0), -1):
            if self.present >> total & 1:
                return [self.take(total)]
            paired = self.present & (self.mirrored >> (self._seq_len - total))
            if total % 2 == 0 and paired >> (total // 2) & 1 and self._counts[total // 2] < 2:
                paired ^= 1 << (total // 2)
            if paired:
                longer = paired.bit_length() - 1
                return [self.take(longer), self.take(total - longer)]
        return []

    def _remove(self, index: int) -> None:
        length = self._lengths[index]
        self._taken[index] = 1
        self._counts[length] -= 1
        if not self._counts[length]:
            self.present ^= 1 << length
            self.mirrored ^= 1 << (self._seq_len - length)
