from __future__ import annotations

import multiprocessing
import os
import warnings
from pathlib import Path

import pytest

from omr_io.cache import ENVIRONMENT, TRAILER_BYTES, Cache, cache_root
from omr_io.errors import OmrWarning


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_body_comes_back_and_lies_first_in_its_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "lengths")
    for body in (b"", b"x", b"body" * 1000):
        assert cache.load("key") != body
        file = cache.store("key", body)
        assert file is not None
        assert file == cache.path("key")
        assert cache.load("key") == body
        assert file.read_bytes()[:-TRAILER_BYTES] == body
    assert names(tmp_path / "deep" / "lengths") == ["key"]
    assert (tmp_path / "deep" / "lengths").stat().st_mode & 0o077 == 0
    cache.discard("key")
    cache.discard("key")
    assert cache.load("key") is None
    assert cache.path("key") is None


def test_a_damaged_file_is_found_out_at_every_byte(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    whole = cache.store("key", b"0123456789").read_bytes()  # type: ignore[union-attr]
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :] for n in range(len(whole))]
    damaged += [whole + b"x", b"x" + whole]
    for data in damaged:
        (tmp_path / "key").write_bytes(data)
        assert cache.path("key") is None
        assert not (tmp_path / "key").exists()
        (tmp_path / "key").write_bytes(data)
        assert cache.load("key") is None


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_files=3)
    for age, key in enumerate("abc"):
        cache.store(key, b"x")
        os.utime(tmp_path / key, (1000 + age, 1000 + age))
    assert cache.load("a") == b"x"  # now the newest
    cache.store("d", b"x")
    assert names(tmp_path) == ["a", "c", "d"]
    Cache(tmp_path, max_bytes=2 * TRAILER_BYTES + 10).store("e", b"12345678")
    assert names(tmp_path) in (["a", "e"], ["d", "e"])
    Cache(tmp_path, max_bytes=1).store("f", b"12345678")
    assert names(tmp_path) == ["f"]  # what was asked for is kept, whatever its size


def test_the_bounds_hold_where_another_entry_is_newer(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_files=1)
    cache.store("other", b"by a writer that began later and ended sooner")
    os.utime(tmp_path / "other", (4e9, 4e9))
    cache.store("key", b"x")
    assert names(tmp_path) == ["key"]


def test_what_died_half_written_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    for name, time in ((".old.tmp", 1000.0), (".new.tmp", None)):
        (tmp_path / name).write_bytes(b"x")
        if time is not None:
            os.utime(tmp_path / name, (time, time))
    Cache(tmp_path).store("key", b"x")
    assert names(tmp_path) == [".new.tmp", "key"]


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert cache_root() == tmp_path / "home" / ".cache" / "omr_io"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / "home" / ".cache" / "omr_io"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "omr_io"
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "mine"))
    assert Cache.of("lengths").folder == tmp_path / "mine" / "lengths"
    monkeypatch.setenv(ENVIRONMENT, "")
    cache = Cache.of("lengths")
    assert cache.folder is None
    assert cache.store("key", b"x") is None
    assert cache.load("key") is None
    cache.discard("key")


def test_a_folder_that_cannot_be_written_warns_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "lengths")
    with pytest.warns(OmrWarning, match=ENVIRONMENT):
        assert cache.store("key", b"x") is None
    (tmp_path / "key").mkdir()
    with pytest.warns(OmrWarning, match="cannot be read"):
        assert Cache(tmp_path).load("key") is None


def _write_and_read(folder: Path, seed: int) -> None:
    warnings.simplefilter("error")
    cache = Cache(folder, max_files=3)
    for round_ in range(40):
        key = f"k{(seed + round_) % 5}"
        body = key.encode() * 5000
        assert cache.load(key) in (None, body)
        cache.store(key, body)


def test_many_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_and_read, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not [name for name in names(tmp_path) if name.startswith(".")]
