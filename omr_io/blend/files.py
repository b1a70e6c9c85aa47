"""A blend as a file: YAML or JSON that names what `Blend` and `Source` take, one to one.

    samples_per_epoch: 200000        # with a weight in every source; left out: repeat
    sources:
      - shards: shards/openmedreason
        weight: 70
        balance_answers: upsample
      - shards: s3://bucket/rare-diseases
        weight: 30
        name: rare

Paths are relative to the current folder, as they are in a script.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from omr_io.blend.sources import Blend, Source
from omr_io.errors import ConfigError, Where

_EXAMPLE = "Write sources: and under it, for each, - shards: FOLDER"
_BLEND = tuple(field.name for field in dataclasses.fields(Blend))
_SOURCE = tuple(field.name for field in dataclasses.fields(Source) if field.name != "where")


def read_blend(path: str | Path) -> Blend:
    """The blend that a YAML or (by its suffix, .json) JSON file describes; nothing is opened.

    Every key is one of `Blend` or `Source` and means what it means there. `repeat` and `weight`
    may be texts such as "1/3". A filter (`where`) is a function, so no file holds one.

    Raises:
        ConfigError: the file cannot be read, or has a key or a value that cannot be right; it says
            in which source. PyYAML is missing (extra `train`), which JSON does not need.
    """
    where = Where(source=str(path))
    try:
        found = _parse(Path(path), where)
        _check_keys("the blend", found, _BLEND, needed="sources", where=where)
        sources = found["sources"]
        if not isinstance(sources, list) or not sources:
            raise ConfigError("sources is no list of shard sets", where=where, mend=_EXAMPLE)
        made = [_source(place, one, where) for place, one in enumerate(sources)]
        return Blend(made, samples_per_epoch=found.get("samples_per_epoch"))
    except ConfigError as error:
        if error.where is not None:
            raise
        raise ConfigError(error.what, where=where, mend=error.mend) from None


def _parse(path: Path, where: Where) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"the blend file cannot be read: {error.strerror}"
        raise ConfigError(what, where=where, mend="Give a YAML or JSON file") from None
    except UnicodeDecodeError:
        raise ConfigError("the blend file is no UTF-8 text", where=where) from None
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the blend file is no JSON: {error}", where=where) from None
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            "PyYAML is missing, which reads blend files",
            mend='Install it: pip install "omr_io[train]"; or write the blend as JSON, in a file '
            "that ends in .json",
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the blend file is no YAML: {error}", where=where) from None


def _source(place: int, found: Any, where: Where) -> Source:
    name = f"source {place + 1}"
    if isinstance(found, Mapping) and "where" in found:
        raise ConfigError(
            f"{name} has a filter (where), which is a function of Python",
            where=where,
            mend="Leave it out here, and filter in the script: Source(..., where=...)",
        )
    _check_keys(name, found, _SOURCE, needed="shards", where=where)
    values = dict(found)
    if not isinstance(values["shards"], str) or not values["shards"]:
        what = f"{name}: shards is {values['shards']!r}"
        raise ConfigError(what, where=where, mend="Write a folder or a URL")
    try:
        for share in ("repeat", "weight"):
            if isinstance(values.get(share), str):
                values[share] = _fraction(share, values[share])
        return Source(**values)
    except ConfigError as error:
        what = f"{name} ({values['shards']}): {error.what}"
        raise ConfigError(what, where=where, mend=error.mend) from None


def _fraction(name: str, text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{name} is {text!r}", mend='Write a number above 0, or "1/3"') from None


def _check_keys(
    name: str, found: Any, known: Collection[str], *, needed: str, where: Where
) -> None:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{name} is no mapping", where=where, mend=_EXAMPLE)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            mend = f"Did you mean {near[0]}? " if near else ""
            mend += f"Known are {', '.join(known)}"
            raise ConfigError(f"{name} has the unknown key {key!r}", where=where, mend=mend)
    if needed not in found:
        raise ConfigError(f"{name} lacks {needed}", where=where, mend=_EXAMPLE)
