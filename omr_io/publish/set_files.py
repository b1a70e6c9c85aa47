"""The files of a shard set that are pushed: what its manifest names, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import ConfigError, IntegrityError, SourceError, Where
from omr_io.publish.card import CARD_NAME
from omr_io.shards.layout import ENERGON_FOLDER, MANIFEST_NAME, Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to be pushed: `name` is its path in the repository."""

    name: str
    path: Path
    bytes: int
    sha256: str
    last: bool

    def blob_id(self) -> str:
        """Git's id of the content, for what a server does not keep as LFS."""
        digest = hashlib.sha1(b"blob %d\0" % self.bytes)  # noqa: S324  # git's own format
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()


def collect(
    folder: Path, path: str = "", *, verify: bool = False, card: Path | None = None
) -> tuple[LocalFile, ...]:
    """The files to push, those that come last at the end; the set is checked first.

    Only what the manifest names, the manifest, what `omr-io energon` wrote, and a card; never
    another file.

    Args:
        path: the folder in the repository, "" for its root.
        verify: read and check every byte first, instead of sizes, manifest and index.
        card: a file that becomes the repository's README.md; None takes the set's own, if any.

    Raises:
        SourceError: the folder is no shard set, or its shards are elsewhere.
        IntegrityError: the set is not as it was written.
    """
    manifest = read_manifest(folder)
    foreign = manifest.foreign
    if foreign is not None and foreign.root:
        raise SourceError(
            "the set's shards are not in its folder, so they cannot be pushed with it",
            where=Where(source=str(folder)),
            mend="Copy them there and run `omr-io index` on the copy",
        )
    _check(folder, manifest, verify)
    prefix = f"{path}/" if path else ""
    found = []
    for item in manifest.files():
        path_here = folder / item.name
        if Path(item.name).name != item.name or item.name in ("", ".", ".."):
            what = f"the manifest names {item.name!r}, which is no file of the folder"
            raise IntegrityError(what, where=Where(source=MANIFEST_NAME))
        size = path_here.stat().st_size if path_here.is_file() else None
        if size != item.bytes:
            has = "is missing" if size is None else f"has {size} bytes"
            raise damaged(f"the file {has}, the manifest says {item.bytes} bytes", item.name)
        last = item.name == manifest.index.name
        found.append(LocalFile(prefix + item.name, path_here, item.bytes, item.sha256, last))
    for name, last in _energon(folder, manifest):
        found.append(_hashed(folder / name, prefix + name, last))
    own = folder / CARD_NAME
    if card is not None:
        found.append(_hashed(card, CARD_NAME))
    if _is_plain(own) and (card is None or prefix):
        found.append(_hashed(own, prefix + CARD_NAME))
    found.append(_hashed(folder / MANIFEST_NAME, prefix + MANIFEST_NAME))
    return tuple(sorted(found, key=lambda file: file.last))  # stable: the rest keeps its order


def _check(folder: Path, manifest: Manifest, verify: bool) -> None:
    from omr_io.index import ShardSet

    if verify:
        from omr_io.shards.verification import verify as run

        report = run(folder)
        if not report.ok:
            what = f"the set is not as it was written: {report.problems[0]}"
            more = f" and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
            raise IntegrityError(what + more, mend="Run `omr-io verify`, then convert again")
    ShardSet.open(folder).close()  # the manifest, the index' hash, the size of each shard


def _energon(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """What Energon reads the set by, and whether it goes last: .nv-meta, and offsets of shards."""
    described = [path for path in sorted((folder / ENERGON_FOLDER).rglob("*")) if _is_plain(path)]
    for path in described:
        yield path.relative_to(folder).as_posix(), True
    for shard in manifest.shards if described else ():
        if _is_plain(folder / f"{shard.name}.idx"):
            yield f"{shard.name}.idx", False


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _hashed(path: Path, name: str, last: bool = True) -> LocalFile:
    """A file that no manifest tells of."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return LocalFile(name, path, file.tell(), digest, last)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def damaged(what: str, name: str) -> IntegrityError:
    """A file that is not what was written."""
    mend = "Run `omr-io verify` on the set; copy it again, or convert again"
    return IntegrityError(what, where=Where(source=name), mend=mend)


def check_target(path: str) -> None:
    """Refuse a folder of a repository that cannot be.

    Raises:
        ConfigError: a part is empty, hidden, "." or "..", or a pattern.
    """
    parts = path.split("/") if path else []
    if any(not part or part.startswith(".") or set(part) & set("*?[") for part in parts):
        raise ConfigError(
            f"{path!r} is no folder of a repository",
            mend="Give hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME/FOLDER",
        )
