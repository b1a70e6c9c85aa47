"""What samples completions in RL, behind one interface; the recipe names it: `rl: engine`."""

from __future__ import annotations

from omr_io.train.engines.protocol import RolloutEngine, SamplingSettings
from omr_io.train.engines.transformers_engine import TransformersEngine
from omr_io.train.engines.vllm_engine import VllmEngine

__all__ = ["RolloutEngine", "SamplingSettings", "TransformersEngine", "VllmEngine"]
