"""HTML and SVG by construction: a plain string is always escaped, only `element` makes markup."""

from __future__ import annotations

import html
import re

VOID = frozenset({"meta", "img", "br", "hr", "link"})
"""HTML elements without content or end tag."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# They reorder what is shown, so that a completion could look like another one.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")


class Markup(str):
    """Text that is HTML already; only this module and fixed texts in the source make it."""

    __slots__ = ()


Child = str | Markup | None


def escape(text: str) -> Markup:
    """Text as HTML: `& < > " '` escaped, characters that HTML forbids or that reorder replaced."""
    visible = _BIDI.sub(lambda found: f"\\u{ord(found[0]):04x}", _CONTROL.sub("\ufffd", text))
    return Markup(html.escape(visible, quote=True))


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """One element. Children that are not `Markup` are escaped, and so are attribute values.

    Args:
        name: of the element, fixed in the source and never from data.
        children: text or markup; None is left out.
        attributes: `class_` stands for class, and an underscore for a hyphen; None is left out.
            Names are fixed in the source too.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            attribute = key if key in ("viewBox", "preserveAspectRatio") else _attribute(key)
            parts.append(f' {attribute}="{escape(shown)}"')
    parts.append(">")
    if name not in VOID:
        parts.append(join(*children))
        parts.append(f"</{name}>")
    return Markup("".join(parts))


def join(*children: Child) -> Markup:
    """Children one after the other, each escaped unless it is markup."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(child)
            for child in children
            if child is not None
        )
    )


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
