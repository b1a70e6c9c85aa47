"""The decoder of a name, for a device."""

from __future__ import annotations

from importlib.util import find_spec

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode.base import Decoder, DecoderName
from omr_io.images.decode.batched import checked_device
from omr_io.images.decode.cpu import CpuDecoder
from omr_io.images.decode.dali import DaliDecoder
from omr_io.images.decode.nvimgcodec import NvimgcodecDecoder
from omr_io.images.sizes import MAX_PIXELS


def make_decoder(
    name: DecoderName | str,
    vision: VisionConfig,
    device: str = "cpu",
    *,
    max_pixels: int = MAX_PIXELS,
    num_threads: int = 2,
    hardware: float = 0.0,
    largest: tuple[int, int] = (0, 0),
) -> Decoder:
    """The decoder of that name, with the EXIF policy of `vision`.

    Args:
        name: of `omr_io.images.decode`'s table.
        device: where pixels shall be: "cpu", or a CUDA device such as "cuda" or "cuda:1". "cpu"
            decodes on the CPU whatever the device.
        max_pixels: larger images are failures.
        num_threads: of the library's own on the host, for "dali" and "nvimgcodec"; on a GPU as
            many more decode what is not for it.
        hardware: the share of JPEGs for a GPU's JPEG engine; see `DaliDecoder`.
        largest: (height, width) of the largest image to come; see `DaliDecoder`.

    Raises:
        ConfigError: there is no such decoder or device, or its package is not installed.
    """
    name = choose_decoder(name, device)
    if name == "cpu":
        return CpuDecoder(vision.exif, max_pixels)
    made = {"dali": DaliDecoder, "nvimgcodec": NvimgcodecDecoder}[name]
    return made(
        vision.exif,
        max_pixels,
        device=device,
        num_threads=num_threads,
        hardware=hardware,
        largest=largest,
    )


def choose_decoder(name: DecoderName | str, device: str = "cpu") -> str:
    """What a name stands for: "cpu", "dali" or "nvimgcodec".

    "auto" is on the CPU "cpu": simplejpeg is as fast as the others, strict, and has no threads of
    its own. On a GPU it is "nvimgcodec" where that is installed, else "dali", else "cpu": DALI
    decodes by nvImageCodec too, but fails a batch for one image, and is an eightfold download.

    Raises:
        ConfigError: there is no such decoder or device.
    """
    if name in ("cpu", "dali", "nvimgcodec"):
        return name
    if name != "auto":
        raise ConfigError(
            f"there is no decoder {name!r}", mend='Use "auto", "cpu", "dali" or "nvimgcodec"'
        )
    if checked_device(device) == "cpu":
        return "cpu"
    if _is_installed("nvidia.nvimgcodec"):
        return "nvimgcodec"
    return "dali" if _is_installed("nvidia.dali") else "cpu"


def describe(decoder: Decoder) -> str:
    """What decodes, in one line for a log: library, version, device, and whether pixels are exact.

    A decoder of another kind is its name and device.
    """
    told = getattr(decoder, "describe", None)
    return str(told()) if callable(told) else f"{decoder.name} on {decoder.device}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False
