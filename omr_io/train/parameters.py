"""What of a model is trained, and how: frozen parts, LoRA, learning rates by part.

A Qwen vision-language model has three parts: the vision tower ("vision"), what maps its patches to
the text model's width ("merger", deepstack's mergers too), and the rest ("text": decoder layers,
embeddings, head). LoRA adapts linear layers of the decoder; the text model's own weights are then
frozen, the two other parts are trained in full unless they are frozen.

Adapters are put into the model by peft, which leaves it the same transformers class: nothing else
needs to know of them. The head has none, since log-probabilities read its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from omr_io.errors import ConfigError

Part = Literal["text", "merger", "vision"]
PARTS: tuple[Part, ...] = ("text", "merger", "vision")
_ADAPTER = "default"
_ADAPTER_MARK = "lora_"


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adapters: W + alpha / rank * B @ A, of which A and B are trained, B from zeros.

    Args:
        rank, alpha: as above; alpha / rank scales what is learned.
        dropout: of an adapter's input, in training.
        target_modules: names of linear layers within the decoder's layers, such as "q_proj"; empty:
            all of them.
    """

    rank: int
    alpha: int
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"lora: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}",
                mend="Rank and alpha must be at least 1, dropout from 0 to below 1",
            )


def part_of(name: str) -> Part:
    """The part that a parameter or module belongs to, by its name in the model."""
    path = name.removeprefix("model.")
    if not path.startswith("visual."):
        return "text"
    return "merger" if "merger" in path.split(".")[1] else "vision"


def add_lora(model: Any, lora: LoRA, *, seed: int) -> list[str]:
    """Put adapters on linear layers of the decoder, in place, and freeze the rest of the text part.

    Every rank gets the same adapters for a seed; the process' own random state is left as it was.

    Returns:
        the names of the adapted layers.

    Raises:
        ConfigError: peft is missing, there are adapters already, or a target is no linear layer of
            the decoder.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("peft is not installed", mend="pip install 'omr_io[lora]'") from error
    if any(_ADAPTER_MARK in name for name, _ in model.named_parameters()):
        raise ConfigError("the model has adapters already", mend="Add them once, and export merges")
    targets = _lora_targets(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and part_of(name) != "text")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, _ADAPTER)
    for name, parameter in model.named_parameters():  # peft freezes all that is not an adapter
        parameter.requires_grad_(name in trained or _ADAPTER_MARK in name)
    return targets


def _lora_targets(model: Any, lora: LoRA) -> list[str]:
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and part_of(name) == "text"
    ]
    known = sorted({name.rsplit(".", 1)[1] for name in linear})
    unknown = sorted(set(lora.target_modules) - set(known))
    if unknown:
        raise ConfigError(
            f"lora: target_modules {', '.join(unknown)} are no linear layers of the decoder",
            mend=f"There are {', '.join(known)}",
        )
    wanted = set(lora.target_modules or known)
    return [name for name in linear if name.rsplit(".", 1)[1] in wanted]


def freeze(model: Any, parts: Sequence[Part]) -> None:
    """Stop training these parts from now on; what is frozen already stays so.

    A sharded model may be frozen further, between steps.

    Raises:
        ConfigError: nothing would be left to train.
    """
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"freeze {', '.join(parts)} leaves nothing to train",
            mend=f"Leave one of {', '.join(PARTS)} out, or add lora",
        )


def new_optimizer(
    model: Any,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
    merger_lr: float | None = None,
    vision_lr: float | None = None,
) -> torch.optim.AdamW:
    """AdamW over what is trained; norms, biases and other vectors are not decayed.

    A group is a part, decayed or not, and keeps its `base_lr`, which a schedule multiplies.

    Args:
        merger_lr, vision_lr: of those parts; None: lr.

    Raises:
        ConfigError: nothing is trained, or a learning rate is given for a part that is not.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("nothing is trained", mend="Freeze fewer parts, or add lora")
    rates: dict[Part, float | None] = {"text": lr, "merger": merger_lr, "vision": vision_lr}
    groups: list[dict[str, Any]] = []
    for part, rate in rates.items():
        mine = [p for name, p in trained if part_of(name) == part]
        if not mine and part != "text" and rate is not None:
            raise ConfigError(
                f"{part}_lr is {rate}, but no parameter of that part is trained",
                mend=f"Leave {part}_lr out, or {part} out of freeze",
            )
        base = lr if rate is None else rate
        for decay, kept in (
            (weight_decay, [p for p in mine if p.ndim >= 2]),
            (0.0, [p for p in mine if p.ndim < 2]),
        ):
            if kept:
                groups.append({"params": kept, "weight_decay": decay, "lr": base, "base_lr": base})
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2))


def merged_weights(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights with every adapter added to its layer: those of the plain transformers model.

    Args:
        weights: the model's state dict, whole (`omr_io.train.gathering.full_weights`); {} on ranks
            that do not write.
    """
    scales = {
        name: float(module.scaling[_ADAPTER])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and _ADAPTER in module.scaling
    }
    merged: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".base_layer.")
        if _ADAPTER_MARK in name:
            continue
        if not layer:
            merged[name] = weight
            continue
        if kind == "weight":
            a_RH = weights[f"{layer}.lora_A.{_ADAPTER}.weight"].float()
            b_VR = weights[f"{layer}.lora_B.{_ADAPTER}.weight"].float()
            weight = weight.float() + scales[layer] * (b_VR @ a_RH)
        merged[f"{layer}.{kind}"] = weight
    return merged


def cast_weights(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in a dtype; what is tied stays one tensor."""
    cast: dict[int, Tensor] = {}
    for weight in weights.values():
        if id(weight) not in cast:
            cast[id(weight)] = weight.to(dtype) if weight.is_floating_point() else weight
    return {name: cast[id(weight)] for name, weight in weights.items()}
