"""What of the GPU's benchmarks runs without a GPU: imports, refusals, and how they compare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_decode, gpu_pixels, gpu_stream_order
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode import make_decoder
from omr_io.types import UInt8Array

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_they_import_nothing_that_needs_a_gpu() -> None:
    code = """
import sys
import benchmarks.gpu
names = {"nvidia.nvimgcodec", "nvidia.dali", "transformers", "triton", "omr_io.kernels.pack"}
print(names & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@without_gpu
@pytest.mark.parametrize("run", [*gpu.PARTS.values(), gpu_pixels.copy_bandwidth, gpu.about])
def test_they_refuse_without_a_gpu(run) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        run()


@without_gpu
def test_the_command_says_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: this benchmark needs a CUDA GPU")


def test_they_refuse_to_time_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match="TRITON_INTERPRET is set"):
        gpu_pixels.require_gpu()


@pytest.mark.parametrize("name", gpu_pixels.VISIONS)
def test_the_batch_is_of_the_corpus_sizes_and_plannable(name: str) -> None:
    from omr_io.images.gpu_plan import plan

    images, targets = gpu_pixels.batch(0, gpu_pixels.VISIONS[name], count=20)
    sides = np.array([image.shape[:2] for image in images])
    assert 0.2e6 < np.median(sides.prod(axis=1)) < 0.7e6
    assert (sides.max(axis=1) <= 3.01 * sides.min(axis=1)).all()
    assert plan([image.shape[:2] for image in images], targets).between_bytes > 10**6


MODES = {
    f"{chroma}, {coding}"
    for chroma in ("4:4:4", "4:2:2", "4:2:0", "grey")
    for coding in ("baseline", "progressive")
}


def test_differences_are_counted() -> None:
    def off_by_one_and_one_missing(images: Sequence[bytes]) -> list[UInt8Array | None]:
        decoded = gpu_decode.pillow(images)
        first = np.array(decoded[0])
        first[0, 0, 0] ^= 1
        return [first, None, *decoded[2:]]

    same = gpu_decode.pixel_differences(gpu_decode.pillow, count=3)
    other = gpu_decode.pixel_differences(off_by_one_and_one_missing, count=3)
    assert set(same) == set(other) == MODES
    for mode in MODES:
        assert (same[mode]["equal"], same[mode]["largest_difference"]) == (3, 0)
        assert other[mode]["not_decoded"] == other[mode]["largest_difference"] == 1
        assert other[mode]["equal"] == 1
        assert 0 < other[mode]["mean_difference"] == other[mode]["share_of_bytes_differing"]


def test_jpegs_are_of_the_mode_they_say() -> None:
    import io

    from PIL import Image, JpegImagePlugin

    for chroma, number in (gpu_decode.CHROMA | {"grey": -1}).items():
        for progressive in (False, True):
            data = gpu_decode.jpeg(0, 40, 50, chroma, progressive=progressive)
            with Image.open(io.BytesIO(data)) as image:
                assert isinstance(image, JpegImagePlugin.JpegImageFile)
                assert image.mode == ("L" if chroma == "grey" else "RGB")
                assert JpegImagePlugin.get_sampling(image) == number
                assert bool(image.info.get("progressive")) == progressive


def test_decoders_on_the_cpu_give_pillows_pixels() -> None:
    """The same code as for the GPU, with the decoders' CPU backends."""
    pytest.importorskip("nvidia.dali")
    pytest.importorskip("nvidia.nvimgcodec")
    for decode in (
        gpu_decode.dali_pixels(gpu_decode.dali_pipeline("cpu")),
        gpu_decode.nvimagecodec_pixels(gpu_decode.nvimagecodec("cpu")),
        gpu_decode.decoder_pixels(make_decoder("dali", VisionConfig())),
        gpu_decode.decoder_pixels(make_decoder("nvimgcodec", VisionConfig())),
    ):
        found = gpu_decode.pixel_differences(decode, count=2)
        assert {mode for mode in MODES if found[mode]["equal"] == 2} == MODES


def test_speed_is_of_different_images_by_size_and_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decode, "SIDES", (32, 64))
    seen: list[int] = []
    rates = gpu_decode.images_per_second(
        lambda images: seen.append(len(set(images))), lambda: None, count=8
    )
    assert list(rates) == [
        f"{side}x{side}, {coding}" for side in (32, 64) for coding in ("baseline", "progressive")
    ]
    assert set(seen) == {8}
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize(
    ("after_event", "reuse", "reused", "waiting", "words"),
    [
        (0, 0, 4096, 0, "ruled out in 8192 images"),
        (0, 7, 4096, 0, r"reproduced \(reuse on the stream\)"),
        (1, 0, 4096, 0, r"reproduced \(consumer after event\)"),
        (0, 0, 0, 0, "not decided: no image was decoded into memory"),
        (0, 7, 4096, 3, "not decided: pixels are wrong even"),
    ],
)
def test_the_verdict(after_event: int, reuse: int, reused: int, waiting: int, words: str) -> None:
    import re

    counts = {
        "consumer unordered": {"images": 4096, "wrong": 99},
        "consumer after event": {"images": 4096, "wrong": after_event},
        "reuse on the stream": {"images": 4096, "wrong": reuse, "reused": reused},
        "reuse after waiting": {"images": 4096, "wrong": waiting, "reused": reused},
    }
    assert re.match(words, gpu_stream_order.verdict(counts))


def test_an_unknown_backend_is_refused() -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    with pytest.raises(ConfigError, match=r"no backend 'fast'.*hardware"):
        gpu_decode.nvimagecodec("fast")
