"""The samples of a foreign tar, grouped as webdataset does, local or remote, in bounded memory.

webdataset passes over some members without a word, and merges or splits samples where names are not
as it thinks. Here each member ends in a sample, in a refusal, or in a count of what was left out.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from omr_io.corpus.formats.location import Location, open_binary, reading_hashed, shown
from omr_io.corpus.formats.webdataset_groups import Group, Grouper
from omr_io.corpus.raw import BadRow
from omr_io.errors import IntegrityError, SourceError, TarError, Where
from omr_io.foreign_shards.view import SampleParts, is_text
from omr_io.tar import TarTable, scan_tar, tar_windows

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif")
# webdataset skips __NAME__ at the top, and whatever lies in, or is, such a name.
_META = re.compile(r"__[^/]*__(?:$|/)")
# KEY.jpg, KEY.img0.jpg, KEY.2.png are images of the sample; KEY.mask.png is something else.
_IMAGE_STEM = re.compile(r"(?:(?:img|image|images|frame|view|page|fig|figure)?[_-]?\d+)?")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class FoundPart:
    """A part of a sample: its name in the tar, its place in bytes, and its data."""

    name: str
    extension: str
    offset: int
    data: memoryview

    def is_image(self) -> bool:
        """Whether its name says that it is one of the sample's images."""
        stem, _, ending = self.extension.rpartition(".")
        return ending in IMAGE_ENDINGS and _IMAGE_STEM.fullmatch(stem) is not None

    def is_text(self) -> bool:
        """Whether a record may be made of it: .json, .txt, ... right after the key."""
        return "." not in self.extension and is_text(self.extension)


@dataclass(frozen=True, slots=True)
class FoundSample:
    """Members that stand together under one key.

    Attributes:
        row: its number in the tar, counting all groups.
        key: webdataset's key; the whole name if it has none.
        parts: its images in the tar's order, then its texts.
        left_out: its other parts.
        offset: of its first data, in bytes.
        defect: why it is no sample.
    """

    row: int
    key: str
    parts: tuple[FoundPart, ...]
    left_out: tuple[FoundPart, ...]
    offset: int
    defect: BadRow | None

    @property
    def num_images(self) -> int:
        """How many of `parts` are images: the first ones."""
        return sum(part.is_image() for part in self.parts)

    def parts_of(self, shard: str, prefix: str = "") -> SampleParts:
        """A copy of it all, as a view takes it; `prefix` comes before the key."""
        return SampleParts(
            shard,
            self.row,
            prefix + self.key,
            tuple(part.name for part in self.parts),
            tuple(bytes(part.data) for part in self.parts),
            self.num_images,
        )


@dataclass(slots=True)
class TarRead:
    """What is known of a tar once all of it was read: bytes, SHA-256, and members left out."""

    bytes: int = 0
    sha256: str = ""
    meta: Counter[str] = field(default_factory=Counter)


def read_samples(
    location: Location, shard: str, into: TarRead, *, hashing: bool = True
) -> Generator[FoundSample, None, None]:
    """The samples of a tar, in order; their data is gone when the next one is asked for.

    Args:
        location: a path or URL. A path is mapped, a URL read once from start to end.
        shard: its name, for errors.
        into: filled when the last sample was given.
        hashing: False leaves out the SHA-256 of a local tar, so that only some of it is read.

    Raises:
        SourceError: it cannot be read, or is compressed.
        TarError: it is malformed; with the byte offset.
    """
    groups, row = Grouper(), 0
    waiting: deque[tuple[str, int, memoryview]] = deque()
    for view, base, table in _windows(location, shard, into, hashing):
        table = _without_meta(table, into.meta)
        for name, data, size in zip(
            table.names, table.data_offsets.tolist(), table.sizes.tolist(), strict=True
        ):
            waiting.append((name, base + data, view[data : data + size]))
        for group in groups.add(table, base):
            yield _sample(row, group, waiting)
            row += 1
    if groups.pending:
        yield _sample(row, groups.flush(), waiting)


def _sample(row: int, group: Group, waiting: deque[tuple[str, int, memoryview]]) -> FoundSample:
    members = [waiting.popleft() for _ in group.members]
    parts = [
        FoundPart(name, member.extension, offset, data)
        for member, (name, offset, data) in zip(group.members, members, strict=True)
    ]
    images = [part for part in parts if part.is_image()]
    texts = [part for part in parts if part.is_text()]
    rest = [part for part in parts if not (part.is_image() or part.is_text())]
    defect = group.defect()
    if defect is None and not texts:
        endings = ", ".join(f".{part.extension}" for part in parts)
        defect = BadRow("missing-text", f"no .json or .txt, only {endings}"[:300])
    key = group.name if group.key is None else group.key
    return FoundSample(row, key, (*images, *texts), tuple(rest), members[0][1], defect)


def _without_meta(table: TarTable, meta: Counter[str]) -> TarTable:
    """Leave out what webdataset skips, and count it."""
    keep = np.array([not _is_meta(name) for name in table.names], np.bool_)
    if keep.all():
        return table
    meta["__meta__"] += int((~keep).sum())
    names = tuple(name for name, kept in zip(table.names, keep, strict=True) if kept)
    return TarTable(names, table.header_offsets[keep], table.data_offsets[keep], table.sizes[keep])


def _is_meta(name: str) -> bool:
    top = "/" not in name and name.startswith("__") and name.endswith("__")
    return top or _META.match(name) is not None


def _windows(
    location: Location, shard: str, into: TarRead, hashing: bool
) -> Iterator[tuple[memoryview, int, TarTable]]:
    if isinstance(location, str):
        with reading_hashed(location) as (file, digest):
            for window, base, table in tar_windows(_Checked(file, shard), shard):  # type: ignore[arg-type]
                into.bytes = base + len(window)
                yield memoryview(window), base, table
        into.sha256 = digest.hexdigest()
        return
    try:
        with open_binary(location) as file:
            if hashing:
                # Plain reads first: a device that fails gives them an error, a map a dead process.
                into.sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            into.bytes = file.seek(0, 2)
            with _mapped(file, into.bytes) as view:
                _check_plain(bytes(view[:2]), shard)
                yield view, 0, scan_tar(view, shard)
    except OSError as error:
        what = f"reading {shown(location)} failed: {error.strerror}"
        raise IntegrityError(what, where=Where(shard=shard)) from error


@contextmanager
def _mapped(file: BinaryIO, size: int) -> Iterator[memoryview]:
    if not size:
        yield memoryview(b"")  # an empty file cannot be mapped
        return
    # Not closed here: parts that a caller still holds are views of it. It goes with the last one.
    yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Checked:
    """A stream whose first bytes are looked at: a compressed tar is told as such."""

    def __init__(self, file: BinaryIO, shard: str) -> None:
        self._file = file
        self._shard: str | None = shard

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if self._shard is not None:
            _check_plain(data[:2], self._shard)
            self._shard = None
        return data


def _check_plain(head: bytes, shard: str) -> None:
    if head == _GZIP:
        raise SourceError(
            "the tar is compressed, so no sample in it can be read on its own",
            where=Where(shard=shard),
            mend="Unpack it with gunzip, or convert it with `omr-io convert`",
        )
    if not head:
        raise TarError("the file is empty", where=Where(shard=shard, offset=0))
