"""What the strippers of all formats share."""

from __future__ import annotations

import struct

from omr_io.errors import ImageError


def damaged(what: str) -> ImageError:
    """The error of a file of which it is not certain that nothing but the image would be left."""
    return ImageError(
        f"its metadata cannot be stripped with certainty: {what}",
        reason="image-metadata",
        mend="Re-encode the image, or keep all metadata (--keep-metadata)",
    )


def minimal_exif(orientation: int) -> bytes:
    """An EXIF block (26 bytes, without "Exif\\0\\0") of one tag: 0x0112, the orientation."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)  # SHORT, one value, padded to 4
    return b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
