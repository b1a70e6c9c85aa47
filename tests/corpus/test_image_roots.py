"""Images beside a source: found by one rule in folders, zips and tars; nothing else is read."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest

from omr_io.corpus import open_image_root, unpacking
from omr_io.corpus.raw import ImageRoot
from omr_io.errors import ConfigError, DiskError, ImageError, SourceError

CAP = 1 << 20
FILES = {
    "images/PMC1_F1.jpg": b"one",
    "images/deep/PMC2_F1.jpg": b"two" * 1000,
    "images/é 😀.png": b"three",
    "a/x.jpg": b"ax",
    "b/x.jpg": b"bx",
    "empty.jpg": b"",
    "other/" + "long" * 60 + ".jpg": b"long",
}
KINDS = ["folder", "zip", "tar", "tar.gz", "tgz", "tar.zst"]


def tar_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make(folder: Path, kind: str, files: dict[str, bytes], name: str = "images") -> Path:
    """An image root of a kind."""
    path = folder / (name if kind == "folder" else f"{name}.{kind}")
    if kind == "folder":
        for member, data in files.items():
            (path / member).parent.mkdir(parents=True, exist_ok=True)
            (path / member).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, (member, data) in enumerate(files.items()):
                method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
                archive.writestr(member, data, method)
    elif kind == "tar.zst":
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(tar_bytes(files))
    else:
        data = tar_bytes(files)
        path.write_bytes(data if kind == "tar" else gzip.compress(data))
    return path


def reason(root: ImageRoot, name: str, cap: int = CAP) -> str:
    with pytest.raises(ImageError) as caught:
        root.read(name, cap)
    assert len(caught.value.what) < 400
    return caught.value.reason


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_found_by_their_name(tmp_path: Path, kind: str) -> None:
    root = open_image_root(make(tmp_path, kind, FILES))
    for copy in (root, pickle.loads(pickle.dumps(root))):
        for name, data in FILES.items():
            assert copy.read(name, CAP) == data
            assert copy.read(f"./{name}", CAP) == data
        assert reason(copy, "none.jpg") == "missing-image"
        assert reason(copy, "images") == "missing-image"
        assert reason(copy, "images/deep/PMC2_F1.jpg", 2999) == "image-too-large"
        assert copy.read("images/deep/PMC2_F1.jpg", 3000) == b"two" * 1000
        for name in ("/etc/passwd", "../images/PMC1_F1.jpg", "images/../a/x.jpg"):
            assert reason(copy, name) == "image-outside-root"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_in_archives_the_end_of_a_path_is_enough_if_it_is_one(tmp_path: Path, kind: str) -> None:
    root = open_image_root(make(tmp_path, kind, FILES))
    assert root.read("PMC1_F1.jpg", CAP) == b"one"
    assert root.read("deep/PMC2_F1.jpg", CAP) == b"two" * 1000
    assert root.read("PMC2_F1.jpg", CAP) == b"two" * 1000
    with pytest.raises(ImageError, match=r"several members .* 'x\.jpg': 'a/x\.jpg', 'b/x\.jpg'"):
        root.read("x.jpg", CAP)
    # Not a part of a name, and never fewer folders than the row says.
    for name in ("F1.jpg", "C1_F1.jpg", "eep/PMC2_F1.jpg", "train/empty.jpg", "c/x.jpg"):
        assert reason(root, name) == "missing-image"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_never_chosen_between(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {"a.jpg": b"1", "./a.jpg": b"2", "b.jpg": b"3"})
    root = open_image_root(path)
    assert reason(root, "a.jpg") == "missing-image"
    assert root.read("b.jpg", CAP) == b"3"


def test_of_several_roots_the_first_that_has_the_name_wins(tmp_path: Path) -> None:
    first = make(tmp_path, "folder", {"a.jpg": b"folder", "sub/f.jpg": b"f"}, "one")
    second = make(tmp_path, "zip", {"x/a.jpg": b"zip", "x/b.jpg": b"zip b", "y/b.jpg": b""}, "two")
    third = make(tmp_path, "tar", {"b.jpg": b"tar b", "c.jpg": b"tar c"}, "three")
    root = open_image_root([first, second, third])
    assert root.read("a.jpg", CAP) == b"folder"
    assert root.read("c.jpg", CAP) == b"tar c"
    assert reason(root, "none.jpg") == "missing-image"
    with pytest.raises(ImageError, match="several members"):  # not passed on to the third
        root.read("b.jpg", CAP)
    assert open_image_root([third, second]).read("b.jpg", CAP) == b"tar b"
    assert reason(root, "../a.jpg") == "image-outside-root"
    with pytest.raises(ConfigError):
        open_image_root([])


def test_a_zip_bomb_is_refused_before_anything_is_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.jpg", bytes(50 << 20))
    assert reason(open_image_root(path), "big.jpg") == "image-too-large"
    # The directory lies about the size: no more than it says is inflated.
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, entry + 24, 100)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="size or CRC") as caught:
        open_image_root(path).read("big.jpg", CAP)
    assert caught.value.reason == "unreadable-image"


def test_damage_in_a_zip_concerns_its_image_only(tmp_path: Path) -> None:
    path = make(tmp_path, "zip", {"a.jpg": b"a" * 100, "b.jpg": os.urandom(500), "c.jpg": b"c" * 9})
    data = bytearray(path.read_bytes())
    data[data.index(b"a" * 100) + 7] ^= 1
    data[data.index(b"b.jpg") + 40] ^= 1
    path.write_bytes(data)
    root = open_image_root(path)
    assert [reason(root, name) for name in ("a.jpg", "b.jpg")] == ["unreadable-image"] * 2
    assert root.read("c.jpg", CAP) == b"c" * 9


def test_a_damaged_directory_of_a_zip_is_no_traceback(tmp_path: Path) -> None:
    """zipfile raises what it likes at versions, names and places that cannot be."""
    path = make(tmp_path, "zip", {"a.jpg": b"a" * 100, "b.jpg": b"b" * 100})
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")
    version, name = bytearray(whole), bytearray(whole)
    version[entry + 6] = 255  # the version that is needed to read it
    name[entry + 46] = 0  # the name ends before its first character
    for data, told in ((version, "zip file version 25.5"), (name, None)):
        path.write_bytes(data)
        root = open_image_root(path)
        if told is None:
            assert root.read("b.jpg", CAP) == b"b" * 100
            continue
        with pytest.raises(SourceError, match=rf"archive cannot be read: {told}.*images\.zip"):
            root.read("b.jpg", CAP)


def test_a_place_beyond_all_files_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "far.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.jpg", b"b")
        archive.writestr("a.jpg", b"a")
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<H", data, entry + 30, 12)  # an extra field: Zip64's place of the data
    struct.pack_into("<L", data, entry + 42, 0xFFFFFFFF)
    data[end:end] = struct.pack("<HHQ", 1, 8, (1 << 64) - 1)
    end += 12
    struct.pack_into("<L", data, end + 12, end - data.index(b"PK\x01\x02"))
    path.write_bytes(data)
    root = open_image_root(path)
    assert root.read("b.jpg", CAP) == b"b"
    assert reason(root, "a.jpg") == "unreadable-image"


def test_other_zip_methods_and_encryption_are_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x" * 99, zipfile.ZIP_BZIP2)
        archive.writestr("b.jpg", b"x" * 99)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 8] |= 1
    path.write_bytes(data)
    root = open_image_root(path)
    with pytest.raises(ImageError, match="method 12"):
        root.read("a.jpg", CAP)
    with pytest.raises(ImageError, match="encrypted"):
        root.read("b.jpg", CAP)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_broken_archives_name_themselves(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, FILES)
    path.write_bytes(path.read_bytes()[:700])
    root = open_image_root(path)
    with pytest.raises(SourceError, match=rf"archive cannot be read.*images\.{kind}"):
        root.read("a/x.jpg", CAP)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst"])
def test_packed_tars_that_are_cut_or_damaged_leave_nothing(tmp_path: Path, kind: str) -> None:
    files = {f"{n}.jpg": os.urandom(3000) for n in range(9)}
    path = make(tmp_path, kind, files)
    whole = path.read_bytes()
    to = tmp_path / "unpacked"
    for data in (whole[: len(whole) // 2], whole[:-9], b"no archive at all" * 99, b""):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"no whole packed tar.*images\.tar"):
            open_image_root(path, to)
        assert list(to.iterdir()) == []
    plain = gzip.compress(b"hello" * 1000)
    path.write_bytes(plain)
    with pytest.raises(SourceError, match="no whole packed tar"):
        open_image_root(path, to)
    assert list(to.iterdir()) == []


def test_a_packed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, to = make(tmp_path, "tar.gz", FILES), tmp_path / "unpacked"
    open_image_root(path, to)
    (tar,) = to.iterdir()
    assert tar.read_bytes() == tar_bytes(FILES)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_unpack", None)
        assert open_image_root(path, to).read("a/x.jpg", CAP) == b"ax"
    os.utime(path, (1, 1))  # another file, as far as one can tell
    open_image_root(path, to)
    assert len(list(to.iterdir())) == 2


def test_what_a_killed_run_had_begun_to_unpack_goes(tmp_path: Path) -> None:
    to = tmp_path / "unpacked"
    to.mkdir()
    left, running, own = to / ".unpacking-a.tar", to / ".unpacking-b.tar", to / "notes.tar"
    for path, hours in ((left, 2), (running, 0), (own, 2)):
        path.write_bytes(b"x" * 999)
        then = path.stat().st_mtime - hours * 3600
        os.utime(path, (then, then))
    root = open_image_root(make(tmp_path, "tar.gz", FILES), to)
    assert root.read("a/x.jpg", CAP) == b"ax"
    assert not left.exists()
    assert running.exists()
    assert own.exists()


def test_several_may_unpack_at_once(tmp_path: Path) -> None:
    path, to = make(tmp_path, "tar.gz", {f"{n}": os.urandom(50_000) for n in range(40)}), tmp_path
    barrier = threading.Barrier(4)

    def unpack(_: int) -> ImageRoot:
        barrier.wait()
        return open_image_root(path, to / "unpacked")

    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(unpack, range(4)))
    assert len({root.read("7", CAP) for root in roots}) == 1
    assert len(list((to / "unpacked").iterdir())) == 1


def test_the_temporary_tar_goes_with_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, temporary = make(tmp_path, "tar.gz", FILES), tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    root = open_image_root(path)
    copy = pickle.loads(pickle.dumps(root))
    assert len(list(temporary.glob("*/*.tar"))) == 1
    assert copy.read("a/x.jpg", CAP) == b"ax"
    del copy
    assert root.read("a/x.jpg", CAP) == b"ax"
    copy = pickle.loads(pickle.dumps(root))
    del root
    assert list(temporary.iterdir()) == []
    assert copy.read("b/x.jpg", CAP) == b"bx"  # unpacked again, as on another machine
    assert len(list(temporary.glob("*/*.tar"))) == 1
    del copy
    assert list(temporary.iterdir()) == []
    code = (
        "import sys; from omr_io.corpus import open_image_root; "
        "root = open_image_root(sys.argv[1]); print(root.read('a/x.jpg', 9))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "b'ax'\n"
    assert list(temporary.iterdir()) == []


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, to = make(tmp_path, "tar.gz", FILES), tmp_path / "unpacked"

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"No space left.*--unpack-to"):
        open_image_root(path, to)
    assert list(to.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DiskError):
        open_image_root(path, tmp_path / "file" / "below")


def read_many(root: ImageRoot, names: list[str]) -> list[bytes]:
    return [root.read(name, CAP) for name in names]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_threads_and_forked_children_read_at_once(tmp_path: Path, kind: str) -> None:
    files = {f"f/{n}.jpg": bytes([n]) * (n * 300 + 1) for n in range(100)}
    root = open_image_root(make(tmp_path, kind, files))
    names = list(files) * 3
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read_many, [root] * 8, [names] * 8):
            assert found == list(files.values()) * 3
    for method in ("fork", "spawn") if kind == "zip" else ("fork",):
        # A forked child shares the descriptor.
        with ProcessPoolExecutor(2, mp_context=get_context(method)) as processes:
            for found in processes.map(read_many, [root] * 2, [names] * 2):
                assert found == list(files.values()) * 3


def test_descriptors_are_closed(tmp_path: Path) -> None:
    path = make(tmp_path, "zip", FILES)

    def opened() -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(os.path.realpath(link) == str(path.resolve()) for link in links)

    root = open_image_root(path)
    assert opened() == 0
    root.read("a/x.jpg", CAP)
    root.read("b/x.jpg", CAP)
    assert opened() == 1
    del root
    assert opened() == 0


def test_what_is_no_image_root(tmp_path: Path) -> None:
    (tmp_path / "a.rar").touch()
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("none", "none.zip", "a.rar", "pipe.zip"):
        with pytest.raises(ConfigError, match="is not a folder"):
            open_image_root(tmp_path / name)


def test_a_member_name_that_no_file_can_have(tmp_path: Path) -> None:
    root = open_image_root(make(tmp_path, "folder", FILES))
    for name in ("a\0b.jpg", "\ud800.jpg"):
        assert reason(root, name) in ("unreadable-image", "missing-image")
    shutil.rmtree(tmp_path / "images")
    assert reason(root, "a/x.jpg") == "missing-image"
