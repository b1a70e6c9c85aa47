"""Rollouts by vLLM in the training processes: written against its documentation, never run.

**Nothing here was ever run against a real vLLM**: it could not be installed where this was written.
The calls follow vLLM's documentation and source of 0.11 and later (V1), and of 2026 where caches
are reset; tests run them against a stand-in that checks their order and their data. Before a long
run, look at the first steps' `rollout_mismatch`: some hundredths are rounding, whole units are two
different models.

Each rank has an engine of its own on its own GPU (`external_launcher`, no tensor parallelism), and
it sleeps while the model trains. What must agree with training, and how:

- Weights: loaded from the trained model before every rollout. Then the prefix, multi-modal and
  encoder caches are reset: vLLM keys encoder outputs by the image alone, so that a vision tower
  that was trained would be answered from the cache with the old tower's features.
- Pixels: our patches are turned back into the very images they were cut from, whose sizes vLLM's
  processor keeps as they are. So it computes the same patches, and does not resize on its own.
- Tokens: vLLM gets one placeholder an image and puts in as many as it will fill; what it then took
  for the prompt must be the prompt that is trained, or it is an error.
- Probabilities: `processed_logprobs`, after temperature and bans. vLLM's kernels round otherwise
  than the trained model's: `exact` is False, and the update corrects for it.
- Bans: all other ids are allowed (`allowed_token_ids`). A bias can be outweighed, and `bad_words`
  are text. Ids that no token has must be banned: some versions refuse them.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, TrainingError, Where
from omr_io.train.engines.protocol import SamplingSettings
from omr_io.train.engines.unpatch import collapsed, images_of, processor_bounds
from omr_io.train.gathering import full_tensor
from omr_io.train.ranks import Ranks
from omr_io.train.rollout import Completion, seed_32
from omr_io.types import EncodedSample

UNTRIED = "omr_io's vLLM engine was never run against a real vLLM"


class VllmEngine:
    """A colocated vLLM; see the module's words, above all the first.

    Args:
        folder: a Hugging Face folder of the model: its configuration, tokenizer and image
            processor. Its weights are loaded once and then replaced.
        vision: how prompts' images were cut.
        image_token_id: the placeholder.
        vocab_size: rows of the model's head; all are allowed but what is banned.
        max_model_len: the most tokens of a prompt and its completion.
        memory: the share of the GPU's memory that vLLM may take.
        ranks: each has an engine.

    Raises:
        ConfigError: vLLM is not installed or lacks what is needed, there is no GPU, or the model is
            folded to one frame.
    """

    exact = False

    def __init__(
        self,
        folder: Path,
        *,
        vision: VisionConfig,
        image_token_id: int,
        vocab_size: int,
        max_model_len: int,
        memory: float,
        ranks: Ranks,
    ) -> None:
        if vision.temporal_patch_size == 1:
            raise ConfigError(
                "rl: engine vllm with temporal_patch_size 1: its processor makes two frames",
                mend="Use engine transformers, or temporal_patch_size 2",
            )
        self._vllm = _import_vllm(ranks)
        self._vision = vision
        self._image_token_id = image_token_id
        self._vocab_size = vocab_size
        least, most = processor_bounds(vision)
        _set_environment(ranks)
        self._llm: Any = self._vllm.LLM(
            model=str(folder),
            tensor_parallel_size=1,
            distributed_executor_backend="external_launcher",
            enable_sleep_mode=True,
            gpu_memory_utilization=memory,
            max_model_len=max_model_len,
            seed=ranks.rank,
            generation_config="vllm",  # or the folder's top_p and penalties would be defaults
            logprobs_mode="processed_logprobs",
            limit_mm_per_prompt={"video": 0},
            mm_processor_kwargs={"min_pixels": least, "max_pixels": most},
        )
        engine = self._llm.llm_engine
        missing = [name for name in _RESETS if not hasattr(engine, name)]
        if missing:
            raise ConfigError(
                f"this vLLM's engine has no {', '.join(missing)}: images would be answered from "
                "the features of an earlier vision tower",
                mend="Use a vLLM of 2026, whose LLMEngine resets its encoder cache",
            )
        self._awake, self._current = True, False
        self.rest()

    def update_weights(self, model: Any) -> None:
        """Load the trained model's weights, and forget all that was computed with others."""
        if not self._awake:
            self._llm.wake_up(tags=["weights"])
        self._llm.apply_model(lambda theirs: theirs.load_weights(weights_of(model)))
        if not self._awake:
            self._llm.wake_up(tags=["kv_cache"])
        for reset in _RESETS:
            getattr(self._llm.llm_engine, reset)()
        self._awake = self._current = True

    def generate(
        self,
        prompts: Sequence[EncodedSample],
        settings: SamplingSettings,
        *,
        between: Callable[[], None] | None = None,
    ) -> list[Completion]:
        """See `RolloutEngine.generate`. One call of vLLM: `between` is called before it.

        Raises:
            TrainingError: the weights are not the policy's, or vLLM answered something else than it
                was asked: another prompt, a banned token, no log-probability.
        """
        if not self._current:
            raise TrainingError(
                "vLLM does not hold this policy's weights",
                mend="Call update_weights before each step's rollout",
            )
        places = range(len(prompts)) if settings.places is None else settings.places
        banned = set(settings.banned)
        allowed = [i for i in range(self._vocab_size) if i not in banned]
        if between is not None:
            between()
        if not prompts:
            return []
        outputs = self._llm.generate(
            [self._prompt(prompt) for prompt in prompts],
            [self._sampling(settings, place, allowed) for place in places],
            use_tqdm=False,
        )
        if len(outputs) != len(prompts):
            raise TrainingError(f"vLLM answered {len(outputs)} of {len(prompts)} prompts")
        made = []
        for prompt, output in zip(prompts, outputs, strict=True):
            _check_output(prompt, output, settings.group)
            made += [_completion(prompt.key, one, settings) for one in output.outputs]
        return made

    def rest(self) -> None:
        """Give the GPU's memory to training; `update_weights` wakes the engine up."""
        if self._awake:
            # Level 1 keeps the weights on the host: what `load_weights` does not name stays right.
            self._llm.sleep(level=1)
        self._awake = self._current = False

    def close(self) -> None:
        """Drop the engine; a second call does nothing."""
        self._llm = None
        self._awake = self._current = False

    def _prompt(self, sample: EncodedSample) -> dict[str, Any]:
        from PIL import Image

        prompt: dict[str, Any] = {
            "prompt_token_ids": collapsed(sample, self._vision, self._image_token_id)
        }
        images = [Image.fromarray(pixels) for pixels in images_of(sample, self._vision)]
        if images:
            prompt["multi_modal_data"] = {"image": images}
        return prompt

    def _sampling(self, settings: SamplingSettings, place: int, allowed: list[int]) -> Any:
        # A completion's own seed is this one plus its number, so prompts are a group apart.
        seed = (seed_32(settings.seed) * 1_000_003 + place * settings.group) % 2**31
        return self._vllm.SamplingParams(
            n=settings.group,
            temperature=settings.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=settings.max_new_tokens,
            seed=seed,
            logprobs=0,
            allowed_token_ids=allowed,
            stop_token_ids=[settings.eos],
            ignore_eos=True,  # the configuration's own end tokens; ours is the one above
            detokenize=False,
        )


