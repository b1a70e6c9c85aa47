"""What a sample costs a rank, from a model's config. Integers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from omr_io.config import read_json
from omr_io.errors import ConfigError
from omr_io.types import Int64Array

_UNIT = 1000  # FLOPs: fine enough for a model of width 100, and a pack of 2^24 tokens fits int64


@dataclass(frozen=True, slots=True)
class CostModel:
    """Forward FLOPs of a sample of t tokens and q patches, in units of 1 kFLOP, as integers.

    cost = text_linear t + text_quadratic t^2 + vision_linear q + vision_quadratic q^2

    The defaults are Qwen2.5-VL-7B's; see `from_config`. Only the ratios matter: costs decide which
    rank takes which pack of a step, never what is in the step. Several images of a sample count as
    one of their patches together, which is too dear by the products between them.

    Raises:
        ConfigError: a field is negative, or all are 0.
    """

    text_linear: int = 14_140_572
    text_quadratic: int = 201
    vision_linear: int = 1_294_397
    vision_quadratic: int = 20

    def __post_init__(self) -> None:
        fields = (
            self.text_linear,
            self.text_quadratic,
            self.vision_linear,
            self.vision_quadratic,
        )
        if min(fields) < 0 or not any(fields):
            raise ConfigError(f"{self}: costs must be at least 0, and not all 0")

    def cost(self, tokens_n: Int64Array, patches_n: Int64Array) -> Int64Array:
        """(n,) int64 costs of samples with the given tokens and patches."""
        text = (self.text_linear + self.text_quadratic * tokens_n) * tokens_n
        vision = (self.vision_linear + self.vision_quadratic * patches_n) * patches_n
        return np.asarray(text + vision, np.int64)

    def with_frozen_vision(self) -> CostModel:
        """The costs where the vision tower is not trained.

        It runs forward only, a third of the work of forward and backward: text counts three times.
        """
        return replace(
            self, text_linear=3 * self.text_linear, text_quadratic=3 * self.text_quadratic
        )

    @classmethod
    def from_config(cls, config: str | Path | Mapping[str, Any]) -> CostModel:
        """The costs of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.

        A weight costs 2 FLOPs a token (patch) that passes it: projections, MLPs, lm_head, the patch
        embedding, mergers. Attention costs 4 x width FLOPs a pair of tokens and layer, half of that
        where it is causal; layers of Qwen2.5-VL that attend within windows of 64 patches cost that
        for 64 pairs a patch. Norms, activations and rotations are left out.

        Args:
            config: a model folder, its config.json, or that file's object (`config.to_dict()` of
                transformers): with text_config, or with its fields at the top as in old files.

        Raises:
            ConfigError: another model_type, or a field is missing.
        """
        fields = _read(config)
        family = fields.get("model_type")
        if family not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            raise ConfigError(
                f"model_type {family!r} has no cost model",
                mend="Give CostModel(text_linear=..., ...), or a Qwen2-VL, Qwen2.5-VL or Qwen3-VL "
                "config",
            )
        text = _Fields(fields.get("text_config") or fields, "text_config")
        vision = _Fields(_Fields(fields, "config").mapping("vision_config"), "vision_config")
        flops = (*_text_flops(text), *_vision_flops(family, vision))
        return cls(*(round(count / _UNIT) for count in flops))


class _Fields:
    """A config's fields, which must be there."""

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        self._fields = fields
        self._name = name

    def __call__(self, name: str, default: int | None = None) -> int:
        value = self._fields.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise self._wrong(name, value)
        return value

    def many(self, name: str) -> int:
        """How many entries a list has."""
        value = self._fields.get(name)
        if not isinstance(value, list | tuple):
            raise self._wrong(name, value)
        return len(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._fields.get(name)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value)
        return value

    def _wrong(self, name: str, value: Any) -> ConfigError:
        found = "is missing" if value is None else f"is {value!r}"
        return ConfigError(
            f"{name} of {self._name} {found}",
            mend="Give the config.json that transformers saves with the model",
        )


def _read(config: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    return read_json(path / "config.json" if path.is_dir() else path)


def _text_flops(of: _Fields) -> tuple[int, int]:
    """FLOPs a token, and a pair of tokens, of the text model with its lm_head."""
    hidden, layers = of("hidden_size"), of("num_hidden_layers")
    heads = of("num_attention_heads")
    head = of("head_dim", hidden // heads)
    attended = heads * head
    key_values = 2 * of("num_key_value_heads", heads) * head
    mlp = 3 * hidden * of("intermediate_size")  # gate, up, down
    weights = layers * (hidden * (2 * attended + key_values) + mlp) + hidden * of("vocab_size")
    return 2 * weights, 2 * layers * attended  # causal: half of 4


def _vision_flops(family: str, of: _Fields) -> tuple[int, int]:
    """FLOPs a patch, and a pair of patches, of the vision tower with its mergers."""
    depth, merge = of("depth"), of("spatial_merge_size")
    patch = of("patch_size")
    # Qwen2-VL calls the tower's width embed_dim, and the text model's hidden_size.
    width = of("embed_dim" if family == "qwen2_vl" else "hidden_size")
    full, windowed, mergers = depth, 0, 1
    if family == "qwen2_vl":
        mlp, out = 2 * width * of("mlp_ratio") * width, of("hidden_size")
    elif family == "qwen2_5_vl":
        mlp, out = 3 * width * of("intermediate_size"), of("out_hidden_size")
        full = of.many("fullatt_block_indexes")
        windowed = depth - full
    else:
        mlp, out = 2 * width * of("intermediate_size"), of("out_hidden_size")
        mergers += of.many("deepstack_visual_indexes")
    embedding = of("in_channels", 3) * of("temporal_patch_size") * patch * patch * width
    merged = width * merge * merge
    layer = 4 * width * width + mlp
    # A merger's weights are passed once by merge x merge patches.
    weights = embedding + depth * layer + mergers * (merged * (merged + out)) // (merge * merge)
    linear = 2 * weights
    if windowed:
        side = of("window_size") // merge // patch * merge
        linear += windowed * 4 * width * side * side
    return linear, full * 4 * width
