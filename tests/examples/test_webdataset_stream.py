"""The stream example, on the shards of a set and on shards of others."""

from __future__ import annotations

import json

import webdataset as wds

from tests.examples.conftest import ROOT
from tests.shard_sets import encoded

FILE = ROOT / "examples/webdataset_stream.py"


def samples_of(printed: str) -> int:
    lines = [line for line in printed.splitlines() if line.startswith("(")]
    assert all(line.startswith("(2, 256): ") and line.endswith("% full") for line in lines)
    return sum(int(line.split()[2]) for line in lines)


def test_it_packs_every_sample(run, corpus, model_folder, tmp_path):
    options = ("--seq-len", 256, "--packs-per-batch", 2, "--workers", 2)
    assert samples_of(run(FILE, model_folder, *sorted(corpus.glob("*.tar")), *options)) == 40

    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"s-{shard}.tar")) as tar:
            for number in range(5):
                row = {
                    "problem": "<image>Which side?\nA. left\nB. right",
                    "solution": "<think>It is.</think><answer>A</answer>",
                }
                key, image = f"{shard}-{number}", encoded(number)
                if number == 4:
                    image = image[:100]
                tar.write({"__key__": key, "jpg": image, "json": json.dumps(row).encode()})
    printed = run(FILE, model_folder, tmp_path / "s-0.tar", tmp_path / "s-1.tar", *options)
    assert samples_of(printed) == 10
    assert "s-1.tar 1-4: image-" in printed
