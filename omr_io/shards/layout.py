"""What a shard set looks like on disk: file names, the index's schema, the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from omr_io.errors import IntegrityError, SourceError, Where
from omr_io.types import Refusal

FORMAT = "omr_io shard set"
VERSION = 2
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.arrow"
REJECTS_NAME = "rejects.parquet"
UNFINISHED_NAME = ".omr-io-unfinished"
ENERGON_FOLDER = ".nv-meta"
"""What `omr-io energon` writes; with it goes NAME.tar.idx beside each tar."""

ENERGON_NAMES = (
    ".info.json", "crude.yaml", "dataset.yaml", "index.sqlite", "index.uuid", "sample_loader.py",
    "split.yaml",
)  # fmt: skip
"""The files in that folder."""

IMAGE_HASH_BYTES = 16
"""Of the XXH3-128 that the index keeps of each encoded image: enough to tell equal images apart.

Not a cryptographic hash: SHA-256 of every file is in the manifest, and a second one of the same
bytes cost 30 µs of the 230 that a row of 50 KB took.
"""

EXTENSIONS = {
    "jpeg": "jpg", "jpeg-progressive": "jpg", "png": "png", "webp": "webp", "tiff": "tiff",
    "bmp": "bmp", "gif": "gif",
}  # fmt: skip

_PART = pa.struct(
    [
        pa.field("name", pa.utf8(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("crc32c", pa.uint32(), nullable=False),
    ]
)
_IMAGE = pa.struct(
    [
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.utf8(), nullable=False),
        pa.field("mode", pa.utf8(), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
        pa.field("xxh3_128", pa.binary(IMAGE_HASH_BYTES), nullable=False),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),  # its place in the manifest's list
        pa.field("key", pa.utf8(), nullable=False),
        pa.field("parts", pa.list_(_PART), nullable=False),  # images in order, the JSON last
        pa.field("images", pa.list_(_IMAGE), nullable=False),
        pa.field("question_bytes", pa.int32(), nullable=False),
        pa.field("reasoning_bytes", pa.int32(), nullable=False),
        pa.field("num_options", pa.int16(), nullable=False),
        pa.field("answer", pa.utf8(), nullable=False),
    ],
    metadata={"omr_io": str(VERSION)},
)

REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.utf8()), ("row", pa.int64()), ("id", pa.utf8()), ("reason", pa.utf8()),
        ("detail", pa.utf8()),
    ]
)  # fmt: skip
"""A row a refused row of the sources, with its reason; rejects.parquet."""


class Part(NamedTuple):
    """A file of a sample: its name in the tar, where its data is, and its CRC-32C.

    The fields are those of `parts` in `INDEX_SCHEMA`, in its order.

    `offset` and `size` are in bytes, `offset` from the start of the shard.
    """

    name: str
    offset: int
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the set: its size in bytes and the hex digits of its SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard: the tar, its number of samples, and its DALI index."""

    name: str
    bytes: int
    sha256: str
    samples: int
    idx: FileDigest


@dataclass(frozen=True, slots=True)
class Foreign:
    """How a set is read whose shards another program wrote, and `omr-io index` indexed.

    Attributes:
        root: where the tars are: "" is the set's own folder; else an absolute folder, or a URL
            that ends in a slash and holds no secret.
        view: how a sample's parts become a record, as `omr_io.foreign_shards.view` wrote it.
    """

    root: str
    view: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What manifest.json says; written last, so that its presence means the set is complete.

    Attributes:
        split: the split that all samples belong to.
        shards: in the order of the index.
        index, rejects: digests; rejects is None when no row was refused.
        sources: names of the files that were converted.
        source_fingerprint: of those files; "" when records came from elsewhere.
        options: those of `ConvertOptions` that change the content.
        counts: "rows" read, "samples" and "images" written, rows "refused".
        refusals: refused rows by reason.
        foreign: None for a set that omr_io wrote; the file then has no such field.
        schemas: those that the sources were read by ("openmedreason", ...), each once, in the order
            of the files; without any, as for records from elsewhere, the file has no such field.
    """

    split: str
    shards: tuple[ShardEntry, ...]
    index: FileDigest
    rejects: FileDigest | None
    sources: tuple[str, ...]
    source_fingerprint: str
    options: Mapping[str, object]
    counts: Mapping[str, int]
    refusals: Mapping[str, int]
    foreign: Foreign | None = None
    schemas: tuple[str, ...] = ()

    def _fields(self) -> dict[str, Any]:
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        if self.foreign is None:
            del fields["foreign"]
        if not self.schemas:
            del fields["schemas"]
        return fields

    def to_bytes(self) -> bytes:
        """The file's bytes: a pure function of the fields, ending in a digest of them."""
        fields = self._fields()
        return _dump({**fields, "digest": _digest(fields)})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the whole content of the set, wherever its tars are."""
        fields = self._fields()
        if self.foreign is not None:
            del fields["foreign"]["root"]
        return _digest(fields)[:16]

    def files(self) -> tuple[FileDigest, ...]:
        """Every file of the set but the manifest itself."""
        shards = [
            entry
            for shard in self.shards
            for entry in (FileDigest(shard.name, shard.bytes, shard.sha256), shard.idx)
        ]
        return (*shards, self.index, *([] if self.rejects is None else [self.rejects]))

    def energon_files(self) -> tuple[str, ...]:
        """Names of the files that `omr-io energon` writes for the set, whether it has or not."""
        offsets = (f"{shard.name}.idx" for shard in self.shards)
        return (*offsets, *(f"{ENERGON_FOLDER}/{name}" for name in ENERGON_NAMES))


def reject_row(refusal: Refusal) -> dict[str, Any]:
    """A row of `REJECTS_SCHEMA`; what is no Unicode is escaped."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value
        for name, value in (
            ("source", refusal.source), ("row", refusal.row), ("id", refusal.id),
            ("reason", refusal.reason), ("detail", refusal.detail),
        )
    }  # fmt: skip


