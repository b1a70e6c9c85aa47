"""Source files of every format: bytes on disk or behind a URL → `RawRow`s."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from omr_io.corpus.formats.location import Location, name_of, reading, shown, stamp_of
from omr_io.corpus.raw import SourceFile
from omr_io.errors import SourceError, Where
from omr_io.remote.urls import SUFFIXES, Format, is_url

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
        location: a path, or a URL (hf://, s3://, gs://, http://, https://).

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
    stamp_of(location)  # opening a pipe would hang
    with reading(location) as file:
        head = file.read(4096)
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
