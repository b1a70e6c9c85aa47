"""A sample's images as a judge gets them."""

from __future__ import annotations

import base64
from io import BytesIO

from omr_io.images import probe
from omr_io.index import ShardSet
from omr_io.types import ImageInfo

_MEDIA_TYPES = {"jpeg": "image/jpeg", "jpeg-progressive": "image/jpeg", "png": "image/png"}
_TOKEN_SIDE = 28  # pixels: a token of Qwen2.5-VL; for estimates alone


def data_urls(shards: ShardSet, number: int) -> list[str]:
    """The images of a sample as data URLs: JPEG and PNG byte for byte, others as PNG.

    An image that EXIF turns goes as an upright PNG too: endpoints disagree on whether to turn it.

    Raises:
        IntegrityError: bytes that are not what was written.
        ImageError: an image that has to be decoded, and does not.
    """
    return [_data_url(data) for data in shards.read_images(number)]


def token_estimate(shards: ShardSet, number: int) -> int:
    """About how many tokens the images of a sample take."""
    sizes = [info.oriented for info in shards.images(number)]
    return sum(-(-width // _TOKEN_SIDE) * -(-height // _TOKEN_SIDE) for width, height in sizes)


def _data_url(data: bytes) -> str:
    info = probe(data)
    media_type = _MEDIA_TYPES.get(info.format)
    if media_type is None or info.orientation != 1:
        media_type, data = "image/png", _png(data, info)
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _png(data: bytes, info: ImageInfo) -> bytes:
    # Here: few sets hold such images, and these load Pillow.
    from PIL import Image

    from omr_io.images.decode import turn
    from omr_io.images.pixels import decode_rgb

    file = BytesIO()
    Image.fromarray(turn(decode_rgb(data, info), info, "apply")).save(file, "PNG")
    return file.getvalue()
