"""Lengths that are kept between runs, and completions that are cut to fit seq_len."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omr_io.cache import ENVIRONMENT, Cache
from omr_io.chat import ChatFormat
from omr_io.errors import ConfigError, IntegrityError, OmrWarning, SampleTooLongError
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.lengths import measure
from omr_io.tokenizer import train_bpe
from omr_io.types import IGNORE_INDEX


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache" / "lengths"


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the samples whose texts were read."""
    seen: list[int] = []
    real = ShardSet.read_record

    def read_record(self, number, **options):
        seen.append(number)
        return real(self, number, **options)

    monkeypatch.setattr(ShardSet, "read_record", read_record)
    return seen


def make(shards, tokenizer, vision, **options) -> DataLoader:
    base = {"tokenizer": tokenizer, "vision": vision, "seq_len": 160, "packs_per_step": 4}
    return DataLoader(shards, **(base | {"num_threads": 0} | options))


def columns(loader: DataLoader) -> list[list[int]]:
    return [getattr(loader.lengths, f.name).tolist() for f in dataclasses.fields(loader.lengths)]


def test_the_second_start_reads_no_text(folder, reads, shards, tokenizer, vision, records):
    with make(shards, tokenizer, vision) as first:
        assert sorted(reads) == list(range(len(records)))
        reads.clear()
        with make(shards, tokenizer, vision) as second:
            assert reads == []
            assert columns(second) == columns(first)
            assert second.state_dict() == first.state_dict()
            assert [b.keys for b in second] == [b.keys for b in first]
    [file] = folder.iterdir()
    assert file.stat().st_size == 16 * len(records) + 24


