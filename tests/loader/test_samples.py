"""Samples against Hugging Face's own image processor, and what becomes of bad ones."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from omr_io.chat import ChatFormat
from omr_io.errors import ImageError, IntegrityError
from omr_io.images.decode import make_decoder
from omr_io.images.patches import blank_patches
from omr_io.images.pixel_values import as_tensor
from omr_io.index import ShardSet
from omr_io.loader.lengths import measure
from omr_io.loader.samples import SampleEncoder
from omr_io.packing import Lengths


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatFormat.for_family("qwen3_vl", tokenizer)


@pytest.fixture(scope="module")
def opened(shards):
    with ShardSet.open(shards) as shard_set:
        yield shard_set


def make_encoder(shard_set, chat, vision, decoder="cpu") -> SampleEncoder:
    lengths = measure(shard_set, chat, vision)
    return SampleEncoder(shard_set, chat, vision, make_decoder(decoder, vision), lengths)


@pytest.fixture(scope="module")
def encoder(opened, chat, vision):
    return make_encoder(opened, chat, vision)


def test_pixels_and_tokens_equal_hugging_face(encoder, records, vision, tokenizer, chat):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        image_mean=vision.image_mean,
        image_std=vision.image_std,
    )
    for number, record in enumerate(records):
        sample = encoder.encode(number)
        counts = []
        if record.images:
            images = [Image.open(io.BytesIO(image.data)) for image in record.images]
            expected = processor(images, return_tensors="np")
            np.testing.assert_array_equal(sample.pixel_values, expected["pixel_values"])
            np.testing.assert_array_equal(sample.image_grid_thw, expected["image_grid_thw"])
            counts = (expected["image_grid_thw"].prod(axis=1) // vision.merge_size**2).tolist()
        else:
            assert sample.pixel_values is None
            assert sample.image_grid_thw.shape == (0, 3)
        text = tokenizer.decode(sample.input_ids)
        vision_text = "".join(
            f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts
        )
        assert text == (
            f"<|im_start|>user\n{vision_text}{record.question}<|im_end|>\n"
            f"<|im_start|>assistant\n{record.reasoning}<|im_end|>\n"
        )
        assert tokenizer.decode(sample.input_ids[sample.trained]) == (
            record.reasoning + "<|im_end|>"
        )
        assert sample.failure is None
        assert sample.key == encoder.shard_set.key(number)


def test_measured_lengths_are_those_of_the_samples(encoder, opened):
    lengths = encoder.lengths
    assert len(lengths) == len(opened) == 37
    for number in range(len(opened)):
        sample = encoder.encode(number)
        is_image = sample.input_ids == encoder.chat.image_token_id
        assert lengths.image_tokens[number] == is_image.sum()
        assert lengths.text_tokens[number] == (~is_image).sum()
        assert lengths.label_tokens[number] == sample.trained[1:].sum()
        assert lengths.patches[number] == (
            0 if sample.pixel_values is None else len(sample.pixel_values)
        )


def test_many_at_once_and_dali_give_the_same(encoder, opened, chat, vision):
    pytest.importorskip("nvidia.dali")
    dali = make_encoder(opened, chat, vision, "dali")
    numbers = [5, 3, 2, 11, 3]
    for one, many in zip(map(encoder.encode, numbers), dali.encode_many(numbers), strict=True):
        np.testing.assert_array_equal(one.input_ids, many.input_ids)
        np.testing.assert_array_equal(one.image_grid_thw, many.image_grid_thw)
        if one.pixel_values is not None:
            np.testing.assert_array_equal(one.pixel_values, many.pixel_values)
    dali.decoder.close()


def test_a_prompt_begins_its_training_sample(encoder):
    prompt, sample = encoder.prompt(3), encoder.encode(3)
    count = len(prompt.input_ids)
    np.testing.assert_array_equal(prompt.input_ids, sample.input_ids[:count])
    assert sample.trained[count]
    assert not sample.trained[:count].any()
    assert not prompt.trained.any()
    np.testing.assert_array_equal(prompt.pixel_values, sample.pixel_values)


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_a_bad_image_becomes_a_blank_of_its_planned_size(
    write_shards, make_records, chat, vision, decoder
):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali")
    # 3 has two images, of which only the last is cut short.
    with ShardSet.open(write_shards(make_records(6, broken=(1, 3)))) as shard_set:
        encoder = make_encoder(shard_set, chat, vision, decoder)
        samples = encoder.encode_many(range(6))
        encoder.decoder.close()
    sound = [sample.failure is None for sample in samples]
    assert sound == [True, False, True, False, True, True]
    for number in (1, 3):
        sample = samples[number]
        assert sample.failure.startswith("image-truncated: ")
        assert not sample.trained.any()
        assert len(sample.input_ids) == encoder.lengths.tokens[number]
        blank = blank_patches(sample.image_grid_thw[-1], vision)
        np.testing.assert_array_equal(sample.pixel_values[-len(blank) :], blank)
        assert len(sample.pixel_values) == encoder.lengths.patches[number]
    assert "image 1" in samples[3].failure
    first = samples[3].pixel_values[: -len(blank_patches(samples[3].image_grid_thw[-1], vision))]
    assert len(np.unique(first)) > 100  # the sound image of the pair is still there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_blank_has_the_dtype_of_the_pixels(write_shards, make_records, chat, vision, dtype):
    with ShardSet.open(write_shards(make_records(6, broken=(1, 3)))) as shard_set:
        full = make_encoder(shard_set, chat, vision).encode_many(range(6))
        decoder = make_decoder("cpu", vision)
        half = SampleEncoder(shard_set, chat, vision, decoder, pixel_dtype=dtype)
        samples = half.encode_many(range(6))
    assert [s.failure for s in samples] == [s.failure for s in full]
    for one, other in zip(samples, full, strict=True):
        assert (one.pixel_values is None) == (other.pixel_values is None)
        if other.pixel_values is not None:
            expected = torch.from_numpy(other.pixel_values).to(dtype)
            assert torch.equal(as_tensor(one.pixel_values), expected)


def flip(folder, shard_set, number, part):
    """Flip one bit in the middle of a part of a sample."""
    place = shard_set.parts(number)[part]
    with (folder / shard_set.shard(number)).open("r+b") as file:
        file.seek(place.offset + place.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def test_a_flipped_bit_is_a_failure_in_an_image_and_an_error_in_the_text(
    write_shards, make_records, chat, vision
):
    folder = write_shards(make_records(6))
    with ShardSet.open(folder) as shard_set:
        encoder = make_encoder(shard_set, chat, vision)
        flip(folder, shard_set, 3, 0)
        sample = encoder.encode(3)
        assert sample.failure.startswith("image-unreadable: ")
        assert "CRC-32C" in sample.failure
        assert not sample.trained.any()
        flip(folder, shard_set, 4, -1)
        with pytest.raises(IntegrityError, match="study-4"):
            encoder.encode(4)


def test_a_length_that_differs_from_the_plan_is_an_error(encoder, opened, chat, vision):
    old = encoder.lengths
    text = old.text_tokens.copy()
    text[7] += 1
    lengths = Lengths(text, old.image_tokens, old.label_tokens, old.patches)
    stale = SampleEncoder(opened, chat, vision, encoder.decoder, lengths)
    stale.encode(6)
    with pytest.raises(IntegrityError, match="study-7"):
        stale.encode(7)


def test_an_image_that_the_model_refuses_is_named(opened, chat, vision, monkeypatch):
    monkeypatch.setattr("omr_io.images.sizes.MAX_ASPECT", 1.2)
    with pytest.raises(ImageError, match="study-") as caught:
        measure(opened, chat, vision)
    assert caught.value.where.shard.endswith(".tar")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_patches_into_a_part_of_a_large_buffer_are_the_same(opened, chat, vision, dtype):
    """What is part of much is written past the cache; the first rows are at any alignment."""
    lengths = measure(opened, chat, vision)
    encoder = SampleEncoder(
        opened, chat, vision, make_decoder("cpu", vision), lengths, pixel_dtype=dtype
    )
    numbers = list(range(8))
    rows = int(lengths.patches[numbers].sum())
    large = torch.full((16_000, vision.patch_width), 7, dtype=dtype)  # 16 MiB and more
    for start in (0, 3):
        samples = encoder.encode_into(numbers, large[start : start + rows])
        assert (large[start + rows :] == 7).all()
        assert all(sample.pixel_values is None for sample in samples)
        expected = [s.pixel_values for s in encoder.encode_many(numbers) if s.image_grid_thw.size]
        found = large[start : start + rows]
        assert torch.equal(found, torch.cat([as_tensor(one) for one in expected]))
