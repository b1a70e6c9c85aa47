"""Encoded samples equal the loader's; what is bad is counted, and never lost in silence."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from omr_io import stages
from omr_io.batches import Failure
from omr_io.chat import ChatFormat
from omr_io.errors import (
    ConfigError,
    DataError,
    FailureBudgetError,
    ImageError,
    SourceError,
)
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import FailureBudget
from omr_io.loader.lengths import measure
from omr_io.loader.samples import SampleEncoder
from omr_io.types import EncodedImage, Refusal
from tests.shard_sets import encoded, record
from tests.stages.streams import as_sample, samples


@pytest.fixture(scope="module")
def make(tokenizer, vision):
    """A function: options → the stage."""

    def build(**options):
        return stages.encode(**({"tokenizer": tokenizer, "vision": vision} | options))

    return build


@pytest.fixture(scope="module")
def broken(make_records, write_shards):
    """The folder of 12 samples; the last images of 8 (it has two) and 9 are cut short."""
    return write_shards(make_records(12, broken=(8, 9)))


def loaders_samples(shards, tokenizer, vision, **options):
    chat = ChatFormat.for_family("qwen3_vl", tokenizer)
    with ShardSet.open(shards) as opened:
        lengths = measure(opened, chat, vision)
        decoder = make_decoder("cpu", vision)
        encoder = SampleEncoder(opened, chat, vision, decoder, lengths, **options)
        return encoder.encode_many(range(len(opened)))


def assert_same(one, other):
    assert one.key == other.key
    assert one.failure == other.failure
    for name in ("input_ids", "trained", "image_grid_thw", "pixel_values"):
        left, right = getattr(one, name), getattr(other, name)
        if right is None:
            assert left is None
        else:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("together", [1, 8, 100])
@pytest.mark.parametrize("pixel_dtype", [torch.float32, torch.bfloat16])
def test_samples_equal_the_loaders(make, shards, tokenizer, vision, together, pixel_dtype):
    expected = loaders_samples(shards, tokenizer, vision, pixel_dtype=pixel_dtype)
    stage = make(together=together, pixel_dtype=pixel_dtype)
    found = list(stage(samples(shards)))
    assert len(found) == len(expected) == 37
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
        assert one.lost == ()
    assert {one.shard for one in found} == {f"train-{i:06d}.tar" for i in range(4)}
    assert stage.failures == []


def test_any_decoder_gives_the_same(make, broken):
    pytest.importorskip("nvidia.dali")
    for one, other in zip(
        make(decoder="dali")(samples(broken)), make()(samples(broken)), strict=True
    ):
        assert_same(one, other)


def test_a_blank_is_the_loaders(make, broken, tokenizer, vision):
    expected = loaders_samples(broken, tokenizer, vision)
    stage = make()
    found = list(stage(samples(broken)))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    failed = [one for one in found if one.failure is not None]
    assert len(failed) == 2
    assert all(not one.trained.any() for one in failed)
    assert stage.failures == [Failure(one.shard, one.key, one.failure) for one in failed]


def test_skipped_samples_travel_with_the_next_and_the_last(make, make_records):
    records = make_records(6, broken=(0, 1, 3, 5))  # all but 2 and 4; 2 has no image
    whole = [as_sample(one, f"k{i}", endings(one)) for i, one in enumerate(records)]
    stage = make(on_bad="skip", together=2)
    found = list(stage(whole))
    lost = {one.key: [failure.key for failure in one.lost] for one in found}
    assert lost == {"k2": ["k0", "k1"], "k4": ["k3", "k5"]}
    assert [failure.key for failure in stage.failures] == ["k0", "k1", "k3", "k5"]
    assert all(failure.reason.startswith("image-") for failure in stage.failures)
    assert all(failure.shard == "test-000000.tar" for failure in stage.failures)


def endings(one):
    return tuple("jpg" if image.data[:2] == b"\xff\xd8" else "png" for image in one.images)


@pytest.mark.parametrize("on_bad", ["blank", "skip"])
def test_a_text_that_cannot_be_read_is_left_out_and_counted(make, on_bad):
    sound = [as_sample(record(i, [encoded(i)]), f"k{i}", ("jpg",)) for i in range(5)]
    sound[1]["json"] = sound[1]["json"][:-5]
    del sound[2]["json"]
    sound[4]["png"] = sound[4]["jpg"]  # an image that the JSON does not name
    stage = make(on_bad=on_bad)
    found = list(stage(sound))
    assert [one.key for one in found] == ["k0", "k3"]
    reasons = {failure.key: failure.reason.partition(":")[0] for failure in stage.failures}
    assert reasons == {"k1": "bad-json", "k2": "missing-text", "k4": "image-count"}


def test_raise_stops_at_the_first_and_says_where(make, broken):
    with pytest.raises(ImageError, match=r"train-000000\.tar.*on_bad") as caught:
        list(make(on_bad="raise")(samples(broken)))
    assert caught.value.where.key == "study-8"
    assert caught.value.reason in ("image-truncated", "image-corrupt")


def test_the_budget_stops_the_run(make, broken):
    with pytest.raises(FailureBudgetError, match="1 of 9 samples failed"):
        list(make(failure_budget=FailureBudget(0, 0.0), together=9)(samples(broken)))
    assert len(list(make(failure_budget=FailureBudget(2, 0.0))(samples(broken)))) == 12


def test_a_stream_of_which_nothing_is_left_is_an_error(make, make_records):
    (bad,) = make_records(1, broken=(0,))
    sample = as_sample(bad, "only", ("jpg",))
    with pytest.raises(DataError, match="none of the stream's 1 samples"):
        list(make(on_bad="skip")([sample]))
    assert list(make()([])) == []


def test_an_image_gets_the_size_of_its_header_or_the_smallest(make, vision):
    cut = encoded(1, size=(64, 96))[:-700]
    found = {}
    for name, data in {"cut": cut, "none": b"", "junk": b"not an image"}.items():
        (one,) = make()([as_sample(record(1, [data]), name, ("jpg",))])
        assert one.failure is not None
        assert not one.trained.any()
        found[name] = one.image_grid_thw.tolist()
        blank = one.pixel_values[0, 0]
        assert (one.pixel_values == blank).all()
    patch = vision.patch_size
    assert found == {
        "cut": [[1, 64 // patch, 96 // patch]],
        "none": [[1, 2, 2]],
        "junk": [[1, 2, 2]],
    }


def test_a_header_that_claims_too_much_costs_a_blank(make):
    huge = bytearray(encoded(1, "PNG"))
    huge[16:24] = (13_000).to_bytes(4, "big") * 2
    (one,) = make()([as_sample(record(1, [bytes(huge)]), "k", ("png",))])
    assert one.failure is not None
    assert one.failure.startswith("image-too-large")
    assert one.image_grid_thw.tolist() == [[1, 6, 6]]


def test_completions_are_cut_and_counted(make, shards, tokenizer, vision):
    whole = list(make()(samples(shards)))
    limit = sorted(len(one.input_ids) for one in whole)[len(whole) // 2]
    stage = make(max_tokens=limit)
    cut = list(stage(samples(shards)))
    expected = loaders_samples(shards, tokenizer, vision)
    changed = 0
    for one, other in zip(cut, expected, strict=True):
        assert len(one.input_ids) == min(len(other.input_ids), limit)
        np.testing.assert_array_equal(one.input_ids, other.input_ids[: len(one.input_ids)])
        changed += len(other.input_ids) - len(one.input_ids)
    assert stage.cut_tokens == changed > 0
    assert stage.cut_samples == sum(len(one.input_ids) > limit for one in whole)


def test_a_sample_that_cannot_be_cut_keeps_its_length(make):
    sample = as_sample(record(1, [encoded(1)]), "k", ("jpg",))
    (whole,) = make()([sample])
    (kept,) = make(max_tokens=5)([sample])
    np.testing.assert_array_equal(kept.input_ids, whole.input_ids)


# Foreign layouts


def caption(sample):
    """A module's function, so that it can be pickled."""
    if sample["txt"] == b"refuse":
        return Refusal("s", 0, sample["__key__"], "no-caption", "it says so")
    image = EncodedImage(sample["jpg"])
    changes = {"question": "What is it?", "reasoning": sample["txt"].decode(), "id": "x"}
    return dataclasses.replace(record(0), images=(image,), **changes)


