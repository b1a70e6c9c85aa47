"""GIF: screen, colour table, the first image with its graphic control extension, end."""

from __future__ import annotations

from typing import Final

from omr_io.images.metadata.common import damaged

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_CONTROL: Final = b"\x21\xf9\x04"  # a graphic control extension: transparency and disposal


def strip(data: bytes) -> bytes:
    """Strip a GIF file; see `strip_metadata`. Comments, text, applications, later frames go."""
    at = _after_screen(data)
    pieces = [data[:at]]
    while data[at] == _EXTENSION:
        stop = _after_blocks(data, at + 2)
        if data[at + 1] == _CONTROL[1]:
            if not data.startswith(_CONTROL, at) or stop != at + 8:
                raise damaged(f"a graphic control extension of a wrong size at byte {at} of a GIF")
            pieces.append(data[at:stop])
        at = stop
    if data[at] != _IMAGE:
        raise damaged(f"the GIF has no image at byte {at}")
    pieces.append(data[at : _after_image(data, at)])
    out = b"".join((*pieces, bytes((_END,))))
    return data if out == data else out


def count_frames(data: bytes, limit: int) -> int:
    """Images of a GIF, at most `limit` of them counted; what is damaged counts as its end."""
    frames = 0
    try:
        at = _after_screen(data)
        while frames < limit:
            if data[at] == _EXTENSION:
                at = _after_blocks(data, at + 2)
            elif data[at] == _IMAGE:
                frames += 1
                at = _after_image(data, at)
            else:
                break
    except IndexError:
        pass
    return frames


def is_transparent(data: bytes) -> bool:
    """True when a graphic control extension of the first image names a transparent colour."""
    at = _after_screen(data)
    while data[at] == _EXTENSION:
        if data.startswith(_CONTROL, at) and data[at + 3] & 1:
            return True
        at = _after_blocks(data, at + 2)
    return False


def _after_screen(data: bytes) -> int:
    return 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)


def _after_image(data: bytes, at: int) -> int:
    """Behind an image: its descriptor, colour table, code size and blocks."""
    flags = data[at + 9]
    return _after_blocks(data, at + 11 + (6 << (flags & 7) if flags & 0x80 else 0))


def _after_blocks(data: bytes, at: int) -> int:
    """Behind a list of blocks, which a block of length 0 ends."""
    while data[at]:
        at += 1 + data[at]
    return at + 1
