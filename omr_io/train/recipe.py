"""The recipe: one YAML file as frozen dataclasses, checked before any work is done."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, ResumeError
from omr_io.train.parameters import PARTS, LoRA, Part

Precision = Literal["float32", "bfloat16"]

Objective = Literal["grpo", "dr_grpo", "gspo"]
EngineName = Literal["transformers", "vllm"]

_WEEK = 7 * 24 * 60
_MOST_SEED = 2**32 - 1


def _at_least(place: str, **bounds: tuple[float, float]) -> None:
    """Refuse a value below its bound before any work is done, not in the middle of a run."""
    for name, (value, least) in bounds.items():
        if value < least:
            raise ConfigError(f"{place}: {name} is {value}", mend=f"It must be at least {least}")


def _check_schedule(place: str, phase: SFTRecipe | RLRecipe) -> None:
    """Refuse what the optimiser or its schedule would fail at, or take and be led astray by."""
    for name in ("warmup", "min_lr_share"):
        value = getattr(phase, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{place}: {name} is {value}", mend="It must be from 0 to 1")
    if not 0 <= phase.beta2 < 1:
        raise ConfigError(f"{place}: beta2 is {phase.beta2}", mend="It must be from 0 to below 1")
    if phase.max_grad_norm <= 0:  # a negative one would turn every step round
        raise ConfigError(
            f"{place}: max_grad_norm is {phase.max_grad_norm}",
            mend="It must be above 0; a very large one clips nothing",
        )
    if phase.steps and set(PARTS) <= set(phase.freeze):
        raise ConfigError(
            f"{place}: freeze leaves nothing to train", mend=f"Leave one of {', '.join(PARTS)} out"
        )


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """Shard sets, and how samples become batches (see `omr_io.DataLoader`)."""

    train: str
    test: str
    seq_len: int
    packs_per_step: int
    packs_per_batch: int | None = None
    decoder: str = "cpu"
    num_threads: int = 1


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """The model, and what of it is trained by adapters.

    Args:
        path: a Hugging Face folder; or a model on the Hub as "owner/name" or "owner/name@revision",
            which is downloaded once; or None: the small Qwen3-VL of `omr_io.train.model`, from
            config.
        tokenizer: a folder; None: the model's, or for the small one a byte-level BPE of
            `vocab_size` entries, trained on the training shards.
        dtype: what is computed in. Masters, gradients' sums and the optimiser are float32 either
            way; bfloat16 is for GPUs.
        lora: adapters on the text model, whose own weights are then frozen; None trains them.
    """

    path: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 3072
    dtype: Precision = "float32"
    lora: LoRA | None = None


@dataclass(frozen=True, slots=True)
class ParallelRecipe:
    """What saves a GPU's memory or time and changes no result but by rounding.

    Args:
        activation_checkpointing: compute each block again in the backward pass instead of keeping
            what is inside it: a third more computation.
        compile: torch.compile each block.
        timeout_minutes: how long a rank waits for the others.
    """

    activation_checkpointing: bool = False
    compile: bool = False
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout_minutes <= _WEEK:
            raise ConfigError(
                f"parallel: timeout_minutes is {self.timeout_minutes}",
                mend=f"It must be above 0, and at most {_WEEK} (a week)",
            )


@dataclass(frozen=True, slots=True)
class SFTRecipe:
    """Supervised fine-tuning: AdamW, linear warm-up to `lr`, cosine to `min_lr_share` of it.

    Args:
        steps, epochs: how long; exactly one is given. Epochs become steps by the loader's plan.
        lr: of the text model, and of the other parts unless they have their own.
        merger_lr, vision_lr: of these parts; the schedule is the same.
        freeze: parts that are not trained: text, merger, vision. With lora, "text" is its adapters.
    """

    lr: float
    steps: int = 0
    epochs: int = 0
    merger_lr: float | None = None
    vision_lr: float | None = None
    freeze: tuple[Part, ...] = ()
    warmup: float = 0.03
    min_lr_share: float = 0.1
    weight_decay: float = 0.01
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    evaluate_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        _at_least(
            "sft",
            steps=(self.steps, 0),
            epochs=(self.epochs, 0),
            lr=(self.lr, 0),
            merger_lr=(self.merger_lr or 0, 0),
            vision_lr=(self.vision_lr or 0, 0),
            checkpoint_every=(self.checkpoint_every, 1),
            evaluate_every=(self.evaluate_every, 1),
            log_every=(self.log_every, 1),
            weight_decay=(self.weight_decay, 0),
        )
        if (self.steps > 0) == (self.epochs > 0):
            raise ConfigError(
                f"sft: steps is {self.steps} and epochs is {self.epochs}",
                mend="Give one of them, at least 1, and leave the other out",
            )
        _check_schedule("sft", self)
        _unfrozen("sft", self.freeze, merger_lr=self.merger_lr, vision_lr=self.vision_lr)


def _unfrozen(place: str, freeze: tuple[Part, ...], **rates: float | None) -> None:
    """Refuse a learning rate of a part that is frozen."""
    for name, rate in rates.items():
        part = name.removesuffix("_lr")
        if rate is not None and part in freeze:
            raise ConfigError(
                f"{place}: {name} is {rate}, but {part} is frozen", mend="Leave one of them out"
            )


@dataclass(frozen=True, slots=True)
class RLRecipe:
    """Policy gradients on groups: `group` completions of each of `prompts_per_step` prompts.

    Args:
        prompts_per_step: groups a step, over all ranks.
        samples: the last so many of the training split are kept for RL, and SFT never sees them:
            what a small model has learned by heart leaves nothing to reinforce. None: SFT and RL
            both use all of it.
        objective: "grpo" (with DAPO's token-level normaliser and clip-higher), "dr_grpo" or "gspo";
            see `omr_io.train.objectives.policy_loss`.
        clip_low, clip_high: None for the objective's own, `omr_io.train.objectives.CLIPS`.
        beta: weight of the KL term against the SFT model; 0 keeps no reference model.
        scale_by_std: divide a group's advantages by their standard deviation. None: as the
            objective does, all but "dr_grpo".
        updates: of the weights a rollout, each on its own share of the groups. 1 needs no
            log-probabilities of the old policy beside those it computes anyway.
        dynamic_sampling: groups whose completions are all right or all wrong teach nothing about
            accuracy: they are dropped, and more prompts are drawn in their place.
        max_draws: with dynamic_sampling, at most so many times prompts_per_step are drawn a step.
        shared_prefix: lay a prompt and its images out once a group instead of once a completion in
            the update. The same gradients but for rounding, with fewer tokens and patches.
        freeze: parts that RL does not train: those of `sft`, and maybe more.
        min_pixels, max_pixels: of RL's images; None: those of `vision`.
        engine: what samples: "transformers", the trained model itself, or "vllm", which was never
            run against a real vLLM (`omr_io.train.engines.vllm_engine`).
        importance_clip: the largest weight by which a token is corrected for a sampler that is
            not quite the policy ("vllm").
        vllm_memory: the share of the GPU's memory that vLLM may take.
    """

    steps: int
    lr: float
    prompts_per_step: int
    group: int
    max_new_tokens: int
    samples: int | None = None
    temperature: float = 1.0
    objective: Objective = "grpo"
    clip_low: float | None = None
    clip_high: float | None = None
    beta: float = 0.0
    scale_by_std: bool | None = None
    updates: int = 1
    dynamic_sampling: bool = False
    max_draws: int = 4
    shared_prefix: bool = False
    freeze: tuple[Part, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    engine: EngineName = "transformers"
    importance_clip: float = 2.0
    vllm_memory: float = 0.3
    warmup: float = 0.1
    min_lr_share: float = 0.1
    weight_decay: float = 0.0
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    rollout_batch: int = 64
    checkpoint_every: int = 10
    log_every: int = 1

    def __post_init__(self) -> None:
        _at_least(
            "rl",
            steps=(self.steps, 0),
            lr=(self.lr, 0),
            prompts_per_step=(self.prompts_per_step, 1),
            group=(self.group, 2),
            samples=(1 if self.samples is None else self.samples, 1),
            max_new_tokens=(self.max_new_tokens, 1),
            clip_low=(self.clip_low or 0, 0),
            clip_high=(self.clip_high or 0, 0),
            beta=(self.beta, 0),
            updates=(self.updates, 1),
            max_draws=(self.max_draws, 1),
            importance_clip=(self.importance_clip, 1),
            rollout_batch=(self.rollout_batch, 1),
            checkpoint_every=(self.checkpoint_every, 1),
            log_every=(self.log_every, 1),
            weight_decay=(self.weight_decay, 0),
        )
        _check_schedule("rl", self)
        if not 0.01 <= self.temperature <= 2:
            raise ConfigError(
                f"rl: temperature is {self.temperature}",
                mend="It must be from 0.01 to 2, as vLLM has it; gradients are divided by it",
            )
        if self.updates > self.prompts_per_step:
            raise ConfigError(
                f"rl: updates is {self.updates} for {self.prompts_per_step} groups a step",
                mend="Each update takes whole groups: lower updates or raise prompts_per_step",
            )
        if self.objective == "dr_grpo" and self.scale_by_std:
            raise ConfigError(
                "rl: scale_by_std is true, and dr_grpo is GRPO without it",
                mend="Leave scale_by_std out, or use objective grpo",
            )
        if not 0 < self.vllm_memory < 1:
            raise ConfigError(
                f"rl: vllm_memory is {self.vllm_memory}", mend="It must be between 0 and 1"
            )

    @property
    def scales_by_std(self) -> bool:
        """Whether a group's advantages are divided by their standard deviation."""
        return self.objective != "dr_grpo" if self.scale_by_std is None else self.scale_by_std


@dataclass(frozen=True, slots=True)
class EvaluationRecipe:
    """Completions of the test split.

    Args:
        max_new_tokens: where a completion is cut.
        batch: prompts at a time.
        samples: completions sampled of each prompt to compare rewards before and after RL, on the
            test split and on the first `prompts` of RL's own.
        shown: samples in the report's grid.
        cluster_field, task_field: columns of the corpus: items of one cluster (a study) are not
            independent, and accuracy is shown by task. None: cluster by image, one task.
        clusters: what the clusters are called in the report.
    """

    max_new_tokens: int
    batch: int = 64
    samples: int = 2
    prompts: int = 400
    shown: int = 12
    cluster_field: str | None = None
    task_field: str | None = None
    clusters: str = "images"

    def __post_init__(self) -> None:
        _at_least(
            "evaluation",
            max_new_tokens=(self.max_new_tokens, 1),
            batch=(self.batch, 1),
            samples=(self.samples, 1),
            prompts=(self.prompts, 1),
            shown=(self.shown, 0),
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """All of a run. `name` is the folder under runs/: letters, digits, ".", "-" and "_".

    Args:
        trackers: who gets the metrics beside history.jsonl: tensorboard, wandb, mlflow, trackio.
        peak_tflops: what a device could do, in 10^12 FLOP/s, for its utilisation; None: dense
            bfloat16 by the table of `omr_io.train.flops`.
    """

    name: str
    data: DataRecipe
    sft: SFTRecipe
    rl: RLRecipe
    evaluation: EvaluationRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    vision: VisionConfig = field(default_factory=VisionConfig)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    seed: int = 0
    trackers: tuple[str, ...] = ()
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _MOST_SEED:
            raise ConfigError(f"seed is {self.seed}", mend=f"It must be from 0 to {_MOST_SEED:,}")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ConfigError(f"peak_tflops is {self.peak_tflops}", mend="It must be above 0")
        # --overwrite deletes runs/NAME: a name must not lead anywhere else.
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(
                f"name {self.name!r} is no folder's name",
                mend="Use letters, digits, '.', '-' and '_', not beginning with '.'",
            )
        unfrozen = sorted(set(self.sft.freeze) - set(self.rl.freeze))
        if self.rl.steps and unfrozen:
            raise ConfigError(
                f"rl trains {', '.join(unfrozen)}, which sft freezes",
                mend="Name in rl: freeze all that is in sft: freeze",
            )
        if self.rl.steps:
            _ = self.rl_vision  # its bounds must fit each other

    @property
    def rl_vision(self) -> VisionConfig:
        """How RL's images become patches: as all do, within RL's own bounds."""
        bounds = {"min_pixels": self.rl.min_pixels, "max_pixels": self.rl.max_pixels}
        changes: dict[str, Any] = {k: v for k, v in bounds.items() if v is not None}
        return dataclasses.replace(self.vision, **changes)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; every key must be known and of its type.

    Raises:
        ConfigError: the file cannot be read or is not YAML; a key is unknown, missing, there twice
            or of a wrong type.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError("PyYAML is missing", mend="pip install omr_io[train]") from None
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_keys(yaml.compose(text, yaml.SafeLoader), str(path))
        document = yaml.safe_load(text)
    except FileNotFoundError:
        known = sorted(str(found) for found in Path("recipes").glob("*.yaml"))
        raise ConfigError(
            f"recipe {path} does not exist", mend=f"Recipes here: {', '.join(known) or 'none'}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {error.strerror}", mend="Give a YAML file, as recipes/*"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {error}") from error
    recipe = _build(Recipe, document, str(path))
    assert isinstance(recipe, Recipe)
    return recipe


def _check_keys(node: Any, place: str) -> None:
    """Refuse a key that a mapping has twice: YAML's loader would silently take the last one."""
    seen: set[str] = set()
    for key, value in node.value if node is not None and node.id == "mapping" else ():
        name = str(key.value)
        if name in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{place}: {name!r} is there twice, again in line {line}",
                              mend="Leave one of them out")  # fmt: skip
        seen.add(name)
        _check_keys(value, f"{place}: {name}")


def recipe_fields(recipe: Recipe) -> dict[str, object]:
    """What a run depends on, as "sft.lr": 0.001 and so on.

    Left out is what only shows or speeds it: evaluation, parallel, the loader's threads, log_every,
    trackers, peak_tflops.
    """
    flat: dict[str, object] = {}

    def walk(place: str, value: object) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                if name not in ("num_threads", "log_every"):
                    walk(f"{place}.{name}".lstrip("."), item)
        else:
            flat[place] = list(value) if isinstance(value, tuple) else value

    shown = ("evaluation", "parallel", "trackers", "peak_tflops")
    walk("", {k: v for k, v in dataclasses.asdict(recipe).items() if k not in shown})
    return flat


def check_recipe(saved: Mapping[str, object], recipe: Recipe) -> None:
    """Refuse to go on with another recipe than a checkpoint's: the curve would be of neither.

    Raises:
        ResumeError: names every key that differs, with both values.
    """
    here = recipe_fields(recipe)
    differing = [
        f"{name} (saved {saved.get(name)!r}, here {here.get(name)!r})"
        for name in sorted({*saved, *here})
        if saved.get(name) != here.get(name)
    ]
    if differing:
        raise ResumeError(
            f"the checkpoint is of another recipe: {', '.join(differing)}",
            mend="Put the recipe back, or start a new run under another name",
        )


def _build(kind: type, document: object, place: str) -> object:
    if not isinstance(document, dict):
        raise ConfigError(f"{place} must be a mapping, not {type(document).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in document:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            raise ConfigError(
                f"{place}: unknown key {name!r}",
                mend=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(fields)}",
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in document
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{place}: missing {', '.join(missing)}")
    values = {
        name: _convert(hints[name], value, f"{place}: {name}") for name, value in document.items()
    }
    return kind(**values)


def _convert(hint: Any, value: object, place: str) -> object:
    """`value` as `hint`; YAML reads 1e-3 as text and 1 as an integer, both are floats to us."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, place)
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return _convert(next(c for c in choices if c is not type(None)), value, place)
    if origin is typing.Literal:
        if value in choices:
            return value
        known = ", ".join(map(str, choices))
        raise ConfigError(f"{place} is {value!r}", mend=f"Use one of {known}")
    if origin is tuple and isinstance(value, list) and choices[1:] == (...,):
        return tuple(_convert(choices[0], item, place) for item in value)
    if origin is tuple and isinstance(value, list) and len(value) == len(choices):
        return tuple(_convert(c, v, place) for c, v in zip(choices, value, strict=True))
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            if not math.isfinite(number):  # NaN is neither below nor above any bound
                raise ConfigError(f"{place} is {value!r}", mend="It must be a finite number")
            return number
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{place} is {value!r}", mend=f"It must be of type {wanted}")
