"""`omr-io eval` as a user runs it: from the command line, killed, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.examples.conftest import model_folder  # noqa: F401  # a fixture
from tests.test_cli import omr_io  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
QUICK = ("--max-new-tokens", "5", "--device", "cpu")


@pytest.fixture
def folder(tmp_path, shards, model_folder, monkeypatch):  # noqa: F811
    """A folder with two models and two sets in it."""
    for name in ("base", "sft"):
        shutil.copytree(model_folder, tmp_path / name)
    for name in ("test", "slake"):
        shutil.copytree(shards, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_models_on_two_sets(folder, omr_io) -> None:  # noqa: F811
    arguments = (
        "eval", "test", "--set", "vqa=slake", "--model", "a=base", "--model", "b=sft",
        "--out", "out", "--limit", "6", *QUICK,
    )  # fmt: skip
    code, out, err = omr_io(*arguments)
    assert code == 0, err
    assert "b minus a on test: +0.0" in out
    assert "test: 6 items" in out
    assert "vqa: 6 items" in out
    names = sorted(path.name for path in (folder / "out").iterdir())
    made = [f"completions-{m}-{s}" for m in "ab" for s in ("test", "vqa")]
    files = [f"{name}.{end}" for name in made for end in ("json", "jsonl")]
    assert names == [*files, "report.html", "results.json"]
    code, again, _ = omr_io(*arguments, "--json")
    assert code == 0
    facts = json.loads(again)
    assert facts == json.loads((folder / "out/results.json").read_text())
    assert facts["figures"]["scores"][0]["plain"]["completions"] == 6
    assert facts["models"]["a"]["model_path"] == "base"
    assert facts["options"]["max_new_tokens"] == 5


def test_options_reach_what_they_are_for(folder, omr_io) -> None:  # noqa: F811
    code, out, err = omr_io(
        "eval", "test", "--model", "a=base", "--model", "b=sft", "-o", "out", "--limit", "3",
        "--no-blind", "--no-shuffled", "--instruction", "Answer = a letter.", "--instruction",
        "b=Think.", "--temperature", "0.7", "--runs", "2", "--train", "slake", "--seed", "5",
        "--max-pixels", "4096", "--batch-size", "2", "--json", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    assert facts["models"]["a"]["instruction"] == "Answer = a letter."
    assert facts["models"]["b"]["instruction"] == "Think."
    assert facts["models"]["a"]["vision"]["max_pixels"] == 4096
    assert facts["figures"]["sets"][0]["majority_of"] == "slake"
    (first, _) = facts["figures"]["scores"]
    assert first["blind"] is first["shuffled"] is None
    assert first["plain"]["completions"] == 6
    assert first["plain"]["accuracy"]["n"] == 3
    assert any("differ in instruction" in note for note in facts["notes"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("test", "--model", "a=base"), 2, "Give --out DIR"),
        (("test", "--model", "base", "--out", "o"), 2, "Write --model NAME=base"),
        (("test", "--out", "o"), 2, "no model to evaluate"),
        (("--model", "a=base", "--out", "o"), 2, "no set to evaluate"),
        (("test", "--model", "a=nowhere", "--out", "o"), 2, "nowhere holds no config.json"),
        (("nowhere", "--model", "a=base", "--out", "o"), 3, "nowhere"),
        (("test", "--model", "a=base", "--out", "o", "--runs", "2"), 2, "2 runs at temperature 0"),
        (("test", "--model", "a=base", "--out", "o", "--dtype", "int4"), 2, "no dtype 'int4'"),
        (("test", "--model", "a=base", "--out", "o", "--device", "cuda:99"), 2, "cuda:99"),
        (("test", "--model", "a=base", "--out", "o", "--train", "no"), 3, "no"),
        (("a-b=test", "b=slake", "--model", "m=base", "--model", "m-a=sft", "--out", "o"), 2,
         "would share a file"),
        (("test", "--model", "a=base", "--out", "o", "--instruction", "x", "--instruction", "y"),
         2, "two instructions for all models"),
        (("test", "--model", "a=base", "--out", "test/index.arrow"), 4, "index.arrow"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_a_code(folder, omr_io, arguments, code, message) -> None:  # noqa: F811
    got, out, err = omr_io("eval", *arguments)
    assert got == code, err
    assert out == ""
    assert err.startswith("error: ") or "\nerror: " in err
    assert message in err


def test_other_options_in_the_same_folder(folder, omr_io) -> None:  # noqa: F811
    arguments = ("eval", "test", "--model", "a=base", "--out", "o", "--limit", "2", *QUICK)
    assert omr_io(*arguments)[0] == 0
    code, _, err = omr_io(*arguments, "--seed", "1")
    assert code == 2
    assert "seed (there 0, here 1)" in err
    assert "--overwrite" in err
    assert omr_io(*arguments, "--seed", "1", "--overwrite")[0] == 0


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from omr_io.cli import main; main()", "eval", *arguments]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_and_stopped_it_goes_on(folder) -> None:
    """SIGKILL, then SIGTERM, then to the end: as one that was never stopped."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    patched = "import omr_io.train.evaluation.run as run; run.BLOCK = 4; "

    def start(out: str) -> subprocess.Popen[str]:
        words = command("test", "--model", "a=base", "--out", out, *QUICK)
        words[2] = patched + words[2]
        return subprocess.Popen(
            words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    path = folder / "killed/completions-a-test.jsonl"
    for number, after in ((signal.SIGKILL, 4), (signal.SIGTERM, 30)):
        process = start("killed")
        deadline = time.monotonic() + 900
        while lines(path) < after:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=900)
        if number == signal.SIGTERM:
            assert process.returncode == 143, err
            assert "run the same command again to go on" in err
        assert lines(path) < 37 * 3
    for out in ("killed", "whole"):
        process = start(out)
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    assert path.read_bytes() == (folder / "whole/completions-a-test.jsonl").read_bytes()
    results = [
        json.loads((folder / out / "results.json").read_text()) for out in ("killed", "whole")
    ]
    assert results[0] == results[1]
