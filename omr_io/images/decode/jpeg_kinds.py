"""Which JPEGs nvJPEG decodes into the colours that they mean; told by headers alone."""

from __future__ import annotations

from typing import Final

from omr_io.errors import ImageError
from omr_io.images.headers import jpeg_header_segments

# Baseline and progressive, by Huffman codes. Extended sequential (C1) and arithmetic coding (C9,
# CA) are not among what nvJPEG documents.
_FRAMES: Final = (0xC0, 0xC2)

# Luma's factors (horizontal, vertical) where both chroma components have 1 and 1: 4:4:4, 4:2:2,
# 4:2:0, 4:4:0, 4:1:1 and 4:1:0.
_SAMPLINGS: Final = ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (4, 2))


def is_for_gpu(data: bytes) -> bool:
    """Whether a JPEG is of a kind that nvJPEG decodes: grey, or YCbCr of a usual subsampling.

    What it would decode without a word into other colours than libjpeg-turbo counts as not: three
    components that are RGB (by Adobe's marker, or by their names), and CMYK.
    """
    frame, adobe, jfif = b"", -1, False
    try:
        for marker, start, end in jpeg_header_segments(data):
            if marker in _FRAMES:
                frame = data[start:end]
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return False
            elif marker == 0xE0 and data.startswith(b"JFIF\0", start, end):
                jfif = True
            elif marker == 0xEE and data.startswith(b"Adobe", start, end) and end - start >= 12:
                adobe = data[start + 11]
    except ImageError:
        return False
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return False
    if frame[5] == 1:
        return True
    if frame[5] != 3 or not _is_ycc(frame, adobe, jfif):
        return False
    factors = [(frame[at] >> 4, frame[at] & 15) for at in (7, 10, 13)]
    return factors[0] in _SAMPLINGS and factors[1] == factors[2] == (1, 1)


def _is_ycc(frame: bytes, adobe: int, jfif: bool) -> bool:
    """libjpeg's rule (default_decompress_parms in jdapimin.c) for three components.

    But for a file that says both, YCbCr by JFIF and RGB by Adobe's marker: libjpeg believes JFIF,
    and what nvJPEG believes is not documented.
    """
    if adobe >= 0:
        return adobe != 0
    return jfif or (frame[6], frame[9], frame[12]) != (0x52, 0x47, 0x42)  # "R", "G", "B"
