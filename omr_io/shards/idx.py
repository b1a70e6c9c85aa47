"""DALI's text index of a shard, for any names."""

from __future__ import annotations

from collections.abc import Sequence

from omr_io.shards.tar_writer import idx_text

Place = tuple[str, int, int]
"""A part: its name in the tar, its offset and size in bytes."""


def dali_index(samples: Sequence[Sequence[Place]]) -> str:
    """The text that `fn.readers.webdataset` takes: a line a sample.

    wds2idx v1.2 also names each part. DALI splits a line at white space, so where a name holds any,
    the shard gets v1.1, which does without names.
    """
    blank = any(len(name.split()) != 1 for parts in samples for name, _, _ in parts)
    lines = []
    for parts in samples:
        words = []
        for name, offset, size in parts:
            extension = name.rpartition("/")[2].partition(".")[2]
            words.append(f"{extension} {offset} {size}" + ("" if blank else f" {name}"))
        lines.append(" ".join(words))
    if blank:
        return "".join(f"{line}\n" for line in (f"v1.1 {len(lines)}", *lines))
    return idx_text(len(lines), [f"{line}\n" for line in lines])
