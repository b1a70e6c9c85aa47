"""JSON rows in a stream of bytes: a line each, or the elements of one array; bounded memory."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from omr_io.corpus.formats.untyped import decoded, repaired
from omr_io.corpus.raw import BadRow
from omr_io.errors import SourceError, Where

MAX_ROW_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
# How far before the end of a buffer the error may lie that a cut value gives: a pair of \u escapes.
_CUT_TAIL = 16
_JSON_NAMES = {list: "a list", str: "text", bool: "a boolean", type(None): "null"}
_JSON_NAMES |= {int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Item:
    """A row and where it stands, in bytes from the start of the file."""

    row: dict[str, Any] | BadRow
    start: int
    end: int


class RowParser:
    """Python's JSON decoder, with NaN and infinities as None, and names given twice noticed."""

    def __init__(self) -> None:
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=lambda _: None, parse_float=_finite
        )

    def parse(self, text: str, start: int) -> tuple[Any, int]:
        """One value that starts at `start`, and where it ends.

        Raises:
            ValueError: it is not JSON, or cut.
            RecursionError: it is nested too deeply.
        """
        self._twice.clear()
        return self._decoder.raw_decode(text, start)

    def row(self, value: Any, place: int, *, damaged: bool) -> dict[str, Any] | BadRow:
        """What was just parsed, as a row; `damaged` where text may be no UTF-8."""
        if not isinstance(value, dict):
            kind = _JSON_NAMES[type(value)]
            return BadRow("bad-json", f"byte {place}: {kind}, wanted an object")
        if self._twice:
            return BadRow("bad-json", f"byte {place}: the name {self._twice[0]!r} is there twice")
        if damaged:
            try:
                return dict(repaired(value))
            except ValueError as error:
                return BadRow("bad-json", f"byte {place}: {error}")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self._twice.append(next(name for name in names if names.count(name) > 1)[:80])
        return found


def line_items(file: BinaryIO, start: int, end: int | None, where: Where) -> Iterator[Item]:
    """The rows of JSON Lines; blank lines are none.

    Args:
        file: stands at byte `start`, the beginning of a line.
        end: where to stop; None reads to the end of the file.
        where: for errors.

    Raises:
        SourceError: a line is over 256 MiB.
    """
    parser = RowParser()
    while end is None or start < end:
        line = file.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise _too_long(start, where)
        if start == 0:
            start, line = (3, line[3:]) if line.startswith(codecs.BOM_UTF8) else (0, line)
        stop = start + len(line)
        if line.strip():
            yield Item(_line(parser, line, start), start, stop)
        start = stop


def _line(parser: RowParser, line: bytes, place: int) -> dict[str, Any] | BadRow:
    text, damaged = decoded(line.rstrip(b"\r\n"))
    begin = _skip(text, 0)
    try:
        value, stop = parser.parse(text, begin)
    except (ValueError, RecursionError) as error:
        return BadRow("bad-json", f"byte {place}: {_why(error)}")
    if _skip(text, stop) < len(text):
        return BadRow("bad-json", f"byte {place}: more than one value in the line")
    return parser.row(value, place, damaged=damaged or _HALF_PAIR.search(text) is not None)


class ArrayItems:
    """The elements of one JSON array, or of a run of them.

    Args:
        file: stands at byte `start`.
        start: of the array's first element or of its opening text.
        end: None for a whole file; else the end of a run of elements.
        opening: the text before the first element, such as '['; "" for a run.
        closing: the text after the last one, such as ']'.
        where: for errors.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        end: int | None,
        where: Where,
        opening: str = "",
        closing: str = "",
    ) -> None:
        self._file = file
        self._where = where
        self._left = None if end is None else end - start
        self._opening, self._closing = opening, closing
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parser = RowParser()
        self._text = ""
        self._at = 0  # in the text
        self._byte = start  # the same place in the file
        self._row = 0
        self._ended = False

    def __iter__(self) -> Iterator[Item]:
        """The elements in order.

        Raises:
            SourceError: the array is damaged or cut; from there on nothing can be read.
        """
        if self._opening:
            self._take_text(self._opening)
        while self._peek() not in ("", "]"):
            if self._row:
                self._take_text(",")
            yield self._element()
            self._row += 1
        if self._closing or self._peek():
            self._take_text(self._closing)
            if self._peek():
                raise self._broken("there is more after the array's end")

    def _element(self) -> Item:
        self._peek()
        want = _CHUNK_BYTES
        while True:
            try:
                value, stop = self._parser.parse(self._text, self._at)
                # A number at the buffer's end may go on.
                if stop < len(self._text) or isinstance(value, dict | list) or not self._fill(want):
                    break
            except (ValueError, RecursionError) as error:
                if not (_may_be_cut(error, len(self._text)) and self._fill(want)):
                    raise self._broken(_why(error)) from None
            want *= 2
        start = self._byte
        text = self._text[self._at : stop]
        damaged = self._advance(stop) or _HALF_PAIR.search(text) is not None
        return Item(self._parser.row(value, start, damaged=damaged), start, self._byte)

    def _take_text(self, wanted: str) -> None:
        """Pass over text, white space around each of its characters."""
        for character in wanted:
            if self._peek() != character:
                found = self._peek() or "the end of the file"
                raise self._broken(f"wanted {character!r}, found {found!r}")
            self._advance(self._at + 1)

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._advance(_skip(self._text, self._at))
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill(_CHUNK_BYTES):
                return ""

    def _advance(self, to: int) -> bool:
        """Move on; whether bytes passed over were not UTF-8."""
        passed = self._text[self._at : to]
        self._at = to
        if passed.isascii():
            self._byte += len(passed)
            return False
        try:
            self._byte += len(passed.encode("utf-8"))
            return False
        except UnicodeEncodeError:
            self._byte += len(passed.encode("utf-8", "surrogateescape"))
            return True

    def _fill(self, count: int) -> bool:
        """Read on; False at the end."""
        if self._ended:
            return False
        if len(self._text) - self._at > MAX_ROW_BYTES:
            raise _too_long(self._byte, self._where)
        count = count if self._left is None else min(count, self._left)
        data = self._file.read(count) if count else b""
        self._ended = not data
        if self._left is not None:
            self._left -= len(data)
        self._text = self._text[self._at :] + self._decode(data, self._ended)
        self._at = 0
        return True

    def _broken(self, why: str) -> SourceError:
        return SourceError(
            f"the JSON array is broken at byte {self._byte}: {why}",
            where=Where(source=self._where.source, row=self._row),
            mend="Fetch the file again, or mend it there; nothing after this place can be read",
        )


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _may_be_cut(error: Exception, length: int) -> bool:
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - _CUT_TAIL


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:120]
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (str(error).splitlines() or ["not JSON"])[0][:120]


def _too_long(place: int, where: Where) -> SourceError:
    return SourceError(
        f"the row at byte {place} is over {MAX_ROW_BYTES >> 20} MiB",
        where=where,
        mend="Give JSON Lines (one object a line) or an array of objects",
    )
