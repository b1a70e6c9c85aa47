"""The last word on formats that are written anew: decode before and after, and compare."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from omr_io.errors import ImageError
from omr_io.images.metadata.common import damaged

if TYPE_CHECKING:
    from PIL import Image


def verified(before: bytes, after: bytes, kind: Literal["bmp", "tiff"]) -> bytes:
    """Check that two files hold the same image to Pillow, and give the second.

    BMP and TIFF have too many variants to trust a rewriting blindly, and are rare.

    Returns:
        `before` itself when the bytes are equal.

    Raises:
        ImageError: "image-metadata" when they differ, "image-corrupt" when `before` is no image.
    """
    if before == after:
        return before
    try:
        expected = _pixels(before, kind)
    except MemoryError:  # the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds for malformed bytes
        raise ImageError(f"the {kind} image does not decode: {error}") from error
    try:
        found = _pixels(after, kind)
    except MemoryError:
        raise
    except Exception as error:
        raise damaged(f"the {kind} image does not decode without it: {error}") from error
    if found != expected:
        raise damaged(f"the {kind} image has other pixels without it")
    return after


def _pixels(data: bytes, kind: str) -> tuple[object, ...]:
    from PIL import BmpImagePlugin, TiffImagePlugin

    plugins: dict[str, Callable[[BytesIO], Image.Image]] = {
        "bmp": BmpImagePlugin.BmpImageFile,
        "tiff": TiffImagePlugin.TiffImageFile,
    }
    with plugins[kind](BytesIO(data)) as image:
        image.load()
        palette = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
        transparency = image.info.get("transparency")
        return image.mode, image.size, palette, transparency, image.tobytes()
