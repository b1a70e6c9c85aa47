"""The loader's promises: nothing lost, equal steps, one stream in any layout, exact resume."""

import dataclasses
import gc
import io
import itertools
import json
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from rich.console import Console

from omr_io.chat import ChatFormat
from omr_io.errors import (
    ConfigError,
    DataError,
    FailureBudgetError,
    IntegrityError,
    ResumeError,
    SampleTooLongError,
    SourceError,
    TokenizerError,
)
from omr_io.loader import FailureBudget
from omr_io.ops import PACK
from omr_io.storage import StorageStats
from omr_io.telemetry import LiveLine, LoaderStats
from omr_io.tokenizer import train_bpe
from omr_io.types import IGNORE_INDEX
from tests.loader.loaders import assert_equal, assert_streams_equal, by_step, epochs

SEQ_LEN = 160


@pytest.fixture
def opened(opened_shards):
    return opened_shards


@pytest.fixture
def make(make_loader):
    return make_loader


def test_an_epoch_is_the_whole_corpus_once(make, opened, records):
    loader = make()
    for epoch in range(2):
        assert loader.epoch == epoch
        length = len(loader)
        batches = list(loader)
        assert len(batches) == length == loader.num_steps(epoch + 1) - loader.num_steps(epoch)
        keys = [key for batch in batches for pack in batch.keys for key in pack]
        assert sorted(keys) == sorted(opened.key(i) for i in range(len(opened)))
        assert [(batch.epoch, batch.step) for batch in batches] == [
            (epoch, step) for step in range(length)
        ]
        assert sum(batch.num_images for batch in batches) == sum(len(r.images) for r in records)


def test_batches_hold_what_the_samples_hold(make):
    loader = make()
    for batch in loader:
        numbers = [int(key.removeprefix("study-")) for pack in batch.keys for key in pack]
        encoded = [loader._encoder.encode(number) for number in numbers]
        real = batch.input_ids != loader._pad_id
        expected = np.concatenate([sample.input_ids for sample in encoded])
        np.testing.assert_array_equal(batch.input_ids[real].numpy(), expected)
        assert batch.num_tokens == len(expected)
        labels = batch.labels[batch.labels != IGNORE_INDEX].tolist()
        assert labels == [int(i) for s in encoded for i in s.input_ids[s.trained]]
        assert batch.num_label_tokens == len(labels)
        pixels = [s.pixel_values for s in encoded if s.pixel_values is not None]
        if pixels:
            np.testing.assert_array_equal(batch.pixel_values.numpy(), np.concatenate(pixels))
        assert batch.has_dummy_image == (not pixels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pixels_of_another_dtype_are_the_rounded_ones(make, dtype):
    sorts = set()
    for full, half in zip(make(), make(pixel_dtype=dtype, num_threads=1), strict=True):
        assert full.pixel_values.dtype == torch.float32
        assert half.pixel_values.dtype == dtype
        assert torch.equal(half.pixel_values, full.pixel_values.to(dtype))
        assert torch.equal(half.input_ids, full.input_ids)
        sorts.add(half.has_dummy_image)
    assert False in sorts
    with pytest.raises(ConfigError, match=r"no patches of torch\.float64"):
        make(pixel_dtype=torch.float64)


def test_patches_are_written_where_the_batch_has_them(make):
    """No copy between the resize and the batch: the memory that units fill is the batch's."""
    loader = make(num_threads=0)
    written = []
    encode = loader._encoder.encode_into
    loader._encoder.encode_into = lambda numbers, out: (
        written.append((out.data_ptr(), len(out))),
        encode(numbers, out),
    )[1]
    for batch in loader:
        if not batch.has_dummy_image:
            assert batch.pixel_values.data_ptr() == written[0][0]
            assert len(batch.pixel_values) == sum(rows for _, rows in written)
            assert batch.pixel_values.is_contiguous()
        written.clear()


@pytest.mark.parametrize("packs_per_batch", [1, None])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batches_do_not_depend_on_the_layout(make, world_size, packs_per_batch):
    alone = by_step([make()])
    together = by_step(
        make(rank=rank, world_size=world_size, packs_per_batch=packs_per_batch)
        for rank in range(world_size)
    )
    assert together == alone


def test_label_tokens_of_a_step_are_known_on_every_rank(make):
    counted, planned = {}, {}
    for rank in range(2):
        for batch in make(rank=rank, world_size=2, packs_per_batch=1):
            counted[batch.step] = counted.get(batch.step, 0) + batch.num_label_tokens
            planned.setdefault(batch.step, set()).add(batch.step_label_tokens)
    assert {step: {count} for step, count in counted.items()} == planned


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(make, threads):
    with make(num_threads=threads, prefetch=1) as loader:
        assert_streams_equal(epochs(loader, 2), epochs(make(), 2))


def test_the_decoder_changes_nothing(make):
    pytest.importorskip("nvidia.dali")
    with make(decoder="dali", num_threads=2) as loader:
        assert_streams_equal(loader, make())


# Positions


def test_the_state_is_small_json_and_counts_what_was_yielded(make):
    with make(num_threads=2, prefetch=3) as loader:
        iterator = iter(loader)
        for step in range(3):
            next(iterator)
            state = loader.state_dict()
            assert (state["epoch"], state["step"], state["micro_step"]) == (0, step + 1, 0)
        assert len(json.dumps(state)) < 1024


def test_breaking_off_goes_on_where_it_stopped(make):
    whole = list(make())
    loader = make(num_threads=2)
    parts = []
    for _ in range(3):
        for batch in loader:
            parts.append(batch)
            break
    parts += list(loader)
    assert_streams_equal(parts, whole)
    assert loader.epoch == 1


def test_the_last_batch_of_an_epoch_leads_to_the_next(make):
    loader = make()
    *_, _last = loader
    assert loader.epoch == 1
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert resumed.epoch == 1
    assert_equal(next(iter(resumed)), next(iter(loader)))


def test_set_epoch_moves_only_to_another_epoch(make):
    loader = make()
    next(iter(loader))
    state = loader.state_dict()
    loader.set_epoch(0)
    assert loader.state_dict() == state
    loader.set_epoch(2)
    assert (loader.epoch, loader.state_dict()["step"]) == (2, 0)
    assert {batch.epoch for batch in loader} == {2}
    for wrong in (-1, 1.5, "2", True, None, 2**31):
        with pytest.raises(ConfigError, match="epoch"):
            loader.set_epoch(wrong)
    loader.set_epoch(np.int64(1))
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()
    make().load_state_dict(loader.state_dict())
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ConfigError, match="epochs"):
            loader.num_steps(wrong)


