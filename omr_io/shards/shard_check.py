"""One shard checked against the manifest and the index: as a whole, its members, its samples."""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import google_crc32c
import xxhash

from omr_io.errors import ImageError, IntegrityError, OmrError, TarError, Where
from omr_io.images import check_decodes, probe
from omr_io.index import ShardSet
from omr_io.shards.idx import dali_index
from omr_io.shards.keys import key_for
from omr_io.shards.layout import FileDigest, Part, ShardEntry
from omr_io.shards.sample_json import decode_record
from omr_io.shards.tar_writer import BLOCK, TRAILER, tar_header
from omr_io.tar import TarTable, scan_tar
from omr_io.types import ImageInfo, Record


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a shard set that is not as it was written, and where."""

    what: str
    where: Where

    def __str__(self) -> str:
        return f"{self.what} ({self.where})"


def read_and_compare(
    path: Path, file: FileDigest, where: Where
) -> tuple[Literal["no", "changed", "as written"], list[Problem]]:
    """Read a whole file and compare its size and hash with the manifest's."""
    try:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            size = opened.tell()
    except OSError as error:
        return "no", [Problem(f"the file cannot be read: {error.strerror}", where)]
    if size != file.bytes:
        what = f"the file has {size} bytes, the manifest says {file.bytes}"
        return "changed", [Problem(what, where)]
    if digest != file.sha256:
        return "changed", [Problem("the file's SHA-256 is not the manifest's", where)]
    return "as written", []