def captioned(texts):
    return [{"__key__": f"k{i}", "jpg": encoded(i), "txt": text} for i, text in enumerate(texts)]


def test_a_record_function_reads_any_layout(make, tokenizer):
    stage = pickle.loads(pickle.dumps(make(record=caption)))
    found = list(stage(captioned([b"A chest.", b"refuse", b"\xff", b"A knee."])))
    assert [one.key for one in found] == ["k0", "k3"]
    assert tokenizer.decode(found[1].input_ids[found[1].trained]) == "A knee.<|im_end|>"
    first, second = stage.failures
    assert first.reason == "no-caption: it says so"
    assert second.reason.startswith("record: UnicodeDecodeError")
    with pytest.raises(UnicodeDecodeError):
        list(make(record=caption, on_bad="raise")(captioned([b"\xff"])))
    with pytest.raises(ConfigError, match="not a Record"):
        list(make(record=lambda sample: sample)(captioned([b"x"])))


def foreign(count):
    rows = [
        {
            "question": f"Which one, {i}?\nA. left\nB. right",
            "answer": "AB"[i % 2],
            "reasoning": f"<think>So {i}.</think>\n<answer>{'AB'[i % 2]}</answer>",
        }
        for i in range(count)
    ]
    return [
        {"__key__": f"a/{i:03d}", "jpg": encoded(i), "json": json.dumps(row).encode()}
        for i, row in enumerate(rows)
    ]


