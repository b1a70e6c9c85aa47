"""Push a shard set to a dataset repository, so that it can be stopped and gone on with anywhere.

All state is on the server: what is there with the right hash is not sent again. Shards go first, in
commits of some files each; index, manifest and card go last, in one commit. Where another set was
there before, its manifest goes first of all. So whoever finds a manifest finds what it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omr_io.errors import IntegrityError, SourceError, Where
from omr_io.publish.card import CARD_NAME, is_ours
from omr_io.publish.set_files import LocalFile, collect, damaged
from omr_io.publish.uploader import RemoteState, Uploader
from omr_io.shards.layout import MANIFEST_NAME, parse_manifest

_MAX_FILES = 64  # of a commit
_MAX_BYTES = 4 << 30
_AT_ONCE = 4  # files uploaded side by side; progress is told in between


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to push.

    Attributes:
        create: make the repository (and branch) if it is not there.
        private: make it private; with one that is there and public, stop.
        overwrite: replace another shard set that is there.
        verify: read and check every byte of the set first, instead of sizes, manifest and index.
        dry_run: only find out what would be sent.
        card: a file that becomes the repository's README.md; None takes the set's own, if any.
    """

    create: bool = False
    private: bool = False
    overwrite: bool = False
    verify: bool = False
    dry_run: bool = False
    card: Path | None = None


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file of a push and what became of it: sent (or to be sent), there already, or removed."""

    name: str
    bytes: int
    state: Literal["sent", "there", "removed"]


@dataclass(frozen=True, slots=True)
class PushSummary:
    """What a push did, or with `dry_run` would do.

    Attributes:
        url: where the set is.
        commit: the last commit's id; None if nothing had to be changed, or `dry_run`.
        sent, sent_bytes, there, there_bytes: numbers of files, and their bytes.
    """

    url: str
    dry_run: bool
    commit: str | None
    commits: int
    sent: int
    sent_bytes: int
    there: int
    there_bytes: int
    files: tuple[PushedFile, ...]


PushProgress = Callable[[int, int], None]
"""(bytes sent, bytes to be sent)"""


def push(
    folder: str | Path,
    url: str,
    options: PushOptions | None = None,
    *,
    revision: str | None = None,
    progress: PushProgress | None = None,
) -> PushSummary:
    """Push a shard set to the Hugging Face Hub.

    A push that was stopped is gone on with by the same call. The token is that of the environment
    (HF_TOKEN) or of `hf auth login`.

    Args:
        folder: the shard set.
        url: hf://datasets/OWNER/NAME[/path].
        revision: the branch; None is main.

    Raises:
        ConfigError: the URL names no place that can be pushed to; huggingface-hub is missing.
        SourceError: no shard set, no access, or another set is there.
        IntegrityError: the set is not as it was written, or did not arrive as it is.
    """
    from omr_io.publish.hub_uploader import HubUploader

    options = options or PushOptions()
    uploader = HubUploader(url, revision)
    files = collect(Path(folder), uploader.path, verify=options.verify, card=options.card)
    return push_files(files, uploader, options, uploader.url, progress)


def push_files(
    files: Sequence[LocalFile],
    to: Uploader,
    options: PushOptions,
    url: str,
    progress: PushProgress | None = None,
) -> PushSummary:
    """Push what `collect` found; the logic of `push`, whatever the server."""
    exists = to.prepare(options.create, options.private, options.dry_run)
    state = to.state([file.name for file in files]) if exists else {}
    there = {file.name for file in files if _is_there(file, state.get(file.name))}
    missing = [file for file in files if file.name not in there]
    if not options.overwrite:
        _check_cards([file for file in missing if file.name in state], to)
    stale = _stale(files, missing, state, to, options)
    total = sum(file.bytes for file in missing)
    commit: str | None = None
    commits = 0
    if not options.dry_run:
        if stale:
            commit = to.commit([], stale, "Take away the shard set that is to be replaced")
            commits += 1
        sent = 0
        for batch in _batches(missing):
            for group in _groups(batch):
                to.upload(group)
                sent += sum(file.bytes for file in group)
                if progress is not None:
                    progress(sent, total)
            commit = to.commit(batch, [], _message(batch))
            commits += 1
            _check_arrived(batch, to)
    gone = [PushedFile(name, 0, "removed") for name in stale]
    kept = [PushedFile(f.name, f.bytes, "there" if f.name in there else "sent") for f in files]
    return PushSummary(
        url=url,
        dry_run=options.dry_run,
        commit=commit,
        commits=commits,
        sent=len(missing),
        sent_bytes=total,
        there=len(there),
        there_bytes=sum(file.bytes for file in files) - total,
        files=(*gone, *kept),
    )


def _is_there(file: LocalFile, remote: RemoteState | None) -> bool:
    if remote is None or remote.bytes != file.bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    return remote.blob_id == file.blob_id()


def _stale(
    files: Sequence[LocalFile],
    missing: Sequence[LocalFile],
    state: Mapping[str, RemoteState],
    to: Uploader,
    options: PushOptions,
) -> list[str]:
    """What of another set has to go first: its manifest, and all of its files that we lack.

    Nothing if the manifest there is ours, or there is none: a push that was stopped left it so.
    """
    own = next(file for file in files if file.name.rpartition("/")[2] == MANIFEST_NAME)
    if own.name not in state or own not in missing:
        return []
    if not options.overwrite:
        raise SourceError(
            "another shard set is there already",
            where=Where(source=own.name),
            mend="Push to another path, or replace it with --overwrite",
        )
    prefix = own.name.removesuffix(MANIFEST_NAME)
    try:
        other = parse_manifest(to.read(own.name), own.name)
    except (IntegrityError, SourceError) as error:
        raise SourceError(
            f"what is to be replaced is not known, its manifest cannot be read: {error.what}",
            where=Where(source=own.name),
            mend="Remove that set on the Hub, or push to another path",
        ) from error
    ours = {file.name for file in files}
    named = [item.name for item in other.files() if "/" not in item.name]
    named += other.energon_files()  # or Energon would read our shards by their offsets
    gone = [name for name in to.state([prefix + name for name in named]) if name not in ours]
    return [own.name, *sorted(gone)]


def _check_cards(changed: Sequence[LocalFile], to: Uploader) -> None:
    """Refuse to replace a README.md that someone wrote, or changed, on the server."""
    for file in changed:
        if file.name.rpartition("/")[2] == CARD_NAME and not is_ours(to.read(file.name)):
            raise SourceError(
                "the README.md there is not as `omr-io card` wrote it",
                where=Where(source=file.name),
                mend="Take what it says over and push with --overwrite, or push without a card",
            )


def _batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """What is committed at a time: never a file that goes last with one that does not."""
    batch: list[LocalFile] = []
    size = 0
    for file in files:
        full = len(batch) >= _MAX_FILES or size + file.bytes > _MAX_BYTES
        if batch and ((full and not file.last) or file.last != batch[-1].last):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.bytes
    if batch:
        yield batch


def _groups(batch: Sequence[LocalFile]) -> Iterator[Sequence[LocalFile]]:
    for start in range(0, len(batch), _AT_ONCE):
        yield batch[start : start + _AT_ONCE]


def _message(batch: Sequence[LocalFile]) -> str:
    if batch[0].last:
        return "Complete the shard set"
    return f"Add {len(batch)} files of a shard set"


def _check_arrived(batch: Sequence[LocalFile], to: Uploader) -> None:
    """What the server has must be what the manifest says, or the set is not completed."""
    state = to.state([file.name for file in batch])
    for file in batch:
        remote = state.get(file.name)
        if remote is None:
            raise SourceError(
                "the server took the file and does not show it",
                where=Where(source=file.name),
                mend="A .gitignore in the repository may name it: remove that",
            )
        if not _is_there(file, remote):
            raise damaged("what arrived is not what the manifest says", file.name)
