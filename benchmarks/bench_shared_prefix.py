"""What it saves to lay a group's prompt out once: tokens, patches, time and memory of a step.

    python -m benchmarks.bench_shared_prefix

Counts are for the recipe's shape (a prompt of 1024 tokens, 256 of them an image; 16 completions of
512). Time and memory are of a forward and backward pass of a small Qwen3-VL on the CPU, float32, at
an eighth of these lengths: the two layouts take turns, and the least time of each counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from omr_io.config import VisionConfig
from omr_io.train.model import DemoModelConfig, TokenIds, build_demo_model, forward
from omr_io.train.rollout import Completion
from omr_io.train.run import pack_rollouts
from omr_io.train.shared_prefix import pack_shared_rollouts
from omr_io.types import EncodedSample

IDS = TokenIds(image_pad=1, video_pad=2, vision_start=3, vision_end=4, eos=5, pad=0)
VOCABULARY = 1024
VISION = VisionConfig()
GROUP = 16
ENCODER: Any = SimpleNamespace(
    chat=SimpleNamespace(image_token_id=IDS.image_pad, pad_token_id=IDS.pad),
    vision=VISION,
    pixel_dtype=torch.float32,
)


def rollout(
    prompts: int,
    prompt_tokens: int,
    side: int,
    completion_tokens: int,
    *,
    columns: int | None = None,
    group: int = GROUP,
) -> tuple[list[EncodedSample], list[Completion]]:
    """Prompts with one image of side x columns merged patches, and so many completions each.

    Args:
        columns: None: the image is square.
    """
    rng = np.random.default_rng(0)
    columns = columns or side
    words = prompt_tokens - side * columns - 2
    patches = 4 * side * columns
    asked = [
        EncodedSample(
            key=f"prompt-{number}",
            input_ids=np.concatenate(
                [[3], np.full(side * columns, 1), [4], rng.integers(10, VOCABULARY, words)]
            ).astype(np.int32),
            trained=np.zeros(prompt_tokens, np.bool_),
            pixel_values=rng.standard_normal((patches, VISION.patch_width)).astype(np.float32),
            image_grid_thw=np.asarray([[1, 2 * side, 2 * columns]], np.int64),
        )
        for number in range(prompts)
    ]
    made = [
        Completion(
            rng.integers(10, VOCABULARY, completion_tokens).astype(np.int32),
            np.zeros(completion_tokens, np.float32),
            False,
        )
        for _ in range(prompts * group)
    ]
    return asked, made


def batches(
    pack: Callable[..., Any],
    asked: Sequence[Any],
    made: Sequence[Any],
    seq_len: int,
    group: int = GROUP,
) -> list[Any]:
    """The batches of a step, a pack each."""
    options = {"group": group, "seq_len": seq_len, "packs_per_batch": 1, "encoder": ENCODER}
    return [batch for batch, _ in pack(asked, made, **options)]


def counts(seq_len: int) -> dict[str, Any]:
    """Tokens, packs and patches that a step of 8 prompts computes, in both layouts."""
    asked, made = rollout(8, 1024, 16, 512)
    plain = batches(pack_rollouts, asked, made, seq_len)
    shared = [b.batch for b in batches(pack_shared_rollouts, asked, made, seq_len)]
    found: dict[str, Any] = {"seq_len": seq_len}
    for name, side in (("unshared", plain), ("shared", shared)):
        found[name] = {
            "tokens": sum(b.num_tokens for b in side),
            "packs": len(side),
            "patches": sum(len(b.pixel_values) for b in side),
        }
    found["ratio_of_tokens"] = found["unshared"]["tokens"] / found["shared"]["tokens"]
    found["ratio_of_patches"] = found["unshared"]["patches"] / found["shared"]["patches"]
    return found


def step(model: Any, side: Sequence[Any]) -> float:
    """Forward and backward of all batches; the loss."""
    total = 0.0
    model.zero_grad(set_to_none=True)
    for batch in side:
        hidden_RH = forward(model, batch).flatten(0, 1).index_select(0, batch.label_rows)
        loss = F.cross_entropy(model.lm_head(hidden_RH), batch.label_targets, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def saved_bytes(model: Any, side: Sequence[Any]) -> int:
    """What autograd keeps of a forward pass for the backward pass, each storage once."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = [forward(model, batch) for batch in side]
    del kept
    return sum(storages.values())


def measure(repeats: int) -> dict[str, Any]:
    """Time and memory of a step of one group at an eighth of the recipe's lengths."""
    asked, made = rollout(1, 128, 6, 64)
    plain = batches(pack_rollouts, asked, made, 192 * GROUP)
    shared = batches(pack_shared_rollouts, asked, made, 128 + 64 * GROUP)
    model = build_demo_model(VOCABULARY, IDS, seed=0, config=DemoModelConfig(num_hidden_layers=2))
    losses = {"unshared": step(model, plain), "shared": step(model, shared)}
    seconds: dict[str, list[float]] = {"unshared": [], "shared": []}
    for _ in range(repeats):
        for name, side in (("unshared", plain), ("shared", shared)):
            start = time.perf_counter()
            step(model, side)
            seconds[name].append(time.perf_counter() - start)
    least = {name: min(values) for name, values in seconds.items()}
    memory = {"unshared": saved_bytes(model, plain), "shared": saved_bytes(model, shared)}
    return {
        "losses": losses,
        "seconds": least,
        "times_faster": least["unshared"] / least["shared"],
        "saved_bytes": memory,
        "times_less_memory": memory["unshared"] / memory["shared"],
    }


def main() -> None:
    """One line of JSON."""
    print(json.dumps({"counts": [counts(9216), counts(32768)], "step": measure(15)}))


if __name__ == "__main__":
    main()
