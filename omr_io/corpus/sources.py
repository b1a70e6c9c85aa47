"""The source files of a corpus: finding, counting and fingerprinting them."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from omr_io.config import fingerprint
from omr_io.corpus.formats import SUFFIXES, open_source
from omr_io.corpus.formats.location import Location, name_of, shown, stem_of
from omr_io.errors import SourceError, Where
from omr_io.remote.urls import is_url

_SPLITS = {"train": "train", "test": "test", "dev": "validation", "val": "validation"}
_SPLITS |= {"valid": "validation", "validation": "validation"}


def list_sources(
    paths: str | Path | Iterable[str | Path], *, mixed_splits: bool = False
) -> tuple[Location, ...]:
    """Find the source files to read.

    Args:
        paths: one or several of: a file (any name), a folder, a glob pattern, a URL (hf://, s3://,
            gs://, http://, https://). A folder stands for its own *.parquet, not those of its
            subfolders; without any, for its files of the one other known format (JSON, CSV, tar).
            Hidden files (".NAME", as macOS leaves beside copies) do not count. A file reached twice
            counts once.
        mixed_splits: allow file names that say different splits ("train-00000.parquet" beside
            "test-00000.parquet", or beside one that says none).

    Returns:
        Paths of local files and the text of URLs, sorted.

    Raises:
        SourceError: a path matches nothing, is "", or is no UTF-8; a folder holds several formats,
            none of them Parquet, or no known one; two files share a name without its suffix (the
            names make row ids and provenance, so they must differ); or splits are mixed, which
            would put test rows among the training ones.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found: dict[Location, Location] = {}
    for item in given:
        for place in _expand(item):
            found.setdefault(place.resolve() if isinstance(place, Path) else place, place)
    if not found:
        raise SourceError("no source was given", mend="Name a source file, a folder or a glob")
    files = tuple(sorted(found.values(), key=str))
    _check_unicode(files)
    _check_names(files)
    if not mixed_splits:
        _check_splits(files)
    return files


def count_rows(paths: Sequence[str | Path]) -> int:
    """Count the rows of source files: Parquet's from their footers, others by reading them.

    Raises:
        SourceError: a file is missing, cut short or of no known format.
    """
    return sum(open_source(path).num_rows for path in paths)


def source_fingerprint(paths: Sequence[str | Path]) -> str:
    """Digest what the files are: 16 hex digits over each name, size and digest, in order.

    Neither folders nor modification times count, so a copy, or the file behind a URL, has the
    fingerprint of the original. Of Parquet the footer is digested: it holds the schema and the
    place, size and usually statistics of every column chunk; pages are not read, so a change within
    a page that alters none of these goes unseen. Of a WebDataset tar the headers are, of JSON and
    CSV all bytes. Images outside the files do not count.

    Raises:
        SourceError: a file is missing, cut short or of no known format.
    """
    return fingerprint_of([open_source(path).identity() for path in paths])


def fingerprint_of(identities: Sequence[tuple[str, int, str]]) -> str:
    """`source_fingerprint` of files that are open already."""
    return fingerprint("sources", list(identities))


def _expand(item: str | Path) -> Sequence[Location]:
    if is_url(item):
        from omr_io import remote

        return tuple(remote.list_urls(str(item)))
    if item == "":  # else the current folder: a variable of a script was not set
        raise SourceError("a source is empty text", mend="Name a file, a folder or a glob")
    path = Path(item)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _expand_folder(path)
    if glob.has_magic(str(item)):
        files = [Path(name) for name in glob.glob(str(item), recursive=True)]  # noqa: PTH207
        files = [file for file in files if file.is_file()]
        if files:
            return files
        brackets = 'A bracket that belongs to a name is written "[[]"' if "[" in str(item) else None
        raise SourceError("no file matches", where=Where(source=str(item)), mend=brackets)
    raise SourceError("there is no such file or folder", where=Where(source=str(item)))


def _expand_folder(path: Path) -> list[Path]:
    by_format: dict[str, list[Path]] = {}
    for child in path.iterdir():
        kind = SUFFIXES.get(child.suffix.lower())
        if kind is not None and not child.name.startswith(".") and child.is_file():
            by_format.setdefault(kind, []).append(child)
    if "parquet" in by_format:
        return by_format["parquet"]
    if len(by_format) == 1:
        return next(iter(by_format.values()))
    where = Where(source=str(path))
    if by_format:
        listed = sorted(f"{len(files)} {kind}" for kind, files in by_format.items())
        names = ", ".join(sorted(min(files).name for files in by_format.values()))
        raise SourceError(
            f"the folder holds files of several formats: {', '.join(listed)} (such as {names})",
            where=where,
            mend="Give those of one, as a glob such as 'data/*.json'",
        )
    below = next((child for child in path.glob("**/*.parquet")), None)
    mend = f"There are some in {below.parent}" if below else f"Known are {', '.join(SUFFIXES)}"
    what = "the folder has no *.parquet, nor files of another known format"
    raise SourceError(what, where=where, mend=mend)


def _check_unicode(files: Sequence[Location]) -> None:
    for place in files:
        try:
            str(place).encode()
        except UnicodeEncodeError:
            raise SourceError(
                "the path is not UTF-8, so provenance cannot name it",
                where=Where(source=shown(place)),
                mend="Rename the file or its folder, or reach it by a link",
            ) from None


def _check_names(files: Sequence[Location]) -> None:
    seen: dict[str, Location] = {}
    for place in files:
        first = seen.setdefault(stem_of(name_of(place)), place)
        if first is not place:
            raise SourceError(
                f"{shown(first)} and {shown(place)} have the same name, so their rows could not be "
                "told apart",
                mend="Rename one of them, or convert them one after the other",
            )


def _check_splits(files: Sequence[Location]) -> None:
    by_split: dict[str, str] = {}
    for place in files:
        name = name_of(place)
        words = re.split(r"[^a-z]+", stem_of(name).lower())
        splits = {_SPLITS[word] for word in words if word in _SPLITS}
        by_split.setdefault(splits.pop() if len(splits) == 1 else "none", name)
    if len(by_split) > 1:
        named = ", ".join(f"{name} ({split})" for split, name in sorted(by_split.items()))
        raise SourceError(
            f"the file names say different splits: {named}; test rows would end up in training",
            mend="Give one split's files, as a glob such as 'data/train-*.parquet'",
        )
