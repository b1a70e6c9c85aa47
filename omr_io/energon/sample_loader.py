"""Written by omr-io into .nv-meta: turns a sample of the set into Energon's InterleavedSample.

Energon runs this file by itself, so it needs nothing but what Energon needs. Change it as you like;
`omr-io energon --overwrite` writes it anew.
"""

import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


def sample_loader(sample: dict[str, Any]) -> dict[str, Any]:
    """The images in their order, the question, and the reasoning (or the answer without one).

    Args:
        sample: the raw parts by the rest of their names ("jpg", "img0.png", "json"), and
            "__key__".
    """
    record = json.loads(sample["json"])
    images = [picture(sample[image["part"]]) for image in record["images"]]
    completion = record["reasoning"] or record["answer"]
    return {"sequence": [*images, record["question"], completion]}


def part_filter(part: str) -> bool:
    """All parts of a sample are read; `part` is the rest of the name ("jpg", "json")."""
    return True


def picture(data: bytes) -> torch.Tensor:
    """An encoded image as (3, H, W) float32 from 0 to 1: upright, transparency over white."""
    with Image.open(io.BytesIO(data)) as stored:
        stored.load()
        image: Image.Image = stored
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            clear = image.convert("RGBA")
            white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, clear)
        rgb = image.convert("RGB")
        if stored.getexif().get(274, 1) != 1 and stored.format != "TIFF":  # that is upright
            rgb.getexif()[274] = stored.getexif()[274]
            rgb = ImageOps.exif_transpose(rgb)
    pixels_HW3 = np.array(rgb, np.float32) / 255
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1).contiguous()
