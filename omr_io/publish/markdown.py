"""Text from data made safe for Markdown and YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_MARKUP = re.compile(r"[\\`*_{}\[\]()#+\-.!|~$:@^=]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, link, cell or line break of its own.

    Characters that are not printable are shown as escapes.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    marked = _MARKUP.sub(lambda match: "\\" + match[0], shown)
    return "".join(_ENTITIES.get(char, char) for char in marked)


def code(text: str) -> str:
    """Text for a fenced block: as it is, but without line breaks and runs that end the fence."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return shown.replace("```", "'''").replace("~~~", "---")


def quoted(text: str) -> str:
    """A double-quoted YAML scalar of any text."""
    return '"' + "".join(_quoted_char(char) for char in text) + '"'


def _quoted_char(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    number = ord(char)
    if char.isprintable() and number < 0x10000 and number != 0xFEFF:
        return char
    return f"\\U{number:08x}" if number > 0xFFFF else f"\\u{number:04x}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already, the first column is text, others numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))