def test_a_new_iteration_ends_the_old_one(make):
    loader = make(num_threads=1)
    old = iter(loader)
    first = next(old)
    new = iter(loader)
    assert next(old, None) is None
    assert next(new).step == first.step + 1
    loader.load_state_dict(make().state_dict())
    assert next(new, None) is None


# States that do not belong


@pytest.fixture
def state(make):
    loader = make()
    next(iter(loader))
    return loader.state_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seq_len": 200}, "seq_len (saved 160, here 200)"),
        ({"packs_per_step": 8}, "packs_per_step (saved 4, here 8)"),
        ({"seed": 1}, "seed (saved 0, here 1)"),
        ({"window": 9}, "window (saved None, here 9)"),
    ],
)
def test_a_state_of_another_plan_is_refused(make, state, change, named):
    with pytest.raises(ResumeError) as caught:
        make(**change).load_state_dict(state)
    assert named in str(caught.value)
    assert "corpus" not in str(caught.value)


def test_a_state_of_another_corpus_vision_tokenizer_or_chat_is_refused(
    make, state, write_shards, make_records, vision, tokenizer
):
    others = {
        "corpus": {"shards": write_shards(make_records(30))},
        "vision": {"vision": dataclasses.replace(vision, image_mean=(0.4, 0.5, 0.5))},
        "tokenizer": {"tokenizer": train_bpe(["another text, another text"], vocab_size=290)},
        "chat": {"chat": ChatFormat(tokenizer, system="Be brief.")},
    }
    for name, change in others.items():
        with make(seq_len=700, **change) as loader, pytest.raises(ResumeError) as caught:
            loader.load_state_dict(state)
        assert f"{name} (saved" in str(caught.value)


