"""Record → the bytes of its sample, checked: images probed and decoded, key and JSON made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from omr_io.errors import ImageError, RecordError
from omr_io.images import check_caps, check_decodes, probe
from omr_io.shards.keys import key_for
from omr_io.shards.layout import EXTENSIONS, IMAGE_HASH_BYTES
from omr_io.shards.sample_json import encode_record
from omr_io.types import ImageInfo, Record, Refusal

MAX_JSON_BYTES = 64 << 20
MAX_IMAGES = 1000  # KEY.img999.jpeg still fits a tar's name


@dataclass(frozen=True, slots=True)
class ImageChecks:
    """What an image must pass: caps on its size, and a full decode unless `decode` is False."""

    max_pixels: int
    max_bytes: int
    decode: bool

    def check(self, data: bytes) -> ImageInfo:
        """Probe an image and check it.

        Raises:
            ImageError: with the reason as a slug.
        """
        info = probe(data)
        check_caps(info, len(data), max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        if self.decode:
            check_decodes(data, info)
        return info


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked record as the bytes to write.

    `members` are (rest of the name after "KEY.", data), images first, the JSON last; `hashes` are
    the first `IMAGE_HASH_BYTES` of each image's SHA-256.
    """

    record: Record
    key: str
    members: tuple[tuple[str, bytes], ...]
    infos: tuple[ImageInfo, ...]
    hashes: tuple[bytes, ...]


def refuse(row: int, record: Record, reason: str, detail: str) -> Refusal:
    """The refusal of a record; its source is the FILE of `Record.source` "FILE#ROW"."""
    return Refusal(record.source.rpartition("#")[0], row, record.id, reason, detail)


def prepare(row: int, record: Record, checks: ImageChecks) -> Prepared | Refusal:
    """Check one record and make its sample's bytes, or say why not.

    Reasons: "bad-id", "too-many-images", "not-json", "text-too-large", and those of `ImageError`
    ("image-truncated", "image-corrupt", "image-too-large", ...).
    """
    try:
        key = key_for(record.id)
    except ValueError as error:
        return refuse(row, record, "bad-id", str(error))
    if len(record.images) > MAX_IMAGES:
        detail = f"{len(record.images)} images, at most {MAX_IMAGES} fit a sample"
        return refuse(row, record, "too-many-images", detail)
    infos = []
    for number, image in enumerate(record.images):
        try:
            infos.append(checks.check(image.data))
        except ImageError as error:
            which = f"image {number}: " if len(record.images) > 1 else ""
            return refuse(row, record, error.reason, which + error.what)
    names = [EXTENSIONS[info.format] for info in infos]
    if len(names) > 1:
        names = [f"img{number}.{name}" for number, name in enumerate(names)]
    try:
        text = encode_record(record, names)
    except RecordError as error:
        return refuse(row, record, "not-json", error.what)
    if len(text) > MAX_JSON_BYTES:
        return refuse(row, record, "text-too-large", f"{len(text)} bytes of JSON")
    data = [image.data for image in record.images]
    members = (*zip(names, data, strict=True), ("json", text))
    hashes = tuple(hashlib.sha256(image).digest()[:IMAGE_HASH_BYTES] for image in data)
    return Prepared(record, key, members, tuple(infos), hashes)
