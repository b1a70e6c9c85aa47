"""What tests of pixels share: configurations, images, the processor of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from omr_io import _C
from omr_io.config import VisionConfig
from omr_io.images.cpu_patches import Instructions
from omr_io.types import UInt8Array

processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")

CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
VISIONS = {
    "qwen2_vl": VisionConfig("qwen2_vl", 14, min_pixels=56 * 56, max_pixels=28 * 28 * 300, **CLIP),
    "qwen2_5_vl": VisionConfig(
        "qwen2_5_vl", 14, min_pixels=128 * 28 * 28, max_pixels=256 * 28 * 28, **CLIP
    ),
    "qwen3_vl": VisionConfig("qwen3_vl", 16, min_pixels=64 * 32 * 32, max_pixels=256 * 32 * 32),
    "small": VisionConfig(
        "qwen3_vl", 8, merge_size=1, temporal_patch_size=1, min_pixels=64, max_pixels=64 * 64
    ),
}


def has(instructions: Instructions) -> bool:
    try:
        _C.resize(np.zeros((1, 1, 3), np.uint8), 1, 1, instructions=instructions)
    except ValueError:
        return False
    return True


INSTRUCTIONS = [name for name in ("scalar", "avx2", "avx512") if has(name)]


def processor(vision: VisionConfig) -> object:
    return processing.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        image_mean=list(vision.image_mean),
        image_std=list(vision.image_std),
    )


def random_pixels(rng: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Noise, which shows every rounding, or steps, which show overshoot and clipping."""
    if rng.random() < 0.5:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return rng.choice(np.array([0, 255], dtype=np.uint8), (height, width, 3))


FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