def test_a_state_inside_a_step_needs_the_same_layout(make):
    loader = make(packs_per_batch=2)
    iterator = iter(loader)
    next(iterator)
    inside = loader.state_dict()
    assert inside["micro_step"] == 1
    for options in ({}, {"packs_per_batch": 1}, {"rank": 0, "world_size": 2}):
        with pytest.raises(ResumeError, match="inside an optimiser step"):
            make(**options).load_state_dict(inside)
    next(iterator)
    make(rank=1, world_size=2).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"step": -1},
        {"step": "3"},
        {"step": True},
        {"step": 10_000},
        {"micro_step": 1},
        {"epoch": 2**40},
        {"fingerprint": None},
        {"layout": 3},
    ],
)
def test_a_state_that_is_none(make, state, change):
    loader = make()
    with pytest.raises(ResumeError):
        loader.load_state_dict(state | change)
    for nothing in ({}, None, [], "state", 3):
        with pytest.raises(ResumeError, match="state"):
            loader.load_state_dict(nothing)
    assert loader.state_dict()["step"] == 0


# Bad samples


@pytest.fixture(scope="module")
def bad_shards(write_shards, make_records):
    return write_shards(make_records(37, broken=(1, 3, 20)))


@pytest.mark.parametrize("threads", [0, 2])
def test_bad_images_do_not_disturb_the_plan(make, bad_shards, threads):
    with make(shards=bad_shards, num_threads=threads) as loader:
        batches = list(epochs(loader, 2))
        assert sorted(failure.key for failure in loader.quarantine) == [
            "study-1",
            "study-20",
            "study-3",
        ]
        assert {failure.shard for failure in loader.quarantine} == {
            "train-000000.tar",
            "train-000002.tar",
        }
        assert loader.stats().failures == 6
        plan_tokens = 2 * int(loader.lengths.tokens.sum())
    assert sum(batch.num_tokens for batch in batches) == plan_tokens
    for batch in batches:
        bad = {failure.key for failure in batch.failures}
        flat = [(row, key) for row, keys in enumerate(batch.keys) for key in keys]
        bounds = itertools.pairwise(batch.cu_seqlens.tolist())
        segments = iter([pair for pair in bounds if not is_padding(batch, pair, loader._pad_id)])
        for _, key in flat:
            start, stop = next(segments)
            labels = batch.labels.view(-1)[start:stop]
            assert (labels == IGNORE_INDEX).all().item() == (key in bad)
    missing = sum(batch.step_label_tokens - batch.num_label_tokens for batch in batches)
    assert missing == 2 * int(loader.lengths.label_tokens[[1, 3, 20]].sum())


def is_padding(batch, pair, pad_id):
    start, stop = pair
    return bool((batch.input_ids.view(-1)[start:stop] == pad_id).all())


def test_the_failure_budget_stops_the_run(make, bad_shards):
    budget = FailureBudget(count=1, rate=0.0)
    with make(shards=bad_shards, failure_budget=budget, num_threads=2) as loader:
        seen = []
        with pytest.raises(FailureBudgetError) as caught:
            seen.extend(loader)
        assert "2 x image-truncated" in str(caught.value) or "3 x" in str(caught.value)
        assert caught.value.where.key.startswith("study-")
        assert sum(len(batch.failures) for batch in seen) <= 1
        assert loader.state_dict()["step"] == len(seen)
    generous = FailureBudget(count=0, rate=1.0)
    with make(shards=bad_shards, failure_budget=generous) as loader:
        assert len(list(loader)) > 0


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_on_a_thread_reaches_the_consumer(make, write_shards, make_records, threads):
    folder = write_shards(make_records(37))
    with make(shards=folder, num_threads=threads) as loader:
        with (folder / "train-000001.tar").open("r+b") as file:
            file.truncate(600)
        seen = []
        with pytest.raises(IntegrityError) as caught:
            seen.extend(loader)
        assert "train-000001.tar" in str(caught.value)
        assert "epoch 0, step" in "".join(caught.value.__notes__)
        assert loader.state_dict()["step"] == len(seen)
        assert not loader_threads()


# Threads


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("omr-io-loader")]


