"""The families' configurations that tests go through, and transformers' processors of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from omr_io.images.families import (
    Family,
    Gemma3Vision,
    Idefics3Vision,
    PixtralVision,
    Siglip2Vision,
)
from omr_io.types import UInt8Array

RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
ODD_VALUES = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

VISIONS: dict[str, Family[Any]] = {
    "siglip2": Siglip2Vision(),
    "siglip2-1024": Siglip2Vision(max_num_patches=1024),
    "siglip2-so400m-14": Siglip2Vision(patch_size=14, max_num_patches=729, **ODD_VALUES),
    "siglip2-one": Siglip2Vision(patch_size=7, max_num_patches=1, filter="lanczos"),
    "siglip2-few": Siglip2Vision(patch_size=5, max_num_patches=37, rescale_factor=1 / 127.5),
    "idefics3": Idefics3Vision(),
    "idefics3-whole": Idefics3Vision(do_image_splitting=False),
    "smolvlm": Idefics3Vision(longest_edge=3 * 128, max_image_size=128, image_seq_len=81),
    "idefics3-uneven": Idefics3Vision(longest_edge=101, max_image_size=28, image_seq_len=4),
    "idefics3-one": Idefics3Vision(longest_edge=64, max_image_size=64, filter="bicubic"),
    "idefics3-narrow": Idefics3Vision(longest_edge=49, max_image_size=7, filter="bilinear"),
    "idefics3-4096": Idefics3Vision(longest_edge=5000, max_image_size=1024, image_seq_len=9),
    "gemma3": Gemma3Vision(),
    "gemma3-896": Gemma3Vision(size_height=896, size_width=896),
    "gemma3-scan": Gemma3Vision(do_pan_and_scan=True),
    "gemma3-crops": Gemma3Vision(
        size_height=56,
        size_width=40,
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=7,
        pan_and_scan_min_ratio_to_activate=1.0,
        **ODD_VALUES,
    ),
    "gemma3-tiny-crops": Gemma3Vision(
        size_height=20,
        size_width=30,
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=1,
        pan_and_scan_max_num_crops=6,
        pan_and_scan_min_ratio_to_activate=1.5,
    ),
    "pixtral": PixtralVision(),
    "pixtral-mistral3": PixtralVision(longest_edge=1540, patch_size=14, spatial_merge_size=2),
    "pixtral-small": PixtralVision(longest_edge=100, patch_size=7),
    "pixtral-lanczos": PixtralVision(longest_edge=130, patch_size=32, filter="lanczos"),
}


def image_processor(vision: Family[Any]) -> Any:
    """transformers' PIL image processor of the same options."""
    options: dict[str, Any] = {
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "rescale_factor": vision.rescale_factor,
        "resample": RESAMPLE[vision.filter],
    }
    if isinstance(vision, Siglip2Vision):
        name = "Siglip2"
        options |= {"patch_size": vision.patch_size, "max_num_patches": vision.max_num_patches}
    elif isinstance(vision, Idefics3Vision):
        name = "SmolVLM" if vision.max_image_size == 128 else "Idefics3"
        options["size"] = {"longest_edge": vision.longest_edge}
        options["max_image_size"] = {"longest_edge": vision.max_image_size}
        options["do_image_splitting"] = vision.do_image_splitting
    elif isinstance(vision, Gemma3Vision):
        name = "Gemma3"
        options["size"] = {"height": vision.size_height, "width": vision.size_width}
        scan = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        for option in ("do_pan_and_scan", *(f"pan_and_scan_{one}" for one in scan)):
            options[option] = getattr(vision, option)
    else:
        assert isinstance(vision, PixtralVision)
        name = "Pixtral"
        options["size"] = {"longest_edge": vision.longest_edge}
        side = vision.patch_size * vision.spatial_merge_size
        options["patch_size"] = {"height": side, "width": side}
    return processor_module(name)(**options)


def processor_module(name: str) -> Any:
    """transformers' PIL image processor class of a family."""
    path = f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}"
    return getattr(import_module(path), f"{name}ImageProcessorPil")


def random_pixels(rng: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Noise, which shows every rounding, or steps, which show overshoot and clipping."""
    if rng.random() < 0.5:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return rng.choice(np.array([0, 255], dtype=np.uint8), (height, width, 3))
