"""The images of a row: whatever form a source gives them, as bytes with their names."""

from __future__ import annotations

from omr_io.corpus.raw import BadText, ImageRoot
from omr_io.corpus.schemas.row import RowError
from omr_io.errors import ImageError
from omr_io.text import short
from omr_io.types import EncodedImage

Picture = tuple[bytes | None, str]
"""The bytes of an image, None if they lie elsewhere, and its path or ""."""


def pictures(value: object, *, needed: bool) -> list[Picture]:
    """The images of a row, not yet read.

    Args:
        value: None, bytes, a path, a dict with bytes, path or image, or a list of such.
        needed: whether None is an error; if not, it is no image.

    Raises:
        RowError: "null-image", "bad-type", "invalid-utf8".
    """
    if isinstance(value, list):
        return [_picture(item) for item in value]
    if value is None and not needed:
        return []
    return [_picture(value)]


def read_picture(picture: Picture, images: ImageRoot | None, max_bytes: int) -> EncodedImage:
    """An image with its bytes.

    Raises:
        RowError: "null-image", "empty-image", "image-not-embedded", and the reasons of `ImageRoot`.
    """
    data, name = picture
    if data is None:
        data = _from_root(name, images, max_bytes)
    if not data:
        raise RowError("empty-image", f"the image {short(name)} has zero bytes")
    return EncodedImage(data, name)


def _from_root(name: str, images: ImageRoot | None, max_bytes: int) -> bytes:
    if not name:
        raise RowError("null-image", "the image has neither bytes nor a path")
    if "://" in name[:16] or name.startswith("data:"):
        what = f"the image is a URL, {short(name)}, and URLs in rows are never fetched"
        raise RowError("image-not-embedded", what)
    if images is None:
        raise RowError(
            "image-not-embedded",
            f"the image's bytes are null, only its path {short(name)} is there, and no "
            "image_root was given",
        )
    try:
        return images.read(name, max_bytes)
    except ImageError as error:
        raise RowError(error.reason, error.what) from None


def _picture(item: object) -> Picture:
    if item is None:
        raise RowError("null-image", "the image is null")
    if isinstance(item, bytes):
        return item, ""
    if not isinstance(item, dict):
        return None, _path(item)
    data = item.get("bytes")
    if data is not None and not isinstance(data, bytes):
        raise RowError("bad-type", f"an image's bytes are {type(data).__name__}, wanted bytes")
    path = item.get("path")
    if path is None:
        path = item.get("image")
        if isinstance(path, bytes):
            return path, ""
    return data, "" if path is None else _path(path)


def _path(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, BadText):
        raise RowError("invalid-utf8", f"an image's path is not UTF-8: {value.detail}")
    raise RowError("bad-type", f"an image is {type(value).__name__}, wanted bytes or a path")