def test_no_thread_outlives_an_iteration(make):
    loader = make(num_threads=3)
    for _ in loader:
        assert loader_threads()
        break
    gc.collect()
    assert not loader_threads()
    with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012
        for _ in loader:
            raise RuntimeError("mine")
    gc.collect()
    assert not loader_threads()
    with make(num_threads=3) as inside:
        held = iter(inside)
        next(held)
        assert loader_threads()
    assert not loader_threads()
    assert next(held, None) is None


# Counts and options


@pytest.mark.parametrize("threads", [0, 2])
def test_stats(make, opened, threads):
    loader = make(num_threads=threads, packs_per_batch=2)
    assert loader.stats() == LoaderStats(decoder="cpu")
    batches = list(loader)
    stats = loader.stats()
    assert stats.batches == len(batches)
    assert stats.steps == len({batch.step for batch in batches})
    assert stats.samples == 37
    assert stats.tokens == int(loader.lengths.tokens.sum())
    assert stats.label_tokens == int(loader.lengths.label_tokens.sum())
    assert stats.efficiency == make().plan.window(0).efficiency
    size = sum(part.size for i in range(len(opened)) for part in opened.parts(i))
    assert stats.bytes_read == size
    assert 0 < stats.wait_share <= 1
    assert 0 < stats.p50_wait <= stats.p99_wait <= stats.waited_seconds
    assert stats.images_per_second > 0
    assert (stats.queue_batches, stats.queue_bytes, stats.quarantined) == (0, 0, 0)


def test_the_queue_is_seen_while_it_fills(make):
    with make(num_threads=2, prefetch=3) as loader:
        for _ in loader:
            deadline = time.monotonic() + 200
            while loader.stats().queue_batches < 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            stats = loader.stats()
            assert 3 <= stats.queue_batches <= 5
            assert stats.queue_bytes > stats.queue_batches * 4 * SEQ_LEN * 64
            break


def test_what_the_storage_says_is_in_the_stats(make, opened, monkeypatch):
    said = StorageStats(fetched_bytes=5, cache_hits=4)
    monkeypatch.setattr(opened, "storage_stats", lambda: said)
    assert make().stats().storage == said


def test_a_live_line_moves_with_the_batches(make):
    out = io.StringIO()
    loader = make()
    line = LiveLine(loader, Console(file=out, force_terminal=True, width=200))
    with loader.live(line) as shown:
        assert shown is line
        count = len(list(loader))
    assert f"epoch 1: {count} steps" in out.getvalue()
    seen = out.getvalue()
    next(iter(loader))
    assert out.getvalue() == seen


@pytest.mark.parametrize("threads", [0, 2])
def test_a_line_that_cannot_be_written_loses_no_batch(make, threads):
    """Standard error may be a pipe that was closed; who catches that goes on with all batches."""
    expected = [batch.keys for batch in make()]

    class Broken:
        def update(self):
            if next(updates) == 2:
                raise BrokenPipeError

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    updates, seen = itertools.count(), []
    with make(num_threads=threads) as loader, loader.live(Broken()):
        with pytest.raises(BrokenPipeError):
            seen.extend(batch.keys for batch in loader)
        assert len(seen) == 2
        assert loader.state_dict()["step"] * loader.micro_steps == 2
        seen += [batch.keys for batch in loader]
    assert seen == expected


def test_only_the_consumer_holds_a_batch(make):
    """So its memory is free when the consumer lets it go, and not a batch later."""
    with make(num_threads=1) as loader:
        stream = iter(loader)
        batch = next(stream)
        pixels = weakref.ref(batch.pixel_values)
        del batch
        assert pixels() is None


def test_the_pixels_of_a_batch_stay_while_anything_of_it_is_seen(make, vision):
    """Images of several MB, so that buffers are lent again and again."""
    large = dataclasses.replace(vision, min_pixels=512 * 512, max_pixels=640 * 640)
    options = {"vision": large, "seq_len": 900, "packs_per_step": 1, "num_threads": 2}
    with make(**options) as loader, make(**options | {"num_threads": 0}) as other:
        kept = [
            (batch.pixel_values[1::7, 3], batch.pixel_values[1::7, 3].clone()) for batch in loader
        ]
        expected = [batch.pixel_values[1::7, 3].clone() for batch in other]
        assert loader._maker.buffers.num_idle <= 6
    assert len(kept) == len(expected) > 12
    for (seen, copy), wanted in zip(kept, expected, strict=True):
        assert torch.equal(seen, wanted)
        assert torch.equal(copy, wanted)


