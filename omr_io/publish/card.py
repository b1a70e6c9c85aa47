"""The dataset card of shard sets: README.md with the Hub's YAML, from manifest and index alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import ConfigError, SourceError, Where
from omr_io.index import ShardSet
from omr_io.publish.card_text import Split, dataset_card
from omr_io.shards.description import describe
from omr_io.storage import write_atomically

CARD_NAME = "README.md"
_MARK = re.compile(rb"<!-- omr-io card ([0-9a-f]{64}) -->\n\Z")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,63}")


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What a card says that no shard set knows.

    Attributes:
        license: the Hub's identifier of a license ("cc-by-4.0"); None leaves it to be filled in.
        title: the heading; None takes the splits' names.
        overwrite: replace a README.md that `write_card` did not write, or that was changed since.

    Raises:
        ConfigError: the license is no identifier.
    """

    license: str | None = None
    title: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(
                f"{self.license!r} is no license identifier of the Hub",
                mend='Use one as "cc-by-4.0", "cc-by-nc-4.0", "apache-2.0" or "other"',
            )


@dataclass(frozen=True, slots=True)
class CardSummary:
    """What was written: the file, its bytes, and samples by split."""

    path: Path
    bytes: int
    splits: Mapping[str, int]


def write_card(
    folders: Sequence[str | Path], out: str | Path | None = None, options: CardOptions | None = None
) -> CardSummary:
    """Write the dataset card of one or several shard sets, one a split.

    The text is a pure function of manifests, indexes, options and omr_io's version.

    Args:
        folders: the shard sets.
        out: the card's file; by default README.md in the folder that holds all sets, which for one
            set is its own. All sets must lie in or below the card's folder.

    Raises:
        ConfigError: two sets have the same split; a set does not lie below the card.
        SourceError: a folder is no shard set, or holds only the index of shards that are elsewhere;
            or a README.md is there that is not ours.
        IntegrityError: a set is not as it was written.
        DiskError: writing failed.
    """
    options = options or CardOptions()
    if not folders:
        raise ConfigError("no shard set was given")
    paths = [Path(folder).resolve() for folder in folders]
    path = Path(out) if out is not None else Path(os.path.commonpath(paths)) / CARD_NAME
    path = path / CARD_NAME if path.is_dir() else path
    splits = [_read(folder, path.resolve().parent) for folder in paths]
    names = [split.name for split in splits]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two sets have the same split: {', '.join(names)}",
            mend="Give the sets of different splits, or a card to each",
        )
    _check_ours(path, options.overwrite)
    text = dataset_card(splits, options.license, options.title)
    data = text.encode()
    data += f"<!-- omr-io card {hashlib.sha256(data).hexdigest()} -->\n".encode()
    write_atomically(path, data)
    return CardSummary(path, len(data), {split.name: split.about.samples for split in splits})


def _read(folder: Path, root: Path) -> Split:
    if not folder.is_relative_to(root):
        raise ConfigError(
            f"{folder} does not lie below {root}, where the card is to be",
            mend="Put the card above its sets, as they will lie on the Hub: -o FOLDER/README.md",
        )
    with ShardSet.open(folder) as shards:
        place = folder.relative_to(root).as_posix()
        manifest = shards.manifest
        foreign = manifest.foreign
        if foreign is not None and foreign.root:
            raise SourceError(
                "the set's shards are not in its folder, so no card can tell where they will lie",
                where=Where(source=str(folder)),
                mend="Copy them there and run `omr-io index` on the copy",
            )
        return Split(
            describe(shards),
            "" if place == "." else f"{place}/",
            shards.shard_names,
            manifest.options,
            manifest.rejects is not None,
            None if foreign is None else str(foreign.view["schema"]),
        )


def _check_ours(path: Path, overwrite: bool) -> None:
    """Refuse to replace what someone wrote or changed by hand."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if not is_ours(data) and not overwrite:
        changed = _MARK.search(data) is not None
        how = "was changed since `omr-io card` wrote it" if changed else "is not from `omr-io card`"
        raise SourceError(
            f"the file {how}",
            where=Where(source=str(path)),
            mend="Write elsewhere with -o, or replace it with --overwrite",
        )


def is_ours(data: bytes) -> bool:
    """Whether a file is a card as `write_card` wrote it, to the byte."""
    match = _MARK.search(data)
    if match is None:
        return False
    return hashlib.sha256(data[: match.start()]).hexdigest() == match[1].decode()
