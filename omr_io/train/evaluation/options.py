"""What an evaluation is asked to do, checked before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from omr_io.errors import ConfigError

Variant = Literal["plain", "blind", "shuffled"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""As it is; a blank in place of each image; the options in another order."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Named:
    """A model's folder or a shard set, and what it is called in files and tables."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How completions are made and counted.

    Attributes:
        variants: which of `VARIANTS` are measured; "plain" always is.
        max_new_tokens: where a completion is cut.
        temperature: 0 takes the likeliest token; above it, completions are sampled.
        runs: completions of an item; more than one needs a temperature.
        seed: of sampling, of the options' order and of the bootstrap.
        batch_size: completions at a time in the model; changes nothing but speed and memory.
        limit: the first so many items of each set; None: all.
        skip_open_ended: leave items without options out, counted, instead of refusing their set.
        cluster_field: the field of `Record.extra` that names what items share (a study, a
            patient); None: items that share an image are a cluster.
        dtype: of the weights; "auto" is bfloat16 on a GPU and float32 elsewhere.
        device: "auto", "cpu", "cuda", "cuda:1".
        min_pixels, max_pixels: of an image, resized; None: the model's own.
        system: the system prompt; None: the family's own.
        instruction: appended to each question after a line break, for all models.
        instructions: the same for single models, by their names; before `instruction`.
        num_threads: that decode images.
        resamples: of the bootstrap.
    """

    variants: tuple[Variant, ...] = VARIANTS
    max_new_tokens: int = 1024
    temperature: float = 0.0
    runs: int = 1
    seed: int = 0
    batch_size: int = 16
    limit: int | None = None
    skip_open_ended: bool = False
    cluster_field: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    system: str | None = None
    instruction: str | None = None
    instructions: Mapping[str, str] = field(default_factory=dict)
    num_threads: int = 4
    resamples: int = 2000

    def __post_init__(self) -> None:
        least = {
            "max_new_tokens": 1, "runs": 1, "seed": 0, "batch_size": 1, "limit": 1,
            "num_threads": 1, "resamples": 100, "min_pixels": 1, "max_pixels": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"{name} is {value}", mend=f"It must be at least {bound}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}", mend="It must be at least 0")
        if self.temperature == 0 and self.runs > 1:
            raise ConfigError(
                f"{self.runs} runs at temperature 0 would all be equal",
                mend="Give a temperature above 0, or one run",
            )
        if self.dtype not in get_args(Dtype):
            raise ConfigError(
                f"no dtype {self.dtype!r}", mend=f"Use one of {', '.join(get_args(Dtype))}"
            )
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown or "plain" not in self.variants:
            raise ConfigError(
                f"variants {', '.join(map(str, self.variants)) or 'none'}",
                mend=f"plain, and any of {', '.join(VARIANTS[1:])}",
            )

    def instruction_for(self, model: str) -> str | None:
        """What stands below the questions that this model gets."""
        return self.instructions.get(model, self.instruction)


def named(text: str, what: str, *, name_needed: bool) -> Named:
    """Read "NAME=PATH", or a path alone, which is then called by its last part.

    Args:
        text: as the user wrote it.
        what: "model" or "set", for the error.
        name_needed: refuse a path alone.

    Raises:
        ConfigError: no path, or a name that is no part of a file's name.
    """
    name, sign, path = text.partition("=")
    if not sign or not _NAME.fullmatch(name):  # "./a=b" is a path
        if name_needed:
            raise ConfigError(
                f"--{what} {text!r} has no name", mend=f"Write --{what} NAME={text or 'PATH'}"
            )
        path = text
        name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    if not path or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {text!r}: {name!r} is no name for files",
            mend="Write NAME=PATH; a name has letters, digits, '.', '-' and '_'",
        )
    return Named(name, path)


def check_names(models: Iterable[Named], sets: Iterable[Named]) -> None:
    """Refuse names that would share a file of completions.

    Raises:
        ConfigError: none of either; a name twice; or "a-b" with "c" beside "a" with "b-c".
    """
    given = {"model": [one.name for one in models], "set": [one.name for one in sets]}
    for what, names in given.items():
        if not names:
            raise ConfigError(f"no {what} to evaluate", mend="See omr-io eval --help")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"two {what}s are called {twice[0]!r}", mend="Write NAME=PATH")
    seen: dict[str, tuple[str, str]] = {}
    for model in given["model"]:
        for of in given["set"]:
            other = seen.setdefault(stem(model, of).casefold(), (model, of))
            if other != (model, of):
                raise ConfigError(
                    f"{model!r} on {of!r} and {other[0]!r} on {other[1]!r} would share a file",
                    mend="Give one of them a name without '-'",
                )


def stem(model: str, of: str) -> str:
    """The name of the files of a model on a set, without their ending."""
    return f"completions-{model}-{of}"
