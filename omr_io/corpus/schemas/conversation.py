"""Conversations: LLaVA's turns, role and content messages, and `<image>` placeholders in texts."""

from __future__ import annotations

from typing import NamedTuple

from omr_io.corpus.raw import RawRow
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas.row import Found, RowError, RowFields, Table
from omr_io.corpus.schemas.traces import reply_answer, tagged_answer
from omr_io.text import short

_PLACEHOLDER = "<image>"
_ROLES = {"system": "system", "user": "user", "human": "user"}
_ROLES |= {"assistant": "assistant", "gpt": "assistant", "model": "assistant"}
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value")
_MEDIA = ("videos", "video", "audios", "audio")


class Turn(NamedTuple):
    """One turn: `role` is system, user or assistant; `text` is None if it is null."""

    role: str
    text: str | None
    pictures: tuple[object, ...] = ()


class Exchange(NamedTuple):
    """A question and its reply.

    Attributes:
        question: placeholders taken out; None if it is null.
        reply: None if there is none.
        placeholders: in the question.
        pictures: that the question's parts hold.
        whole: whether this is all that the conversation says.
    """

    question: str | None
    reply: str | None
    placeholders: int
    pictures: tuple[object, ...]
    whole: bool


def take_out_placeholders(text: str) -> tuple[str, int, bool]:
    """Take `<image>` out of a text.

    Returns:
        The text, white space beside leading and trailing placeholders gone, "(image 2)" for the
        second placeholder where it stands between words; how many there were; and whether one
        stood between words.
    """
    pieces = text.split(_PLACEHOLDER)
    if len(pieces) == 1:
        return text, 0, False
    filled = [place for place, piece in enumerate(pieces) if piece.strip()]
    if not filled:
        return "", len(pieces) - 1, False
    first, last = filled[0], filled[-1]
    inner = [pieces[first]]
    for place in range(first + 1, last + 1):
        inner += [f"(image {place})", pieces[place]]
    clean = "".join(inner)
    clean = clean.lstrip() if first else clean
    clean = clean.rstrip() if last < len(pieces) - 1 else clean
    return clean, len(pieces) - 1, last > first


def turns_of(value: object, column: str) -> list[Turn]:
    """The turns of a conversation; null is none.

    Raises:
        RowError: "bad-type", "bad-turns", "other-media".
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("bad-type", f"{column} is {type(value).__name__}, wanted a list of turns")
    return [_turn(item, column, number) for number, item in enumerate(value)]


def exchange(turns: list[Turn], options: ReadOptions) -> Exchange:
    """The one exchange of a conversation, or its first; a question alone has no reply.

    Raises:
        RowError: "bad-turns", "several-turns".
    """
    start = 0
    while start < len(turns) and turns[start].role == "system":
        start += 1
    spoken = turns[start:]
    expected = ("user", "assistant")
    for number, turn in enumerate(spoken):
        if turn.role != expected[number % 2]:
            what = f"turn {start + number} is the {turn.role}'s, not the {expected[number % 2]}'s"
            raise RowError("bad-turns", what)
    if not spoken:
        raise RowError("bad-turns", "the conversation has no turns")
    if len(spoken) > 2 and options.turns == "refuse":
        what = f"the conversation has {len(spoken)} turns; --turns first takes the first exchange"
        raise RowError("several-turns", what)
    asked = spoken[0]
    question, count, between = take_out_placeholders(asked.text or "")
    reply = spoken[1].text or "" if len(spoken) > 1 else None
    return Exchange(
        None if asked.text is None else question,
        reply,
        count,
        asked.pictures,
        whole=len(turns) <= 2 and not start and not between,
    )


def no_other_media(raw: RawRow) -> None:
    """Refuse a row with video or audio, which a sample has no place for."""
    for name in _MEDIA:
        if raw.get(name):
            raise RowError("other-media", f"the row has {name}")


def adapt(raw: RawRow, found: Found, options: ReadOptions) -> RowFields:
    """A row that holds a whole conversation, and its images beside it or within."""
    no_other_media(raw)
    column = found["conversation"]
    asked = exchange(turns_of(raw.get(column), column), options)
    return fields_of(raw, found, asked, (column,))


def fields_of(raw: RawRow, found: Found, asked: Exchange, columns: tuple[str, ...]) -> RowFields:
    """A row of an exchange that came from `columns`, with its solution if there is a column."""
    answer: object = None if asked.reply is None else reply_answer(asked.reply)
    solution = raw.get(found["solution"]) if "solution" in found else None
    if solution is not None:
        answer = (tagged_answer(solution) or solution) if isinstance(solution, str) else solution
    images: object = list(asked.pictures)
    if "image" in found:
        images = raw.get(found["image"])
    return RowFields(
        asked.question,
        answer,
        asked.reply,
        images,
        placeholders=asked.placeholders,
        keep=() if asked.whole else columns,
    )


def _turn(item: object, column: str, number: int) -> Turn:
    what = f"turn {number} of {column}"
    if not isinstance(item, dict):
        raise RowError("bad-turns", f"{what} is {type(item).__name__}, wanted a role and a text")
    role = next((item[key] for key in _ROLE_KEYS if item.get(key) is not None), None)
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        shown = short(role) if isinstance(role, str) else type(role).__name__
        raise RowError("bad-turns", f"{what} has the role {shown}, wanted user or assistant")
    content = next((item[key] for key in _TEXT_KEYS if item.get(key) is not None), None)
    if content is None or isinstance(content, str):
        return Turn(known, content)
    if not isinstance(content, list):
        raise RowError("bad-type", f"{what} is {type(content).__name__}, wanted text or parts")
    return _joined(known, [_part(part, what) for part in content])


def _joined(role: str, parts: list[tuple[str, object]]) -> Turn:
    pictures = tuple(picture for _, picture in parts if picture is not None)
    return Turn(role, "".join(text for text, _ in parts), pictures)


def _part(part: object, what: str) -> tuple[str, object]:
    """A part's text, and the image that it holds, if it does."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, dict):
        raise RowError("bad-type", f"a part of {what} is {type(part).__name__}")
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise RowError("bad-type", f"a text part of {what} has no text")
        return text, None
    if kind in ("image", "image_url"):
        named = [
            part[key] for key in ("image", "bytes", "path", "url") if part.get(key) is not None
        ]
        return _PLACEHOLDER, named[0] if named else None
    shown = short(kind) if isinstance(kind, str) else type(kind).__name__
    raise RowError("other-media", f"{what} has a part of type {shown}")


def holds_turns(table: Table, column: str, keys: tuple[str, str]) -> bool:
    """Whether a column is of turns with these keys: told by its type, or by the first rows."""
    item = table.columns[column].item
    if item is not None and item.kind == "struct":
        return {name for name, _ in item.fields} >= set(keys)
    firsts = [row.get(column) for row in table.head]
    turns = [turn for value in firsts if isinstance(value, list) for turn in value]
    return bool(turns) and all(isinstance(t, dict) and t.keys() >= set(keys) for t in turns)


def holds_parts(table: Table, column: str) -> bool:
    """Whether contents of messages are lists of parts rather than text."""
    item = table.columns[column].item
    fields = dict(item.fields) if item is not None else {}
    content = fields.get("content")
    if content is not None and content.kind not in ("mixed", "null"):
        return content.kind == "list"
    firsts = [row.get(column) for row in table.head]
    turns = [turn for value in firsts if isinstance(value, list) for turn in value]
    return any(isinstance(t, dict) and isinstance(t.get("content"), list) for t in turns)
