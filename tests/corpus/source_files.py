"""Checks that hold for source files of every format, and URLs that lead to memory."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import omr_io.remote
from omr_io.corpus.formats import open_source
from omr_io.corpus.raw import BadRow, SourceFile


def all_rows(file: SourceFile, columns: Any = None) -> list[Any]:
    """Every row, span by span, after checking what every file must hold to.

    Spans follow on each other and are as long as they say; each reads alike alone, in any order and
    from a copy that went through pickle; a row has exactly the columns asked for.
    """
    columns = list(file.columns) if columns is None else columns
    spans = file.spans()
    parts = [list(file.rows(span, columns)) for span in spans]
    first = 0
    for span, part in zip(spans, parts, strict=True):
        assert (span.first_row, span.num_rows) == (first, len(part))
        assert span.num_rows >= 1
        assert span.num_bytes > 0
        first += span.num_rows
    assert file.num_rows == first
    copy = pickle.loads(pickle.dumps(file))
    assert copy.spans() == spans
    for span, part in reversed(list(zip(spans, parts, strict=True))):
        assert list(copy.rows(span, columns)) == part
    rows = [row for part in parts for row in part]
    assert all(list(row) == columns for row in rows if not isinstance(row, BadRow))
    head = file.head(3)
    good = [row for row in rows if not isinstance(row, BadRow)][:3]
    carried = {name for name, kind in file.columns.items() if not kind.named}
    assert [set(row) for row in head] == [carried] * len(good)
    return rows


class Memory(io.BytesIO):
    """A file that offers only what a remote one does."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)


class Remote:
    """Stands in for what omr_io.remote reads: a dict of URLs to bytes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.opened: list[Memory] = []

    def list_urls(self, url: str) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.files if name.startswith(url)))

    def open_url(self, url: str) -> Memory:
        self.opened.append(Memory(self.files[url]))
        return self.opened[-1]

    def identity(self, url: str) -> tuple[str, int, str]:
        data = self.files[url]
        return url.rpartition("/")[2], len(data), hashlib.md5(data).hexdigest()


def use_remote(patch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> Remote:
    """Let URLs lead to these bytes."""
    remote = Remote(files)
    for name in ("list_urls", "open_url", "identity"):
        patch.setattr(omr_io.remote, name, getattr(remote, name))
    return remote


def same_from_a_url(patch: pytest.MonkeyPatch, path: Path) -> None:
    """A file gives the same from a URL as from disk: rows, spans, identity; and it is closed."""
    url = f"s3://bucket/folder/{path.name}"
    remote = use_remote(patch, {url: path.read_bytes()})
    local, far = open_source(path), open_source(url)
    assert far.name == local.name
    assert far.columns == local.columns
    assert far.identity() == local.identity()
    assert all_rows(far) == all_rows(local)
    assert [span.num_rows for span in far.spans()] == [span.num_rows for span in local.spans()]
    assert remote.opened
    assert all(file.closed for file in remote.opened)


Breaker = Callable[[bytes], bytes]
