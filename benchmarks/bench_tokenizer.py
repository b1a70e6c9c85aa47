"""The tokenizer against its peers: text to ids, conversations to ids and mask, load, memory.

    python -m benchmarks.bench_tokenizer [--peers-python PATH] [--text FILE] [--rounds 5]

--peers-python is of an environment that has gigatoken, fastokens, tiktoken, tokenizers and
jinja2 (their pins need not be ours); without it only tokenizers and transformers are the peers.
--text is JSONL with "text"; without it, and for the mixed scripts, seeded text of texts.py is used.
--ranks is a qwen.tiktoken; without it, it is fetched (tests/vocabularies.py).

Each measurement is a fresh process (tokenizer_sides.py) pinned to one core, two for "2 threads".
Sides take turns, so that all see the machine's drift; a rate is the median over rounds, a ratio the
median of the ratios within a round. Cold is the first half of the text, right after loading; steady
is the second half, unseen, after it. All ids are compared with those of Hugging Face tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import texts
from tests.vocabularies import fetch, qwen_json

OWN = "omr_io"
GIGATOKEN = ("gigatoken", "gigatoken-bytes", "gigatoken-buffer")
PEERS = (*GIGATOKEN, "fastokens", "tiktoken")  # in the peers' environment
PADS, SAMPLE_TOKENS = 1024, 250
MEGABYTE = 1e6


@dataclass(frozen=True)
class Setting:
    """What every measurement shares."""

    tokenizer: Path
    peers_python: str
    clock: str
    folder: Path

    @property
    def sides(self) -> tuple[str, ...]:
        """Ours and the peers that can run."""
        return (OWN, *(PEERS if self.peers_python else ()), "tokenizers")

    def measure(self, side: str, task: str, file: Path, threads: int = 1) -> dict[str, Any]:
        """One process on `threads` cores; its last line is its result."""
        cores = sorted(os.sched_getaffinity(0))[:threads]
        in_peers = self.peers_python and side not in (OWN, "transformers")
        script = Path(__file__).with_name("tokenizer_sides.py").resolve()
        command = [self.peers_python if in_peers else sys.executable, str(script), side, task]
        command += [str(file), "--tokenizer", str(self.tokenizer), "--threads", str(threads)]
        root = str(script.parent.parent)
        environment = {"HF_HUB_OFFLINE": "1", "OMR_IO_CACHE_DIR": str(self.folder / "cache")}
        done = subprocess.run(
            [*command, "--pads", str(PADS)],
            env=os.environ | environment | ({} if in_peers else {"PYTHONPATH": root}),
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))


def bench(setting: Setting, biomedical: list[str], rounds: int) -> dict[str, Any]:
    """All measurements and the table of the rows that the project promises."""
    mixed = texts.mixed(9_000_000)
    files = {}
    for name, documents in (("biomedical", biomedical), ("mixed", mixed)):
        assert not any("\0\x01\0" in document for document in documents)
        files[name] = setting.folder / f"{name}.json"
        files[name].write_text(json.dumps(documents), encoding="utf-8")
    first_load = setting.measure(OWN, "speed", files["biomedical"])["load"]
    runs = [_round(setting, files) for _ in range(rounds)]
    chat = _chats(setting, rounds)
    differing = {name: _differing(setting, file) for name, file in files.items()}
    result = {
        "texts": {
            name: {"documents": len(d), "bytes": sum(len(t.encode()) for t in d)}
            for name, d in (("biomedical", biomedical), ("mixed", mixed))
        },
        "megabytes_per_second": _rates(setting, runs),
        "differing_documents": differing,
        "chat_microseconds_a_sample": {
            side: statistics.median(one[side] for one in chat) for side in chat[0]
        },
        "load_seconds": _medians(runs, lambda run: run["load"][setting.clock]),
        "first_load_seconds": first_load[setting.clock],
        "memory_added": _medians(runs, lambda run: run["memory_added"]["pss"]),
        "memory_added_by_load": _medians(runs, lambda run: run["memory_load"]["pss"]),
    }
    return result | {"table": _table(setting, runs, chat, result), "rounds": runs, "chat": chat}


def _round(setting: Setting, files: dict[str, Path]) -> dict[str, Any]:
    run = {
        name: {side: setting.measure(side, "speed", file) for side in setting.sides}
        for name, file in files.items()
    }
    two = [OWN, *(GIGATOKEN if setting.peers_python else ())]
    run["two_threads"] = {
        side: setting.measure(side, "speed", files["biomedical"], threads=2) for side in two
    }
    return run


def _rate(clock: str, run: dict[str, Any], text: str, side: str, part: str) -> float:
    one = run[text][side][part]
    return float(one["bytes"] / one[clock] / MEGABYTE)


def _rates(setting: Setting, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{text}, {part}": {
            side: statistics.median(
                # Two threads use as much of the processor as one does: the wall clock counts.
                _rate("wall" if text == "two_threads" else setting.clock, run, text, side, part)
                for run in runs
            )
            for side in runs[0][text]
        }
        for text in runs[0]
        for part in ("cold", "steady")
    }


def _medians(runs: list[dict[str, Any]], get: Any) -> dict[str, float]:
    return {
        side: statistics.median(get(run["biomedical"][side]) for run in runs)
        for side in runs[0]["biomedical"]
    }


def _differing(setting: Setting, file: Path) -> dict[str, int]:
    """How many documents of each side differ from those of Hugging Face tokenizers."""
    want = setting.measure("tokenizers", "ids", file)["ids"]
    found = {}
    for side in setting.sides:
        got = setting.measure(side, "ids", file)["ids"] if side != "tokenizers" else want
        assert len(got) == len(want), f"{side} gave {len(got)} of {len(want)} documents"
        found[side] = sum(a != b for a, b in zip(got, want, strict=True))
    return found


def _chats(setting: Setting, rounds: int) -> list[dict[str, float]]:
    """Microseconds a sample of each side and round; all must give the same ids and mask."""
    rng = random.Random(5)
    words = " ".join(texts.biomedical(400_000, seed=6)).split(" ")
    samples = []
    for _ in range(1000):  # some 1.3 tokens a word
        at = rng.randrange(len(words) - 300)
        question, reasoning = words[at : at + 60], words[at + 60 : at + 170]
        samples.append({"question": " ".join(question), "reasoning": " ".join(reasoning).strip()})
    file = setting.folder / "chat.json"
    file.write_text(json.dumps(samples), encoding="utf-8")
    sides = [OWN, *(["gigatoken"] if setting.peers_python else []), "transformers"]
    runs = []
    for _ in range(rounds):
        run = {side: setting.measure(side, "chat", file) for side in sides}
        for side in sides[1:]:
            for name in ("ids", "mask"):
                assert run[side][name] == run[OWN][name], f"{side} has another {name} of a chat"
        tokens = len(run[OWN]["ids"]) - PADS
        assert abs(tokens - SAMPLE_TOKENS) < 60, f"{tokens} text tokens a sample"
        runs.append({s: one["seconds_a_sample"][setting.clock] * 1e6 for s, one in run.items()})
    return runs


def _table(
    setting: Setting, runs: list[dict[str, Any]], chat: list[dict[str, float]], result: Any
) -> list[dict[str, Any]]:
    """The promised rows: what was measured, at least what, the aim; `met` compares with the least.

    A row against a peer is left out where that peer could not run.
    """
    peers = [side for side in setting.sides if side != OWN]

    def ratio(text: str, part: str, against: list[str]) -> float:
        """Against the fastest of these peers, in the median round."""
        return statistics.median(
            _rate(setting.clock, run, text, OWN, part)
            / max(_rate(setting.clock, run, text, side, part) for side in against)
            for run in runs
        )

    two = statistics.median(
        _rate("wall", run, "two_threads", OWN, "steady")
        / _rate("wall", run, "biomedical", OWN, "steady")
        for run in runs
    )
    own = result["chat_microseconds_a_sample"][OWN]
    load, memory = result["load_seconds"][OWN], result["memory_added"][OWN] / MEGABYTE
    rows = [
        ("1 thread, cold, times the fastest peer", ratio("biomedical", "cold", peers), 1.3, 2.4),
        ("1 thread, mixed scripts, cold", ratio("mixed", "cold", peers), 1.5, 3),
        ("1 thread, mixed scripts, steady", ratio("mixed", "steady", peers), 1.5, 3),
        ("2 threads, times own 1 thread", two, 1.7, 1.9),
        (f"chat + mask + {PADS} image pads, µs a sample", own, -10, -5),
        ("load from the compiled cache, s", load, -0.3, -0.05),
        ("memory added, MB", memory, -80, -40),
    ]
    if setting.peers_python:
        giga = ratio("biomedical", "steady", list(GIGATOKEN))
        rows.insert(0, ("1 thread, steady, times gigatoken", giga, 1.3, 2.5))
    return [
        {
            "row": name,
            "measured": value,
            "least": abs(least),
            "aim": abs(aim),
            "met": value >= least if least > 0 else value <= -least,
        }
        for name, value, least, aim in rows
    ]


def make_tokenizer(folder: Path, ranks: Path | None) -> Path:
    """A folder that omr_io, transformers and the peers load: Qwen2.5's tokenizer."""
    from omr_io.tokenizer.qwen_bpe import CHATML_TEMPLATE

    ranks = ranks or fetch("qwen.tiktoken")
    made = folder / "tokenizer"
    made.mkdir()
    (made / "tokenizer.json").write_text(qwen_json("qwen2_5", ranks), encoding="utf-8")
    (made / "chat_template.jinja").write_text(CHATML_TEMPLATE, encoding="utf-8")
    (made / "ranks.tiktoken").write_bytes(ranks.read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def read_text(path: Path | None) -> list[str]:
    """The documents of a JSONL file, or seeded ones."""
    if path is None:
        return texts.biomedical(9_000_000)
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def show(result: dict[str, Any]) -> None:
    """What a reader wants to see of a result."""
    for name, rates in result["megabytes_per_second"].items():
        listed = ", ".join(f"{side} {rate:.1f}" for side, rate in rates.items())
        print(f"tokenizer, {name}, MB/s: {listed}")
    for name, counts in result["differing_documents"].items():
        print(f"tokenizer, {name}, documents that differ from Hugging Face: {counts}")
    for name in ("chat_microseconds_a_sample", "load_seconds", "memory_added"):
        print(f"tokenizer, {name}: { {k: round(v, 4) for k, v in result[name].items()} }")
    print(f"tokenizer, first load: {result['first_load_seconds']:.2f} s")
    for row in result["table"]:
        verdict = "met" if row["met"] else "MISSED"
        least, aim = row["least"], row["aim"]
        print(f"{row['row']}: {row['measured']:.3g} (at least {least:g}, aim {aim:g}): {verdict}")


def report(
    peers_python: str, text: Path | None, ranks: Path | None, rounds: int, clock: str
) -> None:
    """Measure, write benchmarks/results/tokenizer.json, print the table."""
    from benchmarks.run import write  # it imports this module

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setting = Setting(make_tokenizer(folder, ranks), peers_python, clock, folder)
        result = bench(setting, read_text(text), rounds)
    used = f"given ({text.name})" if text else "seeded (benchmarks/texts.py)"
    write("tokenizer", {"settings": {"text": used, "clock": clock, "image_pads": PADS}} | result)
    show(result)


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options of this benchmark."""
    parser.add_argument("--peers-python", default="", help="of an environment with the peers")
    parser.add_argument("--text", type=Path, help='JSONL with "text"; else seeded text')
    parser.add_argument("--ranks", type=Path, help="a qwen.tiktoken; else fetched")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: where others use the machine"
    )


def main() -> None:
    """Run this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    report(given.peers_python, given.text, given.ranks, given.rounds, given.clock)


if __name__ == "__main__":
    main()
