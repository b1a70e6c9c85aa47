"""The memory-mapped index of a shard set, and reading that trusts nothing.

Legend: n samples, N images of all samples together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np
import pyarrow as pa

from omr_io.errors import IntegrityError, Where
from omr_io.remote.urls import is_url, redact
from omr_io.shards import index_columns
from omr_io.shards.index_check import arrow_fault, impossible_image, misplaced_part
from omr_io.shards.layout import (
    INDEX_NAME,
    INDEX_SCHEMA,
    Foreign,
    Manifest,
    Part,
    read_manifest,
)
from omr_io.shards.sample_json import decode_record
from omr_io.storage import LocalStorage, Storage, StorageStats
from omr_io.types import ImageInfo, Int32Array, Int64Array, Record

if TYPE_CHECKING:
    from omr_io.foreign_shards.view import View
    from omr_io.remote_storage import RemoteOptions

__all__ = ["Part", "ShardSet"]

_MAX_GAP = 1 << 16  # bytes between parts that are read over; in our own shards a header at most
_MEND = "Run `omr-io verify` on the set; copy it again, or convert again"


class ShardSet:
    """A shard set opened for reading: a sequence of samples. Thread-safe, fork-safe, picklable.

    Use `ShardSet.open`. As a context manager it closes its descriptors at the end.

    Attributes:
        manifest: what the set says about itself.
        fingerprint: 16 hex digits that stand for the whole content.
        shard_names: of the tars, in order.
        sample_shards: (n,) int32, each sample's place in `shard_names`; never decreasing.
        image_offsets: (n+1,) int64; sample i's images are image_offsets[i]:image_offsets[i+1] of
            image_widths, image_heights: (N,) int32, pixels as stored;
            image_orientations: (N,) int32, EXIF 1 to 8;
            image_hashes: (N, 16) uint8, the XXH3-128 of the encoded image.
        question_bytes, reasoning_bytes, num_options: (n,) int32; the texts' sizes are in bytes
            of UTF-8.
    """

    def __init__(
        self,
        manifest: Manifest,
        table: pa.Table,
        storage: Storage,
        path: Path | str,
        options: RemoteOptions | None = None,
    ) -> None:
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.shard_names = tuple(shard.name for shard in manifest.shards)
        self._storage = storage
        self._path, self._options = path, options
        self._view = None if manifest.foreign is None else _view(manifest.foreign)
        self._first_samples = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        fault = arrow_fault(table)
        if fault is not None:
            where = Where(source=INDEX_NAME)
            raise IntegrityError(f"the index is broken: {fault}", where=where, mend=_MEND)
        columns = {name: index_columns.joined(table.column(name)) for name in INDEX_SCHEMA.names}
        self._keys = columns["key"]
        self._answers = columns["answer"]
        self.sample_shards: Int32Array = columns["shard"].to_numpy()
        self.question_bytes: Int32Array = columns["question_bytes"].to_numpy()
        self.reasoning_bytes: Int32Array = columns["reasoning_bytes"].to_numpy()
        self.num_options: Int32Array = columns["num_options"].to_numpy().astype(np.int32)
        self.image_offsets = index_columns.offsets(columns["images"])
        images = columns["images"].flatten()
        self.image_widths: Int32Array = images.field("width").to_numpy()
        self.image_heights: Int32Array = images.field("height").to_numpy()
        self.image_orientations: Int32Array = (
            images.field("orientation").to_numpy().astype(np.int32)
        )
        self.image_hashes = index_columns.bytes_matrix(images.field("xxh3_128"))
        self._formats, self._modes = images.field("format"), images.field("mode")
        self._part_offsets = index_columns.offsets(columns["parts"])
        parts = columns["parts"].flatten()
        self._names = parts.field("name")
        self._starts, self._sizes, self._crcs = (
            parts.field(name).to_numpy() for name in ("offset", "size", "crc32c")
        )

    @classmethod
    def open(cls, path: str | Path, options: RemoteOptions | None = None) -> ShardSet:
        """Open a shard set's folder, or URL, and check that its files belong together.

        The manifest, the index (by hash) and the size of every shard are checked here, a part's
        length and CRC-32C when it is read. A remote shard's size is checked when it is first read.

        Args:
            path: a folder; or hf://datasets/OWNER/NAME[@REVISION]/PATH (the commit that it is at
                now is what is read), s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, http(s)://HOST/PATH.
            options: how what is remote is read ahead and kept: see there.

        Raises:
            SourceError: there is no shard set, it is unfinished, of an unknown version, or cannot
                be had.
            IntegrityError: a file is missing, cut short or not the one that was written.
            ConfigError: a package is missing.
        """
        if isinstance(path, str) and is_url(path):
            from omr_io.remote_storage.shard_sets import open_remote

            remote_manifest, table, remote, root = open_remote(path, options)
            shards = cls(remote_manifest, table, remote, root, options)
            shards._check_counts()
            return shards
        folder = Path(path)
        manifest = read_manifest(folder)
        storage = shard_storage(folder, manifest)
        if isinstance(storage, LocalStorage):  # on the network that is a request a shard
            for shard in manifest.shards:
                _check_size(storage, shard.name, shard.bytes)
        return open_index(folder, manifest, options)

    def _check_counts(self) -> None:
        if len(self) and not 0 <= self.sample_shards.min() <= self.sample_shards.max() < len(
            self.shard_names
        ):
            what = f"the index names a shard that is none of the manifest's {len(self.shard_names)}"
            raise IntegrityError(what, where=Where(source=INDEX_NAME), mend=_MEND)
        counted = np.bincount(self.sample_shards, minlength=len(self.shard_names)).tolist()
        expected = [shard.samples for shard in self.manifest.shards]
        ordered = bool(np.all(np.diff(self.sample_shards) >= 0))
        images = self.manifest.counts["images"]
        samples = self.manifest.counts["samples"]
        if counted != expected or sum(expected) != samples or not ordered:
            what = f"the index has {counted} samples a shard, the manifest {expected}"
            raise IntegrityError(what, where=Where(source=INDEX_NAME), mend=_MEND)
        if len(self.image_widths) != images:
            what = f"the index has {len(self.image_widths)} images, the manifest {images}"
            raise IntegrityError(what, where=Where(source=INDEX_NAME), mend=_MEND)
        self._check_values()

    def _check_values(self) -> None:
        sizes = np.array([shard.bytes for shard in self.manifest.shards], np.int64)
        found = misplaced_part(
            self._starts,
            self._sizes,
            self._part_offsets,
            self.image_offsets,
            self.sample_shards,
            sizes,
        )
        if found is None:
            image = impossible_image(self.image_widths, self.image_heights, self.image_orientations)
            if image is not None:
                sample = int(np.searchsorted(self.image_offsets, image[0], side="right")) - 1
                found = sample, image[1]
        if found is not None:
            where = Where(shard=self.shard(found[0]), key=self.key(found[0]))
            raise IntegrityError(f"the index is wrong: {found[1]}", where=where, mend=_MEND)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        """The key of sample i, 0 <= i < len(self)."""
        return str(self._keys[self._row(i)].as_py())

    def answer(self, i: int) -> str:
        """The letter of the right option of sample i, "" if it has no options."""
        return str(self._answers[self._row(i)].as_py())

    def answers(self) -> list[str]:
        """The letters of the right options of all n samples, "" for those without options."""
        return list(self._answers.to_pylist())

    def image_formats(self) -> list[str]:
        """The formats of all N images, "jpeg", "png", ...."""
        return list(self._formats.to_pylist())

    def column(self, name: Literal["answer", "format", "mode"]) -> pa.Array:
        """An Arrow array of text, to count without a loop: answers (n), formats or modes (N)."""
        return {"answer": self._answers, "format": self._formats, "mode": self._modes}[name]

    def image_sizes(self) -> Int64Array:
        """(N,) sizes in bytes of all images as encoded."""
        # A sample's images are its first parts: rows begin, begin + 1, ... of the parts.
        counts = np.diff(self.image_offsets)
        begins = np.repeat(self._part_offsets[:-1] - self.image_offsets[:-1], counts)
        sizes: Int64Array = self._sizes[begins + np.arange(len(begins))]
        return sizes

    def shard(self, i: int) -> str:
        """The file name of the shard that holds sample i."""
        return self.shard_names[int(self.sample_shards[self._row(i)])]

    def parts(self, i: int) -> tuple[Part, ...]:
        """The parts of sample i: its images in order, then its texts (our own: one JSON)."""
        begin, end = self._part_offsets[self._row(i) : i + 2].tolist()
        return tuple(
            Part(*values)
            for values in zip(
                self._names[begin:end].to_pylist(),
                self._starts[begin:end].tolist(),
                self._sizes[begin:end].tolist(),
                self._crcs[begin:end].tolist(),
                strict=True,
            )
        )

    def images(self, i: int) -> tuple[ImageInfo, ...]:
        """What the headers of sample i's images say."""
        begin, end = self.image_offsets[self._row(i) : i + 2].tolist()
        return tuple(
            ImageInfo(*values)
            for values in zip(
                self.image_widths[begin:end].tolist(),
                self.image_heights[begin:end].tolist(),
                self._formats[begin:end].to_pylist(),
                self._modes[begin:end].to_pylist(),
                self.image_orientations[begin:end].tolist(),
                strict=True,
            )
        )

    def read_record(self, i: int, images: bool = True) -> Record:
        """Read sample i back as the record that it was.

        Args:
            i: 0 <= i < len(self).
            images: False reads the text only and leaves `Record.images` empty.

        Raises:
            IntegrityError: with shard, key and part, if a byte is not what was written.
        """
        parts = self.parts(i)
        if self._view is not None:
            count = self.num_images(i)
            data = self._read(i, parts if images else parts[count:])
            return self.record_of(i, parts, data)
        data = self._read(i, parts if images else parts[-1:])
        try:
            record, _ = decode_record(data[-1], data[:-1] if images else None)
        except IntegrityError as error:
            where = Where(shard=self.shard(i), key=self.key(i), part=parts[-1].name)
            raise IntegrityError(error.what, where=where, mend=_MEND) from None
        return record

    def read_images(self, i: int) -> tuple[bytes, ...]:
        """The encoded images of sample i, in order; errors as in `read_record`."""
        return self._read(i, self.parts(i)[: self.num_images(i)])

    def will_read(self, numbers: Sequence[int], images: bool = True) -> None:
        """The parts of these samples will be read soon, in this order; returns at once.

        Args:
            numbers: of the samples.
            images: False where only their texts will be.
        """
        if isinstance(self._storage, LocalStorage):  # it takes no hints, and ranges cost time
            return
        self._storage.will_read(
            [
                (self.shard(i), run[0].offset, run[-1].offset + run[-1].size - run[0].offset)
                for i in numbers
                for run in _neighbours(self.parts(i)[0 if images else self.num_images(i) :])
            ]
        )

    def locate(self, i: int) -> tuple[ShardSet, int]:
        """The shard set that holds sample i, and its number there: this one, and i."""
        return self, self._row(i)

    def storage_stats(self) -> StorageStats:
        """What the storage did so far in this process."""
        return self._storage.stats()

    def num_images(self, i: int) -> int:
        """How many images sample i has; they are its first parts."""
        begin, end = self.image_offsets[self._row(i) : i + 2].tolist()
        return int(end - begin)

    def record_of(self, i: int, parts: tuple[Part, ...], data: tuple[bytes, ...]) -> Record:
        """Sample i of a foreign set from its bytes.

        Args:
            i: 0 <= i < len(self).
            parts: all of the sample's.
            data: the bytes of all, or of its texts alone.

        Raises:
            IntegrityError: they make no record any more.
        """
        from omr_io.foreign_shards.view import SampleParts

        assert self._view is not None, "the set is our own"
        sample = SampleParts(
            shard=self.shard(i),
            row=i - int(self._first_samples[self.sample_shards[i]]),
            key=self.key(i),
            names=tuple(part.name for part in parts),
            data=(None,) * (len(parts) - len(data)) + data,
            num_images=self.num_images(i),
        )
        return self._view.record(sample)

    def _read(self, i: int, parts: tuple[Part, ...]) -> tuple[bytes, ...]:
        """Read parts, neighbours at once, and check each."""
        data: dict[int, bytes] = {}
        for run in _neighbours(parts):
            data |= self._read_run(i, run)
        return tuple(data[part.offset] for part in parts)

    def _read_run(self, i: int, parts: list[Part], again: bool = True) -> dict[int, bytes]:
        """By offset, the bytes of parts that lie one after the other."""
        shard, start = self.shard(i), parts[0].offset
        try:
            span = self._storage.read(shard, start, parts[-1].offset + parts[-1].size - start)
        except IntegrityError as error:
            where = Where(shard=shard, key=self.key(i), part=parts[0].name, offset=start)
            raise IntegrityError(error.what, where=where, mend=error.mend or _MEND) from error
        data = {}
        for part in parts:
            piece = span[part.offset - start : part.offset - start + part.size]
            if google_crc32c.value(piece) != part.crc32c:
                if again and _forgets(self._storage, shard, start, len(span)):
                    return self._read_run(i, parts, again=False)
                where = Where(shard=shard, key=self.key(i), part=part.name, offset=part.offset)
                what = f"the {part.size} bytes do not match their CRC-32C"
                raise IntegrityError(what, where=where, mend=_MEND)
            data[part.offset] = piece
        return data

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return i

    def close(self) -> None:
        """Close the descriptors; reading again opens them anew."""
        self._storage.close()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._path, self.fingerprint, self._options)


