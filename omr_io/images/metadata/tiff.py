"""TIFF: the first page is written anew, its pixel data copied, everything else left behind.

A TIFF is a web of offsets. Taking tags out would leave their values lying in the file, so a new
file is made of the tags that decoding needs and of the strips or tiles.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from omr_io.errors import ImageError
from omr_io.images import headers
from omr_io.images.metadata import jpeg
from omr_io.images.metadata.common import damaged
from omr_io.images.metadata.verified import verified

_TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_INTEGERS: Final = {1: "B", 3: "H", 4: "I"}
_SHORT, _LONG, _UNDEFINED = 3, 4, 7

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES = 273, 274, 277, 278, 279
_PLANAR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = (
    284, 320, 322, 323, 324, 325,
)  # fmt: skip
_JPEG_TABLES, _XMP, _ICC = 347, 700, 34675
# What decoding needs besides, each a few numbers: fill order, T4 and T6 options, predictor, ink
# set, number of inks, extra samples, sample format, YCbCr coefficients, subsampling and
# positioning, reference black and white.
_NUMBERS: Final = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _ORIENTATION, _SAMPLES, _ROWS, _PLANAR,
    292, 293, 317, _TILE_WIDTH, _TILE_HEIGHT, 332, 334, 338, 339, 529, 530, 531, 532,
}  # fmt: skip
_MAX_NUMBER_BYTES: Final = 64
_MAX_PAGES: Final = 1000
_RAW, _JPEG = 1, 7
# Raw, CCITT (3), LZW, JPEG, Deflate (2), PackBits, LZMA, Zstandard. Not old JPEG (6), whose parts
# are pointed at from several tags, nor WebP (50001) and the rare ones.
_COMPRESSIONS: Final = {_RAW, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, 50000}


@dataclass(frozen=True, slots=True)
class _Value:
    """A tag's value: TIFF's number of its type, how many, and the bytes, in the file's order."""

    kind: int
    count: int
    data: bytes


def strip(data: bytes, keep_icc: bool) -> bytes:
    """Strip a TIFF file; see `strip_metadata`. The orientation stays in its tag, 274."""
    order, start = _header(data)
    tags, _ = _directory(data, order, start)
    compression = _number(tags, order, _COMPRESSION, _RAW)
    if compression not in _COMPRESSIONS:
        raise damaged(f"the TIFF's compression {compression} is not one that is known here")
    kept = {tag: value for tag, value in tags.items() if tag in _NUMBERS}
    for tag, value in kept.items():
        if len(value.data) > _MAX_NUMBER_BYTES or value.kind in (2, _UNDEFINED):
            raise damaged(f"the TIFF's tag {tag} is not a few numbers")
    if _ORIENTATION not in kept and _XMP in tags:
        turned = headers.orientation(b"", tags[_XMP].data)
        if turned != 1:  # Pillow turns the pixels by it
            kept[_ORIENTATION] = _Value(_SHORT, 1, struct.pack(order + "H", turned))
    if _number(tags, order, _PHOTOMETRIC, 0) == 3:
        kept[_COLOUR_MAP] = _colour_map(tags)
    if keep_icc and _ICC in tags:
        kept[_ICC] = tags[_ICC]
    strips = _strips(data, order, tags)
    if compression == _JPEG:
        strips = [jpeg.strip_stream(strip, tables=False) for strip in strips]
        if _JPEG_TABLES in tags:
            tables = jpeg.strip_stream(tags[_JPEG_TABLES].data, tables=True)
            kept[_JPEG_TABLES] = _Value(_UNDEFINED, len(tables), tables)
    is_tiled = _TILE_OFFSETS in tags
    where = (_TILE_OFFSETS, _TILE_BYTES) if is_tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    return verified(data, _write(order, kept, strips, *where), "tiff")


def count_pages(data: bytes) -> int:
    """Pages of a TIFF, those not counted that are marked as a reduced copy of another page."""
    pages, seen = 0, set[int]()
    try:
        order, at = _header(data)
        while at and at not in seen and len(seen) < _MAX_PAGES:
            seen.add(at)
            tags, at = _directory(data, order, at, only=_SUBFILE)
            pages += not _number(tags, order, _SUBFILE, 0) & 1
    except (struct.error, ImageError):  # a damaged chain ends here
        pass
    return pages


def bits_per_sample(data: bytes) -> int:
    """Bits of the first sample of the first page."""
    order, start = _header(data)
    tags, _ = _directory(data, order, start, only=_BITS)
    return _number(tags, order, _BITS, 1)


def _header(data: bytes) -> tuple[str, int]:
    """(byte order for struct, offset of the first directory)."""
    order = "<" if data[:2] == b"II" else ">"
    return order, struct.unpack_from(order + "I", data, 4)[0]


