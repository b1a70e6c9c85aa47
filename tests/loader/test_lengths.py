"""Lengths that are kept between runs, and completions that are cut to fit seq_len."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rich.console

from omr_io import sample_set
from omr_io.blend import JoinedSets
from omr_io.cache import ENVIRONMENT, Cache
from omr_io.chat import ChatFormat
from omr_io.errors import ConfigError, ImageError, IntegrityError, OmrWarning, SampleTooLongError
from omr_io.images import image_grid_thw
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader import lengths as lengths_module
from omr_io.loader.lengths import check_image_sizes, measure
from omr_io.loader.samples import SampleEncoder
from omr_io.tokenizer import train_bpe
from omr_io.types import IGNORE_INDEX
from tests import shard_sets


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
    assert file.stat().st_size == 8 * len(records) + 24


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
    table = np.frombuffer(whole[:-24], "<i4").copy()
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


MEASURING = """
import json, os, sys, time
from pathlib import Path
from omr_io import ShardSet, VisionConfig
from omr_io.cache import Cache
from omr_io.chat import ChatFormat
from omr_io.loader.lengths import measure
from omr_io.tokenizer import Tokenizer

shards, tokenizer, changes, ready, ranks = sys.argv[1:]
vision = VisionConfig(**json.loads(changes))
chat = ChatFormat.for_family(vision.family, Tokenizer.from_pretrained(tokenizer))
real, count = ShardSet.read_record, 0

def read_record(self, number, **options):
    global count
    count += 1
    (Path(ready) / f"reading-{os.getpid()}").touch()
    while not (Path(ready) / "go").exists():
        time.sleep(0.005)
    return real(self, number, **options)

ShardSet.read_record = read_record
opened = ShardSet.open(shards)
(Path(ready) / f"ready-{os.getpid()}").touch()
while len(list(Path(ready).glob("ready-*"))) < int(ranks):
    time.sleep(0.001)
