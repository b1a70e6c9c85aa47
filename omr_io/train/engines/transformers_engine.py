"""Rollouts by the trained model itself: `omr_io.train.rollout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omr_io.train.engines.protocol import SamplingSettings
from omr_io.train.rollout import Completion, generate
from omr_io.types import EncodedSample


class TransformersEngine:
    """The default: nothing to install, no second copy of the weights, the policy's own numbers."""

    exact = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(
        self,
        prompts: Sequence[EncodedSample],
        settings: SamplingSettings,
        *,
        between: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`."""
        return generate(
            self._model,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            eos=settings.eos,
            banned=settings.banned,
            temperature=settings.temperature,
            group_size=settings.group,
            seed=settings.seed,
            batch_size=settings.batch,
            between=between,
            places=settings.places,
            of=settings.of,
        )

    def update_weights(self, model: Any) -> None:
        """The model is the one that is trained: nothing to copy."""
        self._model = model

    def rest(self) -> None:
        """Nothing is held between rollouts."""

    def close(self) -> None:
        """Nothing is held."""
