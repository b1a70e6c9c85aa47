"""An earlier run is lost only when a new one has begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from omr_io.errors import ConfigError, DiskError
from omr_io.train import run_folder as module
from omr_io.train.ranks import Ranks
from omr_io.train.run_folder import run_folder


class KilledError(Exception):
    """Stands for a SIGKILL: nothing of ours runs after it."""


def run(folder: Path, act: Callable[[Callable[[], None]], None], **how: bool) -> None:
    with run_folder(folder, Ranks(), **how) as begin:
        act(begin)


def refused(_: Callable[[], None]) -> None:
    raise ConfigError("refused")


def started(begin: Callable[[], None]) -> None:
    begin()


def earlier_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "x").write_text("earlier")


def is_back(folder: Path) -> bool:
    kept = (folder / "checkpoints" / "x").read_text() == "earlier"
    return kept and names(folder) == ["checkpoints"] and names(folder.parent) == [folder.name]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_run_gets_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"

    def act(begin: Callable[[], None]) -> None:
        assert names(folder) == []
        (folder / "tokenizer").write_text("x")
        begin()

    run(folder, act)
    assert names(folder) == ["tokenizer"]
    assert names(folder.parent) == ["a"]


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"

    def act(begin: Callable[[], None]) -> None:
        (folder / "tokenizer").write_text("x")
        refused(begin)

    with pytest.raises(ConfigError, match="refused"):
        run(folder, act)
    assert names(folder.parent) == []


def test_an_earlier_run_needs_an_option(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    earlier_run(folder)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(folder, started)
    assert is_back(folder)
    run(folder, started, resume=True)
    assert is_back(folder)
    with pytest.raises(ConfigError, match="refused"):
        run(folder, refused, resume=True)
    assert is_back(folder)


def test_overwrite_deletes_only_when_the_run_begins(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    earlier_run(folder)

    def act(begin: Callable[[], None]) -> None:
        assert names(folder) == []
        (folder / "tokenizer").write_text("of the new recipe")
        refused(begin)

    with pytest.raises(ConfigError, match="refused"):
        run(folder, act, overwrite=True)
    assert is_back(folder)
    run(folder, started, overwrite=True)
    assert names(folder) == []
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_killed_before_it_began_gives_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    folder = tmp_path / "a"
    earlier_run(folder)

    def killed(_: Callable[[], None]) -> None:
        (folder / "tokenizer").write_text("x")
        monkeypatch.setattr(module, "_bring_back", lambda _: None)
        raise KilledError

    with pytest.raises(KilledError):
        run(folder, killed, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == [".a.earlier", "a"]
    with pytest.raises(ConfigError, match="refused" if how else "holds an earlier run"):
        run(folder, refused, **how)
    assert is_back(folder)


def test_a_run_killed_as_it_begins_keeps_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    earlier_run(folder)

    def kill(_: Path) -> None:
        raise KilledError

    def act(begin: Callable[[], None]) -> None:
        (folder / "history.jsonl").write_text("x")
        monkeypatch.setattr(module, "_remove", kill)
        begin()

    with pytest.raises(KilledError):
        run(folder, act, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == [".a.deleted", "a"]  # half an earlier run never comes back
    run(folder, started, resume=True)
    assert names(folder) == ["history.jsonl"]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_goes_on_is_not_touched(tmp_path: Path, how: dict[str, bool]) -> None:
    folder = tmp_path / "a"
    earlier_run(folder)

    def act(begin: Callable[[], None]) -> None:
        for begun in (False, True):
            (folder / "tokenizer").write_text("x")
            with pytest.raises(ConfigError, match=r"another run in .* goes on"):
                run(folder, started, **how)
            assert names(folder) == ["tokenizer"]
            if not begun:
                begin()

    run(folder, act, overwrite=True)
    assert names(tmp_path) == ["a"]
    run(folder, started, resume=True)


def test_a_lock_that_a_killed_run_left_is_none(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").touch()
    run(tmp_path / "a", started)
    assert names(tmp_path) == ["a"]


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(DiskError, match=r"cannot make .*runs/a"):
        run(tmp_path / "runs" / "a", started)


def test_a_link_to_a_larger_disk_stays_one(tmp_path: Path) -> None:
    there, folder = tmp_path / "disk" / "of-a", tmp_path / "runs" / "a"
    earlier_run(there)
    folder.parent.mkdir()
    folder.symlink_to(there)
    with pytest.raises(ConfigError, match="refused"):
        run(folder, refused, overwrite=True)
    assert is_back(there)
    run(folder, started, overwrite=True)
    assert names(there) == []
    assert names(there.parent) == ["of-a"]
    assert folder.is_symlink()