lengths = measure(opened, chat, vision, Cache.of("lengths"))
print(lengths.digest(), count)
"""


@pytest.fixture
def ranks(folder, shards, tokenizer, vision, tmp_path):
    """A function: how many -> as many processes that begin to measure at the same time."""
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "ready").mkdir()
    fields = json.dumps(dataclasses.asdict(vision))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = []

    def start(count: int) -> list[subprocess.Popen]:
        arguments = [sys.executable, "-c", MEASURING, str(shards), str(tmp_path / "tokenizer")]
        arguments += [fields, str(tmp_path / "ready"), str(count)]
        for _ in range(count):
            started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_of_ranks_that_start_at_once_one_measures(
    ranks, folder, shards, tokenizer, vision, records, tmp_path
):
    (tmp_path / "ready" / "go").touch()
    printed = [rank.communicate(timeout=600)[0].decode().split() for rank in ranks(3)]
    with make(shards, tokenizer, vision) as loader:
        assert {digest for digest, _ in printed} == {loader.lengths.digest()}
    assert sorted(int(reads) for _, reads in printed) == [0, 0, len(records)]
    assert len(list(folder.iterdir())) == 1


def test_a_rank_that_dies_while_it_measures_is_replaced(ranks, tmp_path, folder, records):
    processes = ranks(2)
    deadline = time.monotonic() + 300
    while not (reading := list((tmp_path / "ready").glob("reading-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    [pid] = [int(file.name.removeprefix("reading-")) for file in reading]
    [victim] = [process for process in processes if process.pid == pid]
    [other] = [process for process in processes if process.pid != pid]
    victim.kill()
    (tmp_path / "ready" / "go").touch()
    assert other.communicate(timeout=600)[0].decode().split()[1] == str(len(records))
    assert victim.wait() == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 1


# Several sets


def test_joined_sets_are_measured_and_kept_one_by_one(
    folder, reads, shards, write_shards, make_records, tokenizer, vision
):
    chat = ChatFormat.for_family(vision.family, tokenizer)
    cache = Cache.of("lengths")
    other = write_shards(make_records(12))
    with ShardSet.open(shards) as a, ShardSet.open(other) as b:
        parts = [measure(a, chat, vision, cache), measure(b, chat, vision)]
        reads.clear()
        joined = JoinedSets(["a", "b"], [a, b])
        first = measure(joined, chat, vision, cache)
        assert sorted(reads) == list(range(12))  # only what was added is read
        assert len(list(folder.iterdir())) == 2
        reads.clear()
        again = measure(JoinedSets(["x", "y", "z"], [b, a, b]), chat, vision, cache)
        assert reads == []
        for field in dataclasses.fields(first):
            one, two = (getattr(part, field.name).tolist() for part in parts)
            assert getattr(first, field.name).tolist() == one + two
            assert getattr(again, field.name).tolist() == two + one + two
        encoder = SampleEncoder(joined, chat, vision, make_decoder("cpu", vision), first)
        for number in range(len(joined)):  # checks each against its length
            assert encoder.encode(number).key == joined.key(number)


def test_a_text_that_cannot_be_measured_is_named_with_its_set(
    write_shards, make_records, tokenizer, vision
):
    chat = ChatFormat.for_family(vision.family, tokenizer)
    sound, broken = write_shards(make_records(5)), write_shards(make_records(6))
    for tar in broken.glob("*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    where = r"shard broken/.*key broken/study-0"
    with ShardSet.open(sound) as a, ShardSet.open(broken) as b:
        joined = JoinedSets(["sound", "broken"], [a, b])
        with pytest.raises(IntegrityError, match=where):
            measure(joined, chat, vision)


# What is shown, told and refused


def test_progress_is_told(shards, tokenizer, vision, monkeypatch, records):
    monkeypatch.setattr(lengths_module, "_TELL_SECONDS", 0.0)
    chat = ChatFormat.for_family(vision.family, tokenizer)
    told = []
    with ShardSet.open(shards) as opened:
        measure(opened, chat, vision, progress=lambda *values: told.append(values))
    assert told[0] == ("counting tokens", 0, 37, "0 of 37 texts")


def test_what_takes_long_is_shown_on_standard_error(
    shards, tokenizer, vision, monkeypatch, records
):
    import omr_io.terminal

    monkeypatch.setattr(lengths_module, "_TELL_SECONDS", 0.0)
    chat = ChatFormat.for_family(vision.family, tokenizer)
    shown = []

    class Console(rich.console.Console):
        def __init__(self):
            shown.append(io.StringIO())
            super().__init__(file=shown[-1], force_terminal=True, width=200)

    monkeypatch.setattr(omr_io.terminal, "standard_error", Console)
    with ShardSet.open(shards) as opened:
        measure(opened, chat, vision)
        assert shown == []  # it takes no 2 seconds
        monkeypatch.setattr(lengths_module, "_QUIET_SECONDS", 0.0)
        measure(opened, chat, vision)
    assert len(shown) == 1
    assert "counting tokens" in shown[0].getvalue()
    assert "of 37 texts" in shown[0].getvalue()


def test_remote_storage_is_told_of_texts_alone(
    shards, tokenizer, vision, monkeypatch, reads, records
):
    monkeypatch.setattr(sample_set, "_AHEAD", 8)
    chat = ChatFormat.for_family(vision.family, tokenizer)
    told = []

    def will_read(self, numbers, images=True):
        assert not images
        told.extend(numbers)
        if told[-1] < 36:
            assert told[-1] >= len(reads) + 7  # always ahead of what is read

    monkeypatch.setattr(ShardSet, "will_read", will_read)
    with ShardSet.open(shards) as opened:
        measure(opened, chat, vision)
    assert told == list(range(37))


def test_images_that_no_model_takes(tokenizer, vision, tmp_path):
    chat = ChatFormat.for_family(vision.family, tokenizer)
    pair = [shard_sets.encoded(n) for n in range(2)]
    shard_sets.write(tmp_path / "set", [shard_sets.record(n, pair) for n in range(5)])
    with ShardSet.open(tmp_path / "set") as opened:
        # Our conversion refuses such images; a set of another program's shards may have them.
        opened.image_widths = opened.image_widths.copy()
        opened.image_heights = opened.image_heights.copy()
        for sample, (width, height) in {1: (408, 2), 3: (1, 300)}.items():
            opened.image_widths[2 * sample] = width
            opened.image_heights[2 * sample] = height
        with pytest.raises(ImageError, match=r"408x2.*as do 1 more") as caught:
            measure(opened, chat, vision)
        assert caught.value.reason == "image-too-narrow"
        assert caught.value.where.key == opened.key(1)
        lengths = measure(opened, chat, vision, check_images=False)
        with pytest.raises(ImageError, match="1x300"):
            check_image_sizes(opened, np.array([0, 2, 3, 4]))
        check_image_sizes(opened, np.array([4, 0, 2, 2]))
        sound = [image_grid_thw(opened.images(n), vision) for n in (0, 2, 4)]
        assert lengths.patches[[0, 2, 4]].tolist() == [int(g.prod(axis=1).sum()) for g in sound]
        one = int(image_grid_thw(opened.images(1)[1:], vision).prod())
        assert lengths.patches[[1, 3]].tolist() == [one, one]
        assert (lengths.image_tokens == lengths.patches // vision.merge_size**2).all()


def test_an_image_that_no_model_takes_is_named_with_its_set(
    shards, write_shards, make_records, tokenizer, vision
):
    chat = ChatFormat.for_family(vision.family, tokenizer)
    with ShardSet.open(shards) as a, ShardSet.open(write_shards(make_records(9))) as b:
        b.image_widths = np.where(np.arange(len(b.image_widths)) == 4, 1, b.image_widths)
        b.image_heights = np.where(np.arange(len(b.image_heights)) == 4, 999, b.image_heights)
        joined = JoinedSets(["a", "b"], [a, b])
        sample = len(a) + int(np.searchsorted(b.image_offsets, 4, side="right")) - 1
        with pytest.raises(ImageError, match="1x999") as caught:
            measure(joined, chat, vision)
        where = caught.value.where
        assert (where.shard, where.key) == (joined.shard(sample), joined.key(sample))
        check_image_sizes(joined, np.arange(sample))
        with pytest.raises(ImageError, match="1x999"):
            check_image_sizes(joined, np.array([sample]))


def test_image_lengths_are_made_in_blocks(shards, tokenizer, vision, monkeypatch):
    chat = ChatFormat.for_family(vision.family, tokenizer)
    with ShardSet.open(shards) as opened:
        whole = measure(opened, chat, vision)
        for block in (1, 7, 36, 37):
            monkeypatch.setattr(lengths_module, "_BLOCK", block)
            assert measure(opened, chat, vision).digest() == whole.digest()


def test_hugging_face_tokenizers_is_not_imported_for_its_version():
    code = "import sys, omr_io.loader.lengths; print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


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