def open_index(folder: Path, manifest: Manifest, options: RemoteOptions | None = None) -> ShardSet:
    """Open a set without looking at its shards; `ShardSet.open` is what readers want.

    Raises:
        IntegrityError: the index is missing, broken, or not the manifest's.
    """
    table = _read_index(folder, manifest, LocalStorage(folder))
    storage = shard_storage(folder, manifest, options)
    shards = ShardSet(manifest, table, storage, folder, options)
    shards._check_counts()
    return shards


def shard_storage(
    folder: Path, manifest: Manifest, options: RemoteOptions | None = None
) -> Storage:
    """Where the shards of a set are read: its own folder, unless another program wrote them.

    Raises:
        ConfigError: the manifest names no place that can be read.
    """
    if manifest.foreign is None:
        return LocalStorage(folder)
    from omr_io.foreign_shards.storage import tar_storage

    return tar_storage(folder, manifest, options)


def _view(foreign: Foreign) -> View:
    from omr_io.foreign_shards.view import View

    return View.from_json(foreign.view)


def _forgets(storage: Storage, name: str, offset: int, size: int) -> bool:
    """Drop kept copies of bytes that are wrong; gives whether reading them again may help."""
    from omr_io.remote_storage import RemoteStorage

    if not isinstance(storage, RemoteStorage):
        return False
    storage.forget(name, offset, size)
    return True


