"""What of a tokenizer.json decides ids, in one spelling, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_IGNORED = ("version", "truncation", "padding", "post_processor")
_DEFAULTS: Mapping[str, tuple[object, ...]] = {
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


def fingerprint(source: str) -> str:
    """16 hex digits of SHA-256 over all of a tokenizer.json that decides ids."""
    text = json.dumps(canonical(source), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(source: str) -> dict[str, Any]:
    """The tree of a tokenizer.json without what does not decide ids or can be written otherwise."""
    tree = {name: value for name, value in json.loads(source).items() if name not in _IGNORED}
    model = {
        name: value
        for name, value in tree["model"].items()
        if not (name in _DEFAULTS and value in _DEFAULTS[name])
    }
    if "merges" in model:
        merges = (m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"])
        model["merges"] = list(merges)
    tree["model"] = model
    tree["added_tokens"] = sorted(tree.get("added_tokens") or (), key=lambda token: token["id"])
    return tree
