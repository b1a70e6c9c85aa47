"""Decoders on a real GPU: how near to Pillow, in what order, and whose memory.

Written without one, and never run so far: the bounds on differences are what is thought of nvJPEG,
and not measured. `python -m benchmarks.gpu_decode` measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from omr_io.config import VisionConfig
from omr_io.images import probe
from omr_io.images.decode import BatchDecoder, CpuDecoder, Decoded, describe, make_decoder
from omr_io.types import ImageFailure
from tests.images.test_decode import by_pillow, encode, exif, need, photograph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LARGEST = 16
"""Of 255: the largest difference of a byte from Pillow's. A wrong orientation, order, size or
colour space is an order of magnitude above."""
MEAN = 1.0
"""The mean difference of an image's bytes."""


@pytest.fixture(params=["nvimgcodec", "dali"])
def decoder(request: pytest.FixtureRequest) -> Iterator[BatchDecoder]:
    need(request.param)
    made = make_decoder(request.param, VisionConfig(), "cuda", largest=(700, 700))
    assert isinstance(made, BatchDecoder)
    yield made
    made.close()


def decode(decoder: BatchDecoder, images: list[bytes]) -> list[Decoded]:
    return decoder.decode(images, [probe(data) for data in images])


def assert_near(result: Decoded, data: bytes) -> None:
    assert isinstance(result, torch.Tensor), result
    assert result.device.type == "cuda"
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    expected = by_pillow(data).astype(np.int16)
    assert tuple(result.shape) == expected.shape
    distance = np.abs(result.cpu().numpy().astype(np.int16) - expected)
    assert distance.max() <= LARGEST
    assert distance.mean() <= MEAN


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_near_pillow(decoder: BatchDecoder, sampling: str, progressive: bool) -> None:
    images = []
    for seed, size in enumerate([(16, 16), (17, 33), (100, 101), (333, 512), (640, 427)]):
        image = photograph(*size, seed)
        if progressive and sampling in ("444", "422", "420"):
            number = ("444", "422", "420").index(sampling)
            images.append(encode(image, "JPEG", progressive=True, subsampling=number, quality=90))
        elif progressive:
            images.append(encode(image.convert("L"), "JPEG", progressive=True, quality=90))
        else:
            space = "Gray" if sampling == "Gray" else "RGB"
            array = np.asarray(image.convert("L"))[..., None] if space == "Gray" else image
            pixels = np.ascontiguousarray(array)
            images.append(simplejpeg.encode_jpeg(pixels, 90, space, sampling))
    for result, data in zip(decode(decoder, images), images, strict=True):
        assert_near(result, data)
    counts = decoder.counts
    assert (counts.native, counts.cpu, counts.rescued) == (len(images), 0, 0)


@pytest.mark.parametrize("name", ["nvimgcodec", "dali"])
@pytest.mark.parametrize("policy", ["apply", "ignore"])
def test_orientation_follows_the_policy(name: str, policy: str) -> None:
    need(name)
    image = photograph(120, 200)
    images = [encode(image, "JPEG", quality=95, exif=exif(value)) for value in range(1, 9)]
    with make_decoder(name, VisionConfig(exif=policy), "cuda") as decoder:  # type: ignore[attr-defined]
        for result, data in zip(decode(decoder, images), images, strict=True):
            assert isinstance(result, torch.Tensor)
            expected = by_pillow(data, upright=policy == "apply").astype(np.int16)
            assert tuple(result.shape) == expected.shape
            assert np.abs(result.cpu().numpy() - expected).mean() <= MEAN


def test_what_is_not_for_the_gpu_comes_exact_from_the_cpu_in_order(decoder: BatchDecoder) -> None:
    image = photograph(90, 120)
    images = []
    for n in range(4):
        images += [
            encode(photograph(90 + n, 120, n), "JPEG"),
            encode(image, ("PNG", "WEBP", "TIFF", "GIF")[n]),
            encode(image.convert("CMYK"), "JPEG"),
            encode(image, "JPEG", keep_rgb=True),
        ]
    results = decode(decoder, images)
    for n, (result, data) in enumerate(zip(results, images, strict=True)):
        if n % 4 == 0:
            assert_near(result, data)
        else:
            assert isinstance(result, np.ndarray)
            np.testing.assert_array_equal(result, by_pillow(data))
    assert (decoder.counts.native, decoder.counts.cpu) == (4, 12)


