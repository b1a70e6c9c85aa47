"""WebP: a RIFF of chunks. Those of pixels stay as they are, VP8X is written anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from omr_io.errors import ImageError
from omr_io.images.metadata.common import damaged, minimal_exif

_ICC, _ALPHA, _EXIF, _ANIMATION = 0x20, 0x10, 0x08, 0x02  # bits of VP8X
_FRAME_HEADER: Final = 16  # of ANMF: place, size, duration, flags


def strip(data: bytes, orientation: int, keep_icc: bool) -> bytes:
    """Strip a WebP file; see `strip_metadata`.

    Of an animation the first frame stays, in its container, as it need not fill the canvas.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    chunks = list(_chunks(data, 12, end))
    kind, payload = chunks[0]
    if kind in (b"VP8 ", b"VP8L"):
        body = _chunk(kind, payload)  # whatever follows is ignored by decoders
    elif kind == b"VP8X" and len(payload) == 10:
        body = _extended(payload, chunks[1:], orientation, keep_icc)
    else:
        raise damaged(f"the WebP begins with a chunk {kind!r} of {len(payload)} bytes")
    out = b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
    return data if out == data else out


def _extended(
    header: bytes, chunks: list[tuple[bytes, bytes]], orientation: int, keep_icc: bool
) -> bytes:
    """The chunks of an extended file: VP8X, ICCP, the image or ANIM and one ANMF, EXIF."""
    flags = header[0] & _ALPHA
    out = b""
    if keep_icc and header[0] & _ICC:
        profile = next((payload for kind, payload in chunks if kind == b"ICCP"), None)
        if profile is not None:
            flags |= _ICC
            out += _chunk(b"ICCP", profile)
    if header[0] & _ANIMATION:
        flags |= _ANIMATION
        out += _first_frame(chunks)
    else:
        out += _image(chunks)
    if orientation != 1:
        flags |= _EXIF
        out += _chunk(b"EXIF", minimal_exif(orientation))
    return _chunk(b"VP8X", bytes((flags, 0, 0, 0)) + header[4:]) + out


def _first_frame(chunks: list[tuple[bytes, bytes]]) -> bytes:
    control = next((payload for kind, payload in chunks if kind == b"ANIM"), b"")
    frame = next((payload for kind, payload in chunks if kind == b"ANMF"), b"")
    if len(control) != 6 or len(frame) < _FRAME_HEADER:
        raise damaged("the animated WebP has no frame")
    image = _image(list(_chunks(frame, _FRAME_HEADER, len(frame))))
    return _chunk(b"ANIM", control) + _chunk(b"ANMF", frame[:_FRAME_HEADER] + image)


def _image(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The one image among chunks, with its alpha plane if it has one."""
    pixels = [(kind, payload) for kind, payload in chunks if kind in (b"ALPH", b"VP8 ", b"VP8L")]
    kinds = [kind for kind, _ in pixels]
    if kinds not in ([b"VP8 "], [b"VP8L"], [b"ALPH", b"VP8 "]):
        raise damaged(f"the WebP's image is made of {kinds}")
    return b"".join(_chunk(kind, payload) for kind, payload in pixels)


def count_frames(data: bytes) -> int:
    """Frames of an animation, as many as are whole; 1 for a still image."""
    if data[12:16] != b"VP8X" or not data[20] & _ANIMATION:
        return 1
    end = 8 + int.from_bytes(data[4:8], "little")
    frames = 0
    try:
        for kind, _ in _chunks(data, 12, end):
            frames += kind == b"ANMF"
    except ImageError:  # the decode check says so
        pass
    return frames


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """(type, payload) of the chunks that fill data[at:end]."""
    while at < end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        stop = at + 8 + length
        if at + 8 > end or stop > end or end > len(data):
            raise damaged(f"a chunk of the WebP ends behind the file, at byte {at}")
        yield data[at : at + 4], data[at + 8 : stop]
        at = stop + (length & 1)


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + payload + bytes(len(payload) & 1)