def _neighbours(parts: tuple[Part, ...]) -> Iterator[list[Part]]:
    """Parts in the order of their bytes, in runs with little between them."""
    run: list[Part] = []
    for part in sorted(parts, key=lambda part: part.offset):
        if run and part.offset - (run[-1].offset + run[-1].size) > _MAX_GAP:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _reopen(path: Path | str, fingerprint: str, options: RemoteOptions | None = None) -> ShardSet:
    shards = ShardSet.open(path, options)
    if shards.fingerprint != fingerprint:
        where = Where(source=redact(str(path)))
        raise IntegrityError("the set was replaced since it was opened", where=where)
    return shards


def _check_size(storage: Storage, name: str, expected: int) -> None:
    size = storage.size(name)
    if size != expected:
        what = f"the file has {size} bytes, the manifest says {expected}"
        raise IntegrityError(what, where=Where(shard=name), mend=_MEND)


def _read_index(folder: Path, manifest: Manifest, storage: Storage) -> pa.Table:
    """Map index.arrow. Its hash is checked first: Arrow may crash on bytes it did not write."""
    where = Where(source=str(folder / manifest.index.name))
    _check_size(storage, manifest.index.name, manifest.index.bytes)
    try:
        with (folder / manifest.index.name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != manifest.index.sha256:
            raise IntegrityError("the index is not what was written", where=where, mend=_MEND)
        with pa.memory_map(str(folder / manifest.index.name)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"the index cannot be read: {error}", where=where) from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise IntegrityError("the index has another schema", where=where, mend=_MEND)
    return table
