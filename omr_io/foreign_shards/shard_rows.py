"""One foreign shard → rows of the index, refusals, and its lines of DALI's index."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import pyarrow as pa
import xxhash

from omr_io.corpus.formats.location import Location
from omr_io.errors import ImageError
from omr_io.foreign_shards.members import FoundSample, TarRead, read_samples
from omr_io.foreign_shards.view import View
from omr_io.images import MAX_BYTES, MAX_PIXELS, check_caps, check_decodes, probe
from omr_io.shards.layout import INDEX_SCHEMA
from omr_io.types import ImageInfo, Record, Refusal

MAX_JSON_BYTES = 64 << 20
MAX_IMAGES = 1000
_BATCH_ROWS = 1024
_TELLING = ("dotted-key", "unnamed-member", "duplicate-member")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image must pass: caps, and a full decode unless `decode` is False."""

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    decode: bool = True

    def check(self, data: memoryview) -> ImageInfo:
        """Read the header and check the image; ImageError says why not."""
        head = ImageInfo(1, 1, "jpeg", "L")
        check_caps(head, len(data), max_pixels=1, max_bytes=self.max_bytes)  # before it is copied
        image = bytes(data)
        info = probe(image)
        check_caps(info, len(image), max_pixels=self.max_pixels, max_bytes=self.max_bytes)
        if self.decode:
            check_decodes(image, info)
        return info


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A member that no sample uses: its shard, name and offset in bytes."""

    shard: str
    part: str
    offset: int


@dataclass(slots=True)
class ShardRows:
    """What one shard gave, in the tar's order.

    Attributes:
        name, bytes, sha256: of the tar.
        groups: found in it: samples and refusals.
        keys: of the rows; samples: (name, offset, size) of their parts; places: the offset of
            their first data; numbers: which group each was.
        batches: the rows themselves; shard is 0.
        refusals: groups that are no sample.
        left_out: members that samples do not use, by extension; `examples` the first of each.
    """

    name: str
    bytes: int = 0
    sha256: str = ""
    groups: int = 0
    keys: list[str] = field(default_factory=list)
    samples: list[tuple[tuple[str, int, int], ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[LeftOut] = field(default_factory=list)


def index_shard(
    location: Location, name: str, view: View, checks: ImageLimits, prefix: str
) -> ShardRows:
    """Read one shard.

    Args:
        location: where it is; name: what it is called in the set.
        view: how samples become records.
        checks: what images must pass.
        prefix: put before each key, to set apart keys that begin anew in each shard.

    Raises:
        SourceError, TarError, IntegrityError: it cannot be read as a whole.
    """
    read, rows = TarRead(), ShardRows(name)
    runs: Counter[str] = Counter()
    pending: list[dict[str, Any]] = []
    for sample in read_samples(location, name, read):
        rows.groups += 1
        runs[sample.key] += 1
        row = _row(sample, name, view, checks, prefix)
        _count_left_out(sample, rows)
        if isinstance(row, Refusal):
            rows.refusals.append(row)
            continue
        row["key"] = prefix + sample.key
        rows.keys.append(sample.key)
        places = [(part["name"], part["offset"], part["size"]) for part in row["parts"]]
        rows.samples.append(tuple(places))
        rows.places.append(sample.offset)
        rows.numbers.append(sample.row)
        pending.append(row)
        if len(pending) >= _BATCH_ROWS:
            rows.batches.append(pa.RecordBatch.from_pylist(pending, schema=INDEX_SCHEMA))
            pending = []
    if pending:
        rows.batches.append(pa.RecordBatch.from_pylist(pending, schema=INDEX_SCHEMA))
    rows.bytes, rows.sha256 = read.bytes, read.sha256
    rows.left_out += read.meta
    _refuse_interleaved(rows, runs)
    rows.keys = [prefix + key for key in rows.keys]
    return rows


def _row(
    sample: FoundSample, shard: str, view: View, checks: ImageLimits, prefix: str
) -> dict[str, Any] | Refusal:
    def refuse(reason: str, detail: str) -> Refusal:
        where = f"offset {sample.offset}: {detail}"
        return Refusal(shard, sample.row, sample.key, reason, where)

    if sample.defect is not None:
        return refuse(sample.defect.reason, sample.defect.detail)
    images, texts = sample.parts[: sample.num_images], sample.parts[sample.num_images :]
    if len(images) > MAX_IMAGES:
        return refuse("too-many-images", f"{len(images)} images, at most {MAX_IMAGES}")
    for part in texts:
        if len(part.data) > MAX_JSON_BYTES:
            return refuse("text-too-large", f"{part.name} has {len(part.data)} bytes")
    infos: list[ImageInfo] = []
    for part in images:
        try:
            infos.append(checks.check(part.data))
        except ImageError as error:
            return refuse(error.reason, f"{part.name}: {error.what}")
    parts = sample.parts_of(shard, prefix)
    taken = view.take(parts)
    if isinstance(taken, Refusal):
        return refuse(taken.reason, taken.detail)
    if len(taken.images) != len(images):
        what = f"the record has {len(taken.images)} images, the sample {len(images)}"
        return refuse("image-count", what)
    order = _order(taken, [piece or b"" for piece in parts.data[: len(images)]])
    return _index_row(sample, taken, infos, order)


def _order(record: Record, images: Sequence[bytes]) -> list[int]:
    """Where the record's images are among the sample's: a JSON may have its own order."""
    left = list(range(len(images)))
    order = []
    for image in record.images:
        place = next(place for place in left if images[place] == image.data)
        left.remove(place)
        order.append(place)
    return order


def _index_row(
    sample: FoundSample, record: Record, infos: Sequence[ImageInfo], order: Sequence[int]
) -> dict[str, Any]:
    parts = [sample.parts[place] for place in (*order, *range(len(order), len(sample.parts)))]
    letters = {option.letter for option in record.options}
    return {
        "shard": 0,
        "key": sample.key,
        "parts": [
            {
                "name": part.name,
                "offset": part.offset,
                "size": len(part.data),
                "crc32c": google_crc32c.value(bytes(part.data)),
            }
            for part in parts
        ],
        "images": [
            {
                **dataclasses.asdict(infos[place]),
                "xxh3_128": xxhash.xxh3_128_digest(sample.parts[place].data),
            }
            for place in order
        ],
        "question_bytes": len(record.question.encode()),
        "reasoning_bytes": len(record.reasoning.encode()),
        "num_options": len(record.options),
        "answer": record.answer if record.answer in letters else "",
    }


def _count_left_out(sample: FoundSample, rows: ShardRows) -> None:
    if sample.defect is not None:
        return  # all of it is refused
    for part in sample.left_out:
        rows.left_out[part.extension] += 1
        if rows.left_out[part.extension] == 1:
            rows.examples.append(LeftOut(rows.name, part.name, part.offset))


def _refuse_interleaved(rows: ShardRows, runs: Counter[str]) -> None:
    """Refuse every group of a key whose members do not all stand together.

    webdataset would give them as several samples, each with a part of the members.
    """

    def told(key: str) -> str:
        return f"the key stands at {runs[key]} places in this shard, other members between them"

    rows.refusals = [
        # What a part of a sample lacks, such as a text, may stand at another place.
        refusal
        if runs[str(refusal.id)] == 1 or refusal.reason in _TELLING
        else dataclasses.replace(
            refusal,
            reason="interleaved-key",
            detail=refusal.detail.partition(": ")[0] + ": " + told(str(refusal.id)),
        )
        for refusal in rows.refusals
    ]
    apart = [runs[key] > 1 for key in rows.keys]
    if any(apart):
        refuse_rows(rows, apart, "interleaved-key", [told(key) for key in rows.keys])


def refuse_rows(
    rows: ShardRows, wrong: Sequence[bool], reason: str, details: Sequence[str]
) -> None:
    """Turn rows into refusals."""
    for place, is_wrong in enumerate(wrong):
        if is_wrong:
            detail = f"offset {rows.places[place]}: {details[place]}"
            number, key = rows.numbers[place], rows.keys[place]
            rows.refusals.append(Refusal(rows.name, number, key, reason, detail))
    rows.refusals.sort(key=lambda refusal: refusal.row)
    mask, start, batches = [not is_wrong for is_wrong in wrong], 0, []
    for batch in rows.batches:
        keep = pa.array(mask[start : start + batch.num_rows])
        batches.append(batch.filter(keep))
        start += batch.num_rows
    rows.batches = [batch for batch in batches if batch.num_rows]
    for column in (rows.keys, rows.samples, rows.places, rows.numbers):
        _keep(column, mask)


def _keep(column: list[Any], mask: Sequence[bool]) -> None:
    column[:] = [value for value, kept in zip(column, mask, strict=True) if kept]
