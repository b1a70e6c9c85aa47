"""The loader against its peers and its floors: samples a second for each core in use.

    python -m benchmarks.bench_loader [--peers-python PATH] [--rounds 5] [--samples 600]
                                      [--parts speed memory start] [--clock cpu]

--peers-python is of an environment that has spdl and mosaicml-streaming beside torch, tokenizers
and simplejpeg (their pins need not be ours); sides that cannot be imported are left out by name.
loader_corpus.py makes what is read, loader_sides.py says what a side does.

Each measurement is a fresh process with the corpus in the page cache, pinned to one core (two for
sides with two threads or workers). Sides take turns, so that all see the machine's drift; the slow
ones have two rounds. A rate is the median over rounds, a ratio the median of the ratios within a
round. Peers on one core are compared by the wall clock; the usual way, which has two workers, by
CPU seconds of all its processes. The clock runs once a side has given 12 batches, ours an epoch.
The share of the floors is measured in pairs within one process (loader_floors.py).
Before, every side's samples are compared with ours: ids, labels, positions and grids must be equal,
and of pixels it is said how far they are.
With three rounds all of it takes some 8 minutes; some --parts write a result of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import loader_corpus
from omr_io.config import VisionConfig

Samples = dict[str, dict[str, Any]]  # arrays by key and name

VISION = VisionConfig()
SEQ_LEN = 8192
OWN = ("omr_io", "omr_io-bfloat16", "omr_io-2", "omr_io-2-bfloat16")
NEEDS = {
    "usual-wds": "webdataset", "usual-hf": "datasets", "dali": "nvidia.dali",
    "spdl": "spdl.pipeline", "mosaic": "streaming", "plain": "simplejpeg",
}  # fmt: skip
"""Peers, and the module without which each is left out."""

VARIANTS = {"spdl": ("spdl", "spdl-ring", "spdl-2")}
SLOW = ("usual-wds", "usual-hf", "dali", "omr_io-2", "omr_io-2-bfloat16", "spdl-2")
"""Slow sides, and those that only tell what a second thread gives."""

DTYPES = ("float32", "bfloat16")
SLOW_ROUNDS = 2
LEAST_SAMPLES = 200
CHECKED = 16
"""Samples whose arrays are compared."""

LEVELS = {"usual-wds": 0, "usual-hf": 0, "omr_io-bfloat16": 0}
"""Pixels may be as far from ours, in levels of 255; what is not named here, 8."""

PARTS = ("speed", "memory", "start")
INDEX_SAMPLES = 450_000
STOPS = 10
"""Ends by each signal, every one a little later after a batch."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
}  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """What every measurement shares."""

    folder: Path
    samples: int
    peers_python: str
    clock: str

    def python(self, side: str) -> str:
        """The interpreter that runs a side; "" if none can."""
        module = next((m for name, m in NEEDS.items() if side.startswith(name)), "omr_io")
        for python in (sys.executable, self.peers_python):
            if python and _has(python, module):
                return python
        return ""

    def run(self, script: str, *arguments: str, python: str = "", cores: int = 1) -> dict[str, Any]:
        """One process; its last line is its result."""
        command = [python or sys.executable, str(ROOT / "benchmarks" / script), *arguments]
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        environment = {"PYTHONPATH": str(ROOT), "OMR_IO_CACHE_DIR": str(self.folder / "cache")}
        done = subprocess.run(
            command,
            env=os.environ | ENVIRONMENT | environment,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        lines = done.stdout.splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def stopped_after(self, sent: signal.Signals, wait: float) -> float:
        """Seconds from a signal, `wait` seconds after its first batches, to a process' end."""
        command = [sys.executable, str(ROOT / "benchmarks/loader_runs.py"), "stop"]
        environment = {"PYTHONPATH": str(ROOT), "OMR_IO_CACHE_DIR": str(self.folder / "cache")}
        with subprocess.Popen(
            [*command, str(self.folder)],
            env=os.environ | ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{' '.join(command)} ended before its time")
            time.sleep(wait)
            began = time.perf_counter()
            process.send_signal(sent)
            process.wait()
            return time.perf_counter() - began

    def measure(self, side: str, *more: str, samples: int | None = None) -> dict[str, Any]:
        """One side, timed."""
        cores = 2 if "-2" in side or side.startswith("usual") else 1
        count = str(samples or self.samples)
        given = [side, str(self.folder), "--samples", count, *more]
        return self.run("loader_sides.py", *given, python=self.python(side), cores=cores)


def _has(python: str, module: str) -> bool:
    """Whether that interpreter finds the module, without importing it."""
    probe = "import importlib.util, sys\ntry: found = importlib.util.find_spec(sys.argv[1])\n"
    probe += "except ImportError: found = None\nsys.exit(found is None)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return not subprocess.run([python, "-c", probe, module], env=environment).returncode


def prepare(folder: Path, samples: int, median_area: float = loader_corpus.MEDIAN_AREA) -> None:
    """The corpus, and about.json for sides that cannot import omr_io."""
    loader_corpus.make(folder, samples, median_area=median_area)
    about = dataclasses.asdict(VISION) | {"seq_len": SEQ_LEN}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def compare(setting: Setting, sides: list[str]) -> dict[str, Any]:
    """How each side's samples differ from ours; integers must not.

    Raises:
        AssertionError: a side gives something else than ours.
    """
    wanted = _kept(setting, "omr_io")
    return {side: differences(side, _kept(setting, side), wanted) for side in sides}


def differences(side: str, got: Samples, wanted: Samples) -> dict[str, float]:
    """How far a side's pixels are from ours, in levels of 255, and the share that is not equal.

    Raises:
        AssertionError: another integer, patches of another shape, or pixels beyond `LEVELS`.
    """
    common = sorted(set(got) & set(wanted))
    assert len(common) >= CHECKED // 4, f"{side} has {len(common)} of the samples of ours"
    most, differing = 0.0, []
    for key in common:
        for name, array in wanted[key].items():
            other = got[key][name]
            if name != "pixel_values":
                assert np.array_equal(array, other), f"{side} has another {name} of {key}"
                continue
            assert array.shape == other.shape, f"{side} has other patches of {key}"
            own = _rounded(array) if "bfloat16" in side else array
            apart = np.abs(own - other) * 255 * min(VISION.image_std)
            most = max(most, float(apart.max()))
            differing.append(float((apart > 0.5).mean()))
    allowed = LEVELS.get(side, 8) + 1e-3
    assert most <= allowed, f"{side}: pixels are {most} levels from ours"
    return {"levels": round(most, 3), "share": statistics.mean(differing)}


def _rounded(values: Any) -> Any:
    import torch

    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


def _kept(setting: Setting, side: str) -> Samples:
    file = setting.folder / "kept.npz"
    setting.measure(side, "--check", str(file), samples=CHECKED)
    made: Samples = {}
    with np.load(file) as arrays:
        for name in arrays:
            key, _, field = name.partition("|")
            made.setdefault(key, {})[field] = arrays[name]
    file.unlink()
    return made


def speed(setting: Setting, rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All sides in turn; the results and the rows of the table."""
    if setting.samples < LEAST_SAMPLES:
        raise SystemExit(f"error: --samples must be at least {LEAST_SAMPLES}: a rate needs batches")
    runnable = [side for side in NEEDS if setting.python(side)]
    left_out = [side for side in NEEDS if side not in runnable]
    if "spdl" in runnable:  # which is the same work on SPDL's threads
        runnable.remove("plain")
    for side in left_out:
        print(f"loader, {side}: left out, no interpreter here has {NEEDS[side]}")
    if "mosaic" in runnable:
        setting.run(
            "loader_sides.py", "write-mds", str(setting.folder), python=setting.python("mosaic")
        )
    peers = [name for side in runnable for name in VARIANTS.get(side, (side,))]
    agreement = compare(setting, ["omr_io-bfloat16", *runnable])
    sides = [*OWN, *peers]
    count, clock = str(setting.samples), setting.clock
    floors = ("loader_floors.py", str(setting.folder), "--samples", count, "--clock", clock)
    runs = []
    for number in range(rounds):
        now = [side for side in sides if number < SLOW_ROUNDS or side not in SLOW]
        run = {side: setting.measure(side) for side in now}
        runs.append(run | {"floors": setting.run(*floors)})
    held = {side: [run for run in runs if side in run] for side in sides}
    result = {
        "samples_per_second": _medians(held, lambda run, side: _rate(run, side, "wall")),
        "samples_per_cpu_second": _medians(held, lambda run, side: _rate(run, side, "cpu")),
        "floors_microseconds": {
            dtype: {
                part: _median([pair["floors"]["parts"] for pair in _pairs(runs, dtype)], part)
                / setting.samples
                * 1e6
                for part in ("pread", "decode", "kernel")
            }
            for dtype in DTYPES
        },
        "agreement": agreement,
        "left_out": left_out,
        "rounds": runs,
    }
    return result, _speed_rows(runs, peers, clock)


def _speed_rows(runs: list[dict[str, Any]], peers: list[str], clock: str) -> list[dict[str, Any]]:
    """How the loader stands against its floors and its peers, with what it should reach."""
    rows: list[dict[str, Any]] = [
        _row(f"share of the floors, {dtype}", _median(_pairs(runs, dtype), "share"), 0.85)
        for dtype in DTYPES
    ]
    everyday = [side for side in peers if side.startswith("usual")]
    alone = [side for side in peers if side not in (*everyday, "spdl-2")]
    if everyday:
        found = _times_fastest(runs, everyday, "omr_io", "cpu")
        rows.append(_row("times the usual way, per core", found, 10))
    if own_memory := [side for side in alone if "ring" not in side]:
        found = _times_fastest(runs, own_memory, "omr_io", clock)
        rows.append(_row("times the fastest peer on one core", found, 2))
    if "spdl-ring" in alone:
        found = _times_fastest(runs, ["spdl-ring"], "omr_io", clock)
        rows.append(_row("times SPDL that writes over batches it gave", found, 2))
    if "spdl-2" in peers:
        found = _times_fastest(runs, ["spdl-2"], "omr_io-2", "wall")
        rows.append(_row("times SPDL, two threads on two cores", found, 2))
    return rows


def _rate(run: dict[str, Any], side: str, clock: str) -> float:
    """Samples a second of one side in one round."""
    one = run[side]
    return float(one["samples"] / one["cpu_seconds" if clock == "cpu" else "seconds"])


def _times_fastest(runs: list[dict[str, Any]], names: list[str], own: str, clock: str) -> float:
    """Our rate by that of the fastest of these sides, round by round; the median."""
    held = [run for run in runs if all(name in run for name in names)]
    ratios = [
        _rate(run, own, clock) / max(_rate(run, name, clock) for name in names) for run in held
    ]
    return statistics.median(ratios)


def _pairs(runs: list[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """Loader and floors, measured side by side."""
    return [pair for run in runs for pair in run["floors"][dtype]]


def _medians(held: dict[str, list[dict[str, Any]]], get: Any) -> dict[str, float]:
    return {side: statistics.median(get(run, side) for run in runs) for side, runs in held.items()}


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def _row(name: str, measured: float, bound: float, *, at_most: bool = False) -> dict[str, Any]:
    met = measured <= bound if at_most else measured >= bound
    kind = "at most" if at_most else "at least"
    return {"row": name, "measured": measured, "bound": f"{kind} {bound:g}", "met": met}


def memory(setting: Setting, steps: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A long run over a small set of its own."""
    small = dataclasses.replace(setting, folder=setting.folder / "small")
    prepare(small.folder, 64, median_area=250**2)
    long = small.run("loader_runs.py", "drift", str(small.folder), "--steps", str(steps), cores=2)
    waited = setting.run("loader_runs.py", "wait", str(setting.folder), cores=2)
    rows = [_row(f"memory's drift over {steps} steps", long["drift"], 0.05, at_most=True)]
    return {"drift": long, "wait": waited}, rows


def starts(
    setting: Setting, rounds: int, samples: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Starts and memory with an index of the corpus' size."""
    large = dataclasses.replace(setting, folder=setting.folder / "large")
    loader_corpus.repeat(setting.folder / "shards", large.folder / "shards", samples)
    for name in ("tokenizer", "about.json"):
        (large.folder / name).symlink_to(setting.folder / name)
    state, given = large.folder / "state.json", ("loader_runs.py", "start", str(large.folder))
    began = time.perf_counter()
    first = large.run(*given, "--save", str(state), cores=2)
    first["seconds"]["process"] = time.perf_counter() - began
    fresh = [large.run(*given, cores=2) for _ in range(rounds)]
    again = [large.run(*given, "--resume", str(state), cores=2) for _ in range(rounds)]
    most = large.run("loader_runs.py", "held", str(large.folder), cores=2)
    warm = statistics.median(run["seconds"]["in_all"] for run in fresh)
    ratio = statistics.median(
        one["seconds"]["in_all"] / two["seconds"]["in_all"]
        for one, two in zip(again, fresh, strict=True)
    )
    stops = {
        sent.name: [large.stopped_after(sent, 0.03 * number) for number in range(STOPS)]
        for sent in (signal.SIGINT, signal.SIGTERM)
    }
    slowest = max(max(seconds) for seconds in stops.values())
    rows = [
        _row(f"first batch of {samples} samples, lengths cached, s", warm, 2, at_most=True),
        _row("first batch after load_state_dict, times a fresh start", ratio, 1.2, at_most=True),
        _row("memory over the imports, GB", most["over_imports"] / 1e9, 1, at_most=True),
        _row(f"slowest end after {2 * STOPS} signals, s", slowest, 2, at_most=True),
    ]
    result = {"first_ever": first, "fresh": fresh, "resumed": again, "held": most}
    return result | {"seconds_to_end": stops}, rows


def report(given: argparse.Namespace) -> None:
    """Measure, write benchmarks/results/loader.json, print the table."""
    from benchmarks.run import write  # it imports this module

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "corpus"
        prepare(folder, given.samples)
        setting = Setting(folder, given.samples, given.peers_python, given.clock)
        corpus = loader_corpus.describe(loader_corpus.Corpus(folder))
        settings = {"samples": given.samples, "seq_len": SEQ_LEN, "clock": given.clock}
        settings |= {"min_pixels": VISION.min_pixels, "max_pixels": VISION.max_pixels}
        result: dict[str, Any] = {"settings": settings, "corpus": corpus, "table": []}
        for part in given.parts:
            if part == "speed":
                result["speed"], rows = speed(setting, given.rounds)
            elif part == "memory":
                result["memory"], rows = memory(setting, given.steps)
            else:
                result["start"], rows = starts(setting, min(given.rounds, 3), given.index_samples)
            result["table"] += rows
    whole = set(given.parts) == set(PARTS)
    write("loader" if whole else f"loader_{'_'.join(given.parts)}", result)
    show(result)


def show(result: dict[str, Any]) -> None:
    """What a reader wants to see of a result."""
    speeds = result.get("speed", {})
    for side, rate in speeds.get("samples_per_second", {}).items():
        core = speeds["samples_per_cpu_second"][side]
        print(f"loader, {side}: {rate:.1f} samples/s, {core:.1f} per CPU second")
    for dtype, parts in speeds.get("floors_microseconds", {}).items():
        listed = ", ".join(f"{part} {time:.0f}" for part, time in parts.items())
        print(f"loader, floors, {dtype}, µs a sample: {listed}")
    for side, apart in speeds.get("agreement", {}).items():
        print(
            f"loader, {side}: integers equal ours; pixels at most {apart['levels']:g} levels of "
            f"255 from ours, {apart['share']:.2%} of them differ"
        )
    if "memory" in result:
        print(f"loader, wait share: {result['memory']['wait']['wait_share']:.2%}")
    if "start" in result:
        print(f"loader, first start, texts counted: {result['start']['first_ever']['seconds']}")
    for row in result["table"]:
        verdict = "met" if row["met"] else "MISSED"
        print(f"loader, {row['row']}: {row['measured']:.3g} ({row['bound']}): {verdict}")


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options of this benchmark alone."""
    parser.add_argument(
        "--samples", type=int, default=600, help="of the corpus that the loader's sides read"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=20_000, help="of the long run")
    parser.add_argument("--index-samples", type=int, default=INDEX_SAMPLES)


def main() -> None:
    """Run this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--peers-python", default="", help="of an environment with the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    report(parser.parse_args())


if __name__ == "__main__":
    main()
