"""Hostile tars through `omr-io index`, `omr-io convert` and the loader.

No file outside the output folder, no code run, and each either a clear error or a named refusal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omr_io.corpus.formats.webdataset_groups import Group, Member
from tests.hostile.tars import Form, malformed, sample, taken_apart, whole

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path) -> dict[str, int]:
    """Files and folders below, by path, with their sizes."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size if not path.is_dir() else -1
        for path in folder.rglob("*")
    }


def run(folder: Path, kind: str, tars: dict[str, bytes], form: Form) -> dict[str, dict[str, Any]]:
    """Each tar through one process of the sandbox; outside `folder`/root nothing may change."""
    root = folder / "root"
    jobs = []
    for number, (name, data) in enumerate(
        [("warm", whole(sample("mid", 5, form), form)), *tars.items()]
    ):
        tar = root / "in" / f"{number}" / "shard.tar"
        tar.parent.mkdir(parents=True)
        tar.write_bytes(data)
        out = root / "out" / str(number)
        jobs.append({"name": name, "kind": kind, "tar": str(tar), "out": str(out)})
    (root / "tmp").mkdir()
    (root / "jobs.json").write_text(json.dumps({"root": str(root), "jobs": jobs}))
    before = tree(folder / "outside")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.sandbox", str(root / "jobs.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(root / "tmp")},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert tree(folder / "outside") == before == {}
    assert tree(root / "tmp") == {}
    for number in range(len(jobs)):
        assert list(tree(root / "in" / str(number))) == ["shard.tar"]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == tars.keys()
    for name, result in found.items():
        assert result["seen"] == [], name
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", ["index", "convert"])
def test_malformed_tars_are_refused_with_place_and_reason(folder: Path, kind: str) -> None:
    form: Form = "json" if kind == "index" else "txt"
    cases = malformed(folder / "outside", form)
    found = run(folder, kind, {name: data for name, (data, _) in cases.items()}, form)
    for name, (_, words) in cases.items():
        result = found[name]
        assert result.get("error") == ("TarError" if kind == "index" else "SourceError"), name
        assert words in result["text"], (name, result["text"])
        assert "shard.tar" in result["text"], name
        assert "offset " in result["text"], name
        assert len(result["text"]) < 500, name


@pytest.mark.parametrize("kind", ["index", "convert"])
def test_hostile_samples_are_taken_apart_and_the_rest_is_loaded(folder: Path, kind: str) -> None:
    form: Form = "json" if kind == "index" else "txt"
    cases = taken_apart(folder / "outside", form)
    found = run(folder, kind, {name: data for name, (data, _) in cases.items()}, form)
    for name, (_, refusals) in cases.items():
        result = found[name]
        if (name, kind) == ("pickles", "convert"):  # no column is taken that JSON cannot hold
            assert result["error"] == "SourceError"
            assert "--omit" in result["text"]
            continue
        assert result.get("refusals") == refusals, (name, result)
        # first and last, and what stands between them where it is not refused
        expected = 2 if name == "the same key again" else 2 + (not refusals)
        assert result["samples"] == result["loaded"] == expected, (name, result)
        if kind == "index":
            assert result["sound"], name


def test_the_sandbox_sees_what_must_not_happen(tmp_path: Path) -> None:
    """The tests above must be able to fail."""
    (tmp_path / "root").mkdir()
    code = f"""
import os, pickle, sys
from pathlib import Path
from tests.hostile.sandbox import Watch
from omr_io.corpus.formats.webdataset_groups import Group, Member
from tests.hostile.tars import pickled
watch = Watch(Path({str(tmp_path / "root")!r}))
sys.addaudithook(watch)
watch.on = True
(Path({str(tmp_path)!r}) / "root" / "fine").write_text("x")
assert watch.seen == []
pickle.loads(pickled(Path({str(tmp_path)!r}) / "canary"))
os.symlink("a", {str(tmp_path / "link")!r})
os.system("true")
watch.on = False
print(len(watch.seen), *[line.split()[0] for line in watch.seen])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen = done.stdout.split()
    assert {"pickle.find_class", "open", "os.symlink", "os.system"} <= set(seen)
    assert (tmp_path / "canary").exists()


def test_members_of_a_key_are_not_compared_pairwise() -> None:
    """10,000 of them took 5 s so, and 100,000 would take ten minutes."""
    compared = 0

    class Counting(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    count = 20_000
    members = tuple(Member(Counting(f"x{n}"), 512 * n, 0) for n in range(count))
    assert Group("key", "key", members, 0, 512 * count).defect() is None
    assert compared < 20 * count
    twice = (*members, Member(Counting("x5"), 512 * count, 0))
    defect = Group("key", "key", twice, 0, 512 * count).defect()
    assert defect is not None
    assert defect.reason == "duplicate-member"
    assert compared < 40 * count
