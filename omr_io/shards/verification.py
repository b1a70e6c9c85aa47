"""A shard set checked against itself, byte by byte: every problem is named, not only the first."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import google_crc32c
import pyarrow.parquet as pq

from omr_io.errors import ImageError, IntegrityError, OmrError, TarError, Where
from omr_io.images import check_decodes, probe
from omr_io.index import ShardSet, open_index
from omr_io.shards.keys import key_for
from omr_io.shards.layout import (
    IMAGE_HASH_BYTES,
    FileDigest,
    Manifest,
    Part,
    ShardEntry,
    read_manifest,
)
from omr_io.shards.sample_json import decode_record
from omr_io.shards.tar_writer import idx_text
from omr_io.tar import TarTable, scan_tar


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a shard set that is not as it was written, and where."""

    what: str
    where: Where

    def __str__(self) -> str:
        return f"{self.what} ({self.where})"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of `verify`: what was read, and every problem found."""

    folder: Path
    shards: int
    samples: int
    images: int
    bytes: int
    decoded: bool
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    folder: str | Path,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every byte of a shard set and check it all.

    Checked: the hash and size of every file; each tar's headers and trailer; that tar, index.arrow
    and .idx agree on every name, offset and size; every part's CRC-32C; that each JSON has a
    sample's fields and fits its key and index row; that each image's header and hash are those in
    the index; counts; keys that appear twice; tars in the folder that are no part of the set.

    Args:
        folder: the shard set.
        decode: decode every image too.
        progress: called with (bytes read, bytes of all shards) after each shard.

    Raises:
        SourceError: the folder is no shard set, or of an unknown version.
        IntegrityError: the manifest itself is broken, so that nothing can be checked against it.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    check = _Check(root, manifest, decode)
    check.other_files()
    shards = check.open_index()
    first, total, done = 0, sum(shard.bytes for shard in manifest.shards), 0
    for shard in manifest.shards:
        check.shard(shard, shards, range(first, first + shard.samples))
        first, done = first + shard.samples, done + shard.bytes
        if progress is not None:
            progress(done, total)
    if shards is not None:
        shards.close()
    counts = manifest.counts
    return VerifyReport(
        root, len(manifest.shards), counts["samples"], counts["images"], total, decode,
        tuple(check.problems),
    )  # fmt: skip


class _Check:
    def __init__(self, root: Path, manifest: Manifest, decode: bool) -> None:
        self.problems: list[Problem] = []
        self._root = root
        self._manifest = manifest
        self._decode = decode
        self._keys: dict[str, str] = {}  # key -> the shard that has it

    def report(self, what: str, where: Where) -> None:
        self.problems.append(Problem(what, where))

    def other_files(self) -> None:
        """index.arrow, rejects.parquet, and what does not belong here."""
        manifest = self._manifest
        if manifest.rejects is not None and self._digest_matches(manifest.rejects):
            rows = pq.read_metadata(self._root / manifest.rejects.name).num_rows
            if rows != manifest.counts["refused"]:
                what = f"{rows} rows, the manifest counts {manifest.counts['refused']} refusals"
                self.report(what, Where(source=manifest.rejects.name))
        known = {file.name for file in manifest.files()}
        for path in sorted(self._root.glob("*.tar")):
            if path.name not in known:
                # A reader that takes train-*.tar would train on it.
                self.report("this tar is not part of the set", Where(shard=path.name))

    def _digest_matches(self, file: FileDigest) -> bool:
        return self._readable(file, Where(source=file.name)) == "as written"

    def _readable(self, file: FileDigest, where: Where) -> Literal["no", "changed", "as written"]:
        try:
            with (self._root / file.name).open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                size = opened.tell()
        except OSError as error:
            self.report(f"the file cannot be read: {error.strerror}", where)
            return "no"
        if size != file.bytes:
            self.report(f"the file has {size} bytes, the manifest says {file.bytes}", where)
        elif digest != file.sha256:
            self.report("the file's SHA-256 is not the manifest's", where)
        return "as written" if (size, digest) == (file.bytes, file.sha256) else "changed"

    def open_index(self) -> ShardSet | None:
        """The index, or None if it is broken: then tars are checked on their own."""
        if not self._digest_matches(self._manifest.index):
            return None
        try:
            return open_index(self._root, self._manifest)
        except OmrError as error:
            self.report(error.what, error.where or Where(source=self._manifest.index.name))
            return None

    def shard(self, entry: ShardEntry, shards: ShardSet | None, rows: range) -> None:
        """One tar: as a whole, its members, and its samples."""
        self._digest_matches(entry.idx)
        # Plain reads first: a device that fails gives them an error, and a map a dead process.
        tar = FileDigest(entry.name, entry.bytes, entry.sha256)
        if self._readable(tar, Where(shard=entry.name)) == "no":
            return
        with _mapped(self._root / entry.name) as data:
            table = self._scan(entry, data)
            if shards is None:
                return
            if table is not None:
                self._members(entry, shards, rows, table)
            self._idx(entry, shards, rows)
            for i in rows:
                self._sample(entry, shards, i, data)

    def _scan(self, entry: ShardEntry, data: memoryview) -> TarTable | None:
        try:
            return scan_tar(data, entry.name)
        except TarError as error:
            self.report(error.what, error.where or Where(shard=entry.name))
            return None

    def _members(self, entry: ShardEntry, shards: ShardSet, rows: range, table: TarTable) -> None:
        """The tar's own list against the index's."""
        in_tar = list(
            zip(table.names, table.data_offsets.tolist(), table.sizes.tolist(), strict=True)
        )
        in_index = [(part.name, part.offset, part.size) for i in rows for part in shards.parts(i)]
        if in_tar == in_index:
            return
        tar_only = {*in_tar} - {*in_index}
        for name, offset, size in sorted({*in_tar} ^ {*in_index}, key=lambda item: item[1]):
            has = "tar" if (name, offset, size) in tar_only else "index"
            what = f"only the {has} has this part, of {size} bytes"
            self.report(what, Where(shard=entry.name, part=name, offset=offset))
        if sorted(in_tar) == sorted(in_index):
            self.report("the index has the parts in another order", Where(shard=entry.name))

    def _idx(self, entry: ShardEntry, shards: ShardSet, rows: range) -> None:
        lines = [_idx_line(shards.key(i), shards.parts(i)) for i in rows]
        path = self._root / entry.idx.name
        # A missing or changed file was reported with its hash; this finds one written wrong.
        if path.exists() and path.read_bytes() != idx_text(lines).encode():
            self.report("the DALI index does not agree with index.arrow", Where(source=path.name))

    def _sample(self, entry: ShardEntry, shards: ShardSet, i: int, data: memoryview) -> None:
        key = shards.key(i)
        if key in self._keys:
            self.report(f"the key is in {self._keys[key]} too", Where(shard=entry.name, key=key))
        self._keys[key] = entry.name
        pieces = []
        for part in shards.parts(i):
            piece = bytes(data[part.offset : part.offset + part.size])
            if len(piece) != part.size:
                what = f"{part.size} bytes are expected and the file ends after {len(piece)}"
                self.report(what, _where(entry, key, part))
            elif google_crc32c.value(piece) != part.crc32c:
                what = f"the {part.size} bytes do not match their CRC-32C"
                self.report(what, _where(entry, key, part))
            pieces.append(piece)
        self._json(entry, shards, i, pieces)
        for number in range(len(pieces) - 1):
            self._image(entry, shards, i, number, pieces[number])

    def _json(self, entry: ShardEntry, shards: ShardSet, i: int, pieces: Sequence[bytes]) -> None:
        key, parts = shards.key(i), shards.parts(i)
        where = _where(entry, key, parts[-1])
        try:
            record, named = decode_record(pieces[-1], pieces[:-1])
            known_key = key_for(record.id)
        except (IntegrityError, ValueError) as error:
            self.report(getattr(error, "what", str(error)), where)
            return
        if known_key != key:
            self.report(f"the JSON's id {record.id!r} has another key", where)
        if tuple(f"{key}.{part}" for part in (*named, "json")) != tuple(p.name for p in parts):
            self.report("the JSON names other images than the index", where)
        in_json = (
            len(record.question.encode()), len(record.reasoning.encode()), len(record.options),
            record.answer if record.options else "",
        )  # fmt: skip
        in_index = (
            shards.question_bytes[i], shards.reasoning_bytes[i], shards.num_options[i],
            shards.answer(i),
        )  # fmt: skip
        if in_json != in_index:
            self.report("text lengths, options or answer are not the index's", where)

    def _image(self, entry: ShardEntry, shards: ShardSet, i: int, number: int, data: bytes) -> None:
        where = _where(entry, shards.key(i), shards.parts(i)[number])
        row = int(shards.image_offsets[i]) + number
        digest = hashlib.sha256(data).digest()[:IMAGE_HASH_BYTES]
        if digest != shards.image_hashes[row].tobytes():
            self.report("the image's hash is not the index's", where)
        try:
            info = probe(data)
            if info != shards.images(i)[number]:
                self.report("the image's header says other than the index", where)
            if self._decode:
                check_decodes(data, info)
        except ImageError as error:
            self.report(error.what, where)


def _where(entry: ShardEntry, key: str, part: Part) -> Where:
    return Where(shard=entry.name, key=key, part=part.name, offset=part.offset)


def _idx_line(key: str, parts: Sequence[Part]) -> str:
    return " ".join(
        f"{part.name[len(key) + 1 :]} {part.offset} {part.size} {part.name}" for part in parts
    )


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
