"""What a folder's files say: the fields that all image processors have, and refusals by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omr_io.errors import ConfigError
from omr_io.types import Filter

Fields = Mapping[str, Any]
"""The fields of a JSON file of Hugging Face's; those that are null are left out."""

RESAMPLE: Mapping[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Filters by Pillow's numbers, which is how the files name them."""


def edges(fields: Fields, name: str, *keys: str) -> list[int] | None:
    """The values of a dictionary of sizes such as {"longest_edge": 364}; None if there is none.

    Raises:
        ConfigError: it has other keys.
    """
    found = fields.get(name)
    if found is None:
        return None
    known = {key: value for key, value in found.items() if value} if isinstance(found, dict) else 0
    if not isinstance(known, dict) or sorted(known) != sorted(keys):
        raise ConfigError(
            f"{name}={found!r} is not implemented", mend=f"Give it as {', '.join(keys)}"
        )
    return [known[key] for key in keys]


def present(found: Fields, *names: str) -> dict[str, Any]:
    """Those of the fields that are there."""
    return {name: found[name] for name in names if name in found}


def common(fields: Fields) -> dict[str, Any]:
    """The arguments that all families have."""
    expected = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": False,
    }
    wrong = [
        f"{name}={fields[name]!r}"
        for name, value in expected.items()
        if fields.get(name, value) != value
    ]
    if fields.get("resample", 2) not in RESAMPLE:
        wrong.append(f"resample={fields['resample']!r}")
    if wrong:
        raise ConfigError(
            f"the image processor is not implemented: {', '.join(wrong)}",
            mend="Use one that resizes (resample 1, 2 or 3), rescales and normalizes",
        )
    common = present(fields, "rescale_factor")
    if "resample" in fields:
        common["filter"] = RESAMPLE[fields["resample"]]
    for name in ("image_mean", "image_std"):
        if name in fields:
            value = fields[name]
            common[name] = tuple(value) if isinstance(value, list) else (value,) * 3
    return common