def _directory(
    data: bytes, order: str, start: int, only: int | None = None
) -> tuple[dict[int, _Value], int]:
    """({tag: value} of the tags used here or of `only` one, offset of the next directory or 0)."""
    (count,) = struct.unpack_from(order + "H", data, start)
    tags: dict[int, _Value] = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length, offset = struct.unpack_from(order + "HHII", data, at)
        if only is not None and tag != only:
            continue
        size = _TYPE_BYTES.get(kind, 0) * length
        if size <= 4:
            offset = at + 8
        if tag not in _NUMBERS and tag not in _LARGE and tag != only:
            continue
        if tag in tags:
            raise damaged(f"the TIFF has its tag {tag} twice")
        if offset + size > len(data):
            raise damaged(f"the value of the TIFF's tag {tag} ends behind the file")
        tags[tag] = _Value(kind, length, data[offset : offset + size])
    (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    return tags, following


_LARGE: Final = {
    _STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES, _COLOUR_MAP, _JPEG_TABLES, _XMP, _ICC,
}  # fmt: skip


def _numbers(tags: Mapping[int, _Value], order: str, tag: int) -> tuple[int, ...]:
    """The integers of a tag; () if it is not there."""
    value = tags.get(tag)
    if value is None:
        return ()
    if value.kind not in _INTEGERS:
        raise damaged(f"the TIFF's tag {tag} holds no integers")
    return struct.unpack(f"{order}{value.count}{_INTEGERS[value.kind]}", value.data)


def _number(tags: Mapping[int, _Value], order: str, tag: int, default: int) -> int:
    return (*_numbers(tags, order, tag), default)[0]


def _colour_map(tags: Mapping[int, _Value]) -> _Value:
    value = tags.get(_COLOUR_MAP)
    if value is None or value.kind != _SHORT or value.count > 3 * 256:
        raise damaged("the TIFF has no colour map of at most 256 colours")
    return value


def _strips(data: bytes, order: str, tags: Mapping[int, _Value]) -> list[bytes]:
    """The strips or tiles of a page; raw ones are cut to the bytes that hold pixels."""
    is_tiled = _TILE_OFFSETS in tags
    if is_tiled and _STRIP_OFFSETS in tags:
        raise damaged("the TIFF has both strips and tiles")
    offsets = _numbers(tags, order, _TILE_OFFSETS if is_tiled else _STRIP_OFFSETS)
    sizes = _numbers(tags, order, _TILE_BYTES if is_tiled else _STRIP_BYTES)
    if not offsets or len(offsets) != len(sizes):
        raise damaged(f"the TIFF has {len(offsets)} strips or tiles and {len(sizes)} sizes of them")
    if sum(sizes) > len(data):
        raise damaged("the TIFF's strips or tiles overlap, or end behind the file")
    strips = []
    raw = _number(tags, order, _COMPRESSION, _RAW) == _RAW
    needed = _raw_sizes(tags, order, len(offsets), is_tiled) if raw else sizes
    for offset, size, need in zip(offsets, sizes, needed, strict=True):
        if offset + size > len(data) or need > size:
            raise damaged(f"the TIFF's strip or tile at byte {offset} is cut short")
        strips.append(data[offset : offset + need])
    return strips


def _raw_sizes(tags: Mapping[int, _Value], order: str, count: int, is_tiled: bool) -> list[int]:
    """Bytes of each uncompressed strip or tile."""
    width, height = (_number(tags, order, tag, 0) for tag in (_WIDTH, _HEIGHT))
    bits = _numbers(tags, order, _BITS) or (1,)
    samples = _number(tags, order, _SAMPLES, 1)
    bits = bits * samples if len(bits) == 1 else bits
    planes = len(bits) if _number(tags, order, _PLANAR, 1) == 2 else 1
    depth = bits[0] if planes > 1 else sum(bits[:samples])
    rows = _number(tags, order, _ROWS, height)
    if is_tiled:
        width = _number(tags, order, _TILE_WIDTH, 0)
        rows = height = _number(tags, order, _TILE_HEIGHT, 0)
        return [(width * depth + 7) // 8 * rows] * count
    rows = min(rows, height)
    if rows < 1 or count != planes * -(-height // rows):
        raise damaged(f"the TIFF has {count} strips of {rows} rows for {height} rows of pixels")
    row_bytes = (width * depth + 7) // 8
    tops = [*range(0, height, rows)] * planes
    return [row_bytes * min(rows, height - top) for top in tops]


def _write(
    order: str, tags: dict[int, _Value], strips: list[bytes], offsets_tag: int, bytes_tag: int
) -> bytes:
    """A TIFF file: header, directory, values that do not fit it, strips, each at an even offset."""
    sizes = [len(strip) for strip in strips]
    count = len(strips)
    tags[bytes_tag] = _Value(_LONG, count, struct.pack(f"{order}{count}I", *sizes))
    tags[offsets_tag] = _Value(_LONG, count, bytes(4 * count))
    at = 8 + 2 + 12 * len(tags) + 4
    places = {}
    for tag in sorted(tags):
        if len(tags[tag].data) > 4:
            places[tag] = at
            at += len(tags[tag].data) + len(tags[tag].data) % 2
    starts = []
    for size in sizes:
        starts.append(at)
        at += size + size % 2
    tags[offsets_tag] = _Value(_LONG, count, struct.pack(f"{order}{count}I", *starts))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    out = [magic + struct.pack(order + "IH", 8, len(tags))]
    for tag in sorted(tags):
        value = tags[tag]
        out.append(struct.pack(order + "HHI", tag, value.kind, value.count))
        outside = tag in places
        out.append(struct.pack(order + "I", places[tag]) if outside else value.data.ljust(4, b"\0"))
    out.append(bytes(4))
    large = [tags[tag].data for tag in sorted(tags) if tag in places]
    out += [blob + bytes(len(blob) % 2) for blob in (*large, *strips)]
    return b"".join(out)
