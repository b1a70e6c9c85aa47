"""Frozen configuration, and its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omr_io.errors import ConfigError

PassOrder = Literal["horizontal-first", "pillow-13"]
"""Order of the two passes of a separable resize. Pillow to 12.x: horizontal first. Pillow 13.0.0,
for H x W -> h x w: vertical first exactly when h < H and (H - h) > 2 (W - w), else horizontal."""

ExifPolicy = Literal["apply", "ignore"]
VisionFamily = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """How an image becomes patches; the fields of transformers' Qwen2VLImageProcessor.

    Args:
        family: decides the M-RoPE rule and the vision tower's metadata.
        patch_size: side of a patch in pixels.
        merge_size: merge_size x merge_size patches become one image token.
        temporal_patch_size: frames in a patch; an image is repeated to fill them.
        min_pixels, max_pixels: bounds of height x width after `smart_resize`.
        image_mean, image_std: of the values scaled to 0..1, per RGB channel.
        rescale_factor: what uint8 values are multiplied by first.
        exif: "apply" turns images upright as `datasets` and transformers' `load_image` do,
            "ignore" takes pixels as stored, as `PIL.Image.open` does.
        pass_order: the resize's rule; None follows the installed Pillow.
    """

    family: VisionFamily = "qwen3_vl"
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 256 * 32 * 32
    max_pixels: int = 768 * 32 * 32
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    exif: ExifPolicy = "apply"
    pass_order: PassOrder | None = None

    def __post_init__(self) -> None:
        if self.min_pixels <= 0 or self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels} bound nothing",
                mend="Use 0 < min_pixels <= max_pixels, both in pixels (height x width)",
            )
        if min(self.image_std) <= 0 or self.rescale_factor <= 0:
            raise ConfigError(
                f"image_std {self.image_std}, rescale_factor {self.rescale_factor}",
                mend="They must be above 0: pixels are multiplied and divided by them",
            )
        if self.patch_size < 1 or self.merge_size < 1 or self.temporal_patch_size < 1:
            raise ConfigError("patch_size, merge_size and temporal_patch_size must be at least 1")

    @property
    def patch_width(self) -> int:
        """D: floats in one patch, 3 x temporal_patch_size x patch_size squared."""
        return 3 * self.temporal_patch_size * self.patch_size * self.patch_size

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> VisionConfig:
        """Read a Hugging Face model folder: config.json, and the image processor's file.

        Args:
            folder: a local folder holding config.json and processor_config.json (transformers 5's
                processors) or preprocessor_config.json.
            changes: fields to override, such as `max_pixels`.

        Raises:
            ConfigError: a file or a field is missing, or names what is not implemented.
        """
        root = Path(folder)
        processor = _image_processor(root)
        family = read_json(root / "config.json").get("model_type")
        if family not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            raise ConfigError(
                f"model_type {family!r} is not implemented",
                mend="Use a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint",
            )
        size = processor.get("size") or {}
        fields: dict[str, Any] = {
            "family": family,
            "min_pixels": processor.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": processor.get("max_pixels") or size.get("longest_edge"),
            "rescale_factor": processor.get("rescale_factor", 1 / 255),
        }
        names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        fields |= {name: processor.get(name) for name in names}
        fields |= changes
        missing = sorted(name for name, value in fields.items() if value is None)
        if set(missing) - {"pass_order"}:
            raise ConfigError(
                f"the image processor's configuration in {root} lacks {', '.join(missing)}",
                mend="Save the processor again with transformers, or give the fields by name",
            )
        for name in ("image_mean", "image_std"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def _image_processor(root: Path) -> dict[str, Any]:
    """The image processor's fields, from where transformers 5 looks: processor_config.json first.

    Fields that change pixels and that we do not implement are refused, not ignored.
    """
    fields: Any = None
    if (root / "processor_config.json").exists():
        fields = read_json(root / "processor_config.json").get("image_processor")
    if fields is None:
        fields = read_json(root / "preprocessor_config.json")
    expected = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    wrong = [
        f"{name}={fields[name]!r}"
        for name, value in expected.items()
        if fields.get(name, value) != value
    ]
    kind = fields.get("image_processor_type", "Qwen2VLImageProcessor")
    if wrong or not kind.startswith(("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")):
        raise ConfigError(
            f"the image processor in {root} is not implemented: {', '.join([kind, *wrong])}",
            mend="Use a Qwen2VLImageProcessor that resizes (bicubic), rescales and normalizes",
        )
    return dict(fields)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        ConfigError: there is no such file, or it is not JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", mend="Give a Hugging Face folder") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def fingerprint(*parts: Any) -> str:
    """A short stable digest of configuration values: 16 hex digits of SHA-256 over canonical JSON.

    Dataclasses are taken as their fields; everything else must be JSON.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"class": type(value).__name__, **dataclasses.asdict(value)}
        raise TypeError(f"cannot fingerprint {type(value).__name__}")

    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