class ShardCheck:
    """Checks one shard; `run` gives every problem in the order of the tar.

    Args:
        root: the set's folder; tars: that of its tars.
        entry: the shard.
        shards: the index, or None if it is broken: then the tar is checked on its own.
        rows: the shard's samples in the index.
        repeated: sample → the shard that has its key before.
        decode: decode every image too.
    """

    def __init__(
        self,
        root: Path,
        tars: Path,
        entry: ShardEntry,
        shards: ShardSet | None,
        rows: range,
        repeated: Mapping[int, str],
        decode: bool,
    ) -> None:
        self._problems: list[Problem] = []
        self._root, self._tars = root, tars
        self._foreign = shards is not None and shards.manifest.foreign is not None
        self._entry = entry
        self._shards = shards
        self._rows = rows
        self._repeated = repeated
        self._decode = decode

    def run(self) -> list[Problem]:
        """Read the shard and its DALI index."""
        entry, shards = self._entry, self._shards
        idx = entry.idx
        self._problems += read_and_compare(self._root / idx.name, idx, Where(source=idx.name))[1]
        path = self._tars / entry.name
        # Plain reads first: a device that fails gives them an error, and a map a dead process.
        tar = FileDigest(entry.name, entry.bytes, entry.sha256)
        state, problems = read_and_compare(path, tar, Where(shard=entry.name))
        self._problems += problems
        if state == "no":
            return self._problems
        with _mapped(path) as data:
            layout = None if shards is None else _Layout(shards, self._rows)
            table = self._scan(data, layout)
            if shards is not None and layout is not None:
                if state == "changed" and not self._foreign:
                    self._between(data, layout)
                if table is not None:
                    self._members(table, layout)
                self._idx(layout)
                for i, (key, parts) in zip(self._rows, layout.samples, strict=True):
                    self._sample(shards, i, key, parts, data)
        return self._problems

    def _report(self, what: str, where: Where) -> None:
        self._problems.append(Problem(what, where))

    def _where(self, key: str, part: Part, offset: int | None = None) -> Where:
        at = part.offset if offset is None else offset
        return Where(shard=self._entry.name, key=key, part=part.name, offset=at)

    def _scan(self, data: memoryview, layout: _Layout | None) -> TarTable | None:
        try:
            return scan_tar(data, self._entry.name)
        except TarError as error:
            offset = None if error.where is None else error.where.offset
            where = Where(shard=self._entry.name, offset=offset)
            if layout is not None and offset is not None and offset < layout.end:
                key, part = layout.at(offset)
                if offset >= part.offset - BLOCK:  # else in a member that the index does not have
                    where = self._where(key, part, offset)
            self._report(error.what, where)
            return None

    def _between(self, data: memoryview, layout: _Layout) -> None:
        """What lies around the parts' data: headers, padding and trailer have one right value."""
        before = 0
        for key, part in layout.parts:
            header = part.offset - BLOCK
            gap = memoryview(data)[before:header]
            end = part.offset + part.size
            padding = data[end : end + -part.size % BLOCK]
            for what, start, found, right in (
                ("bytes before the header", before, gap, bytes(max(0, header - before))),
                ("header", header, data[header : part.offset], tar_header(part.name, part.size)),
                ("padding", end, padding, bytes(-part.size % BLOCK)),
            ):
                at = _first_difference(found, right)
                if at is not None:
                    what = f"the part's {what} is not as written"
                    self._report(what, self._where(key, part, start + at))
            before = end + -part.size % BLOCK
        at = _first_difference(data[before:], TRAILER)
        if at is not None:
            where = Where(shard=self._entry.name, offset=before + at)
            self._report("what follows the last part is not the trailer as written", where)

    def _members(self, table: TarTable, layout: _Layout) -> None:
        """The tar's own list against the index's."""
        in_tar = list(
            zip(table.names, table.data_offsets.tolist(), table.sizes.tolist(), strict=True)
        )
        in_index = [(part.name, part.offset, part.size) for _, part in layout.parts]
        if in_tar == in_index:
            return
        keys = {part: key for part, (key, _) in zip(in_index, layout.parts, strict=True)}
        tar_only = {*in_tar} - {*in_index}
        if self._foreign:  # its other members are in rejects.parquet, or were told as left out
            in_tar = [part for part in in_tar if part not in tar_only]
            tar_only = set()
        for name, offset, size in sorted({*in_tar} ^ {*in_index}, key=lambda item: item[1]):
            has = "tar" if (name, offset, size) in tar_only else "index"
            key = keys.get((name, offset, size)) or (
                layout.at(offset)[0] if offset < layout.end else None
            )
            what = f"only the {has} has this part, of {size} bytes"
            self._report(what, Where(shard=self._entry.name, key=key, part=name, offset=offset))
        if not self._foreign and sorted(in_tar) == sorted(in_index):
            what = "the index has the parts in another order"
            self._report(what, Where(shard=self._entry.name))

    def _idx(self, layout: _Layout) -> None:
        path = self._root / self._entry.idx.name
        # A missing or changed file was reported with its hash; this finds one written wrong.
        if path.exists() and path.read_bytes() != layout.idx().encode():
            what = "the DALI index does not agree with index.arrow"
            self._report(what, Where(source=path.name))

    def _sample(
        self, shards: ShardSet, i: int, key: str, parts: Sequence[Part], data: memoryview
    ) -> None:
        if i in self._repeated:
            where = Where(shard=self._entry.name, key=key)
            self._report(f"the key is in {self._repeated[i]} too", where)
        pieces = []
        for part in parts:
            piece = bytes(data[part.offset : part.offset + part.size])
            if len(piece) != part.size:
                what = f"{part.size} bytes are expected and the file ends after {len(piece)}"
                self._report(what, self._where(key, part))
            elif google_crc32c.value(piece) != part.crc32c:
                what = f"the {part.size} bytes do not match their CRC-32C"
                self._report(what, self._where(key, part))
            pieces.append(piece)
        self._text(shards, i, key, parts, pieces)
        infos = shards.images(i)
        for number, info in enumerate(infos):
            where = self._where(key, parts[number])
            row = int(shards.image_offsets[i]) + number
            self._image(pieces[number], info, shards.image_hashes[row].tobytes(), where)

    def _text(
        self,
        shards: ShardSet,
        i: int,
        key: str,
        parts: Sequence[Part],
        pieces: Sequence[bytes],
    ) -> None:
        where = self._where(key, parts[-1])
        if self._foreign:
            self._foreign_text(shards, i, parts, pieces, where)
            return
        try:
            record, named = decode_record(pieces[-1], pieces[:-1])
            known_key = key_for(record.id)
        except (IntegrityError, ValueError) as error:
            self._report(getattr(error, "what", str(error)), where)
            return
        if known_key != key:
            self._report(f"the JSON's id {record.id!r} has another key", where)
        if tuple(f"{key}.{part}" for part in (*named, "json")) != tuple(p.name for p in parts):
            self._report("the JSON names other images than the index", where)
        self._lengths(shards, i, record, where)

    def _foreign_text(
        self,
        shards: ShardSet,
        i: int,
        parts: Sequence[Part],
        pieces: Sequence[bytes],
        where: Where,
    ) -> None:
        try:
            record = shards.record_of(i, tuple(parts), tuple(pieces))
        except OmrError as error:
            self._report(error.what, where)
            return
        self._lengths(shards, i, record, where)

    def _lengths(self, shards: ShardSet, i: int, record: Record, where: Where) -> None:
        letters = {option.letter for option in record.options}
        in_json = (
            len(record.question.encode()), len(record.reasoning.encode()), len(record.options),
            record.answer if record.answer in letters else "",
        )  # fmt: skip
        in_index = (
            shards.question_bytes[i], shards.reasoning_bytes[i], shards.num_options[i],
            shards.answer(i),
        )  # fmt: skip
        if in_json != in_index:
            self._report("text lengths, options or answer are not the index's", where)

    def _image(self, data: bytes, known: ImageInfo, digest: bytes, where: Where) -> None:
        if xxhash.xxh3_128_digest(data) != digest:
            self._report("the image's hash is not the index's", where)
        try:
            info = probe(data)
            if info != known:
                self._report("the image's header says other than the index", where)
            if self._decode:
                check_decodes(data, info)
        except ImageError as error:
            self._report(error.what, where)


class _Layout:
    """The parts of a shard as the index has them, in the order of their bytes.

    Attributes:
        samples: (key, parts) as in the index.
        parts: (key, part) by offset.
        end: where the last part's padding ends, and the trailer begins.
    """

    def __init__(self, shards: ShardSet, rows: range) -> None:
        self.samples = [(shards.key(i), shards.parts(i)) for i in rows]
        found = [(key, part) for key, parts in self.samples for part in parts]
        self.parts = sorted(found, key=lambda item: item[1].offset)
        self._ends = [part.offset + -(-part.size // BLOCK) * BLOCK for _, part in self.parts]
        self.end = self._ends[-1] if self._ends else 0

    def at(self, offset: int) -> tuple[str, Part]:
        """The part whose header, data or padding holds the byte at `offset`, below `end`."""
        return self.parts[bisect_right(self._ends, offset)]

    def idx(self) -> str:
        """The text of the DALI index."""
        samples = [
            [(part.name, part.offset, part.size) for part in parts] for _, parts in self.samples
        ]
        return dali_index(samples)


def _first_difference(found: memoryview, right: bytes) -> int | None:
    """Where two runs of bytes part, or None if they are equal."""
    if found == right:
        return None
    pairs = enumerate(zip(found, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(found), len(right)))


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            yield memoryview(b"")  # an empty file cannot be mapped
            return
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            yield view
