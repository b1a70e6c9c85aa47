"""A stand-in for vLLM, as its documentation describes it: a strict one.

It takes no argument that the documentation does not name, works only while it is awake, processes
images by transformers' own processor under the arguments it was given, and answers images that it
has seen from its encoder cache until that is reset. It samples with a model of its own, whose
weights it has from `load_weights` alone. What it does is written into `calls`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as processing

from omr_io.train.rollout import generate
from omr_io.types import EncodedSample
from tests.train import tiny_models as tiny


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None
    logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class Log:
    """What happened, in order, and what can be made to go wrong."""

    calls: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    sampling: list[SamplingParams] = field(default_factory=list)
    pixels: list[torch.Tensor] = field(default_factory=list)
    stale: int = 0
    spoil: str = ""


def make_module(log: Log, model: Any, *, resets: tuple[str, ...] | None = None) -> Any:
    """The module; `model` is of the architecture, and its weights are made useless here."""

    class Engine:
        def __init__(self, llm: LLM) -> None:
            self._llm = llm
            names = ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache")
            for name in names if resets is None else resets:
                setattr(self, name, lambda name=name: self._reset(name))

        def _reset(self, name: str) -> None:
            assert self._llm.awake == {"weights", "kv_cache"}
            log.calls.append(name)
            if name == "reset_encoder_cache":
                self._llm.encoded.clear()

    class LLM:
        def __init__(
            self, *, model: str, tensor_parallel_size: int, distributed_executor_backend: str,
            enable_sleep_mode: bool, gpu_memory_utilization: float, max_model_len: int, seed: int,
            generation_config: str, logprobs_mode: str, limit_mm_per_prompt: dict[str, int],
            mm_processor_kwargs: dict[str, Any],
        ) -> None:  # fmt: skip
            log.options = {k: v for k, v in locals().items() if k != "self"}
            config = json.loads((Path(model) / "preprocessor_config.json").read_text())
            self._processor = processing.Qwen2VLImageProcessorPil(
                patch_size=config["patch_size"],
                merge_size=config["merge_size"],
                temporal_patch_size=config["temporal_patch_size"],
                image_mean=config["image_mean"],
                image_std=config["image_std"],
                size={
                    "shortest_edge": mm_processor_kwargs["min_pixels"],
                    "longest_edge": mm_processor_kwargs["max_pixels"],
                },
            )
            self.awake = {"weights", "kv_cache"}
            self.encoded: dict[bytes, int] = {}  # an image's hash -> version of the weights
            self.version = 0
            self.llm_engine = Engine(self)
            log.calls.append("LLM")

        def sleep(self, level: int = 1) -> None:
            assert self.awake == {"weights", "kv_cache"}
            self.awake = set()
            log.calls.append(f"sleep {level}")

        def wake_up(self, tags: list[str] | None = None) -> None:
            self.awake |= set(tags or ("weights", "kv_cache"))
            log.calls.append(f"wake_up {','.join(tags or [])}")

        def apply_model(self, function: Any) -> list[Any]:
            assert "weights" in self.awake
            return [function(SimpleNamespace(load_weights=self._load))]

        def _load(self, weights: Any) -> set[str]:
            own = dict(model_of().named_parameters())
            loaded = set()
            with torch.no_grad():
                for name, value in weights:
                    own[name].copy_(value)
                    loaded.add(name)
            assert loaded == own.keys()
            self.version += 1
            log.calls.append("load_weights")
            return loaded

        def generate(
            self, prompts: list[Any], sampling_params: list[SamplingParams], *, use_tqdm: bool
        ) -> list[Any]:
            assert self.awake == {"weights", "kv_cache"}
            log.calls.append("generate")
            return [self._answer(p, s) for p, s in zip(prompts, sampling_params, strict=True)]

        def _answer(self, prompt: dict[str, Any], params: SamplingParams) -> Any:
            log.sampling.append(params)
            sample = self._processed(prompt)
            assert params.allowed_token_ids is not None
            assert params.stop_token_ids is not None
            made = generate(
                model_of(), [sample], max_new_tokens=params.max_tokens or 16,
                eos=params.stop_token_ids[0],
                banned=tuple(sorted(set(range(tiny.VOCAB)) - set(params.allowed_token_ids))),
                temperature=params.temperature, group_size=params.n, seed=params.seed or 0,
            )  # fmt: skip
            outputs = [
                SimpleNamespace(
                    token_ids=c.ids.tolist(),
                    logprobs=[
                        {int(i): SimpleNamespace(logprob=float(x), rank=1)}
                        for i, x in zip(c.ids, c.logprobs, strict=True)
                    ],
                    finish_reason="stop" if c.finished else "length",
                )
                for c in made
            ]
            ids = sample.input_ids.tolist()
            if log.spoil == "prompt":
                ids = ids[:-1]
            elif log.spoil == "banned":
                outputs[0].token_ids[0] = tiny.IMAGE
                outputs[0].logprobs[0] = {tiny.IMAGE: SimpleNamespace(logprob=-1.0, rank=1)}
            elif log.spoil == "nan":
                next(iter(outputs[0].logprobs[0].values())).logprob = float("nan")
            elif log.spoil == "logprobs":
                outputs[0].logprobs = None
            elif log.spoil == "count":
                outputs.pop()
            return SimpleNamespace(prompt_token_ids=ids, outputs=outputs)

        def _processed(self, prompt: dict[str, Any]) -> EncodedSample:
            """As Qwen's processor in vLLM: one placeholder an image becomes as many as it fills."""
            images = prompt.get("multi_modal_data", {}).get("image", [])
            pixels, grids = None, np.empty((0, 3), np.int64)
            if images:
                made = self._processor(images, return_tensors="np")
                pixels, grids = made["pixel_values"].astype(np.float32), made["image_grid_thw"]
                log.pixels.append(torch.from_numpy(pixels))
            for image in images:
                version = self.encoded.setdefault(image.tobytes(), self.version)
                log.stale += version != self.version
            counts = iter((grids.prod(axis=1) // 4).tolist())
            ids = [
                token
                for i in prompt["prompt_token_ids"]
                for token in ([i] * next(counts) if i == tiny.IMAGE else [i])
            ]
            assert next(counts, None) is None
            trained = np.zeros(len(ids), np.bool_)
            return EncodedSample("", np.array(ids, np.int32), trained, pixels, grids)

    def model_of() -> Any:
        return model

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams)
