"""KEY.json: a record without its image bytes, always with the same fields in the same order.

`extra` is a JSON object as text. Its fields differ from corpus to corpus and row to row, and
`datasets` takes the types of nested fields from the first five samples: it would drop a field
that comes later without a word, and refuse a value where it first saw null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from omr_io import _C
from omr_io.errors import IntegrityError, RecordError
from omr_io.types import EncodedImage, Option, Record, RubricUnit

FIELDS = (
    "id", "question", "options", "answer", "reasoning", "rubric", "images", "source", "extra",
)  # fmt: skip


def encode_record(record: Record, image_parts: Sequence[str]) -> bytes:
    """The canonical JSON of a record: UTF-8, no white space, names in `extra` sorted.

    Args:
        record: its image bytes are left out; their names are kept.
        image_parts: for each image the rest of its part's name after "KEY.", which is its field in
            a WebDataset sample ("jpg", "img0.png").

    Raises:
        RecordError: text that is not Unicode (lone surrogates), or an `extra` that is not JSON.
    """
    images = [
        {"part": part, "name": image.name}
        for part, image in zip(image_parts, record.images, strict=True)
    ]
    try:
        fields: dict[str, Any] = {
            "id": record.id,
            "question": record.question,
            "options": [{"letter": item.letter, "text": item.text} for item in record.options],
            "answer": record.answer,
            "reasoning": record.reasoning,
            "rubric": [dataclasses.asdict(unit) for unit in record.rubric],
            "images": images,
            "source": record.source,
            "extra": _dump(_sorted(dict(record.extra))) if record.extra else "{}",
        }
        whole = _C.json_of_texts(fields)
        return _dump(fields).encode("utf-8") if whole is None else whole  # None: says what is wrong
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"the row does not fit JSON: {error}") from None


_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            # json would turn 1 and "1" into the same name.
            raise TypeError("a name in `extra` is not text")
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def decode_record(data: bytes, images: Sequence[bytes] | None) -> tuple[Record, tuple[str, ...]]:
    """Read a KEY.json back.

    Args:
        data: its bytes.
        images: the bytes of its images in order, or None to leave `Record.images` empty.

    Returns:
        The record, and the part of each image ("jpg", "img0.png") as the JSON names it.

    Raises:
        IntegrityError: not JSON, other fields than `FIELDS`, or wrong types in them.
    """
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict) or tuple(fields) != FIELDS:
            names = ", ".join(fields) if isinstance(fields, dict) else type(fields).__name__
            raise IntegrityError(f"the JSON has other fields than a sample's: {names}")
        for name in ("id", "question", "answer", "reasoning", "source"):
            _text(fields[name])
        named = [(_text(image["part"]), _text(image["name"])) for image in fields["images"]]
        record = Record(
            id=fields["id"],
            question=fields["question"],
            options=tuple(
                Option(_text(item["letter"]), _text(item["text"])) for item in fields["options"]
            ),
            answer=fields["answer"],
            reasoning=fields["reasoning"],
            rubric=tuple(_unit(item) for item in fields["rubric"]),
            images=_named_images(named, images),
            source=fields["source"],
            extra=_object(fields["extra"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(f"the JSON is not a sample's: {error!r}") from None
    return record, tuple(part for part, _ in named)


def _named_images(
    named: Sequence[tuple[str, str]], images: Sequence[bytes] | None
) -> tuple[EncodedImage, ...]:
    if images is None:
        return ()
    if len(images) != len(named):
        raise IntegrityError(f"the JSON names {len(named)} images and there are {len(images)}")
    return tuple(EncodedImage(data, name) for data, (_, name) in zip(images, named, strict=True))


def _unit(item: Any) -> RubricUnit:
    unit = RubricUnit(**item)
    for field in dataclasses.fields(unit):
        _text(getattr(unit, field.name))
    return unit


def _object(text: Any) -> dict[str, Any]:
    value = json.loads(_text(text))
    if not isinstance(value, dict):
        raise TypeError("`extra` is not an object")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