# Storage


@pytest.mark.parametrize("threads", [0, 2])
def test_storage_is_told_in_plan_order_what_will_be_read(make, opened, monkeypatch, threads):
    told, read = [], []
    read_record = opened.read_record
    monkeypatch.setattr(opened, "will_read", lambda numbers, **more: told.append(list(numbers)))
    monkeypatch.setattr(
        opened, "read_record", lambda i, images=True: (read.append(i), read_record(i, images))[1]
    )
    with make(num_threads=threads, prefetch=1) as loader:
        told.clear()
        read.clear()
        batches = []
        for batch in loader:
            batches.append([int(k.removeprefix("study-")) for pack in batch.keys for k in pack])
            # Ahead of the batches that are begun, and not without end.
            assert len(batches) <= len(told) <= len(batches) + 1 + threads + 1 + 5
            assert set(read) <= {number for numbers in told for number in numbers}
        assert told == batches
    assert sorted(read) == list(range(37))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_remote_storage_stops_with_its_exit_code(make, opened, monkeypatch, threads):
    read_record = opened.read_record

    def read(i, images=True):
        if i == 20 and images:
            raise SourceError("404 for https://host/train-000002.tar", mend="Check the URL")
        return read_record(i, images)

    monkeypatch.setattr(opened, "read_record", read)
    with make(num_threads=threads) as loader:
        seen = []
        with pytest.raises(SourceError, match="404") as caught:
            seen.extend(loader)
        assert caught.value.exit_code == 3
        assert f"epoch 0, step {len(seen)}, micro step 0 on rank 0" in caught.value.__notes__[0]
        assert loader.quarantine == []
        assert loader.state_dict()["step"] == len(seen)


def test_samples_longer_than_seq_len(make):
    tokens = make().lengths.tokens
    limit = int(np.sort(tokens)[-3])
    over = tokens > limit
    with pytest.raises(SampleTooLongError) as caught:
        make(seq_len=limit)
    assert f"{over.sum()} of 37 samples" in str(caught.value)
    assert f"study-{int(np.argmax(over))} (" in str(caught.value)
    loader = make(seq_len=limit, too_long="drop")
    assert loader.dropped == over.sum()
    assert sum(batch.num_samples for batch in loader) == 37 - over.sum()


