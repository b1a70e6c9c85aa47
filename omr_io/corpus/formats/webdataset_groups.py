"""Members of a WebDataset tar, grouped into samples by webdataset's own rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from omr_io.corpus.raw import BadRow
from omr_io.tar import TarTable

_BLOCK = 512
# webdataset's base_plus_ext: the key is the path up to the first dot of its last part.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a tar: its extension (lower case), and where its data is, in bytes."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """Members of one key that stand together, from byte `start` to `end` with their headers.

    `key` is None for a member whose name has no extension; its name is then `name`.
    """

    key: str | None
    name: str
    members: tuple[Member, ...]
    start: int
    end: int

    def defect(self) -> BadRow | None:
        """Why this cannot be one sample, or None."""
        if self.key is None:
            return BadRow("unnamed-member", f"{self.name[:200]!r} has no key and extension")
        extensions = [member.extension for member in self.members]
        counts = Counter(extensions)  # a key may have 10,000 members, by accident or by design
        twice = next((one for one in extensions if counts[one] > 1), None)
        dotted = _dotted(extensions)
        if dotted is not None:
            what = (
                f"{len(extensions)} members begin with {self.key[:100]!r} up to the first dot, "
                f"such as .{dotted[:100]}: WebDataset would merge samples whose keys hold dots"
            )
            return BadRow("dotted-key", what)
        if twice is not None:
            return BadRow("duplicate-member", f"{self.key[:100]!r} has two members .{twice[:100]}")
        return None


class Grouper:
    """Groups members as they come; a group is complete when the next one begins."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._name = ""
        self._members: list[Member] = []
        self._start = self._end = 0

    def add(self, table: TarTable, base: int) -> Iterator[Group]:
        """Take the members of a tar, or of a window of one that begins at byte `base`."""
        columns = (table.names, table.data_offsets.tolist(), table.sizes.tolist())
        for name, data, size in zip(*columns, strict=True):
            found = _NAME.fullmatch(name)
            key, extension = (found[1], found[2].lower()) if found else (None, "")
            if self._members and (key is None or key != self._key):
                yield self.flush()
            if not self._members:
                self._key, self._name, self._start = key, name, self._end
            self._members.append(Member(extension, base + data, size))
            self._end = base + data + -(-size // _BLOCK) * _BLOCK
            if key is None:
                yield self.flush()

    def flush(self) -> Group:
        """The group so far; call it at the end only if `pending`."""
        group = Group(self._key, self._name, tuple(self._members), self._start, self._end)
        self._members = []
        return group

    @property
    def pending(self) -> bool:
        """Whether a group has begun."""
        return bool(self._members)


def _dotted(extensions: list[str]) -> str | None:
    """An extension that shows that the key went on beyond its first dot, or None.

    KEY.json beside KEY.img0.jpg is how several images are usually stored. But if no member has
    an extension without dots, or what stands before the last dot is there with two endings
    (113.jpg, 113.json), it is a key of its own: 1.2.840.113.
    """
    compound = [one for one in extensions if "." in one]
    if compound and len(compound) == len(extensions):
        return compound[0]
    endings: dict[str, str] = {}
    for one in compound:
        stem, _, ending = one.rpartition(".")
        if endings.setdefault(stem, ending) != ending:
            return one
    return None