def test_a_schema_is_recognised_and_travels(make, tokenizer):
    whole = foreign(4)
    read = pickle.loads(pickle.dumps(stages.recognise(whole)))
    whole[2]["json"] = b'{"question": 7}'
    stage = make(record=read)
    found = list(stage(whole))
    assert [one.key for one in found] == ["a/000", "a/001", "a/003"]
    assert "<think>So 3.</think>" in tokenizer.decode(found[2].input_ids[found[2].trained])
    assert [failure.key for failure in stage.failures] == ["a/002"]
    assert read(whole[0]).id == "a/000"


def test_our_own_layout_is_recognised_too(make, shards):
    read = stages.recognise(samples(shards))
    for one, other in zip(make(record=read)(samples(shards)), make()(samples(shards)), strict=True):
        assert_same(one, other)


def test_streams_that_fit_nothing_say_what_to_do(make):
    with pytest.raises(ConfigError, match=r"other fields.*question, answer.*recognise"):
        list(make(on_bad="skip")(foreign(1)))
    with pytest.raises(SourceError, match="no known schema"):
        stages.recognise([{"__key__": "k", "json": b'{"weather": "fine"}'}])
    with pytest.raises(SourceError, match="no sample"):
        stages.recognise([])
    with pytest.raises(ConfigError, match=r"'jpg' is a ndarray, not bytes.*decode"):
        list(make()([{"__key__": "k", "jpg": np.zeros(3), "json": b"{}"}]))
    with pytest.raises(ConfigError, match="__key__"):
        list(make()([{"jpg": b""}]))
    with pytest.raises(ConfigError, match="__key__"):
        list(make()([("jpg", b"")]))


@pytest.mark.parametrize(
    ("url", "shard"),
    [
        ("/data/a/train-000001.tar", "train-000001.tar"),
        ("https://me:secret@host/x/t-1.tar?X-Amz-Signature=secret.tar", "t-1.tar"),
        ("pipe:curl -H 'Authorization: Bearer secret' https://host/t-2.tar.gz", "t-2.tar.gz"),
        ("pipe:aws s3 cp s3://b/t-3.tar - --token secret", "t-3.tar"),
        ("stream", ""),
        (None, ""),
    ],
)
def test_a_shards_name_holds_no_secret(make, make_records, url, shard):
    (bad,) = make_records(1, broken=(0,))
    (one,) = make()([as_sample(bad, "k", ("jpg",)) | {"__url__": url}])
    assert one.shard == shard
    assert one.failure is not None


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"on_bad": "drop"}, "on_bad"),
        ({"together": 0}, "together"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"pixel_dtype": torch.int8}, "int8"),
        ({"decoder": "gif"}, "decoder"),
        ({"tokenizer": None}, "tokenizer"),
    ],
)
def test_options_that_cannot_be_right(make, options, what):
    with pytest.raises(ConfigError, match=what):
        make(**options)
