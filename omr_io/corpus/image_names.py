"""What can be wrong with an image that a row names by its path: checks and errors of all roots."""

from __future__ import annotations

from pathlib import PurePosixPath

from omr_io.errors import ImageError
from omr_io.text import short


class AmbiguousNameError(ImageError):
    """A name that several members of an archive end in."""


def checked_name(name: str) -> PurePosixPath:
    """A name that stays within its root.

    Raises:
        ImageError: "image-outside-root".
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise outside(name)
    return relative


def check_size(name: str, size: int, max_bytes: int) -> None:
    """Raise ImageError ("image-too-large") for more than `max_bytes`."""
    if size > max_bytes:
        what = f"{short(name)} has {size} bytes, over the cap of {max_bytes}"
        raise ImageError(what, reason="image-too-large")


def outside(name: str) -> ImageError:
    """The error for a name that leads out of its root."""
    what = f"the path {short(name)} leads out of image_root"
    return ImageError(what, reason="image-outside-root")


def missing(name: str, who: str = "image_root has") -> ImageError:
    """The error for a name that is not there."""
    return ImageError(f"{who} no file {short(name)}", reason="missing-image")


def unreadable(name: str, why: str) -> ImageError:
    """The error for an image that is there and cannot be read."""
    return ImageError(f"{short(name)} cannot be read: {why}", reason="unreadable-image")
