"""WebDataset keys: from any id to a name that every reader of tars takes whole."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

MAX_KEY = 80
"""Bytes of a key. KEY.img999.jpeg then fits the 100 bytes of a tar's name, so that no shard needs
PAX headers, and the 255 of a file system."""

_DIGEST_DIGITS = 16
_AS_IT_IS = re.compile(rf"[A-Za-z0-9-][A-Za-z0-9_-]{{0,{MAX_KEY - 1}}}")


def key_for(sample_id: str) -> str:
    """The WebDataset key of an id.

    WebDataset cuts a member's name at its first dot, folders at a slash, and skips names that begin
    with two underscores; DALI's index is cut at spaces. So all but A-Z a-z 0-9 - _ becomes the %XX
    of its UTF-8 bytes, and so does a leading underscore. A longer key is cut and ends in "~" and 16
    hex digits of the id's SHA-256. "~" is never there otherwise, so different ids keep
    different keys, but for a collision of the digest (which `convert` refuses by name).

    Raises:
        ValueError: the id is empty or is not Unicode text (lone surrogates).
    """
    if _AS_IT_IS.fullmatch(sample_id):
        return sample_id
    if not sample_id:
        raise ValueError("the id is empty")
    raw = sample_id.encode("utf-8")  # UnicodeEncodeError is a ValueError
    key = quote(raw, safe="").replace(".", "%2E").replace("~", "%7E")
    if key.startswith("_"):
        key = "%5F" + key[1:]
    if len(key) <= MAX_KEY:
        return key
    head = key[: MAX_KEY - _DIGEST_DIGITS - 1]
    escape = head.rfind("%", len(head) - 2)  # do not cut within a %XX
    if escape >= 0:
        head = head[:escape]
    return f"{head}~{hashlib.sha256(raw).hexdigest()[:_DIGEST_DIGITS]}"
