"""Slow, obvious twins of csrc/packing: bins, orders, and packs to ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

CANDIDATES = 16
SWAPS_PER_RANK = 16


def fewest_bins(lengths: Sequence[int], capacity: int) -> list[int]:
    """Bin numbers from the best rule: the earlier one on a tie.

    Args:
        lengths: in a random order, each 1 to capacity.
        capacity: of a bin.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    placed = best_fit([lengths[i] for i in longest_first], capacity)
    fitted = [0] * len(lengths)
    for index, number in zip(longest_first, placed, strict=True):
        fitted[index] = number
    made = [drawn_fill(lengths, capacity, 5), drawn_fill(lengths, capacity, 6), fitted]
    return min(made, key=lambda bin_of: max(bin_of, default=-1))


def best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """Each length goes into the fullest bin that takes it, of equally full ones into the one that
    came to that room last, else into a new one."""
    rooms: list[tuple[int, int, int]] = []  # (room, when it got that room, bin)
    bin_of = []
    opened = 0
    for clock, length in enumerate(lengths, start=1):
        fitting = [entry for entry in rooms if entry[0] >= length]
        if fitting:
            entry = min(fitting, key=lambda entry: (entry[0], -entry[1]))
            rooms.remove(entry)
        else:
            entry = (capacity, 0, opened)
            opened += 1
        bin_of.append(entry[2])
        rooms.append((entry[0] - length, clock, entry[2]))
    return bin_of


def drawn_fill(lengths: Sequence[int], capacity: int, halves: int) -> list[int]:
    """One bin after the other, filled with lengths as they come, then ended exactly.

    While the room is more than halves / 2 of the mean length left, the bin takes the next length.
    Then one of the next lengths ends it, alone or with any second one, if less than a 512th of
    the bin stays free: the fuller, the better. Where there is none, the bin takes the longest
    length that fits, and goes on.
    """
    left = dict(enumerate(lengths))  # in order
    bin_of = [-1] * len(lengths)
    number = 0
    while left:
        room = capacity
        while left and room >= min(left.values()):
            index = next(iter(left))
            mean_is_far = 2 * room * len(left) > halves * sum(left.values())
            if left[index] <= room and mean_is_far:
                taken, ended = [index], False
            elif ending := _ending(left, capacity, room):
                taken, ended = ending, True
            else:
                longest = max(length for length in left.values() if length <= room)
                taken = [_last(left, longest)]
                ended = room - longest < _waste(capacity)
            for index in taken:
                bin_of[index] = number
                room -= left.pop(index)
            if ended:
                break
        number += 1
    return bin_of


def _waste(capacity: int) -> int:
    return max(capacity // 512, 1)


def _last(left: dict[int, int], length: int) -> int:
    return max(index for index, one in left.items() if one == length)


def _ending(left: dict[int, int], capacity: int, room: int) -> list[int]:
    """The one or two samples that end a bin; [] if none do."""
    counts = Counter(left.values())
    for total in range(room, max(room - _waste(capacity), 0), -1):
        for index in list(left)[:CANDIDATES]:
            partner = total - left[index]
            if partner == 0:
                return [index]
            if counts[partner] > (partner == left[index]):
                others = {i: one for i, one in left.items() if i != index}
                return [index, _last(others, partner)]
    return []


def shuffled(words: Sequence[int]) -> list[int]:
    """The order that random 64-bit words make: Fisher and Yates', from the last place down."""
    order = list(range(len(words)))
    for i in range(len(words) - 1, 0, -1):
        j = words[i] * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def grouped(group_of: Sequence[int], num_groups: int) -> tuple[list[int], list[int]]:
    """The indices by group, and the size of each group."""
    sizes = Counter(group_of)
    indices = sorted(range(len(group_of)), key=lambda i: group_of[i])
    return indices, [sizes[number] for number in range(num_groups)]


def balanced(costs: Sequence[int], num_ranks: int) -> list[int]:
    """The rank of each cost: dealt in rounds, the dearest to the lightest, then swapped.

    A swap is between the heaviest rank and another, within a round; of all, the one that leaves the
    larger of both lightest, as long as that is less than the heaviest has.
    """
    dearest = sorted(range(len(costs)), key=lambda i: -costs[i])
    rounds = [dearest[at : at + num_ranks] for at in range(0, len(costs), num_ranks)]
    loads = [0] * num_ranks
    for dealt in rounds:
        lightest = sorted(range(num_ranks), key=lambda rank: loads[rank])
        for index, rank in zip(list(dealt), lightest, strict=True):
            dealt[rank] = index
            loads[rank] += costs[index]
    for _ in range(SWAPS_PER_RANK * num_ranks):
        heaviest = loads.index(max(loads))
        options = []
        for rank in (rank for rank in range(num_ranks) if rank != heaviest):
            for number, dealt in enumerate(rounds):
                moved = costs[dealt[heaviest]] - costs[dealt[rank]]
                reached = max(loads[heaviest] - moved, loads[rank] + moved)
                options.append((reached, rank, number, moved))
        if not options or min(options)[0] >= loads[heaviest]:
            break
        _, rank, number, moved = min(options)
        dealt = rounds[number]
        dealt[heaviest], dealt[rank] = dealt[rank], dealt[heaviest]
        loads[heaviest] -= moved
        loads[rank] += moved
    rank_of = [0] * len(costs)
    for dealt in rounds:
        for rank, index in enumerate(dealt):
            rank_of[index] = rank
    return rank_of
