"""Images that claim to be huge, or inflate: less than 50 MB in convert, the loader and lint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hostile.images import bombs, claims, encode, small
from tests.hostile.memory import SOUND

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 50 * 1000 * 1000
SIDES = (13_000, 65_535)
STEPS = ("probe", "convert", "load", "lint")

# Sound pixels of 40 x 40, whatever else the file holds: convert strips that, and keeps the image.
KEPT = {"png text", "png international text", "png exif text", "png profile", "png pixels"}
KEPT |= {"tiff strip"}
# Pillow stops at the bytes that 40 x 40 pixels need.
LOADED = {"png pixels", "tiff strip"}
UNREADABLE = {"tiff counts": "image-corrupt", "tiff tile": "image-too-large"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By group and step: (results, bytes), from one process."""
    folder = tmp_path_factory.mktemp("images")
    kinds = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
    groups = {
        "a-warm": {kind: encode(small(), kind) for kind in kinds},
        "b-claims": {f"{side} {n}": data for side in SIDES for n, data in claims(side).items()},
        "c-bombs": bombs(),
        # What a large image costs that is what it claims: the measurement must see it.
        "d-real": {"real": encode(Image.new("RGB", (6000, 6000), (9, 99, 199)), "JPEG")},
    }
    for group, images in groups.items():
        (folder / group).mkdir()
        for name, data in images.items():
            (folder / group / f"{name}.image").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.memory", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == groups.keys()
    assert all(found[group]["probe"][0].keys() == groups[group].keys() for group in groups)
    return found


@pytest.mark.parametrize("group", ["b-claims", "c-bombs"])
@pytest.mark.parametrize("step", STEPS)
def test_all_together_take_no_memory(
    measured: dict[str, dict[str, Any]], group: str, step: str
) -> None:
    _, added = measured[group][step]
    assert added < MAX_BYTES


def test_the_measurement_sees_a_large_image(measured: dict[str, dict[str, Any]]) -> None:
    """Or the test above could not fail."""
    for step in ("convert", "load", "lint"):
        assert measured["d-real"][step][1] > MAX_BYTES, step
    assert measured["d-real"]["load"][0] == {SOUND: "", "real": ""}


def test_a_claim_is_refused_by_name_everywhere(measured: dict[str, dict[str, Any]]) -> None:
    steps = measured["b-claims"]
    names = [f"{side} {name}" for side in SIDES for name in claims(side)]
    for name in names:
        side = name.split()[0]
        assert steps["probe"][0][name] == f"{side}x{side}", name
        assert steps["convert"][0][name] == "image-too-large", name
        assert steps["load"][0][name].startswith("image-too-large: "), name
    assert steps["load"][0][SOUND] == ""
    assert steps["lint"][0] == len(names)


def test_bombs_are_defused_or_refused(measured: dict[str, dict[str, Any]]) -> None:
    steps = measured["c-bombs"]
    for name in bombs():
        refused = "" if name in KEPT else UNREADABLE.get(name, "image-corrupt")
        assert steps["convert"][0][name] == refused, name
        assert steps["unchecked"][name] == UNREADABLE.get(name, ""), name
        if name not in UNREADABLE:
            reason = steps["load"][0][name].split(":")[0]
            assert reason == ("" if name in LOADED else "image-corrupt"), name
    assert steps["load"][0][SOUND] == ""
    assert steps["lint"][0] == len(bombs()) - len(LOADED) - len(UNREADABLE)
