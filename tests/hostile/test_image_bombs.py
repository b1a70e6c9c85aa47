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

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 50 * 1000 * 1000
SECONDS = 5  # that one of them may take in one place; all take less than 0.3
SIDES = (13_000, 65_535)

# Sound pixels of 40 x 40, whatever else the file holds: convert strips that, and keeps the image.
KEPT = {"png text", "png international text", "png exif text", "png profile", "png pixels"}
KEPT |= {"tiff strip"}
# Pillow stops at the bytes that 40 x 40 pixels need.
LOADED = {"png pixels", "tiff strip"}
UNREADABLE = {"tiff counts"}

Measured = dict[str, dict[str, tuple[Any, int, float]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Result, bytes and seconds of each image in each place, from one process."""
    folder = tmp_path_factory.mktemp("images")
    images = {f"warm-{kind}": encode(small(), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    images |= {f"warm-{kind}": encode(small(), kind) for kind in ("BMP", "GIF")}
    for side in SIDES:
        images |= {f"{side} {name}": data for name, data in claims(side).items()}
    images |= bombs()
    # What a large image costs that is what it claims: the measurement must see it.
    images["real"] = encode(Image.new("RGB", (6000, 6000), (9, 99, 199)), "JPEG")
    for name, data in images.items():
        (folder / f"{name}.image").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.memory", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == images.keys()
    return found


def test_none_takes_memory_or_time(measured: Measured) -> None:
    for name, places in measured.items():
        if name == "real" or name.startswith("warm-"):
            continue
        for place, (_, added, seconds) in places.items():
            assert added < MAX_BYTES, (name, place, added)
            assert seconds < SECONDS, (name, place, seconds)


def test_the_measurement_sees_a_large_image(measured: Measured) -> None:
    """Or the test above could not fail."""
    for place in ("convert", "load", "lint"):
        assert measured["real"][place][1] > MAX_BYTES, place


@pytest.mark.parametrize("side", SIDES)
def test_a_claim_is_refused_by_name_everywhere(measured: Measured, side: int) -> None:
    for name in claims(side):
        places = measured[f"{side} {name}"]
        assert places["probe"][0] == f"{side}x{side}", name
        assert places["convert"][0] == {"samples": 1, "refusals": {"image-too-large": 1}}, name
        (reason,) = places["load"][0]
        assert reason.startswith("image-too-large: "), name
        assert "broken-images" in places["lint"][0], name


def test_bombs_are_defused_or_refused(measured: Measured) -> None:
    for name in bombs():
        places = measured[name]
        converted = {"samples": 2, "refusals": {}}
        if name not in KEPT:
            converted = {"samples": 1, "refusals": {"image-corrupt": 1}}
        assert places["convert"][0] == converted, name
        if name in UNREADABLE:
            assert "load" not in places, name
            continue
        reasons = places["load"][0]
        assert len(reasons) == (name not in LOADED), (name, reasons)
        assert all(reason.startswith("image-corrupt: ") for reason in reasons), (name, reasons)
        assert ("broken-images" in places["lint"][0]) == (name not in LOADED), name
