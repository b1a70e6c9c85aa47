"""Source files of every format: bytes on disk or behind a URL → `RawRow`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from omr_io.corpus.formats.location import Location, is_url, name_of, open_binary, shown
from omr_io.corpus.raw import SourceFile
from omr_io.errors import SourceError, Where

Format = Literal["parquet", "json", "csv", "webdataset"]

SUFFIXES: Mapping[str, Format] = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
}
"""Formats by a name's last suffix."""

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


def open_source(location: str | Path) -> SourceFile:
    """Open a source file of any format, read through once or, for Parquet, its footer.

    Args:
        location: a path, or a URL (hf://, s3://, http://, https://).

    Raises:
        SourceError: the file is missing, of no known format, or broken.
    """
    place: Location = str(location) if is_url(location) else Path(location)
    return _opener(format_of(place))(place)


def format_of(location: Location) -> Format:
    """The format of a file, by its suffix, else by its content.

    Raises:
        SourceError: neither tells.
    """
    suffix = PurePosixPath(name_of(location)).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    where = Where(source=shown(location))
    try:
        with open_binary(location) as file:
            head = file.read(4096)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=where) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar":
        return "webdataset"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return "json"
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    known = ", ".join(SUFFIXES)
    raise SourceError(
        f"this is {packed} data, not a source" if packed else "the file's format is not known",
        where=where,
        mend=f"Unpack it first; known are {known}" if packed else f"Known are {known}",
    )


def _opener(format: Format) -> Callable[[Location], SourceFile]:
    # Here, not above: a Parquet needs no tar scanner, a CSV no Arrow.
    if format == "parquet":
        from omr_io.corpus.formats.parquet import ParquetFile

        return ParquetFile.open
    if format == "json":
        from omr_io.corpus.formats.json_file import JsonFile

        return JsonFile.open
    if format == "csv":
        from omr_io.corpus.formats.csv_file import CsvFile

        return CsvFile.open
    from omr_io.corpus.formats.webdataset_file import WebDatasetFile

    return WebDatasetFile.open


__all__ = ["SUFFIXES", "Format", "format_of", "open_source"]
