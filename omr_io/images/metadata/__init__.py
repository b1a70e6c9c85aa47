"""Metadata out of encoded images, without re-encoding: bytes in, fewer bytes out, equal pixels.

**What goes:** everything that no decoder of ours needs. EXIF (but for the orientation), XMP, IPTC,
comments, text, thumbnails, previews and second images, camera makers' blocks, times, private and
unknown blocks, whatever stands after an image's end, and ICC profiles unless they are asked for.

**What stays:** pixel data byte for byte, what it takes to decode it (Adobe's JPEG marker, tables,
palettes, transparency), and the orientation: an EXIF block of that one tag, when it is not 1.

Of an animation or a file of several pages the first frame stays.

**What this is not:** de-identification. A name burnt into the pixels stays there, and so does what
somebody hides within the compressed pixel data.

A file whose structure leaves any doubt is an error, never passed through.
"""

from __future__ import annotations

import struct

from omr_io.errors import ImageError
from omr_io.images.metadata import bmp, gif, jpeg, png, tiff, webp
from omr_io.images.metadata.common import damaged
from omr_io.types import ImageInfo

__all__ = ["strip_metadata"]


def strip_metadata(data: bytes, info: ImageInfo, *, keep_icc: bool = False) -> bytes:
    """Take the metadata out of an encoded image. See the module for what goes and what stays.

    The result probes to the same `ImageInfo` and decodes to the same pixels. Stripping it again
    changes nothing.

    Args:
        data: the file.
        info: what `probe` said of it.
        keep_icc: keep the colour descriptions: ICC profiles of JPEG, PNG, WebP and TIFF, and PNG's
            gAMA, cHRM, sRGB and cICP. No decoder of ours looks at them.

    Returns:
        The stripped file; `data` itself when there is nothing to strip.

    Raises:
        ImageError: "image-metadata" when the file's structure is damaged, or of a kind that is not
            known well enough to be sure.
    """
    try:
        match info.format:
            case "jpeg" | "jpeg-progressive":
                return jpeg.strip(data, info.orientation, keep_icc)
            case "png":
                return png.strip(data, info.orientation, keep_icc)
            case "webp":
                return webp.strip(data, info.orientation, keep_icc)
            case "tiff":
                return tiff.strip(data, keep_icc)
            case "bmp":
                return bmp.strip(data)
            case "gif":
                return gif.strip(data)
    except (IndexError, struct.error) as error:
        raise damaged(f"the {info.format} image ends within its own structure") from error
    raise ImageError(f"the format {info.format!r} is not known", reason="image-format")
