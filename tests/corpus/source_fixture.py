"""Fixtures of sources: rows, what each must become, and the file that holds them.

All content is made up; the images are real JPEG and PNG files.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from omr_io.corpus.raw import ColumnType
from omr_io.types import EncodedImage, Option, Record, RubricUnit

Row = dict[str, Any]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = pa.string()


def picture(number: int, kind: str = "JPEG") -> bytes:
    """An image of 48 by 40 pixels, another one for each number."""
    image = Image.new("RGB", (48, 40), (10 * number % 256, 90, 40))
    image.paste((250, 240, 10 * number % 256), (8, 8, 30, 24))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class Expected:
    """What a row must become: a Record (all of it), or a refusal by its reason."""

    reason: str | None = None
    question: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    reasoning: str = ""
    images: tuple[EncodedImage, ...] = ()
    extra: Row = field(default_factory=dict)
    id: str | None = None
    rubric: tuple[RubricUnit, ...] = ()

    def record(self, file_name: str, row: int) -> Record:
        """The Record; ids that the schema does not take are those of the row's place."""
        lettered = zip(ascii_uppercase, self.options, strict=False)
        return Record(
            id=self.id or f"{Path(file_name).stem}-{row:08d}",
            question=self.question,
            options=tuple(Option(letter, text) for letter, text in lettered),
            answer=self.answer,
            reasoning=self.reasoning,
            rubric=self.rubric,
            images=self.images,
            source=f"{file_name}#{row}",
            extra=self.extra,
        )


@dataclass(frozen=True)
class Fixture:
    """A source of one schema.

    Attributes:
        schema: that it must be recognised as.
        file: its name; the suffix says the format: parquet, json, jsonl, csv or tar.
        rows, expected: in step.
        types: of a Parquet file's columns.
        images: beside the source, by name, in `root`: a folder ("images"), or a zip or tar.gz.
        options: further arguments of ReadOptions.
        written_as: the format, where the file's suffix lies about it.
    """

    schema: str
    file: str
    rows: tuple[Row, ...]
    expected: tuple[Expected, ...]
    types: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    root: str = "images"
    options: Row = field(default_factory=dict)
    written_as: str = ""

    @property
    def columns(self) -> dict[str, ColumnType]:
        """What a reader of this format says of the columns."""
        if self.file.endswith(".csv"):
            return {name: ColumnType("text") for name in self.rows[0]}
        if self.types:
            return {name: of_arrow(kind) for name, kind in self.types.items()}
        found: dict[str, ColumnType] = {}
        for row in self.rows:
            for name, value in row.items():
                found[name] = merged(found.get(name, ColumnType("null")), of_value(value))
        return found

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Write the source, and its images: their paths."""
        path = folder / self.file
        WRITERS[self.written_as or path.suffix](self, path)
        if not self.images:
            return path, None
        root = folder / self.root
        write_images(root, self.images)
        return path, root


def of_value(value: object) -> ColumnType:
    """The type of a value of a JSON file."""
    if isinstance(value, dict):
        return ColumnType("struct", fields=tuple((n, of_value(v)) for n, v in value.items()))
    if isinstance(value, list):
        item = ColumnType("null")
        for one in value:
            item = merged(item, of_value(one))
        return ColumnType("list", item)
    kinds: dict[type, Any] = {str: "text", bool: "boolean", int: "integer", float: "float"}
    kinds |= {bytes: "bytes", type(None): "null"}
    return ColumnType(kinds[type(value)])


def merged(one: ColumnType, other: ColumnType) -> ColumnType:
    """The type of values of two types."""
    if one == other or other.kind == "null":
        return one
    if one.kind == "null":
        return other
    if one.kind == other.kind == "list" and one.item and other.item:
        return ColumnType("list", merged(one.item, other.item))
    if one.kind == other.kind == "struct":
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = merged(fields.get(name, ColumnType("null")), kind)
        return ColumnType("struct", fields=tuple(fields.items()))
    return ColumnType("mixed")


def of_arrow(kind: Any) -> ColumnType:
    """The type of a Parquet column, for the few types of these fixtures."""
    if pa.types.is_list(kind):
        return ColumnType("list", of_arrow(kind.value_type))
    if pa.types.is_struct(kind):
        return ColumnType("struct", fields=tuple((f.name, of_arrow(f.type)) for f in kind))
    names: dict[Any, Any] = {pa.string(): "text", pa.binary(): "bytes", pa.int64(): "integer"}
    return ColumnType(names[kind])


def write_images(root: Path, images: dict[str, bytes]) -> None:
    """A folder, a zip or a tar of images."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)
    elif root.suffixes[-2:] == [".tar", ".gz"]:
        with tarfile.open(root, "w:gz") as tar:
            add_members(tar, images)
    else:
        for name, data in images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


def add_members(tar: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        about = tarfile.TarInfo(name)
        about.size = len(data)
        tar.addfile(about, io.BytesIO(data))


def write_parquet(fixture: Fixture, path: Path) -> None:
    arrays = [
        pa.array([row.get(name) for row in fixture.rows], kind)
        for name, kind in fixture.types.items()
    ]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(fixture.types)), path)


def write_json(fixture: Fixture, path: Path) -> None:
    path.write_text(json.dumps(list(fixture.rows), ensure_ascii=False, indent=1), "utf-8")


def write_jsonl(fixture: Fixture, path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in fixture.rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_csv(fixture: Fixture, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(fixture.rows[0]))
        writer.writeheader()
        writer.writerows(fixture.rows)


def write_webdataset(fixture: Fixture, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for row in fixture.rows:
            for name, value in row.items():
                if name == "__key__" or value is None:
                    continue
                data = value if isinstance(value, bytes) else str(value).encode()
                if isinstance(value, dict):
                    data = json.dumps(value).encode()
                add_members(tar, {f"{row['__key__']}.{name}": data})


WRITERS = {
    ".parquet": write_parquet,
    ".json": write_json,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".tar": write_webdataset,
}


def no(reason: str) -> Expected:
    """A refusal."""
    return Expected(reason=reason)


def shown(*images: tuple[str, bytes]) -> tuple[EncodedImage, ...]:
    return tuple(EncodedImage(data, name) for name, data in images)


def embedded(number: int, name: str | None = None) -> Row:
    return {"bytes": picture(number), "path": name}


def lined(stem: str, *options: str) -> str:
    """A question with its options, a line each."""
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([stem, *lines])


HEART = lined("Which chamber is enlarged?", "Left atrium", "Right ventricle")