def _dump(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, ensure_ascii=False, indent=1) + "\n").encode()


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_GIVE = "Give the folder that `omr-io convert` or `omr-io index` wrote"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a folder's manifest.json.

    Raises:
        SourceError: there is none, with what to do; or its version is unknown.
        IntegrityError: it is not what was written.
    """
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _not_a_set(folder) from None
    except NotADirectoryError:
        raise _not_a_set(folder) from None
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}", mend="See the folder's permissions"
        ) from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Check and parse the bytes of a manifest.json.

    Args:
        source: where they are from, as it is printed.

    Raises:
        SourceError: their version is unknown, or they are something else.
        IntegrityError: they are not what was written.
    """
    where = Where(source=source)
    mend = "Convert again, or copy the set again"
    try:
        fields = json.loads(data)
        if fields.pop("format") != FORMAT:
            raise SourceError("this is not the manifest of an omr_io shard set", where=where)
        version = fields.pop("version")
        if version != VERSION:
            raise SourceError(
                f"the set has format version {version!r}, this omr_io reads {VERSION}",
                where=where,
                mend="Use the omr_io that wrote it, or convert again",
            )
        digest = fields.pop("digest")
        manifest = _parse(fields)
        whole = _dump({"format": FORMAT, "version": VERSION, **fields, "digest": digest})
        if manifest.to_bytes() != data or whole != data:
            raise IntegrityError("the manifest was changed after writing", where=where, mend=mend)
        _check_names(manifest, where)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"broken manifest: {_why(error)}", where=where, mend=mend) from None
    return manifest


def _check_names(manifest: Manifest, where: Where) -> None:
    """Files are in the set's folder: a name that leads elsewhere would be read, or published."""
    for file in manifest.files():
        parts = file.name.split("/")
        if not all(parts) or ".." in parts or "\0" in file.name:
            what = f"the manifest names {file.name!r}, which is no file of the folder"
            raise IntegrityError(what, where=where, mend="Do not use this set: it was made by hand")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at offset {error.pos}: {error.msg}"
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 at offset {error.start}"
    return "its fields are not those that omr_io writes"


def _parse(fields: Mapping[str, Any]) -> Manifest:
    values = dict(fields)
    values["shards"] = tuple(
        ShardEntry(**{**shard, "idx": FileDigest(**shard["idx"])}) for shard in fields["shards"]
    )
    values["index"] = FileDigest(**fields["index"])
    rejects = fields["rejects"]
    values["rejects"] = None if rejects is None else FileDigest(**rejects)
    values["sources"] = tuple(fields["sources"])
    if "foreign" in fields:
        values["foreign"] = Foreign(**fields["foreign"])
    values["schemas"] = tuple(fields.get("schemas", ()))
    return Manifest(**values)


def _not_a_set(folder: Path) -> SourceError:
    if not folder.is_dir():
        return SourceError(f"{folder} does not exist or is no folder", mend=_GIVE)
    if (folder / UNFINISHED_NAME).exists():
        return SourceError(
            f"{folder} holds an unfinished conversion", mend="Run `omr-io convert` on it again"
        )
    if next(folder.glob("*.tar"), None) is not None:
        return SourceError(
            f"{folder} holds tars but no {MANIFEST_NAME}: it is no omr_io shard set",
            mend="Make one of them with `omr-io index`, or from Parquet with `omr-io convert`",
        )
    return SourceError(
        f"{folder} is no shard set: it has no {MANIFEST_NAME}",
        mend=_GIVE,
    )
