"""Encoded images: headers, caps and sizes here; pixels in `decode`, model input in `patches`."""

from omr_io.images.sizes import (
    MAX_ASPECT,
    MAX_BYTES,
    MAX_PIXELS,
    check_bytes,
    check_caps,
    check_decodes,
    image_grid_thw,
    image_grid_thw_from_sizes,
    num_image_tokens,
    oriented_sizes,
    probe,
    smart_resize,
)

__all__ = [
    "MAX_ASPECT",
    "MAX_BYTES",
    "MAX_PIXELS",
    "check_bytes",
    "check_caps",
    "check_decodes",
    "image_grid_thw",
    "image_grid_thw_from_sizes",
    "num_image_tokens",
    "oriented_sizes",
    "probe",
    "smart_resize",
]
