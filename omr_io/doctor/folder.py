"""A folder that shards are to be written to or read from: what its file system can do."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from omr_io.doctor.finding import Finding
from omr_io.storage import fsync_folder
from omr_io.text import human_bytes

_WHOLE_CORPUS = 25 << 30  # OpenMedReason's images are some 22 GB
_SMALL_FILES = {"vfat": "4 GiB", "msdos": "4 GiB"}
_OCTAL = re.compile(r"\\([0-7]{3})")  # in mountinfo a space is \040
_OBJECT_STORES = ("fuse.s3fs", "fuse.goofys", "fuse.gcsfuse", "fuse.rclone", "fuse.mount-s3")


def check_folder(folder: Path) -> list[Finding]:
    """Everything about a folder; it is left as it was. One that is not there yet may be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return [Finding("folder", "fail", f"{there} is no folder", "Choose another")]
    findings = [_place(folder, there), _space(there)]
    try:
        trial = Path(tempfile.mkdtemp(prefix=".omr-io-doctor-", dir=there))
    except OSError as error:
        mend = "Choose another folder, or change its owner or mode"
        words = f"{there} cannot be written: {error.strerror}"
        return [*findings, Finding("writing", "fail", words, mend)]
    try:
        findings += [_try(name, trial, action) for name, action in _TRIALS.items()]
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return findings


def mount_of(folder: Path, text: str | None = None) -> tuple[str, str]:
    """(mount point, file system type) of a folder, from /proc/self/mountinfo."""
    if text is None:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    path = folder.resolve()
    best = ("/", "unknown")
    for line in text.splitlines():
        mount, _, rest = line.partition(" - ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), mount.split()[4])
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best[0]):  # a later mount hides an earlier one
            best = (point, rest.split()[0])
    return best


def _place(folder: Path, there: Path) -> Finding:
    point, kind = mount_of(there)
    words = f"{folder.resolve()} on {kind}, mounted at {point}"
    if there != folder:
        words += f"; it is not there yet, {there.resolve()} is"
    if kind in _SMALL_FILES:
        mend = "Keep shards small (--max-shard-mib), or choose another file system"
        return Finding("folder", "warn", f"{words}: files up to {_SMALL_FILES[kind]}", mend)
    if kind in _OBJECT_STORES:
        mend = "Write to a local disk and copy the set when it is complete"
        return Finding("folder", "warn", f"{words}: an object store, renaming copies", mend)
    return Finding("folder", "ok", words)


def _space(there: Path) -> Finding:
    free = shutil.disk_usage(there).free
    status = os.statvfs(there)
    words = f"{human_bytes(free)} free"
    if status.f_files and status.f_favail < 1000:
        mend = "Remove files, or choose another file system"
        return Finding("space", "warn", f"{words}, but only {status.f_favail} more files", mend)
    if free < _WHOLE_CORPUS:
        mend = "Enough for smaller sets; the shards of all of OpenMedReason take about 22 GB"
        return Finding("space", "warn", words, mend)
    return Finding("space", "ok", words)


def _try(name: str, trial: Path, action: Callable[[Path], Finding]) -> Finding:
    try:
        return action(trial)
    except OSError as error:
        mend = "Choose another file system: convert cannot work on this one"
        return Finding(name, "fail", f"it fails: {error.strerror or error}", mend)


def _write(trial: Path) -> Finding:
    path = trial / "write"
    with path.open("wb") as file:
        file.write(b"shard" * 2000)
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(trial)
    if path.read_bytes() != b"shard" * 2000:
        raise OSError(errno.EIO, "what was written is not what is read")
    return Finding("writing", "ok", "files are written, flushed and read back")


def _rename(trial: Path) -> Finding:
    old, new = trial / "rename.tmp", trial / "rename"
    new.write_bytes(b"old")
    old.write_bytes(b"new")
    with new.open("rb") as reader:
        old.replace(new)
        fsync_folder(trial)
        if reader.read() != b"old" or new.read_bytes() != b"new" or old.exists():
            mend = "Do not read a set while it is converted anew there"
            return Finding("renaming", "warn", "a renamed file shows through to readers", mend)
    return Finding("renaming", "ok", "a file replaces another at once")


def _lock(trial: Path) -> Finding:
    path = trial / "lock"
    try:
        with path.open("wb") as first, path.open("wb") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Finding("locks", "ok", "a second run into one folder is refused")
            words = "they are given twice"
    except OSError as error:
        words = f"they fail: {error.strerror}"
    mend = "Take care yourself that no two runs write to one folder"
    return Finding("locks", "warn", words, mend)


def _map(trial: Path) -> Finding:
    path = trial / "map"
    path.write_bytes(b"index" * 1000)
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            same = mapped[:5] == b"index"
    except OSError as error:
        mend = "Copy the set to another file system to train from it"
        return Finding("memory maps", "warn", f"they fail: {error.strerror}", mend)
    if not same:
        raise OSError(errno.EIO, "what is mapped is not what was written")
    return Finding("memory maps", "ok", "the index can be mapped")


def _long_names(trial: Path) -> Finding:
    path = trial / ("n" * 200)
    try:
        path.write_bytes(b"")
    except OSError as error:
        mend = "Choose another file system, or a shorter --split"
        return Finding("file names", "warn", f"200 bytes are too long: {error.strerror}", mend)
    return Finding("file names", "ok", "200 bytes are taken")


def _direct(trial: Path) -> Finding:
    path = trial / "write"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        words = f"not offered ({error.strerror}); omr_io does not need it, GPUDirect Storage does"
        return Finding("direct reads", "ok", words)
    return Finding("direct reads", "ok", "O_DIRECT is offered")


_TRIALS: dict[str, Callable[[Path], Finding]] = {
    "writing": _write,
    "renaming": _rename,
    "locks": _lock,
    "memory maps": _map,
    "file names": _long_names,
    "direct reads": _direct,
}
