"""Patches back to the images they were cut from: for engines that take images, not patches.

Legend: P patches, D patch width, N images, H, W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, Where
from omr_io.images.patches import value_table
from omr_io.images.pixel_values import as_tensor
from omr_io.types import EncodedSample, UInt8Array


def images_of(sample: EncodedSample, vision: VisionConfig) -> list[UInt8Array]:
    """The resized images of a sample, exactly as they were before they became patches.

    A processor of the same constants makes the same patches of them again, if it leaves their size
    as it is: `processor_bounds`. With patches in 16 bits several bytes may have one value; any of
    them has that value again.

    Returns:
        N arrays (H, W, 3) uint8 RGB.

    Raises:
        DataError: a value is none that these constants give a byte.
    """
    if sample.pixel_values is None:
        return []
    patches_PD = as_tensor(sample.pixel_values)
    table = torch.from_numpy(value_table(vision)).to(patches_PD.dtype).float().numpy()
    sizes = sample.image_grid_thw.prod(axis=1)
    parts = np.split(patches_PD.float().numpy(), np.cumsum(sizes)[:-1])
    merge, size = vision.merge_size, vision.patch_size
    images = []
    for (_, rows, columns), part in zip(sample.image_grid_thw, parts, strict=True):
        cells = part.reshape(
            rows // merge, columns // merge, merge, merge, 3, vision.temporal_patch_size, size, size
        )
        # One frame of the copies: rows (group, within, pixel), then columns alike, then channel.
        pixels = cells[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4)
        images.append(_bytes(pixels.reshape(rows * size, columns * size, 3), table, sample.key))
    return images


def _bytes(values_HW3: np.ndarray, table: np.ndarray, key: str) -> UInt8Array:
    image = np.empty(values_HW3.shape, np.uint8)
    for channel, values in enumerate(table):
        found = np.searchsorted(values, values_HW3[..., channel]).clip(max=255)
        if not np.array_equal(values[found], values_HW3[..., channel]):
            raise DataError(
                "patches hold values that are no byte's under the recipe's vision",
                where=Where(key=key),
                mend="image_mean, image_std and rescale_factor must be those they were made with",
            )
        image[..., channel] = found
    return image


def processor_bounds(vision: VisionConfig) -> tuple[int, int]:
    """min_pixels and max_pixels under which a processor resizes no image of `images_of`.

    A planned size may lie outside the recipe's own bounds, since rounding to whole merged patches
    goes up where an image was too small, and a side is at least one of them. Both are bounded for
    aspects of up to 200, the most that is planned: sides of sqrt(min_pixels) times at most
    sqrt(200) and one over it, each rounded up.
    """
    factor = vision.patch_size * vision.merge_size
    sides = (math.sqrt(200) + 1 / math.sqrt(200)) * factor
    above = vision.min_pixels + sides * math.sqrt(vision.min_pixels) + factor**2
    narrow = sides * math.sqrt(vision.max_pixels)
    return factor**2, math.ceil(max(vision.max_pixels, above, narrow))


def collapsed(sample: EncodedSample, vision: VisionConfig, image_token_id: int) -> list[int]:
    """A prompt's ids with one placeholder an image, as processors want them.

    Raises:
        ConfigError: placeholders and images do not fit each other.
    """
    ids = sample.input_ids.tolist()
    tokens = (sample.image_grid_thw.prod(axis=1) // vision.merge_size**2).tolist()
    short: list[int] = []
    place, image = 0, 0
    while place < len(ids):
        short.append(ids[place])
        if ids[place] != image_token_id:
            place += 1
            continue
        count = tokens[image] if image < len(tokens) else 0
        if not count or ids[place : place + count] != [image_token_id] * count:
            raise ConfigError(f"the placeholders of {sample.key} are not those of its images")
        place, image = place + count, image + 1
    return short
