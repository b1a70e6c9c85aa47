"""The FLOPs that a step asks of a model, and what a device could do: model FLOPs utilisation (MFU).

MFU = FLOPs that the model's arithmetic needs for the real tokens and patches of a step, over what
the devices could have done in its time (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). What
is done beside that is not counted: padding, recomputation in activation checkpointing, attention to
what a causal mask hides, language-model heads where there is no label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from omr_io.batches import Batch
from omr_io.errors import ConfigError

PEAK_BF16 = (
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
)
"""Dense bfloat16 FLOP/s by a part of the device's name; the first that fits counts.

NVIDIA's data sheets: A100 (312 TFLOPS); H100 (SXM 1,979, PCIe 1,513, NVL 1,671 with sparsity) and
H200 (SXM 1,979, NVL 1,671 with sparsity), GH200 (1,979 with sparsity); HGX B200 (36 PFLOPS with
sparsity for 8 GPUs), GB200 NVL72 (360 PFLOPS with sparsity for 72). Without sparsity it is half.
Clocks under load are lower: nothing reaches it.
"""


def peak_flops(device: torch.device, teraflops: float | None = None) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None where it is not known, as on a CPU.

    Args:
        teraflops: the recipe's own figure, which goes before the table; also for a CPU.
    """
    if teraflops is not None:
        return teraflops * 1e12
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Of a device by its name, as torch.cuda.get_device_name gives it.

    None of a part of one (MIG): what it can do is not what its name says.
    """
    if " MIG " in name:
        return None
    return next((peak for part, peak in PEAK_BF16 if part in name), None)


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of forward and backward, by what a batch holds.

    A weight costs 2 FLOPs a row that passes it forward, 2 for the gradient of its input if anything
    before it is trained, and 2 for its own gradient if it is. Attention costs 4 x width a pair of
    places and layer forward and twice that backward. A frozen tower in front therefore counts
    once, frozen weights under LoRA twice. Norms, activations and rotations are left out.

    Attributes:
        token, label, patch, merged: a real token, a label (which alone meets the head), a patch in
            the vision tower, a merged patch in its mergers.
        token_pair: a pair of tokens of one sample, the later one seeing the earlier.
        patch_pair, window_pair: a pair of patches of one frame, or of one window.
        merge: the side of a merged patch, in patches.
        window: the side of Qwen2.5-VL's windows, in merged patches; None without.
    """

    token: float
    token_pair: float
    label: float
    patch: float
    merged: float
    patch_pair: float
    window_pair: float
    merge: int
    window: int | None

    def of(self, batch: Batch) -> float:
        """Of one batch; from integers on the host, so that no device is waited for."""
        merge = self.merge
        flops = self.token * batch.num_tokens + self.label * batch.num_label_tokens
        flops += self.token_pair * sum(n * (n + 1) // 2 for n in _sample_lengths(batch))
        for frames, rows, columns in batch.grids if batch.num_images else ():
            frame = rows * columns
            flops += frames * frame * (self.patch + self.merged / merge**2)
            flops += frames * frame**2 * self.patch_pair
            if self.window is not None:
                pairs = _squares(rows // merge, self.window)
                pairs *= _squares(columns // merge, self.window)
                flops += frames * pairs * merge**4 * self.window_pair
        return flops

    @classmethod
    def from_model(cls, model: Any) -> StepFlops:
        """Of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL: its weights as they are, frozen, adapted, sharded.

        Raises:
            ConfigError: another kind of model.
        """
        config = model.config
        if config.model_type not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            raise ConfigError(f"FLOPs of model_type {config.model_type!r} are not known")
        text, vision = config.text_config, config.vision_config
        count = _count(model)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size
        full = set(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
        windowed = [block for block in range(vision.depth) if block not in full]
        merge, window = vision.spatial_merge_size, None
        if windowed:
            window = vision.window_size // merge // vision.patch_size
        return cls(
            token=count.rows["text"],
            token_pair=4.0 * text.num_attention_heads * head_dim * sum(count.layers.values()),
            label=count.rows["head"],
            patch=count.rows["tower"],
            merged=count.rows["merger"],
            patch_pair=4.0 * width * sum(count.blocks[block] for block in full),
            window_pair=4.0 * width * sum(count.blocks[block] for block in windowed),
            merge=merge,
            window=window,
        )


def _sample_lengths(batch: Batch) -> Iterator[int]:
    """Tokens of each sample; a pack's last segment may be its padding, which is none."""
    bounds, seq_len = batch.boundaries.kinds[0], batch.input_ids.shape[1]
    place = 0
    for pack, keys in enumerate(batch.keys, start=1):
        for _ in keys:
            yield bounds[place + 1] - bounds[place]
            place += 1
        place += bounds[place] < pack * seq_len


def _squares(length: int, window: int) -> int:
    """Pairs along one axis within windows of at most `window`."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2


@dataclass(frozen=True, slots=True)
class _Count:
    """FLOPs a row of each stage, and how often the attention of each layer counts: 1 or 3."""

    rows: dict[str, float]
    layers: dict[int, int]
    blocks: dict[int, int]


_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
_ENTRIES = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
"""Weights that stand side by side: they share their input."""


_Modules: TypeAlias = "list[tuple[list[str], nn.Module]]"
"""Each with its place, split at the dots."""


def _count(model: Any) -> _Count:
    """Walk through the modules as they are run, keeping whether anything before is trained."""
    stages: dict[str, _Modules] = {"tower": [], "merger": [], "text": [], "head": []}
    for name, module in model.named_modules():
        path = [part for part in name.split(".") if part not in _WRAPPERS]
        stages[_stage(path)].append((path, module))
    count = _Count({}, {}, {})
    trained = False
    count.rows["tower"], trained = _walk(stages["tower"], trained, "blocks", count.blocks)
    behind_tower, count.rows["merger"] = trained, 0.0
    # Every merger takes what the tower gives, and none what another gives.
    for merger in _mergers(stages["merger"]):
        rows, below = _walk(merger, behind_tower, "", {})
        count.rows["merger"] += rows
        trained |= below
    count.rows["text"], trained = _walk(stages["text"], trained, "layers", count.layers)
    count.rows["head"], _ = _walk(stages["head"], trained, "", {})
    return count


def _stage(path: list[str]) -> str:
    if "visual" in path:
        return "merger" if any("merger" in part for part in path) else "tower"
    return "head" if "lm_head" in path else "text"


def _mergers(modules: _Modules) -> list[_Modules]:
    found: dict[tuple[str, ...], _Modules] = {}
    for path, module in modules:
        at = next(i for i, part in enumerate(path) if "merger" in part)
        end = at + 2 if path[at].endswith("list") else at + 1
        found.setdefault(tuple(path[:end]), []).append((path, module))
    return list(found.values())


def _walk(
    modules: list[tuple[list[str], nn.Module]],
    trained: bool,
    blocks: str,
    attention: dict[int, int],
) -> tuple[float, bool]:
    """FLOPs a row of these modules, and whether anything up to their end is trained.

    Args:
        trained: whether anything before them is.
        blocks: the list whose items' attention is noted in `attention`: 1 forward, 3 with backward.
    """
    rows = 0.0
    entries: dict[tuple[str, ...], bool] = {}
    for path, module in modules:
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if blocks in path[:-1] and path[-1] in ("self_attn", "attn"):
            inside = any(parameter.requires_grad for parameter in module.parameters())
            number = int(path[path.index(blocks) + 1])
            attention[number] = 3 if trained or inside else 1
        if isinstance(module, nn.Linear | nn.Conv3d):
            before = trained
            name = next((part for part in path if part in _ENTRIES), None)
            if name is not None and "lora_B" not in path:
                shared = (*path[: path.index(name)], _ENTRIES[name])
                before = entries.setdefault(shared, trained)
            rows += 2.0 * module.weight.numel() * (1 + before + module.weight.requires_grad)
        trained |= any(own)
    return rows, trained
