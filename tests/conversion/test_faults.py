"""A disk that fails: at every single operation, once or for good, then a clean resume."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from omr_io.conversion import ConvertOptions, convert
from omr_io.errors import DiskError, OmrError
from omr_io.shards import verify
from omr_io.shards.layout import UNFINISHED_NAME
from tests.conversion.small_corpora import parquet, row
from tests.shard_sets import contents, encoded, single_records, write

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
BY_PATH = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "link")
BY_DESCRIPTOR = ("write", "fsync", "ftruncate")


class FailingDisk:
    """Counts what changes the files below a folder; makes the `at`-th fail, or all from there."""

    def __init__(self, folder: Path, monkeypatch, at: int, lasting: bool) -> None:
        self.folder, self.at, self.lasting = folder, at, lasting
        self.count, self.failed = 0, []
        for name in BY_PATH + BY_DESCRIPTOR:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def operation(first, *rest, **named):
            if self.concerns(name, first, rest, named):
                self.count += 1
                if self.count == self.at or (self.lasting and self.count > self.at):
                    self.failed.append(name)
                    number = ERRORS[self.at % 3]
                    raise OSError(number, os.strerror(number), str(first))
            return real(first, *rest, **named)

        return operation

    def concerns(self, name, first, rest, named) -> bool:
        if name == "open" and not (rest and rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return False
        if name in BY_DESCRIPTOR:
            path = opened(first)
        elif named.get("dir_fd") is not None:
            path = opened(named["dir_fd"]) / first
        else:
            path = Path(first)
        if name == "mkdir" and path.is_dir():
            return False  # it fails anyway, and that is fine
        return path.is_relative_to(self.folder)


def opened(descriptor: int) -> Path:
    """The path that a descriptor was opened under."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def corpus(folder: Path) -> Path:
    """Three pieces; one row of the second has the first one's id, and one image is cut short."""
    image = encoded(3)
    rows = [row(f"case {number % 5}", image) for number in range(6)]
    rows[2] = row("case 2", image[:200])
    return parquet(folder / "train.parquet", rows, 2)


def run(source: Path, out: Path, overwrite: bool = False, check: str = "decode"):
    options = ConvertOptions(workers=1, max_shard_samples=2, overwrite=overwrite, check=check)
    return convert(source, out, options)


# Where only headers are checked, plain rows are written a batch at a time.
EITHER_WAY = pytest.mark.parametrize("check", ["decode", "header"])


@EITHER_WAY
def test_every_fifth_operation_that_can_fail(tmp_path, check):
    """Every other one of them for good, the others once."""
    fail_everywhere(tmp_path, lambda at: at % 2 == 0, over_old=False, check=check, step=5)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("over_old", [False, True])
@EITHER_WAY
def test_every_operation_in_every_way(tmp_path, lasting, over_old, check):
    fail_everywhere(tmp_path, lambda at: lasting, over_old, check)


def fail_everywhere(tmp_path: Path, lasting, over_old: bool, check: str, step: int = 1) -> None:
    source = corpus(tmp_path)
    run(source, tmp_path / "clean", check=check)
    clean = contents(tmp_path / "clean")
    write(tmp_path / "old", single_records(3), max_shard_samples=1)
    old = contents(tmp_path / "old")
    at, total = 0, None
    while total is None or at < total:
        at += step
        out = tmp_path / f"set-{at}"
        if over_old:
            write(out, single_records(3), max_shard_samples=1)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(out, patch, at, lasting(at))
            error = None
            try:
                run(source, out, over_old, check)
            except DiskError as raised:
                error = raised
        if error is None:
            assert not disk.failed, f"operation {at}, {disk.failed}, failed in silence"
            total = disk.count
        else:
            assert error.exit_code == 4
            assert str(out) in str(error)
            assert os.strerror(ERRORS[at % 3]) in str(error)
        left = contents(out) if out.exists() else {}
        shown = {name: data for name, data in left.items() if not name.startswith(".omr-io")}
        if "manifest.json" in shown:
            assert shown in (old, clean)
            assert verify(out).ok
        else:  # what carries a final name is whole, and no reader takes it for a set
            assert all(data in (old.get(name), clean.get(name)) for name, data in shown.items())
            with pytest.raises(OmrError):
                verify(out)
        run(source, out, over_old, check)
        assert contents(out) == clean, f"operation {at}, {disk.failed}"
    print(f"{total} operations")
    assert total > 100


def test_what_the_error_says(tmp_path, monkeypatch):
    source = corpus(tmp_path)
    FailingDisk(tmp_path / "set", monkeypatch, 3, lasting=True)
    with pytest.raises(DiskError, match=r"writing .*set.* failed: No space left .* run again"):
        run(source, tmp_path / "set")


def test_a_folder_that_may_not_be_written(tmp_path):
    source = corpus(tmp_path)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may write anywhere; the mounted file systems below stand for it")
    with pytest.raises(DiskError, match="Permission denied"):
        run(source, tmp_path / "locked" / "set")
    (tmp_path / "locked").chmod(0o755)
    assert not (tmp_path / "locked" / "set").exists()


@pytest.fixture
def mounted(tmp_path):
    """A function: (options) → a mounted tmpfs; needs root and a kernel that lets it mount."""
    import subprocess

    folders = []

    def mount(options: str, folder: Path | None = None) -> Path:
        folder = folder or tmp_path / f"mount-{len(folders)}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("this machine lets nobody mount a tmpfs")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_file_system(tmp_path, mounted, workers):
    import subprocess

    image = encoded(3, size=(300, 300))
    source = parquet(
        tmp_path / "train.parquet", [row(f"case {number}", image) for number in range(40)], 4
    )
    options = ConvertOptions(workers=workers, max_shard_samples=4)
    convert(source, tmp_path / "clean", options)
    folder = mounted("size=2m")
    with pytest.raises(DiskError, match=r"No space left on device\. Free space"):
        convert(source, folder / "set", options)
    assert sorted(contents(folder / "set"))[0].startswith(UNFINISHED_NAME)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(DiskError, match="Read-only file system"):
        convert(source, folder / "set", options)
    with pytest.raises(DiskError, match="Read-only file system"):
        convert(source, folder / "new", options)
    subprocess.run(["mount", "-o", "remount,rw,size=50m", str(folder)], check=True)
    summary = convert(source, folder / "set", options)
    assert summary.kept > 0
    assert contents(folder / "set") == contents(tmp_path / "clean")
