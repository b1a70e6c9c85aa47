"""Keys that several pieces have: found over the whole corpus in bounded memory, compared in full.

The first sample in the order of the corpus keeps its key. A later piece that has it too is made
again and refuses the row. That never makes new duplicates: a piece only loses keys, and the first
holder of a key is never one that loses it. So the answer is the same if some were made again
already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from omr_io.conversion.columns import integers
from omr_io.conversion.piece_record import KEYS_NAME, Holder, PieceRecord
from omr_io.storage import AtomicFile, writing
from omr_io.types import Int64Array

_KEYS_A_PASS = 4_000_000  # some 150 MB
_OPEN_FILES = 64
_TAKEN_SCHEMA = pa.schema([("key", pa.utf8()), ("id", pa.utf8()), ("source", pa.utf8())])


def find_taken(
    folders: Callable[[int], Path],
    records: Sequence[PieceRecord],
    keys_a_pass: int = _KEYS_A_PASS,
) -> Iterator[tuple[int, dict[str, Holder]]]:
    """The keys of each piece that an earlier piece has too.

    Args:
        folders: number of a piece → its folder.
        records: of all pieces, in order.
        keys_a_pass: how many digests are sorted at a time: it bounds memory.

    Returns:
        An iterator of (number of the piece, its keys that are taken → who has each), for pieces
        that have such keys, in order.
    """
    files = _KeyFiles(folders)
    clashes = _clashes(files, records, keys_a_pass)
    if not len(clashes):
        return
    numbers, starts = np.unique(clashes[:, 0], return_index=True)
    for number, own in zip(numbers.tolist(), np.split(clashes, starts[1:]), strict=True):
        taken = _compare(files, own)
        if taken:
            yield number, taken


class TakenSpool:
    """What `find_taken` found, kept in a file beside the pieces, so that it needs no memory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "taken.arrow"
        self._numbers: list[int] = []

    def fill(self, found: Iterator[tuple[int, dict[str, Holder]]]) -> list[int]:
        """Keep all of it; the numbers of the pieces."""
        first = next(found, None)
        if first is None:
            return []
        with AtomicFile(self._path) as file:
            with pa.ipc.new_file(file, _TAKEN_SCHEMA) as writer:
                for number, taken in chain([first], found):
                    ids, sources = zip(*taken.values(), strict=True)
                    columns = [pa.array(column) for column in (taken, ids, sources)]
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_TAKEN_SCHEMA))
                    self._numbers.append(number)
            file.commit()
        return self._numbers

    def __iter__(self) -> Iterator[tuple[int, dict[str, Holder]]]:
        for number, batch in zip(self._numbers, read_batches(self._path), strict=True):
            keys, ids, sources = (column.to_pylist() for column in batch.columns)
            yield number, dict(zip(keys, map(Holder, ids, sources), strict=True))

    def remove(self) -> None:
        """Remove the file."""
        with writing(self._path):
            self._path.unlink()


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow IPC file, memory-mapped one after the other."""
    with pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


class _KeyFiles:
    """The keys.arrow of pieces, memory-mapped, the last used ones kept open."""

    def __init__(self, folders: Callable[[int], Path]) -> None:
        def read(number: int) -> pa.Table:
            with pa.memory_map(str(folders(number) / KEYS_NAME)) as mapped:
                return pa.ipc.open_file(mapped).read_all()

        self.table = lru_cache(_OPEN_FILES)(read)
        self.read = read

    def digests(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        chunks = self.read(number).column("digest").chunks
        return np.concatenate([np.empty(0, np.uint64), *map(integers, chunks)])


def _clashes(files: _KeyFiles, records: Sequence[PieceRecord], keys_a_pass: int) -> Int64Array:
    """(N, 4): piece and row of a sample, piece and row of the first one with the same digest."""
    total = sum(record.tally.samples for record in records)
    passes = np.uint64(max(1, -(-total // keys_a_pass)))
    found = [np.empty((0, 4), np.int64)]
    for which in range(int(passes)):
        digests, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int32)]
        for record in records:
            all_digests = files.digests(record.number)
            rows = np.flatnonzero(all_digests % passes == which)
            digests.append(all_digests[rows])
            place = np.full((len(rows), 2), record.number, np.int32)
            place[:, 1] = rows
            places.append(place)
        found.append(_equal(np.concatenate(digests), np.concatenate(places)))
    clashes = np.concatenate(found)
    return clashes[np.lexsort((clashes[:, 1], clashes[:, 0]))]


def _equal(
    digests: np.ndarray[tuple[int], np.dtype[np.uint64]],
    places: np.ndarray[tuple[int, int], np.dtype[np.int32]],
) -> Int64Array:
    order = np.argsort(digests, kind="stable")  # equal ones stay in the order of the corpus
    digests, places = digests[order], places[order]
    new = np.ones(len(digests), bool)
    new[1:] = digests[1:] != digests[:-1]
    first = np.flatnonzero(new)[np.cumsum(new) - 1]  # of each row's run
    later = ~new
    pairs = np.concatenate([places[later], places[first[later]]], axis=1)
    return pairs.astype(np.int64)


def _compare(files: _KeyFiles, clashes: Int64Array) -> dict[str, Holder]:
    """The clashes of one piece whose keys are equal, not only their digests."""
    number = int(clashes[0, 0])
    taken: dict[str, Holder] = {}
    for holder in np.unique(clashes[:, 2]).tolist():
        own, theirs = clashes[clashes[:, 2] == holder][:, [1, 3]].T
        keys = files.table(number).column("key").take(own).to_pylist()
        rows = files.table(holder).select(["key", "id", "source"]).take(theirs).to_pylist()
        for key, row in zip(keys, rows, strict=True):
            if key == row["key"] and holder != number:
                taken[key] = Holder(row["id"], row["source"])
            elif (found := _search(files, number, key)) is not None:
                taken[key] = found
    return taken


def _search(files: _KeyFiles, number: int, key: str) -> Holder | None:
    """Look for a key in all earlier pieces: for digests that are equal by chance."""
    import pyarrow.compute as pc  # rarely needed, and 30 ms to import

    for earlier in range(number):
        table = files.read(earlier)
        rows = table.filter(pc.equal(table.column("key"), key)).to_pylist()
        if rows:
            return Holder(rows[0]["id"], rows[0]["source"])
    return None
