"""What decoders of whole batches do around their libraries: routes, failures, threads, choice.

A GPU's part is played by the same libraries on the CPU: what goes where, and what becomes of
failures, is one code for both.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, OmrWarning
from omr_io.images import probe
from omr_io.images.decode import (
    BatchDecoder,
    CpuDecoder,
    DaliDecoder,
    DecodeCounts,
    NvimgcodecDecoder,
    choose_decoder,
    describe,
    make_decoder,
    turn,
)
from omr_io.images.decode.batched import MAX_GPU_PIXELS, BatchError
from omr_io.images.decode.jpeg_kinds import is_for_gpu
from omr_io.images.decode.landing import tensor_of, upright
from omr_io.types import ImageFailure, ImageInfo
from tests.images.test_decode import (
    BATCHED,
    assert_equal,
    decode,
    encode,
    exif,
    need,
    photograph,
)


@pytest.fixture(params=["dali", "nvimgcodec"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., BatchDecoder]]:
    need(request.param)
    made: list[BatchDecoder] = []

    def build(**options: Any) -> BatchDecoder:
        made.append(BATCHED[request.param](**options))
        return made[-1]

    yield build
    for decoder in made:
        decoder.close()


def jpegs(count: int, start: int = 0) -> list[bytes]:
    return [encode(photograph(40 + n, 50, start + n), "JPEG") for n in range(count)]


def cut(data: bytes) -> bytes:
    """Its header is whole, its pixels are not."""
    return data[: len(data) // 2]


def test_the_library_decodes_jpegs_and_pillow_the_rest(
    make: Callable[..., BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal pixels must not come from CpuDecoder."""
    images = [*jpegs(2), encode(photograph(20, 30), "PNG"), encode(photograph(9, 9), "BMP")]
    images.append(encode(photograph(20, 30), "JPEG", progressive=True))
    decoder = make()
    calls = []
    original = CpuDecoder.decode_one

    def spy(self: CpuDecoder, data: bytes, info: ImageInfo) -> Any:
        calls.append(info.format)
        return original(self, data, info)

    monkeypatch.setattr(CpuDecoder, "decode_one", spy)
    assert_equal(decode(decoder, images), images)
    assert calls == ["png", "bmp"]
    assert decoder.counts == DecodeCounts(native=3, cpu=2)
    decoder.close()
    assert_equal(decode(decoder, images[:2]), images[:2])  # it opens again
    assert calls == ["png", "bmp"]
    decoder.close()
    decoder.close()


def test_bad_images_do_not_end_a_batch(make: Callable[..., BatchDecoder]) -> None:
    """Every place of a bad image in every batch; the rest still comes from the library."""
    decoder = make(max_batch_size=4)
    images = jpegs(10)
    infos = [probe(data) for data in images]
    bad = (0, 5, 6, 9)
    sent = [cut(data) if n in bad else data for n, data in enumerate(images)]
    results = decoder.decode(sent, infos)
    for n, result in enumerate(results):
        if n in bad:
            assert isinstance(result, ImageFailure)
            assert result.reason == "image-truncated"
        else:
            assert_equal([result], [images[n]])
    counts = decoder.counts
    assert (counts.native, counts.cpu, counts.rescued, counts.failed) == (6, 0, 0, 4)
    assert counts.retried_batches == (3 if isinstance(decoder, DaliDecoder) else 0)
    assert_equal(decode(decoder, images), images)


