"""Record → the bytes of its sample: images checked and stripped, key and JSON made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from omr_io.errors import ImageError, RecordError
from omr_io.images import check_bytes, check_caps, check_decodes, probe
from omr_io.images.metadata import strip_metadata
from omr_io.images.plain_jpeg import plain_jpeg
from omr_io.images.policy import ImagePolicy
from omr_io.images.transcode import Transcode
from omr_io.shards.keys import key_for
from omr_io.shards.layout import EXTENSIONS
from omr_io.shards.sample_json import encode_record
from omr_io.types import ImageInfo, Record, Refusal

MAX_JSON_BYTES = 64 << 20
MAX_IMAGES = 1000  # KEY.img999.jpeg still fits a tar's name


@dataclass(frozen=True, slots=True)
class ImageChecks:
    """What an image must pass, and what is made of it, in this order.

    Args:
        max_bytes: cap on the encoded file as it comes, before its header is read.
        max_pixels: cap on width x height, before any pixel is decoded.
        policy: which unusual images are refused.
        keep_metadata: store the file as it came. By default its metadata is stripped, without
            re-encoding: see `omr_io.images.metadata`.
        keep_icc: keep ICC profiles when the rest is stripped.
        transcode: re-encode what is left as a smaller JPEG; None: never.
        decode: decode what is stored in full and strictly.
    """

    max_pixels: int
    max_bytes: int
    decode: bool
    keep_metadata: bool = False
    keep_icc: bool = False
    policy: ImagePolicy = field(default_factory=ImagePolicy)
    transcode: Transcode | None = None

    def accept(self, data: bytes) -> tuple[bytes, ImageInfo]:
        """Check an image.

        Returns:
            (the bytes to store, what `probe` says of them). The bytes are `data` itself when
            nothing had to be taken out.

        Raises:
            ImageError: with the reason as a slug: those of `probe`, `check_caps`, `check_decodes`,
                `strip_metadata` ("image-metadata") and `ImagePolicy` ("image-16-bit", ...).
        """
        check_bytes(len(data), self.max_bytes)
        plain = plain_jpeg(data)
        info = probe(data) if plain is None else plain
        check_caps(info, len(data), max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        stored = data
        if plain is None:
            self.policy.check(data, info)
            if not self.keep_metadata:
                stored = self._strip(data, info)
        if self.transcode is not None:
            made = self.transcode.apply(stored, info)
            if made is stored:  # and has just been decoded
                return stored, info
            stored, info = made, probe(made)
            check_caps(info, len(made), max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        if self.decode:
            check_decodes(stored, info)
        return stored, info

    def _strip(self, data: bytes, info: ImageInfo) -> bytes:
        try:
            return strip_metadata(data, info, keep_icc=self.keep_icc)
        except ImageError as error:
            if error.reason == "image-metadata" and self.decode:
                check_decodes(data, info)  # of a cut file it is better said that it is cut
            raise


class Prepared(NamedTuple):
    """A checked record as the bytes to write.

    Images are as they are stored: stripped, perhaps transcoded; those of `record` are as they came.
    `members` are (rest of the name after "KEY.", data), images first, the JSON last; `hashes` are
    each stored image's XXH3-128.
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
    ("image-truncated", "image-corrupt", "image-too-large", "image-16-bit", "image-metadata", ...).
    """
    try:
        key = key_for(record.id)
    except ValueError as error:
        return refuse(row, record, "bad-id", str(error))
    if len(record.images) > MAX_IMAGES:
        detail = f"{len(record.images)} images, at most {MAX_IMAGES} fit a sample"
        return refuse(row, record, "too-many-images", detail)
    data: list[bytes] = []
    infos: list[ImageInfo] = []
    for number, image in enumerate(record.images):
        try:
            stored, info = checks.accept(image.data)
        except ImageError as error:
            which = f"image {number}: " if len(record.images) > 1 else ""
            return refuse(row, record, error.reason, which + error.what)
        data.append(stored)
        infos.append(info)
    names = [EXTENSIONS[info.format] for info in infos]
    if len(names) > 1:
        names = [f"img{number}.{name}" for number, name in enumerate(names)]
    try:
        text = encode_record(record, names)
    except RecordError as error:
        return refuse(row, record, "not-json", error.what)
    if len(text) > MAX_JSON_BYTES:
        return refuse(row, record, "text-too-large", f"{len(text)} bytes of JSON")
    members = (*zip(names, data, strict=True), ("json", text))
    hashes = tuple([xxhash.xxh3_128_digest(image) for image in data])
    return Prepared(record, key, members, tuple(infos), hashes)
