"""HTML and SVG by construction: a plain string is always escaped, only `element` makes markup."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import unicodedata

VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})
"""HTML elements without content or end tag."""

_SHOWN_AS_THEY_ARE = frozenset("\n\t")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Characters of other categories that a browser draws as nothing, or as blank that is no space:
# Unicode's Default_Ignorable_Code_Point beyond Cf, the fillers, and the empty braille pattern.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class Markup(str):
    """Text that is HTML already; only this module and fixed texts in the source make it."""

    __slots__ = ()


Child = str | Markup | None


def is_hidden(char: str) -> bool:
    """Whether a reader would not see this character, or it reorders what stands beside it.

    So that no text can look like another one: control, format (zero width, bidirectional, tags),
    private and unassigned characters, surrogates, line separators, variation selectors, fillers.
    Line feed, tab and all kinds of spaces are not hidden.
    """
    if char in _SHOWN_AS_THEY_ARE or " " <= char <= "~":
        return False
    return unicodedata.category(char) in _HIDDEN_CATEGORIES or _BLANK.match(char) is not None


def escape(text: str) -> Markup:
    r"""Text as HTML: `& < > " '` escaped, hidden characters (see `is_hidden`) as \x00 or \u202e."""
    if not text.isascii() or not text.isprintable():
        text = "".join(
            char.encode("unicode_escape").decode("ascii") if is_hidden(char) else char
            for char in text
        )
    return Markup(html.escape(text, quote=True))


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


def document(title: str, style: Markup, body: Markup, script: Markup | None = None) -> str:
    """A whole HTML page that loads nothing else, and whose content security policy says so.

    Allowed are images in data: URIs, this style sheet and, if given, this script, by their hashes.
    No robot keeps it, and no link tells where it was followed.

    Args:
        title: any text.
        style, script: contents of the elements of that name, fixed in the source.
        body: the body element; with a script, that stands at its end.
    """
    policy = f"default-src 'none'; img-src data:; style-src '{_hash_source(style)}'; "
    if script is not None:
        policy += f"script-src '{_hash_source(script)}'; require-trusted-types-for 'script'; "
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content=policy + "base-uri 'none'; form-action 'none'",
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="robots", content="noindex"),
        element("title", title),
        element("style", style),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _hash_source(inline: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode('ascii')}"


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
