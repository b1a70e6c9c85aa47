"""A sample as webdataset gives it → `Record`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

from omr_io.corpus.rows import ReadOptions
from omr_io.errors import ConfigError, Where
from omr_io.foreign_shards.members import FoundPart
from omr_io.foreign_shards.view import SampleParts, View, recognise_view
from omr_io.shards.sample_json import FIELDS
from omr_io.types import Record, Refusal

Sample: TypeAlias = Mapping[str, Any]
"""As `webdataset.tarfile_to_samples` gives it: `__key__`, `__url__`, and bytes by extension."""

RecordOf: TypeAlias = Callable[[Sample], Record | Refusal]
"""Makes a record of a sample; its images are files as they came, still encoded."""

_TAR: Final = re.compile(r"[\w.~%+=-]+\.(?:tar|tgz)(?:\.\w+)*")
_OWN: Final = View("omr_io", "omr_io", {}, "", ReadOptions())
_HEAD: Final = 100  # samples that a layout is recognised by


def own_record(sample: Sample) -> Record | Refusal:
    """The record of a sample in the layout that `omr-io convert` writes.

    Raises:
        ConfigError: KEY.json is there and has other fields, or the sample was decoded already.
    """
    parts = sample_parts(sample)
    text = sample.get("json")
    if text is None:
        return _refusal(parts, "missing-text", f"no .json, only {', '.join(parts.extensions())}")
    fields = _fields(text)
    if fields is not None and fields != FIELDS:
        raise ConfigError(
            f"the JSON has other fields than a sample of omr_io: {', '.join(fields)}"[:400],
            where=Where(shard=parts.shard or None, key=parts.key),
            mend="Give encode(record=...), a function from the sample's dict to a Record, or let "
            "omr_io.stages.recognise find its schema",
        )
    return _OWN.take(parts)


def recognise(
    samples: Iterable[Sample],
    *,
    schema: str | None = None,
    column_map: Mapping[str, str] | None = None,
    options: ReadOptions | None = None,
) -> RecordOf:
    """Find the schema of foreign samples by the first of them; for `encode(record=...)`.

    The layouts and schemas are those of `omr-io index` (`omr-io schemas` lists them). Call it once
    and give the result to all workers, so that all read in the same way.

    Args:
        samples: not decoded; 100 are looked at. A second stream over the first shard will do.
        schema: its name; None recognises it.
        column_map: meaning → column, as for `omr-io convert --map`.
        options: how to read, for what is none of the above.

    Returns:
        A function that can be pickled. Records take the sample's key as their id.

    Raises:
        SourceError: no schema fits, or there is no sample.
        ConfigError: the samples were decoded already, or an option is wrong.
    """
    head = [sample_parts(sample) for sample in islice(samples, _HEAD)]
    read = options or ReadOptions()
    if schema is not None:
        read = dataclasses.replace(read, schema=schema)
    if column_map is not None:
        read = dataclasses.replace(read, column_map=tuple(column_map.items()))
    shards = {parts.shard for parts in head}
    whole = [parts for parts in head if len(parts.names) > parts.num_images]
    return _BySchema(recognise_view(whole, read, ", ".join(sorted(shards)) or "the stream"))


@dataclass(frozen=True, slots=True)
class _BySchema:
    """Records of foreign samples, by a view of `omr_io.foreign_shards`."""

    view: View

    def __call__(self, sample: Sample) -> Record | Refusal:
        """The record of a sample, or why it is none."""
        parts = sample_parts(sample)
        if len(parts.names) == parts.num_images:
            return _refusal(parts, "missing-text", f"only {', '.join(parts.extensions())}")
        taken = self.view.take(parts)
        if isinstance(taken, Refusal) or self.view.layout == "omr_io":
            return taken
        # A stream knows no row numbers, of which other ids are made.
        return dataclasses.replace(taken, id=parts.key, source=parts.shard)


def sample_parts(sample: Sample) -> SampleParts:
    """The parts of a sample that a record may be made of, images first, .json last.

    Raises:
        ConfigError: there is no `__key__`, or a part is no bytes.
    """
    key = key_of(sample)
    # A name is cut at its first dot, and keys of other sources than webdataset may hold some.
    stem = key.replace(".", "_")
    parts = {
        name: FoundPart(f"{stem}.{name}", name.lower(), 0, memoryview(b""))
        for name in sample
        if not name.startswith("__")
    }
    images = [name for name, part in parts.items() if part.is_image()]
    texts = [name for name, part in parts.items() if part.is_text()]
    texts.sort(key=lambda name: name.lower() == "json")
    return SampleParts(
        shard=shard_of(sample),
        row=0,
        key=key,
        names=tuple(parts[name].name for name in (*images, *texts)),
        data=tuple(_bytes(sample, key, name) for name in (*images, *texts)),
        num_images=len(images),
    )


def key_of(sample: Sample) -> str:
    """The sample's key.

    Raises:
        ConfigError: it has none.
    """
    key = sample.get("__key__") if isinstance(sample, Mapping) else None
    if not isinstance(key, str):
        raise ConfigError(
            f"a sample must be a dict with a text `__key__`, not {_described(sample)}",
            mend="Put encode right after webdataset's tarfile_to_samples, or add the key",
        )
    return key


def shard_of(sample: Sample) -> str:
    """The file name of the sample's tar, from `__url__`, without what a URL may hold of secrets."""
    url = sample.get("__url__")
    if not isinstance(url, str):
        return ""
    tars: Sequence[str] = _TAR.findall(url.partition("?")[0])
    return tars[-1] if tars else ""


def _bytes(sample: Sample, key: str, name: str) -> bytes:
    value = sample[name]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise ConfigError(
        f"the part {name!r} is a {type(value).__name__}, not bytes",
        where=Where(shard=shard_of(sample) or None, key=key),
        mend="Leave out webdataset's decode(), or give encode(record=...)",
    )


def _fields(text: Any) -> tuple[str, ...] | None:
    """The names of a JSON object; None if it is none, which the view then says."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(value) if isinstance(value, dict) else None


def _refusal(parts: SampleParts, reason: str, detail: str) -> Refusal:
    return Refusal(parts.shard, parts.row, parts.key, reason, detail)


def _described(sample: object) -> str:
    if isinstance(sample, Mapping):
        return f"one of {', '.join(map(str, sample)) or 'nothing'}"[:200]
    return f"a {type(sample).__name__}"
