"""What a judge's results are of: evaluation shows them beside no other completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def completions_digest(items: Iterable[tuple[str, int | str, str]]) -> str:
    """32 hex digits that stand for what was judged: of key, run and text, in any order."""
    lines = sorted(json.dumps(item) for item in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
