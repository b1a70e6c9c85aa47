"""The Parquet files of a corpus: finding, opening, counting and fingerprinting them."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omr_io.config import fingerprint
from omr_io.errors import SourceError, Where

_SPLITS = {"train": "train", "test": "test", "dev": "validation", "val": "validation"}
_SPLITS |= {"valid": "validation", "validation": "validation"}
_BUFFER_BYTES = 1 << 20
_FOOTER_TAIL = 8  # the footer's length, 4 bytes little-endian, and the magic "PAR1"


def list_sources(
    paths: str | Path | Iterable[str | Path], *, mixed_splits: bool = False
) -> tuple[Path, ...]:
    """Find the Parquet files to read.

    Args:
        paths: one or several of: a file (any name), a folder (its own *.parquet, not those of
            its subfolders), a glob pattern. A file reached twice counts once.
        mixed_splits: allow file names that say different splits ("train-00000.parquet" beside
            "test-00000.parquet", or beside one that says none).

    Returns:
        The files, sorted by path.

    Raises:
        SourceError: a path matches nothing; two files share a name without its suffix (the names
            make row ids and provenance, so they must differ); or splits are mixed, which would
            put test rows among the training ones.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict[Path, Path] = {}
    for item in given:
        for path in _expand(item):
            found.setdefault(path.resolve(), path)
    if not found:
        raise SourceError("no source was given", mend="Name a Parquet file, a folder or a glob")
    files = tuple(sorted(found.values(), key=str))
    _check_names(files)
    if not mixed_splits:
        _check_splits(files)
    return files


def count_rows(paths: Sequence[str | Path]) -> int:
    """Count the rows of Parquet files, from their footers alone.

    Raises:
        SourceError: a file is missing, cut short or not Parquet.
    """
    total = 0
    for path in paths:
        with open_parquet(Path(path)) as file:
            total += file.metadata.num_rows
    return total


def source_fingerprint(paths: Sequence[str | Path]) -> str:
    """Digest what the files are: 16 hex digits over each name, size and footer, in order.

    Neither folders nor modification times count. The footer holds the schema and the place, size
    and usually statistics of every column chunk; pages are not read, so a change within a page
    that alters none of these goes unseen. Images outside the Parquet files do not count.

    Raises:
        SourceError: a file is missing, cut short or not Parquet.
    """
    parts = []
    for given in paths:
        path = Path(given)
        open_parquet(path).close()  # a footer that does not parse is no identity
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(size - _FOOTER_TAIL)
                length = int.from_bytes(file.read(4), "little")
                file.seek(size - _FOOTER_TAIL - length)
                parts.append((path.name, size, hashlib.sha256(file.read()).hexdigest()))
        except OSError as error:
            raise SourceError(f"cannot be read: {error}", where=Where(source=str(path))) from error
    return fingerprint("sources", parts)


def open_parquet(path: Path) -> Any:
    """Open a Parquet file for streaming: pages are read as needed and their checksums verified.

    Returns:
        A `pyarrow.parquet.ParquetFile`, to be closed by the caller (or used with `with`).

    Raises:
        SourceError: the file is missing, cut short, encrypted or not Parquet.
    """
    where = Where(source=str(path))
    try:
        return pq.ParquetFile(
            path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
    except FileNotFoundError:
        raise SourceError("the file does not exist", where=where) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"this is not a Parquet file, or it was cut short: {one_line(error)}",
            where=where,
            mend="Fetch or write the file again",
        ) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def _expand(item: str | Path) -> list[Path]:
    path = Path(item)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [child for child in path.glob("*.parquet") if child.is_file()]
        if files:
            return files
        below = next((child for child in path.glob("**/*.parquet")), None)
        mend = f"There are some in {below.parent}" if below else None
        raise SourceError("the folder has no *.parquet", where=Where(source=str(path)), mend=mend)
    if glob.has_magic(str(item)):
        files = [Path(name) for name in glob.glob(str(item), recursive=True)]  # noqa: PTH207
        files = [file for file in files if file.is_file()]
        if files:
            return files
        raise SourceError("no file matches", where=Where(source=str(item)))
    raise SourceError("there is no such file or folder", where=Where(source=str(item)))


def _check_names(files: tuple[Path, ...]) -> None:
    seen: dict[str, Path] = {}
    for path in files:
        first = seen.setdefault(path.stem, path)
        if first is not path:
            raise SourceError(
                f"{first} and {path} have the same name, so their rows could not be told apart",
                mend="Rename one of them, or convert them one after the other",
            )


def _check_splits(files: tuple[Path, ...]) -> None:
    by_split: dict[str, Path] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.stem.lower())
        splits = {_SPLITS[word] for word in words if word in _SPLITS}
        name = splits.pop() if len(splits) == 1 else "none"
        by_split.setdefault(name, path)
    if len(by_split) > 1:
        named = ", ".join(f"{path.name} ({split})" for split, path in sorted(by_split.items()))
        raise SourceError(
            f"the file names say different splits: {named}; test rows would end up in training",
            mend="Give one split's files, as a glob such as 'data/train-*.parquet'",
        )
