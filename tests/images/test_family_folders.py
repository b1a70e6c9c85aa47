"""`from_pretrained` on folders that transformers wrote, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from omr_io.errors import ConfigError
from omr_io.images.families import (
    Gemma3Vision,
    Idefics3Vision,
    PixtralVision,
    Siglip2Vision,
    from_pretrained,
)
from tests.images.family_processors import VISIONS, image_processor, processor_module

transformers = pytest.importorskip("transformers")

DEFAULTS: dict[str, Any] = {
    "Siglip2": Siglip2Vision(),
    "Idefics3": Idefics3Vision(),
    "SmolVLM": Idefics3Vision(),
    "Gemma3": Gemma3Vision(),
    "Pixtral": PixtralVision(),
}
OF_PROCESSORS = ("image_seq_len", "image_seq_length", "patch_size", "spatial_merge_size")


def write(path: Path, **fields: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **fields}))


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_the_image_processors(name: str, tmp_path: Path) -> None:
    processor_module(name)().save_pretrained(tmp_path)
    assert from_pretrained(tmp_path) == DEFAULTS[name]
    (tmp_path / "preprocessor_config.json").unlink()
    write(tmp_path / "preprocessor_config.json", image_processor_type=f"{name}ImageProcessorFast")
    assert from_pretrained(tmp_path) == DEFAULTS[name]


@pytest.mark.parametrize("name", VISIONS)
def test_saved_image_processors_are_read_back(name: str, tmp_path: Path) -> None:
    vision = VISIONS[name]
    image_processor(vision).save_pretrained(tmp_path)
    own = {one: getattr(vision, one) for one in OF_PROCESSORS if hasattr(vision, one)}
    if isinstance(vision, Siglip2Vision):
        own = {}
    assert from_pretrained(tmp_path, **own) == vision
    changed = from_pretrained(tmp_path, exif="ignore", pass_order="pillow-13", **own)
    assert changed == dataclasses.replace(vision, exif="ignore", pass_order="pillow-13")


def save_processor(folder: Path, name: str, **own: Any) -> None:
    """What a whole Processor of transformers 5 saves, from its fields."""
    processor_module(name)().save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    path.unlink()
    write(folder / "processor_config.json", image_processor=fields, **own)


def test_a_saved_processor_is_read_and_comes_first(tmp_path: Path) -> None:
    """Written by transformers' own Idefics3Processor."""
    from tests.images.test_family_plans import tokenizer

    vision = VISIONS["smolvlm"]
    image_processor(VISIONS["pixtral"]).save_pretrained(tmp_path)
    theirs = transformers.Idefics3Processor(image_processor(vision), tokenizer(), image_seq_len=81)
    theirs.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path) == vision
    assert isinstance(from_pretrained(tmp_path, image_seq_len=2), Idefics3Vision)


def test_processors_own_fields_are_read(tmp_path: Path) -> None:
    save_processor(tmp_path, "Gemma3", processor_class="Gemma3Processor", image_seq_length=9)
    assert from_pretrained(tmp_path) == Gemma3Vision(image_seq_length=9)
    own = {"patch_size": 14, "spatial_merge_size": 2, "image_break_token": "[B]"}
    save_processor(tmp_path, "Pixtral", processor_class="PixtralProcessor", **own)
    assert from_pretrained(tmp_path) == PixtralVision(
        patch_size=14, spatial_merge_size=2, image_break_token="[B]"
    )


def test_a_pixtral_processors_patch_size_wins_as_it_does_in_transformers(tmp_path: Path) -> None:
    """mistral-community's layout: two files, of which the Processor's is passed on at a call."""
    image_processor(PixtralVision(patch_size=8)).save_pretrained(tmp_path)
    write(tmp_path / "processor_config.json", processor_class="PixtralProcessor")
    assert from_pretrained(tmp_path) == PixtralVision(patch_size=16)
    write(tmp_path / "processor_config.json", patch_size=14)
    assert from_pretrained(tmp_path) == PixtralVision(patch_size=14)
    (tmp_path / "processor_config.json").unlink()
    assert from_pretrained(tmp_path) == PixtralVision(patch_size=8)


def test_nulls_are_defaults_and_what_changes_no_pixel_is_ignored(tmp_path: Path) -> None:
    """Gemma 3's own files hold nulls."""
    processor_module("Gemma3")().save_pretrained(tmp_path)
    nulls = dict.fromkeys(("do_pan_and_scan", "pan_and_scan_min_crop_size", "do_convert_rgb"))
    write(tmp_path / "preprocessor_config.json", **nulls, video_sampling={}, resample=None)
    assert from_pretrained(tmp_path) == Gemma3Vision()
    write(tmp_path / "preprocessor_config.json", image_mean=0.25)
    assert from_pretrained(tmp_path) == Gemma3Vision(image_mean=(0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("Gemma3", {"do_resize": False}, "do_resize=False"),
        ("Gemma3", {"do_rescale": False, "do_normalize": False}, "do_rescale=False, do_normalize"),
        ("Pixtral", {"do_center_crop": True}, "do_center_crop=True"),
        ("Siglip2", {"resample": 0}, "resample=0"),
        ("Siglip2", {"resample": 5}, "resample=5"),
        ("Gemma3", {"size": {"shortest_edge": 224}}, "size={'shortest_edge': 224}.*height, width"),
        ("Gemma3", {"size": 224}, "size=224"),
        ("Idefics3", {"size": {"height": 9, "width": 9}}, "size=.*longest_edge"),
        ("SmolVLM", {"max_image_size": {"height": 9}}, "max_image_size="),
        ("Pixtral", {"size": {"height": 9, "width": 9}}, "size="),
        ("Pixtral", {"patch_size": {"height": 9, "width": 8}}, "no square"),
        ("Pixtral", {"processor_class": "LightOnOcrProcessor"}, "LightOnOcrProcessor with Pixtral"),
        ("Pixtral", {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ("Pixtral", {"image_processor_type": None}, "without image_processor_type"),
        ("Pixtral", {"image_processor_type": "Qwen2VLImageProcessor"}, "VisionConfig"),
        ("Siglip2", {"patch_size": "16"}, "patch_size must be a whole number"),
    ],
)
def test_what_would_come_out_wrong_is_refused_by_name(
    name: str, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    processor_module(name)().save_pretrained(tmp_path)
    write(tmp_path / "preprocessor_config.json", **fields)
    with pytest.raises(ConfigError, match=words) as caught:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_files_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config.json does not exist"):
        from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    processor_module("Siglip2")().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"Siglip2Vision has no max_pixels.*max_num_patches"):
        from_pretrained(tmp_path, max_pixels=1)


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys; from omr_io.images.families import Gemma3Vision, Siglip2Vision; "
        "Gemma3Vision().plan(9, 9); Siglip2Vision().plan(9, 9); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