# In this order after new weights; the first one frees blocks whose keys are of old ones.
_RESETS = ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache")


def _import_vllm(ranks: Ranks) -> Any:
    try:
        vllm: Any = importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigError(
            "rl: engine vllm, and vLLM is not installed",
            mend=f"pip install 'omr_io[vllm]', or use engine transformers. Note that {UNTRIED}",
        ) from error
    if ranks.device.type != "cuda":
        raise ConfigError(
            f"rl: engine vllm, and this rank computes on {ranks.device}",
            mend=f"vLLM shares a GPU with training; use engine transformers. Note that {UNTRIED}",
        )
    return vllm


def _set_environment(ranks: Ranks) -> None:
    """What `external_launcher` reads; torchrun has set all but the first."""
    # The model must live in this process, or its weights could not be handed over as they are.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if ranks.world_size == 1:
        for name, value in alone.items():
            os.environ.setdefault(name, value)
        if "MASTER_PORT" not in os.environ:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                os.environ["MASTER_PORT"] = str(free.getsockname()[1])


def weights_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A model's weights under the names of its Hugging Face checkpoint, one whole tensor at a time.

    Adapters that peft put into it are merged in passing: weight + scaling x B A. Sharded tensors
    are gathered, which is collective. Tied weights come once.
    """
    adapted = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }
    for name, parameter in model.named_parameters():
        owner, _, rest = name.partition(".base_layer.")
        if ".lora_" in name:
            continue
        whole = full_tensor(parameter.detach())
        if rest == "weight":
            module = adapted[owner]
            for which in module.active_adapters:
                a, b = (
                    full_tensor(part[which].weight.detach())
                    for part in (module.lora_A, module.lora_B)
                )
                delta = module.scaling[which] * (b.float() @ a.float())
                whole = (whole.float() + delta).to(whole.dtype)
        yield (f"{owner}.{rest}" if rest else name), whole


def _check_output(prompt: EncodedSample, output: Any, group: int) -> None:
    seen, ours = list(output.prompt_token_ids), prompt.input_ids.tolist()
    if seen != ours:
        raise TrainingError(
            f"vLLM took a prompt of {len(seen)} tokens, and {len(ours)} are trained, or others",
            where=Where(key=prompt.key),
            mend="Its image processor does not cut images as ours does: use engine transformers",
        )
    if len(output.outputs) != group:
        raise TrainingError(
            f"vLLM gave {len(output.outputs)} completions of {group}", where=Where(key=prompt.key)
        )


def _completion(key: str, one: Any, settings: SamplingSettings) -> Completion:
    ids = np.array(list(one.token_ids), np.int32)
    if one.logprobs is None or len(one.logprobs) != len(ids):
        raise TrainingError("vLLM gave no log-probability of a token", where=Where(key=key))
    scores = [float(by_id[int(i)].logprob) for i, by_id in zip(ids, one.logprobs, strict=True)]
    logprobs = np.array(scores, np.float32)
    wrong = sorted({*ids.tolist()} & {*settings.banned})
    if wrong or not len(ids) or not np.isfinite(logprobs).all():
        raise TrainingError(
            f"vLLM gave a completion of {len(ids)} tokens with banned ids {wrong} or log-"
            f"probabilities that are not finite",
            where=Where(key=key),
            mend=f"{UNTRIED}: use engine transformers",
        )
    return Completion(ids, logprobs, finished=bool(ids[-1] == settings.eos))
