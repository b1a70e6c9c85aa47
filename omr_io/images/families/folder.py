"""A Hugging Face folder's image processor, as one of the families."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from omr_io.config import read_json
from omr_io.errors import ConfigError
from omr_io.images.families.base import Family
from omr_io.images.families.fields import Fields
from omr_io.images.families.gemma3 import Gemma3Vision
from omr_io.images.families.idefics3 import Idefics3Vision
from omr_io.images.families.pixtral import PixtralVision
from omr_io.images.families.siglip2 import Siglip2Vision

IMAGE_PROCESSORS: Final[Mapping[str, type[Family[Any]]]] = MappingProxyType(
    {
        "Gemma3ImageProcessor": Gemma3Vision,
        "Idefics3ImageProcessor": Idefics3Vision,
        "PixtralImageProcessor": PixtralVision,
        "Siglip2ImageProcessor": Siglip2Vision,
        "SmolVLMImageProcessor": Idefics3Vision,
    }
)
"""Families by image_processor_type."""


def from_pretrained(folder: str | Path, **changes: Any) -> Family[Any]:
    """The family and options of a Hugging Face folder, by its image_processor_type.

    Args:
        folder: a local folder holding processor_config.json (transformers 5's processors; it is
            looked at first, as transformers does) or preprocessor_config.json, or both.
        changes: fields to override, such as `do_pan_and_scan`.

    Returns:
        Siglip2Vision, Idefics3Vision, Gemma3Vision or PixtralVision.

    Raises:
        ConfigError: a file is missing or names what is not implemented, or there is no such field.
    """
    root = Path(folder)
    fields, processor = _files(root)
    kind = str(fields.get("image_processor_type", "without image_processor_type"))
    name = kind.removesuffix("Fast").removesuffix("Pil")
    if name.startswith(("Qwen2VL", "Qwen2_5_VL")):
        raise ConfigError(f"{root} holds a {kind}", mend="Read it by VisionConfig.from_pretrained")
    if name not in IMAGE_PROCESSORS:
        raise ConfigError(
            f"the image processor in {root} is not implemented: {kind}",
            mend=f"Use {', '.join(IMAGE_PROCESSORS)}",
        )
    family = IMAGE_PROCESSORS[name]
    owner = processor.get("processor_class", fields.get("processor_class"))
    if owner is not None and owner not in family.processors:
        raise ConfigError(
            f"the processor_class in {root} is not implemented: {owner} with {kind}",
            mend=f"Use {', '.join(family.processors)}: others may pass options of their own",
        )
    try:
        return family.from_fields(fields, processor, **changes)
    except ConfigError as error:
        raise ConfigError(f"{root}: {error.what}", mend=error.mend) from None


def _files(root: Path) -> tuple[Fields, Fields]:
    """(the image processor's fields, the Processor's own); null stands for a default."""
    processor: dict[str, Any] = {}
    if (root / "processor_config.json").exists():
        processor = read_json(root / "processor_config.json")
    fields = processor.pop("image_processor", None)
    if fields is None:
        fields = read_json(root / "preprocessor_config.json")
    kept = (
        {name: value for name, value in one.items() if value is not None}
        for one in (fields, processor)
    )
    image_fields, own = kept
    return image_fields, own
