"""Texts for people: cut short, made printable, numbers of bytes in units."""

from __future__ import annotations


def short(text: str, limit: int = 80) -> str:
    """A text quoted, and cut to `limit` characters: rows may hold megabytes."""
    return repr(text if len(text) <= limit else f"{text[: limit - 3]}...")


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters; its type if it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]


def printable(text: str) -> str:
    """Text from the data, safe to print: control characters (which could drive a terminal) escaped.

    Lone surrogates are escaped too, since no terminal's encoding takes them.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def human_bytes(count: float) -> str:
    """Bytes in binary units: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 sample", "1,900 samples"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