def test_bad_images_fail_alone(decoder: BatchDecoder) -> None:
    images = [encode(photograph(200, 300, seed), "JPEG", quality=90) for seed in range(40)]
    infos = [probe(data) for data in images]
    # Without its tables nothing can be decoded; a cut one some decoders fill up with grey.
    bare = images[3][: images[3].index(b"\xff\xdb")] + images[3][images[3].index(b"\xff\xc0") :]
    sent = [*images[:3], bare, *images[4:]]
    results = decoder.decode(sent, infos)
    assert isinstance(results[3], ImageFailure)
    for n, result in enumerate(results):
        if n != 3:
            assert_near(result, images[n])
    assert decoder.counts.failed == 1
    for result, data in zip(decode(decoder, images), images, strict=True):
        assert_near(result, data)


def test_results_are_ready_on_the_callers_stream(decoder: BatchDecoder) -> None:
    """Read on the current stream without any waiting, behind work that keeps it busy."""
    images = [encode(photograph(512, 512, seed), "JPEG", quality=90) for seed in range(16)]
    wanted = [one.clone() for one in decode(decoder, images) if isinstance(one, torch.Tensor)]
    torch.cuda.synchronize()
    for _ in range(20):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(5_000_000)
            results = decode(decoder, images)
            copies = [one + 0 for one in results if isinstance(one, torch.Tensor)]
        stream.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(copies, wanted, strict=True))


def test_memory_is_not_written_while_it_is_still_to_be_read(decoder: BatchDecoder) -> None:
    """Results are dropped on the host while copies of them wait on the GPU; then others come."""
    sets = [
        [encode(photograph(512, 512, 100 * k + n), "JPEG", quality=90) for n in range(16)]
        for k in range(2)
    ]
    wanted = []
    for images in sets:
        wanted.append([one.clone() for one in decode(decoder, images)])  # type: ignore[union-attr]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for round_ in range(64):
            results = decode(decoder, sets[round_ % 2])
            torch.cuda._sleep(2_000_000)
            copies = [one + 0 for one in results]  # type: ignore[operator]
            del results
            decode(decoder, sets[1 - round_ % 2])  # may be given the same memory
            stream.synchronize()
            for copy, right in zip(copies, wanted[round_ % 2], strict=True):
                assert torch.equal(copy, right)


def test_threads_get_their_own_images(decoder: BatchDecoder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    lists = [
        [encode(photograph(100 + 8 * row, 120, seed), "JPEG", quality=90) for seed in range(7)]
        for row in range(8)
    ]

    def work(images: list[bytes]) -> list[Decoded]:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = decode(decoder, images)
            torch.cuda.current_stream().synchronize()
            return results

    with ThreadPoolExecutor(4) as pool:
        for results, images in zip(pool.map(work, lists), lists, strict=True):
            for result, data in zip(results, images, strict=True):
                assert_near(result, data)


def test_a_closed_decoder_opens_again(decoder: BatchDecoder) -> None:
    image = encode(photograph(64, 80), "JPEG", quality=90)
    assert_near(decode(decoder, [image])[0], image)
    decoder.close()
    assert_near(decode(decoder, [image])[0], image)
    decoder.close()
    decoder.close()


def test_the_hardware_engine_can_be_opted_into() -> None:
    """Where the GPU has none the library decodes otherwise; pixels stay near either way."""
    for name in ("nvimgcodec", "dali"):
        need(name)
        made = make_decoder(name, VisionConfig(), "cuda", hardware=1.0, largest=(512, 512))
        assert "JPEG engine" in describe(made)
        images = [encode(photograph(512, 512, seed), "JPEG", quality=90) for seed in range(8)]
        for result, data in zip(decode(made, images), images, strict=True):  # type: ignore[arg-type]
            assert isinstance(result, torch.Tensor)
            distance = np.abs(result.cpu().numpy().astype(np.int16) - by_pillow(data))
            assert distance.mean() <= 2 * MEAN
        made.close()


def test_auto_takes_the_gpu() -> None:
    made = make_decoder("auto", VisionConfig(), "cuda")
    assert made.name in ("nvimgcodec", "dali", "cpu")
    assert isinstance(made, CpuDecoder) or made.device == f"cuda:{torch.cuda.current_device()}"
    made.close()


def test_large_images_are_left_to_the_cpu(decoder: BatchDecoder) -> None:
    image = encode(Image.new("RGB", (4100, 4000), (90, 20, 200)), "JPEG")
    (result,) = decode(decoder, [image])
    assert isinstance(result, np.ndarray)
    assert decoder.counts.cpu == 1
