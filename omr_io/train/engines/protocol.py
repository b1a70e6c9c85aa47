"""The interface of rollout engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omr_io.train.rollout import Completion
from omr_io.types import EncodedSample


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample.

    Attributes:
        max_new_tokens: where a completion is cut.
        eos: the token that ends a completion.
        banned: ids that are never sampled: `TokenIds.banned`.
        temperature: above 0.
        group: completions of each prompt.
        seed: of all random numbers, together with a prompt's place.
        places: each prompt's place among the `of` prompts that all ranks sample together; a
            completion depends on the seed and its place, not on which rank makes it. None: these
            prompts are all.
        of: None: as many as there are prompts.
        batch: completions at a time, where the engine does not choose that itself.
    """

    max_new_tokens: int
    eos: int
    banned: tuple[int, ...]
    temperature: float
    group: int
    seed: int
    places: tuple[int, ...] | None = None
    of: int | None = None
    batch: int = 64


class RolloutEngine(Protocol):
    """Samples completions of the policy. One a rank; each rank gives it its own prompts."""

    @property
    def exact(self) -> bool:
        """Whether the log-probabilities are the trained model's own but for rounding.

        If not, the update corrects for it: `omr_io.train.objectives.importance_weights`.
        """

    def generate(
        self,
        prompts: Sequence[EncodedSample],
        settings: SamplingSettings,
        *,
        between: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """`settings.group` completions of each prompt, in their order, groups together.

        Log-probabilities are those of the distribution that was sampled from: after temperature
        and bans. `between` is called now and then; what it raises ends the call.
        """

    def update_weights(self, model: Any) -> None:
        """Sample from the model as it is now; to be called before the rollout of each step.

        A collective call where the model is sharded: every rank makes it.
        """

    def rest(self) -> None:
        """A step's rollout is done: leave the device's memory to training."""

    def close(self) -> None:
        """Give back what the engine holds; a second call does nothing."""