def test_a_library_that_stops_working_is_told_and_nothing_is_lost(
    make: Callable[..., BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make()

    def broken(*_: object) -> list[None]:
        raise BatchError("out of memory, says the library")

    monkeypatch.setattr(decoder, "_run", broken)
    images = jpegs(3)
    with pytest.warns(OmrWarning, match="3 of 3 images.*out of memory"):
        results = decode(decoder, images)
    assert_equal(results, images)
    assert decoder.counts == DecodeCounts(rescued=3, retried_batches=1)
    assert_equal(decode(decoder, images), images)  # told once: OmrWarning is an error in tests
    monkeypatch.undo()
    assert_equal(decode(decoder, images), images)
    assert decoder.counts.native == 3


def test_a_handle_is_made_anew_after_any_error(
    make: Callable[..., BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make()
    images = jpegs(2)
    opened = []
    original = decoder._open
    monkeypatch.setattr(decoder, "_open", lambda: opened.append(1) or original())
    assert_equal(decode(decoder, images), images)
    run = decoder._run
    monkeypatch.setattr(decoder, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, images)
    monkeypatch.setattr(decoder, "_run", run)
    assert_equal(decode(decoder, images), images)
    assert len(opened) == 2


def test_the_cpu_works_at_the_same_time_and_order_is_kept(
    make: Callable[..., BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's images wait for the library to run: one after the other would never end."""
    decoder = make(cpu_threads=2, max_batch_size=2)
    images = []
    for n in range(9):
        images.append(encode(photograph(20 + n, 30, n), "PNG" if n % 3 == 1 else "JPEG"))
    began = threading.Event()
    original_run, original = decoder._run, CpuDecoder.decode_one

    def run(*arguments: Any) -> Any:
        began.set()
        return original_run(*arguments)

    def late(self: CpuDecoder, data: bytes, info: ImageInfo) -> Any:
        assert began.wait(200)
        return original(self, data, info)

    monkeypatch.setattr(decoder, "_run", run)
    monkeypatch.setattr(CpuDecoder, "decode_one", late)
    assert_equal(decode(decoder, images), images)
    assert decoder.counts == DecodeCounts(native=6, cpu=3)


def test_a_decoder_that_is_not_needed_any_more_is_freed(make: Callable[..., BatchDecoder]) -> None:
    """The hook for forks must not keep it."""
    import gc
    import weakref

    decoder = type(make())()
    decode(decoder, jpegs(1))
    gone = weakref.ref(decoder)
    del decoder
    gc.collect()
    assert gone() is None


# What goes to a GPU.


def test_kinds_of_jpeg_for_a_gpu() -> None:
    image = photograph(48, 64)
    array = np.asarray(image)
    plain = encode(image, "JPEG")
    for sampling in ("444", "422", "420", "440", "411"):
        assert is_for_gpu(simplejpeg.encode_jpeg(array, 80, "RGB", sampling)), sampling
    for data in (
        plain,
        encode(image, "JPEG", progressive=True),
        encode(image.convert("L"), "JPEG"),
        encode(image, "JPEG", exif=exif(6)),
        encode(image, "JPEG", restart_marker_blocks=2),
    ):
        assert is_for_gpu(data)
    frame = plain.index(b"\xff\xc0")
    strange = bytearray(plain)
    strange[frame + 11] = 0x31  # luma three times as wide as chroma
    chroma = bytearray(plain)
    chroma[frame + 14] = 0x21
    for name, data in {
        "CMYK": encode(image.convert("CMYK"), "JPEG"),
        "RGB, by Adobe's marker": encode(image, "JPEG", keep_rgb=True),
        "RGB by Adobe's marker, YCbCr by JFIF": plain[:20]
        + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
        + plain[20:],
        "arithmetic": plain.replace(b"\xff\xc0", b"\xff\xc9"),
        "extended": plain.replace(b"\xff\xc0", b"\xff\xc1"),
        "lossless": plain.replace(b"\xff\xc0", b"\xff\xc3"),
        "3:1": bytes(strange),
        "chroma of two sizes": bytes(chroma),
        "cut": plain[: frame + 6],
        "no frame": plain[:frame] + plain[plain.index(b"\xff\xda") :],
        "nothing": b"\xff\xd8\xff",
    }.items():
        assert not is_for_gpu(data), name


def test_rgb_named_so_without_any_marker_is_not_for_a_gpu() -> None:
    """libjpeg takes components called R, G, B for colours; without the name they are YCbCr."""
    data = encode(photograph(16, 16), "JPEG", subsampling=0)
    start = data.index(b"\xff\xe0")
    bare = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    assert is_for_gpu(bare)
    named = bytearray(bare)
    frame, scan = bare.index(b"\xff\xc0"), bare.index(b"\xff\xda")
    for place, letter in enumerate(b"RGB"):
        named[frame + 10 + 3 * place] = letter
        named[scan + 5 + 2 * place] = letter
    assert not is_for_gpu(bytes(named))
    header = simplejpeg.decode_jpeg_header(bytes(named))
    assert header[2] == "RGB"  # libjpeg-turbo agrees
    assert simplejpeg.decode_jpeg_header(bare)[2] == "YCbCr"


@pytest.fixture
def claimed_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a GPU, so that a decoder for one can be made, though not used."""
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.usefixtures("claimed_gpu")
def test_routes_of_a_gpu(make: Callable[..., BatchDecoder]) -> None:
    decoder = make(device="cuda")
    assert decoder.device == "cuda:0"
    assert decoder.cpu_threads == decoder.num_threads == 2
    jpeg = encode(photograph(16, 16), "JPEG")
    info = probe(jpeg)
    assert decoder._is_native(jpeg, info)
    side = int(MAX_GPU_PIXELS**0.5)
    assert decoder._is_native(jpeg, ImageInfo(side, side, "jpeg", "RGB"))
    assert not decoder._is_native(jpeg, ImageInfo(side + 1, side + 1, "jpeg", "RGB"))
    cmyk = encode(photograph(16, 16).convert("CMYK"), "JPEG")
    assert not decoder._is_native(cmyk, probe(cmyk))
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF"):
        data = encode(photograph(16, 16), kind)
        assert not decoder._is_native(data, probe(data))


@pytest.mark.usefixtures("claimed_gpu")
def test_dalis_options_for_a_gpu() -> None:
    """DALI checks names and types of arguments when the graph is made, without any GPU."""
    need("dali")
    import nvidia.dali as dali

    plain = DaliDecoder(device="cuda").options()
    assert plain["device"] == "mixed"
    assert plain["hw_decoder_load"] == 0
    assert not any("hint" in name or "padding" in name for name in plain)
    sized = DaliDecoder(device="cuda:1", hardware=0.5, largest=(2000, 3000)).options()
    assert sized["preallocate_height_hint"] == 2000
    assert sized["preallocate_width_hint"] == 3000
    assert sized["device_memory_padding"] == 36_000_000
    huge = DaliDecoder(device="cuda", largest=(65_000, 65_000)).options()
    assert huge["device_memory_padding"] == 6 * MAX_GPU_PIXELS
    for options in (plain, sized, huge):
        with dali.Pipeline(batch_size=2, num_threads=1, device_id=0):
            source = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
            made = dali.fn.decoders.image(
                source, output_type=dali.types.RGB, jpeg_fancy_upsampling=True, **options
            )
            assert made.device == "gpu"


@pytest.mark.usefixtures("claimed_gpu")
def test_nvimgcodecs_options() -> None:
    need("nvimgcodec")
    assert NvimgcodecDecoder(largest=(100, 100)).options() == ":fancy_upsampling=1"
    sized = NvimgcodecDecoder(device="cuda", hardware=1, largest=(200, 300)).options().split()
    assert set(sized) == {
        ":fancy_upsampling=1",
        ":preallocate_height_hint=200",
        ":preallocate_width_hint=300",
        ":device_memory_padding=360000",
        ":host_memory_padding=240000",
    }


@pytest.mark.parametrize("policy", ["apply", "ignore"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tensors_are_turned_as_arrays(orientation: int, policy: Any) -> None:
    pixels = np.asarray(photograph(30, 47)).copy()
    info = ImageInfo(47, 30, "jpeg", "RGB", orientation)
    view = torch.from_numpy(pixels)
    made = upright(view, info, policy)
    assert isinstance(made, torch.Tensor)
    assert made.is_contiguous()
    assert made.data_ptr() != view.data_ptr()
    np.testing.assert_array_equal(made.numpy(), turn(pixels, info, policy))


def test_tensors_of_another_size_are_failures() -> None:
    made = upright(
        torch.zeros(30, 47, 3, dtype=torch.uint8), ImageInfo(30, 47, "jpeg", ""), "apply"
    )
    assert isinstance(made, ImageFailure)
    assert made.reason == "image-changed"


def test_dalis_dynamic_results_become_tensors_and_stay_what_they_are() -> None:
    """The executor and the way to torch that a GPU has, on the host: no copy, and no later run
    writes into what is held."""
    need("dali")
    import nvidia.dali as dali

    pipeline = dali.Pipeline(
        batch_size=4, num_threads=2, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        source = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        pipeline.set_outputs(dali.fn.decoders.image(source, output_type=dali.types.RGB))
    pipeline.build()
    held = []
    for start in range(0, 24, 4):
        images = jpegs(4 - start % 3, start)  # batches of other sizes than the one before
        pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in images])
        (output,) = pipeline.run()
        held.append((images, [tensor_of(output[n]) for n in range(len(images))]))
    for images, tensors in held:
        assert_equal([tensor.numpy() for tensor in tensors], images)


# The choice.


def test_auto_is_what_is_best_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_decoder("auto") == "cpu"
    assert make_decoder("auto", VisionConfig()).name == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees 0 CUDA devices"):
        choose_decoder("auto", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for missing, expected in (
        ((), "nvimgcodec"),
        (("nvidia.nvimgcodec",), "dali"),
        (("nvidia.nvimgcodec", "nvidia.dali"), "cpu"),
    ):

        def find(module: str, missing: tuple[str, ...] = missing) -> object:
            return None if module in missing else find_spec("json")

        monkeypatch.setattr("omr_io.images.decode.choose.find_spec", find)
        assert choose_decoder("auto", "cuda") == expected
        assert choose_decoder("cpu", "cuda") == "cpu"
        assert choose_decoder("dali", "cpu") == "dali"

    def no_parent(module: str) -> object:
        raise ModuleNotFoundError("No module named 'nvidia'")

    monkeypatch.setattr("omr_io.images.decode.choose.find_spec", no_parent)
    assert choose_decoder("auto", "cuda") == "cpu"


def test_make_decoder_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_decoder("cpu", VisionConfig()).name == "cpu"
    with pytest.raises(ConfigError, match="'gpu'"):
        make_decoder("gpu", VisionConfig())
    for name in BATCHED:
        need(name)
        for device in ("cuda:99", "meta", "nonsense", ""):
            with pytest.raises(ConfigError, match=device or "''"):
                make_decoder(name, VisionConfig(), device)
        with pytest.raises(ConfigError, match="share"):
            make_decoder(name, VisionConfig(), hardware=2)
        with pytest.raises(ConfigError, match="num_threads 0"):
            make_decoder(name, VisionConfig(), num_threads=0)
        monkeypatch.setitem(sys.modules, f"nvidia.{name}", None)
        monkeypatch.delattr(f"nvidia.{name}", raising=False)
        with pytest.raises(ConfigError, match=rf"omr_io\[{name}\]"):
            make_decoder(name, VisionConfig())


def test_the_choice_is_told() -> None:
    assert describe(CpuDecoder()).startswith("cpu: JPEG by simplejpeg ")
    for name in BATCHED:
        need(name)
        told = describe(make_decoder(name, VisionConfig()))
        assert told.startswith(f"{name}: JPEG by ")
        assert told.endswith("equal to Pillow")


@pytest.mark.usefixtures("claimed_gpu")
def test_a_gpus_inexactness_is_told(make: Callable[..., BatchDecoder]) -> None:
    assert "on cuda:0, near Pillow's pixels and not equal" in describe(make(device="cuda"))
    assert "50% of it by the JPEG engine" in describe(make(device="cuda", hardware=0.5))


def test_nvimgcodec_on_the_cpu_equals_pillow_where_its_docstring_says() -> None:
    """And differs where it says so: what is not equal must not go to it."""
    need("nvimgcodec")
    from nvidia import nvimgcodec

    cpu_only = nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)
    codec = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[cpu_only])

    def equal(data: bytes) -> bool:
        (decoded,) = codec.decode([data])
        if decoded is None:
            return False
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return np.array_equal(np.asarray(decoded), expected)

    image = photograph(61, 47)
    for kind, mode in (
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("PNG", mode) for mode in ("1", "L", "P", "RGB")),
        *(("BMP", mode) for mode in ("1", "L", "P", "RGB")),
        ("WEBP", "RGB"),
    ):
        assert equal(encode(image.convert(mode), kind)), (kind, mode)
    deep = image.convert("L").convert("I;16")
    assert not equal(encode(deep, "PNG"))
    assert not equal(encode(image.convert("P"), "TIFF"))
    assert not equal(encode(image, "GIF"))