@pytest.mark.parametrize("implementation", sorted(PACK))
def test_implementations_make_the_same_stream(make, implementation):
    if implementation == "triton":
        kernel = pytest.importorskip("omr_io.kernels.pack")
        if not hasattr(kernel.pack_kernel, "rewriter"):  # the interpreter's form has one
            pytest.skip("needs TRITON_INTERPRET=1")
    assert_streams_equal(make(), make(implementation=implementation))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packs_per_step": 0}, "packs_per_step"),
        ({"rank": 0, "world_size": 3}, "multiple of world_size 3"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"rank": 1}, "both rank and world_size"),
        ({"packs_per_batch": 3}, "packs_per_batch 3"),
        ({"num_threads": -1}, "num_threads"),
        ({"prefetch_bytes": -1}, "prefetch_bytes"),
        ({"window": 0}, "window"),
        ({"truncate": "prompt"}, "truncate"),
        ({"decoder": "abacus"}, "abacus"),
        ({"implementation": "abacus"}, "abacus"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device is here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        ({"tokenizer": None}, "no tokenizer"),
        ({"too_long": "cut"}, "too_long"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_options_that_cannot_be_right(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": ["a", "b"]}, r"shards is a list\. .*Blend\(\[Source"),
        ({"shards": None}, "shards is a NoneType"),
        ({"vision": {"patch_size": 14}}, r"vision is a dict\. .*VisionConfig"),
        ({"vision": None}, "vision is a NoneType"),
        ({"seq_len": "160"}, r"seq_len is a str \('160'\)\. Give a whole number"),
        ({"seq_len": 160.0}, r"seq_len is a float \(160.0\)"),
        ({"seq_len": None}, "seq_len is a NoneType"),
        ({"packs_per_step": 2.5}, "packs_per_step is a float"),
        ({"seed": None}, "seed is a NoneType"),
        ({"seed": "7"}, "seed is a str"),
        ({"num_threads": True}, "num_threads is a bool"),
        ({"num_threads": "2"}, "num_threads is a str"),
        ({"prefetch": 1.5}, "prefetch is a float"),
        ({"prefetch_bytes": 1e9}, "prefetch_bytes is a float"),
        ({"rank": "0", "world_size": 1}, "rank is a str"),
        ({"rank": 0, "world_size": 1.0}, "world_size is a float"),
        ({"packs_per_batch": "all"}, "packs_per_batch is a str"),
        ({"window": 1e5}, "window is a float"),
        ({"tokenizer": 3}, "tokenizer is a int"),
        ({"chat": "qwen"}, r"chat is a str \('qwen'\)\. .*ChatFormat"),
        ({"decoder": None}, r"decoder is a NoneType\. .*nvimgcodec"),
        ({"decoder": object()}, "decoder is a object"),
        ({"too_long": ["drop"]}, "too_long is a list"),
        ({"truncate": None}, "truncate is a NoneType"),
        ({"cache": "/tmp/cache"}, r"cache is a str.*OMR_IO_CACHE_DIR"),
        ({"remote": {"cache": None}}, "remote is a dict.*RemoteOptions"),
        ({"failure_budget": 3}, r"failure_budget is a int \(3\)\. .*FailureBudget"),
        ({"device": 0}, r"device is a int \(0\)\. .*cuda"),
        ({"device": "gpu"}, "device 'gpu' is none that torch knows"),
        ({"implementation": ["cpu"]}, "implementation is a list"),
        ({"pixel_dtype": "bfloat16"}, r"pixel_dtype is a str.*torch\.bfloat16"),
        ({"pixel_dtype": np.float32}, "pixel_dtype is a type"),
        ({"pixel_dtype": torch.float64}, "no patches of torch.float64"),
        ({"pin_memory": 1}, "pin_memory is a int"),
        pytest.param(
            {"pin_memory": True},
            "pin_memory, but no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        ({"samples": 3}, r"samples is a int \(3\)\. .*np\.arange"),
        ({"samples": "1,2"}, "samples is a str"),
        ({"samples": {1, 2}}, "samples is a set"),
        ({"samples": [1.0, 2.0]}, "samples has float64"),
        ({"samples": ["a"]}, "samples has <U1"),
        ({"samples": [[1, 2], [3]]}, "samples is a list"),
        ({"samples": [[1, 2], [3, 4]]}, r"of shape \(2, 2\)"),
        ({"samples": [True, False]}, r"samples has bool.*flatnonzero"),
        ({"samples": [2**64]}, "samples has "),
        ({"samples": [2**63]}, "samples has "),
        ({"samples": [1, 37]}, "outside 0 to 36"),
        ({"samples": [-1]}, "outside 0 to 36"),
        ({"samples": [3, 3]}, "twice"),
    ],
)
def test_arguments_of_another_type_say_what_to_give(make, options, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        make(**options)


@pytest.mark.parametrize(
    "kind",
    [
        list, tuple, torch.tensor, lambda numbers: np.array(numbers, np.uint16),
        lambda numbers: np.array(numbers, np.int32), lambda numbers: range(3, 15, 4),
        lambda numbers: [np.int64(number) for number in numbers],
    ],
)  # fmt: skip
def test_samples_of_any_kind_of_row(make, opened, kind):
    numbers = [3, 7, 11]
    loader, wanted = make(samples=kind(numbers)), make(samples=np.array(numbers))
    assert loader.state_dict() == wanted.state_dict()
    assert_streams_equal(loader, wanted)
    keys = [key for batch in loader for pack in batch.keys for key in pack]
    assert sorted(keys) == sorted(opened.key(i) for i in numbers)


def test_no_samples_at_all(make):
    with pytest.raises(DataError, match="no sample"):
        make(samples=[])


def test_numpy_s_numbers_are_numbers(make):
    numbers = {"seq_len": 160, "packs_per_step": 4, "seed": 3, "window": 9, "packs_per_batch": 2}
    loader = make(**{name: np.int64(value) for name, value in numbers.items()})
    assert json.loads(json.dumps(loader.state_dict())) == make(**numbers).state_dict()
    assert_streams_equal(loader, make(**numbers))


def test_a_chat_of_another_tokenizer(make, tokenizer):
    other = train_bpe(["something else, something else"], vocab_size=290)
    with pytest.raises(ConfigError, match="another tokenizer"):
        make(chat=ChatFormat(other))
    assert len(make(chat=ChatFormat(tokenizer), tokenizer=None)) == len(make())


def test_paths_that_lead_nowhere(make, tmp_path):
    with pytest.raises(SourceError):
        make(shards=tmp_path / "nothing")
    with pytest.raises(TokenizerError, match="nothing"):
        make(tokenizer=tmp_path / "nothing")


def test_budgets_that_cannot_be_right():
    for options in ({"count": -1}, {"rate": 1.5}):
        with pytest.raises(ConfigError):
            FailureBudget(**options)


def test_a_process_of_many_that_does_not_know_it(make, monkeypatch):
    """Before init_process_group every rank would take itself for the only one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="each of these processes would read all samples"):
        make()
    assert make(rank=1, world_size=2).rank == 1
    assert make(rank=0, world_size=1).world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make().world_size == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 8}, r"seed \(rank 0 3, rank 1 8\)"),
        ({"samples": np.arange(36)}, "samples .*rank 1"),
        ({"window": 9}, r"window \(rank 0 None, rank 1 9\)"),
        ({"packs_per_batch": 1}, "packs_per_batch"),
        ({"world_size": 4}, "world_size"),
        ({"seq_len": 200, "seed": 1, "window": 5, "packs_per_step": 8}, r"corpus|seq_len .*more"),
    ],
)
def test_ranks_that_do_not_share_one_plan(make, change, what):
    options = {"seed": 3, "world_size": 2}
    first, second = make(rank=0, **options), make(rank=1, **options)
    first.check_ranks([first.state_dict(), second.state_dict()])
    other = make(rank=1, **options | change)
    with pytest.raises(ConfigError, match=what):
        first.check_ranks([first.state_dict(), other.state_dict()])
    with pytest.raises(ConfigError, match="1 states of 2 ranks"):
        first.check_ranks([first.state_dict()])
    next(iter(second))  # one that was resumed, and one that was not
    with pytest.raises(ConfigError, match=r"step \(rank 0 0, rank 1 1\)"):
        first.check_ranks([first.state_dict(), second.state_dict()])


def test_ranks_with_other_copies_of_a_set(make, write_shards, make_records):
    records = make_records(20)
    loaders = [
        make(shards=write_shards(records[:count]), rank=rank, world_size=2)
        for rank, count in enumerate((20, 19))
    ]
    with pytest.raises(ConfigError, match=r"corpus .*lengths"):
        loaders[1].check_ranks([loader.state_dict() for loader in loaders])
    for loader in loaders:
        loader.close()


def test_what_is_refused_leaves_nothing_open(make, write_shards, make_records, monkeypatch):
    """Folders' descriptors, a URL's threads, a decoder's handle."""
    from omr_io.images.decode import CpuDecoder
    from omr_io.index import ShardSet

    folder, closed = write_shards(make_records(9)), []
    monkeypatch.setattr(ShardSet, "close", lambda self: closed.append("set"))
    monkeypatch.setattr(CpuDecoder, "close", lambda self: closed.append("decoder"))
    with pytest.raises(SampleTooLongError):
        make(shards=folder, seq_len=4)
    assert closed == ["decoder", "set"]
    del closed[:]
    with pytest.raises(SampleTooLongError), ShardSet.open(folder) as given:
        make(shards=given, seq_len=4, decoder=CpuDecoder())
    assert closed == ["set"]  # what the caller gave is the caller's to close


def test_the_world_of_torch_distributed(make, tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        loader = make()
        assert (loader.rank, loader.world_size) == (0, 1)
    finally:
        dist.destroy_process_group()