def test_a_start_needs_no_shard_that_can_be_read(
    folder, write_shards, make_records, tokenizer, vision
):
    shards = write_shards(make_records(12))
    with make(shards, tokenizer, vision) as first:
        want = columns(first)
    for tar in shards.glob("*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    with make(shards, tokenizer, vision) as second:
        assert columns(second) == want
        with pytest.raises(IntegrityError):
            next(iter(second))
    with pytest.raises(IntegrityError):
        make(shards, tokenizer, vision, cache=False)


def test_what_decides_the_lengths_is_in_the_key(
    folder, reads, shards, write_shards, make_records, tokenizer, vision
):
    others = {
        "corpus": {"shards": write_shards(make_records(30))},
        "tokenizer": {"tokenizer": train_bpe(["something else"], vocab_size=290)},
        "system": {"chat": ChatFormat(tokenizer, system="Be brief.")},
        "instruction": {"chat": ChatFormat(tokenizer, instruction="Be brief.")},
    }
    base = {"shards": shards, "tokenizer": tokenizer, "vision": vision}
    make(**base).close()
    for number, (name, options) in enumerate(others.items(), 2):
        reads.clear()
        options = base | ({"tokenizer": None} if "chat" in options else {}) | options
        with make(**options, seq_len=2048) as loader:
            assert reads, name
            fresh = make(**options, seq_len=2048, cache=False)
            assert columns(fresh) == columns(loader)
            fresh.close()
        assert len(list(folder.iterdir())) == number
    # The pixel budget decides image tokens only, which are not kept.
    reads.clear()
    small = dataclasses.replace(vision, max_pixels=vision.min_pixels)
    with make(shards, tokenizer, small) as loader, make(shards, tokenizer, vision) as usual:
        assert reads == []
        assert columns(loader)[0] == columns(usual)[0]
        assert columns(loader)[1] != columns(usual)[1]


def test_a_damaged_file_is_measured_again(folder, reads, shards, tokenizer, vision):
    with make(shards, tokenizer, vision) as first:
        want = columns(first)
    [file] = folder.iterdir()
    whole = file.read_bytes()
    cache = Cache.of("lengths")
    table = np.frombuffer(whole[:-24], "<i8").copy()
    table[5] = -1
    damaged = [b"", whole[:-1], whole[:40], bytes([whole[0] ^ 1]) + whole[1:]]
    sound = [b"", whole[16:-24], table.tobytes()]  # their checksum holds, their content does not
    for number, data in enumerate([*damaged, *sound]):
        if number < len(damaged):
            file.write_bytes(data)
        else:
            cache.store(file.name, data)
        reads.clear()
        with make(shards, tokenizer, vision) as loader:
            assert reads
            assert columns(loader) == want
        assert file.read_bytes() == whole


def test_it_can_be_switched_off(folder, reads, shards, tokenizer, vision, monkeypatch):
    make(shards, tokenizer, vision, cache=False).close()
    assert not folder.exists()
    monkeypatch.setenv(ENVIRONMENT, "")
    make(shards, tokenizer, vision).close()
    assert not folder.exists()
    monkeypatch.setenv(ENVIRONMENT, str(folder / "file"))
    folder.mkdir(parents=True)
    (folder / "file").write_text("in the way")
    with pytest.warns(OmrWarning, match=ENVIRONMENT):
        make(shards, tokenizer, vision).close()


def test_ranks_that_start_at_once(folder, shards, tokenizer, vision, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    code = (
        "import json, sys\n"
        "from omr_io import DataLoader, VisionConfig\n"
        "shards, tokenizer, changes = sys.argv[1:]\n"
        "vision = VisionConfig(**json.loads(changes))\n"
        "loader = DataLoader(shards, tokenizer=tokenizer, vision=vision,\n"
        "                    seq_len=160, packs_per_step=4, num_threads=0)\n"
        "print(loader.lengths.digest())\n"
    )
    fields = json.dumps(dataclasses.asdict(vision))
    arguments = [sys.executable, "-c", code, str(shards), str(tmp_path / "tokenizer"), fields]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    printed = {rank.communicate(timeout=120)[0] for rank in ranks}
    with make(shards, tokenizer, vision) as loader:
        assert printed == {loader.lengths.digest().encode() + b"\n"}
    assert len(list(folder.iterdir())) == 1


# Truncation


def test_completions_are_cut_to_fit(shards, tokenizer, vision, records):
    with make(shards, tokenizer, vision, seq_len=4096) as whole:
        tokens = whole.lengths.tokens
        labels = whole.lengths.label_tokens
        untrained_head = int((tokens - labels).max())
        seq_len = int(np.sort(tokens)[-8]) - 3
        assert untrained_head < seq_len
        full = {s.key: s for s in map(whole._encoder.encode, range(len(records)))}
    with pytest.raises(SampleTooLongError):
        make(shards, tokenizer, vision, seq_len=seq_len)
    with make(shards, tokenizer, vision, seq_len=seq_len, truncate="completion") as loader:
        over = np.flatnonzero(tokens > seq_len)
        assert len(over) >= 8
        cut = loader.truncation
        assert cut.samples.tolist() == over.tolist()
        assert cut.tokens.tolist() == (tokens[over] - seq_len).tolist()
        assert cut.label_tokens.tolist() == (tokens[over] - seq_len - 1).tolist()
        assert loader.dropped == 0
        assert loader.lengths.tokens.max() == seq_len
        keys, ids, total = [], [], 0
        for batch in loader:
            keys += [key for pack in batch.keys for key in pack]
            real = batch.input_ids != loader._pad_id
            ids += batch.input_ids[real].tolist()
            total += int((batch.labels != IGNORE_INDEX).sum())
            assert batch.step_label_tokens == batch.num_label_tokens
        assert sorted(keys) == sorted(full)
        assert ids == [i for key in keys for i in full[key].input_ids[:seq_len].tolist()]
        assert total == loader.lengths.label_tokens.sum() == labels.sum() - cut.label_tokens.sum()
        with make(shards, tokenizer, vision, seq_len=seq_len, too_long="drop") as dropping:
            assert dropping.dropped == len(over)
            assert dropping.truncation is None
            with pytest.raises(ValueError, match="lengths"):
                dropping.load_state_dict(loader.state_dict())


def test_a_prompt_that_is_too_long_is_left_to_too_long(shards, tokenizer, vision):
    with make(shards, tokenizer, vision, seq_len=4096) as whole:
        prompts = whole.lengths.tokens - whole.lengths.label_tokens - 1
    seq_len = int(np.sort(prompts)[-4])  # 3 or more prompts alone are longer
    hopeless = int((prompts >= seq_len).sum())
    options = {"seq_len": seq_len, "truncate": "completion"}
    with pytest.raises(SampleTooLongError, match=f"{hopeless} of 37"):
        make(shards, tokenizer, vision, **options)
    with make(shards, tokenizer, vision, too_long="drop", **options) as loader:
        assert loader.dropped == hopeless
        assert sum(batch.num_samples for batch in loader) == 37 - hopeless


def test_an_unknown_way_to_truncate(shards, tokenizer, vision):
    with pytest.raises(ConfigError, match="truncate 'tail'"):
        make(shards, tokenizer, vision, truncate="tail")


def test_truncated_samples_are_those_of_measure(shards, tokenizer, vision):
    with ShardSet.open(shards) as opened:
        chat = ChatFormat.for_family(vision.family, tokenizer)
        with make(opened, tokenizer, vision) as loader:
            assert measure(opened, chat, vision).digest() == loader.lengths.digest()
