"""How the parts of a foreign sample become a record: recognised once, then written down.

Three layouts are known, tried in this order:

    omr_io   KEY.json has the fields of our own samples
    parts    each extension is a column (jpg, txt, json, and __key__), as in BIOMEDICA
    fields   each field of KEY.json is a column, and so are its other texts (txt, cls), `id` (the
             key, unless the JSON has one), and the images: `image`, or `images` where the first
             samples have several

With `parts` and `fields` the columns must fit a schema of `omr_io.corpus.schemas`, by itself or by
the options `schema` and `column_map`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from omr_io.corpus.formats.untyped import merged, type_of
from omr_io.corpus.formats.webdataset_file import (
    JSON_ENDINGS,
    KEY,
    TEXT_ENDINGS,
    ending_of,
    part_value,
)
from omr_io.corpus.raw import BadRow, ColumnType
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import BoundSchema, bind
from omr_io.errors import IntegrityError, OmrError, SourceError, Where
from omr_io.shards.sample_json import FIELDS, decode_record
from omr_io.types import Record, Refusal

Layout = Literal["omr_io", "parts", "fields"]
_NO_BYTES = b"\0"  # stands for an image that is not read; what it holds is not looked at


@dataclass(frozen=True, slots=True)
class SampleParts:
    """The parts of a foreign sample, images first.

    Attributes:
        shard: the name of its tar.
        row: its number there, for provenance.
        key: the sample's, as webdataset has it.
        names: of the parts, as they stand in the tar.
        data: their bytes; None for an image that is not read.
        num_images: how many of them are images.
    """

    shard: str
    row: int
    key: str
    names: tuple[str, ...]
    data: tuple[bytes | None, ...]
    num_images: int

    def extensions(self) -> tuple[str, ...]:
        """What follows the key and a dot, in lower case."""
        return tuple(split_name(name)[1].lower() for name in self.names)

    def has_images(self) -> bool:
        """Whether the images are there, if there are any."""
        return all(piece is not None for piece in self.data)


@dataclass(frozen=True, slots=True)
class View:
    """Foreign samples as records; picklable. Use `recognise_view` or `View.from_json`.

    Attributes:
        layout: see the module.
        schema: the name of the schema; "omr_io" for that layout.
        columns: by name; {} for omr_io.
        images: the column of the images in the layout fields.
        options: how rows are read.
    """

    layout: Layout
    schema: str
    columns: Mapping[str, ColumnType]
    images: str
    options: ReadOptions
    _bound: BoundSchema | None = None

    def take(self, sample: SampleParts) -> Record | Refusal:
        """The record of a sample, or why it is none."""
        row = self._row(sample)
        if isinstance(row, BadRow):
            return Refusal(sample.shard, sample.row, sample.key, row.reason, row.detail)
        if self._bound is None:
            return self._own(sample)
        taken = self._bound.take(sample.shard, sample.row, row, None)
        if isinstance(taken, Record) and not sample.has_images():
            return dataclasses.replace(taken, images=())
        return taken

    def record(self, sample: SampleParts) -> Record:
        """`take`, for a sample that was taken when the index was built.

        Raises:
            IntegrityError: it is none any more.
        """
        taken = self.take(sample)
        if isinstance(taken, Refusal):
            where = Where(shard=sample.shard, key=sample.key, part=sample.names[-1])
            what = f"the sample is no record of the schema {self.schema}: {taken.detail}"
            raise IntegrityError(what, where=where, mend="Run `omr-io index` on the shards again")
        return taken

    def _own(self, sample: SampleParts) -> Record | Refusal:
        parts, text = sample.extensions()[: sample.num_images], sample.data[-1] or b""
        try:
            _, named = decode_record(text, None)
            if sorted(named) != sorted(parts):
                what = f"the JSON names the images {list(named)}, the sample has {list(parts)}"
                return Refusal(sample.shard, sample.row, sample.key, "image-count", what)
            data = dict(zip(parts, sample.data, strict=False))
            images = [data[part] or b"" for part in named] if sample.has_images() else None
            return decode_record(text, images)[0]
        except IntegrityError as error:
            return Refusal(sample.shard, sample.row, sample.key, "bad-json", error.what)

    def _row(self, sample: SampleParts) -> dict[str, object] | BadRow:
        if self.layout == "omr_io":
            return {}
        return raw_row(sample, self.layout, self.images)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs, as JSON values."""
        options = dataclasses.asdict(self.options)
        del options["image_root"]  # a place on one machine; foreign samples hold their images
        return {
            "layout": self.layout,
            "schema": self.schema,
            "columns": {name: _type_to_json(kind) for name, kind in self.columns.items()},
            "images": self.images,
            "options": options,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> View:
        """The view that `to_json` wrote down.

        Raises:
            SourceError: this omr_io does not know its schema any more, or reads it otherwise.
        """
        options: dict[str, Any] = {
            name: tuple(map(_tuple, value)) if isinstance(value, list) else value
            for name, value in fields["options"].items()
        }
        columns = {name: _type_from_json(kind) for name, kind in fields["columns"].items()}
        try:
            read = ReadOptions(**options)
        except TypeError as error:
            what = f"the index was made by another omr_io: {error}"
            mend = "Use that version, or run `omr-io index --overwrite`"
            raise SourceError(what, mend=mend) from None
        layout = cast(Layout, fields["layout"])
        bound = None
        if layout != "omr_io":
            bound = bind(columns, (), _forced(read, fields["schema"]), "the index")
        return cls(layout, fields["schema"], columns, fields["images"], read, bound)


def recognise_view(head: Sequence[SampleParts], options: ReadOptions, source: str) -> View:
    """Find how samples become records, by the first of them.

    Args:
        head: sound samples, each with a text part.
        options: how to read; `schema` and `column_map` force a schema.
        source: the shard's name, for errors.

    Raises:
        SourceError: no schema fits, or there is no sample to tell by.
    """
    if not head:
        what = "no sample here has a text (.json, .txt, ...), so none can become a record"
        raise SourceError(what, where=Where(source=source))
    forced = options.schema is not None or bool(options.column_map)
    if not forced and all(_is_own(sample) for sample in head):
        return View("omr_io", "omr_io", {}, "", options)
    several = any(sample.num_images > 1 for sample in head)
    first, second = ("images", "image") if several else ("image", "images")
    tried: list[tuple[Layout, str]] = [("parts", ""), ("fields", first), ("fields", second)]
    errors: list[tuple[Layout, OmrError]] = []
    for layout, images in tried:
        rows = [raw_row(sample, layout, images) for sample in head]
        good = [row for row in rows if not isinstance(row, BadRow)]
        columns = _columns(good, layout, images)
        if not columns:
            continue
        try:
            bound = bind(columns, good, options, source)
        except SourceError as error:
            errors.append((layout, error))
            continue
        plain = dataclasses.replace(options, image_root=None)
        forced_bound = bind(columns, (), _forced(plain, bound.name), source)
        return View(layout, bound.name, columns, images, plain, forced_bound)
    raise _unknown(errors, head, source)


def _forced(options: ReadOptions, schema: str) -> ReadOptions:
    if options.column_map:
        return options
    return dataclasses.replace(options, schema=schema)


def _is_own(sample: SampleParts) -> bool:
    if sample.extensions()[-1] != "json":
        return False
    value = part_value("json", sample.data[-1] or b"")
    return isinstance(value, dict) and tuple(value) == FIELDS


def _unknown(
    errors: Sequence[tuple[Layout, OmrError]], head: Sequence[SampleParts], source: str
) -> SourceError:
    endings = ", ".join(f".{name}" for name in head[0].extensions())
    fields = [error for layout, error in errors if layout == "fields"]
    best = (fields or [error for _, error in errors])[:1]
    if not best:
        what = f"the first samples ({endings}) hold no JSON object and fit no known schema"
        return SourceError(what, where=Where(source=source))
    what = f"the samples ({endings}) fit no known schema: {best[0].what}"
    return SourceError(what, where=Where(source=source), mend=best[0].mend)


def raw_row(sample: SampleParts, layout: Layout, images: str) -> dict[str, object] | BadRow:
    """A sample as a row of columns."""
    row: dict[str, object] = {KEY: sample.key} if layout == "parts" else {}
    texts: dict[str, object] = {}
    for place, (extension, data) in enumerate(zip(sample.extensions(), sample.data, strict=True)):
        if place < sample.num_images:
            if layout == "parts":
                row[extension] = data if data is not None else _NO_BYTES
            continue
        value = part_value(ending_of(extension), data or b"")
        if isinstance(value, BadRow):
            return BadRow(value.reason, f".{extension}: {value.detail}")
        texts[extension] = value
    if layout == "parts":
        return row | texts
    fields = [value for value in texts.values() if isinstance(value, dict)]
    for value in fields:
        row |= value
    for extension, value in texts.items():
        if not isinstance(value, dict):
            row.setdefault(extension, value)
    row.setdefault("id", sample.key)
    if sample.num_images:  # without one, a path in the JSON stays, and is told as not embedded
        row[images] = _images(sample, row.get(images))
    return row


def _images(sample: SampleParts, said: object) -> object:
    """The images as a row gives them; a path that the JSON has for them is kept."""
    names = sample.names[: sample.num_images]
    if isinstance(said, str) and len(names) == 1:
        names = (said,)
    elif isinstance(said, list) and len(said) == len(names):
        known = zip(said, names, strict=True)
        names = tuple(path if isinstance(path, str) else name for path, name in known)
    found = [
        {"bytes": data if data is not None else _NO_BYTES, "path": name}
        for data, name in zip(sample.data, names, strict=False)
    ]
    return found[0] if len(found) == 1 else found


def _columns(
    rows: Sequence[Mapping[str, object]], layout: Layout, images: str
) -> dict[str, ColumnType]:
    columns: dict[str, ColumnType] = {}
    for row in rows:
        for name, value in row.items():
            columns[name] = merged(columns.get(name, ColumnType("null")), type_of(value))
    if layout == "fields" and any(isinstance(row.get(images), dict | list) for row in rows):
        fields = (("bytes", ColumnType("bytes")), ("path", ColumnType("text")))
        picture = ColumnType("struct", fields=fields)
        columns[images] = picture if images == "image" else ColumnType("list", picture)
    return columns


def split_name(name: str) -> tuple[str, str]:
    """The key and the extension of a sample's part, by webdataset's rule: see `Grouper`."""
    folder, slash, last = name.rpartition("/")
    key, _, extension = last.partition(".")
    return folder + slash + key, extension


def is_text(extension: str) -> bool:
    """Whether a part of this extension holds text that a record may be made of."""
    return ending_of(extension) in (*JSON_ENDINGS, *TEXT_ENDINGS)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _type_to_json(kind: ColumnType) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": kind.kind}
    if kind.item is not None:
        fields["item"] = _type_to_json(kind.item)
    if kind.fields:
        fields["fields"] = {name: _type_to_json(item) for name, item in kind.fields}
    return fields


def _type_from_json(fields: Mapping[str, Any]) -> ColumnType:
    return ColumnType(
        fields["kind"],
        _type_from_json(fields["item"]) if "item" in fields else None,
        tuple((name, _type_from_json(item)) for name, item in fields.get("fields", {}).items()),
    )
