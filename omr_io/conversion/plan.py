"""What a conversion will make: a pure function of its sources and options, never of workers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omr_io import __version__
from omr_io.config import fingerprint
from omr_io.conversion.options import ConvertOptions
from omr_io.corpus.image_roots import image_paths
from omr_io.corpus.pieces import Corpus, Piece
from omr_io.shards.layout import Manifest

_FORMAT = "omr_io conversion"
_VERSION = 2
_SLACK = 16  # a piece is planned a sixteenth smaller than a shard: headers and JSON come on top


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """The file that an unfinished conversion keeps, so that only the same one goes on with it.

    Attributes:
        sources: names of the source files; source_fingerprint: of them.
        options: those that change the content.
        pieces: how many there are; cut: a fingerprint of where the corpus is cut.
        resumable: False for rows from elsewhere, which cannot be told to be the same.
        omr_io: the version; another one may write other bytes.
        schemas: those that the sources are read by; they follow from the files and the options.
        image_roots: the last parts of their paths. The manifest does not say them, but a run that
            forgot one refused rows, and one that has it must not go on with that.
    """

    sources: tuple[str, ...]
    source_fingerprint: str
    options: Mapping[str, Any]
    pieces: int
    cut: str
    resumable: bool = True
    omr_io: str = __version__
    schemas: tuple[str, ...] = ()
    image_roots: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        fields = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        return (json.dumps(fields, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ConversionPlan | None:
        """The plan, or None if this is none that we know."""
        try:
            fields = json.loads(data)
            if (fields.pop("format"), fields.pop("version")) != (_FORMAT, _VERSION):
                return None
            fields["sources"] = tuple(fields["sources"])
            for name in ("schemas", "image_roots"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def digest(self) -> str:
        """16 hex digits that stand for all fields."""
        return fingerprint("conversion", self)

    def differences(self, known: ConversionPlan) -> list[str]:
        """What `known` has otherwise, in words."""
        found = []
        if self.sources != known.sources:
            found.append(f"the sources were {_some(known.sources)}, now {_some(self.sources)}")
        elif self.source_fingerprint != known.source_fingerprint:
            found.append("the source files have changed")
        found += option_differences(known.options, self.options)
        if self.image_roots != known.image_roots:
            roots = [", ".join(item.image_roots) or "none" for item in (known, self)]
            found.append(f"image_root was {roots[0]}, now {roots[1]}")
        if self.omr_io != known.omr_io:
            found.append(f"omr_io was {known.omr_io}, now {self.omr_io}")
        if not found and (self.pieces, self.cut) != (known.pieces, known.cut):
            found.append("the sources are cut into other pieces")
        return found

    def describes(self, manifest: Manifest) -> bool:
        """Whether a set is what this conversion would make."""
        return (
            self.resumable
            and manifest.source_fingerprint == self.source_fingerprint
            and tuple(manifest.sources) == self.sources
            and not option_differences(manifest.options, self.options)
        )


def plan_conversion(
    corpus: Corpus, options: ConvertOptions
) -> tuple[ConversionPlan, tuple[Piece, ...]]:
    """Cut a corpus so that a piece usually makes one nearly full shard."""
    max_bytes = options.max_shard_bytes - options.max_shard_bytes // _SLACK
    pieces = corpus.pieces(max_bytes, options.max_shard_samples)
    cut = [
        [[item.file, item.span.first_row, item.span.num_rows] for item in p.spans] for p in pieces
    ]
    return ConversionPlan(
        sources=tuple(corpus.names),
        source_fingerprint=corpus.fingerprint,
        options=options.recorded(),
        pieces=len(pieces),
        cut=fingerprint("cut", cut),
        schemas=corpus.schemas,
        image_roots=tuple(map(_name, image_paths(options.read.image_root))),
    ), pieces


def option_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """The options that differ, each as "NAME was X, now Y"."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += option_differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {old!r}, now {new!r}")
    return found


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"


def _name(path: Path) -> str:
    """The last part of a path, for JSON: bytes that are no UTF-8 are escaped."""
    name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119  # ".." resolved, no link
    return name.encode("utf-8", "backslashreplace").decode()
