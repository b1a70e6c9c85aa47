"""SIGKILL at any moment, then the same command again: the same tree, whatever was left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from omr_io.conversion import ConvertOptions, convert
from omr_io.shards.layout import UNFINISHED_NAME
from tests.conversion.small_corpora import mixed_corpus, tree_digest
from tests.shard_sets import contents

ROOT = Path(__file__).parents[2]
SMALL = {"max_shard_bytes": 12_000, "max_shard_samples": 6}

ZYGOTE = """
    # Imports once, then forks a process for each line: folder, number of workers, check.
    import os, sys
    from omr_io.conversion import ConvertOptions, convert
    import omr_io.conversion.merging
    source = sys.argv[1]
    for line in sys.stdin:
        out, workers, check = line.split()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                convert(source, out, ConvertOptions(workers=int(workers), check=check, **SMALL))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Conversions, each in a process of its own that can be killed."""

    def __init__(self, source: Path) -> None:
        code = f"SMALL = {SMALL!r}\n" + textwrap.dedent(ZYGOTE)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(source)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip

    def start(self, out: Path, workers: int, check: str) -> int:
        self.process.stdin.write(f"{out} {workers} {check}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def source(tmp_path):
    return mixed_corpus(tmp_path / "corpus")


@pytest.fixture
def runs(source):
    runs = Runs(source)
    yield runs
    runs.close()


def workers_of(parent: int) -> list[int]:
    """Processes that were started as workers of a process, which may be dead by now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"omr_io.conversion.worker" in one for one in arguments) and (
            str(parent).encode() == arguments[-2]
        ):
            found.append(int(path.parent.name))
    return found


def state_of(pid: int) -> str:
    """What the kernel says of a process."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "it has just ended"


def stage(out: Path) -> str:
    """How far the files say that a run came."""
    hidden = out / UNFINISHED_NAME
    if (out / "manifest.json").exists():
        return "named"
    if (hidden / "publish.json").exists():
        return "naming"
    if (hidden / "index.arrow").exists() or (hidden / "index.arrow.tmp").exists():
        return "joining"
    if (hidden / "pieces" / "taken.arrow").exists():
        return "refusing duplicates"
    with suppress(FileNotFoundError):  # the run may be done and remove it while we look
        if any((hidden / "pieces").iterdir()):
            return "converting"
    return "nothing yet"


def kill_at_random(
    runs: Runs, out: Path, workers: int, check: str, chance: random.Random
) -> str | None:
    """Start a run and kill it; how far it was, or None if it was done before."""
    pid = runs.start(out, workers, check)
    wanted = chance.choice(
        ["nothing yet", "converting", "converting", "refusing duplicates", "joining", "naming"]
    )
    order = ["nothing yet", "converting", "refusing duplicates", "joining", "naming", "named"]
    deadline = time.monotonic() + 30
    while order.index(stage(out)) < order.index(wanted) and time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            break
    time.sleep(chance.random() ** 3 * (0.3 if wanted in ("nothing yet", "converting") else 0.01))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    code = runs.wait()
    assert code in (0, -signal.SIGKILL)
    deadline = time.monotonic() + 300  # nothing ends while the kernel waits for its disk
    while (left := workers_of(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"a worker outlived its parent: {[state_of(one) for one in left]}"
    return None if code == 0 else stage(out)


def survive(
    runs: Runs, source: Path, tmp_path: Path, kills: int, workers, check: str, seed: int,
    enough: Callable[[Counter], bool],
) -> Counter:  # fmt: skip
    """How many kills at each stage: so many, and on to four times that until it is `enough`."""
    options = ConvertOptions(workers=1, check=check, **SMALL)
    convert(source, tmp_path / "clean", options)
    clean, expected = tree_digest(tmp_path / "clean"), contents(tmp_path / "clean")
    chance = random.Random(seed)
    stages: Counter = Counter()
    folders = 0
    while stages.total() < kills or not (enough(stages) or stages.total() > 4 * kills):
        folders += 1
        out = tmp_path / f"set-{folders}"
        for _ in range(chance.randint(1, 3)):  # one run after the other is killed
            reached = kill_at_random(runs, out, chance.choice(workers), check, chance)
            if reached is None:
                break
            stages[reached] += 1
            for name, data in (contents(out) if out.exists() else {}).items():
                if not name.startswith(".omr-io"):
                    assert data == expected[name], f"{name} carries its name and is not whole"
        convert(source, out, options)
        assert tree_digest(out) == clean, f"seed {seed}, folder {folders}"
    return stages


# Where only headers are checked, plain rows are written a batch at a time.
EITHER_WAY = pytest.mark.parametrize("check", ["decode", "header"])


@EITHER_WAY
def test_six_kills(runs, source, tmp_path, check):
    def enough(stages):
        return len(stages) > 1

    stages = survive(runs, source, tmp_path, 6, [1, 1, 1, 2], check, 1, enough)
    assert enough(stages), stages


@pytest.mark.slow
@EITHER_WAY
def test_200_kills_with_workers(runs, source, tmp_path, check):
    seed = 2

    def enough(stages):
        late = stages["joining"] + stages["naming"] + stages["refusing duplicates"]
        return stages["converting"] >= 20 and late >= 20

    stages = survive(runs, source, tmp_path, 200, [2], check, seed, enough)
    print(stages)
    assert enough(stages), stages


def test_workers_die_with_their_parent(runs, source, tmp_path):
    deadline = time.monotonic() + 300
    for attempt in range(20):  # a run may be over before it is seen at work
        pid = runs.start(tmp_path / f"set-{attempt}", 2, "decode")
        while len(workers_of(pid)) < 2 and Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if runs.wait() == -signal.SIGKILL:
            break
    else:
        pytest.fail("no run could be killed at work")
    while workers_of(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers_of(pid)
