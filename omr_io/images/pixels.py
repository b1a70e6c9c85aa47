"""One image, decoded strictly to RGB.

**Colour.** Pixels are those that transformers' Qwen2VLImageProcessorPil (5.23) makes of a PIL
image: `convert("RGB")`, and where there is transparency, composited onto white first. 16-bit grey
is clipped at 255, as Pillow does, not scaled: window 16-bit images before they enter the corpus.
Animations and multi-page files give their first frame.

**Strict.** What makes Pillow fail is an error, and so is what it lets pass: a JPEG for which
libjpeg-turbo gives any warning (those of a rare subsampling aside, which only Pillow decodes), or
of more scans than any encoder makes; a PNG with a wrong checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Final

import numpy as np
import PIL
import simplejpeg
from PIL import Image, features

from omr_io.config import PassOrder
from omr_io.errors import ConfigError, ImageError
from omr_io.images import headers
from omr_io.types import ImageInfo, UInt8Array

_MAX_SCANS: Final = 500
"""Of a JPEG; libjpeg-turbo's own limit where it is asked for one. Encoders make up to some twenty.
Each scan goes over all blocks and may be 60 bytes: a thousand in 125 KB took 19 s to decode."""


def installed_pass_order() -> PassOrder:
    """The order of the two passes of the installed Pillow's resize, by its version.

    pillow-simd counts as the Pillow that it is based on: 12.1.1.post0 has the order of 12. Its own
    resize differs from any Pillow's by some units, but none of ours is made by it.

    tests/images/test_patches.py compares the installed Pillow with the oracle of that order.
    """
    return "pillow-13" if int(PIL.__version__.split(".")[0]) >= 13 else "horizontal-first"


def decode_rgb(
    data: bytes, info: ImageInfo, take: Callable[[int], UInt8Array] | None = None
) -> UInt8Array:
    """Decode an image strictly to RGB, as stored: the EXIF orientation is not applied.

    Args:
        info: what `probe` said of these bytes.
        take: gives a one-dimensional uint8 array of at least so many bytes, into which a JPEG is
            decoded; None: memory of its own.

    Returns:
        (height, width, 3) uint8, C-contiguous; see the module for colour and strictness.

    Raises:
        ImageError: "image-truncated", "image-corrupt" or "image-changed".
        ConfigError: the installed Pillow was built without what the format needs.
    """
    if info.format in ("jpeg", "jpeg-progressive"):
        pixels = _decode_jpeg(data, info, take)
    else:
        pixels = _decode_other(data, info)
    if pixels.shape != (info.height, info.width, 3):
        raise ImageError(
            f"decoded to {pixels.shape[1]}x{pixels.shape[0]} pixels where the header says "
            f"{info.width}x{info.height}",
            reason="image-changed",
        )
    return pixels


def _decode_jpeg(
    data: bytes, info: ImageInfo, take: Callable[[int], UInt8Array] | None
) -> UInt8Array:
    """JPEG by libjpeg-turbo, any warning being an error.

    simplejpeg is equal to Pillow for grey, YCbCr and RGB (accurate DCT, fancy upsampling) and
    twice as fast. CMYK it only checks: its inversion and conversion are Pillow's. Subsamplings that
    are not in TurboJPEG's list, good JPEGs all the same, are left to Pillow too.
    """
    if has_too_many_scans(data):
        raise ImageError(f"the JPEG has more than {_MAX_SCANS} scans, to keep its decoder busy")
    cmyk = info.mode == "CMYK"
    space = "CMYK" if cmyk else "RGB"
    block = None if take is None else take(info.width * info.height * len(space))
    pixels: UInt8Array | None = None
    try:
        pixels = simplejpeg.decode_jpeg(data, space, strict=True, buffer=block)
    except ValueError as error:
        text = str(error)
        if "Could not determine subsampling" not in text:
            cut = "remature end of JPEG" in text
            raise ImageError(
                f"the JPEG does not decode: {text}",
                reason="image-truncated" if cut else "image-corrupt",
            ) from error
    if cmyk or pixels is None:
        from PIL import JpegImagePlugin

        return _decode_by_pillow(data, info, JpegImagePlugin.JpegImageFile)
    return pixels


def has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has so many scans that it was made to keep decoders busy: 3 us for 100 KB."""
    # Here, not above: `headers` and what needs no pixels work where the C++ is not built.
    from omr_io import _C

    try:
        scans = sum(marker == 0xDA for _, _, marker in _C.jpeg_segments(data))
    except _C.JpegFormatError:  # it may decode all the same
        scans = data.count(b"\xff\xda")
    return scans > _MAX_SCANS


def _decode_other(data: bytes, info: ImageInfo) -> UInt8Array:
    """The formats other than JPEG, by Pillow's plugin classes.

    The classes are used directly because `Image.open` applies Pillow's global pixel limit; ours is
    `check_caps`.
    """
    from PIL import BmpImagePlugin, GifImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    plugins: dict[str, Callable[[BytesIO], Image.Image]] = {
        "png": PngImagePlugin.PngImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
        "tiff": TiffImagePlugin.TiffImageFile,
        "bmp": BmpImagePlugin.BmpImageFile,
        "gif": GifImagePlugin.GifImageFile,
    }
    if info.format == "png":
        _check_png(data)
    return _decode_by_pillow(data, info, plugins[info.format])


def _decode_by_pillow(
    data: bytes, info: ImageInfo, plugin: Callable[[BytesIO], Image.Image]
) -> UInt8Array:
    try:
        with plugin(BytesIO(data)) as image:
            image.load()
            rgb = _to_rgb(image)
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds for malformed bytes
        _check_support(info.format, error)
        cut = "truncated" in str(error).lower()
        raise ImageError(
            f"the {info.format} image does not decode: {error or type(error).__name__}",
            reason="image-truncated" if cut else "image-corrupt",
        ) from error
    return np.array(rgb)


def _check_support(kind: str, error: Exception) -> None:
    """Say so where it is not the image but the installed Pillow that lacks something.

    Pillow's wheels have all; a Pillow or pillow-simd that was built where libwebp or libtiff was
    missing has not, and would fail every such image of a corpus as if it were damaged.
    """
    library = {"webp": "webp", "tiff": "libtiff"}.get(kind)
    if kind == "tiff" and "libtiff" not in str(error):
        return  # uncompressed ones need none
    if library is not None and not features.check(library):
        raise ConfigError(
            f"the installed Pillow {PIL.__version__} was built without {library}, which this "
            f"{kind.upper()} image needs",
            mend="Install Pillow's own wheel, or build pillow-simd where libwebp and libtiff are",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """transformers 5.23's convert_to_rgb: transparency onto white, then convert("RGB")."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _check_png(data: bytes) -> None:
    """Check the CRC of every critical chunk: Pillow skips that of IDAT."""
    view = memoryview(data)
    for kind, start, end in headers.png_chunks(data):
        if kind[0] & 0x20:  # a small first letter: ancillary
            continue
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ImageError(f"the PNG's {kind.decode('latin-1')} chunk has a wrong checksum")
