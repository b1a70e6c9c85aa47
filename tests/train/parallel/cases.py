"""What the ranks of a launch compute; run as a program, which forks them so that torch loads once.

    python -m tests.train.parallel.cases OUT WORLD_SIZE...

OUT gets one file a world size with the first rank's results. World size 1 runs without a process
group: what the others are compared with.

Legend: G packs of a global step.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omr_io.train.attention import use_varlen
from omr_io.train.checkpoint import Checkpoints
from omr_io.train.gathering import clip_gradients, full_tensor, full_weights
from omr_io.train.model import label_log_probs
from omr_io.train.objectives import sft_loss
from omr_io.train.parallel import shard, start_ranks
from omr_io.train.parameters import LoRA, add_lora, freeze, merged_weights, new_optimizer
from omr_io.train.ranks import Ranks
from omr_io.train.rollout import generate
from omr_io.train.run import get_reference
from tests.train import tiny_models as tiny

GLOBAL_PACKS = 16
SEQ_LENS = (56, 80)
ACCUMULATIONS = (1, 2, 4)


def samples() -> list[tiny.Sample]:
    """One step's: with none, one and two images; every third has none."""
    grids = [[(4, 4)], [(8, 4), (4, 4)], [], [(4, 8)], [(4, 4)], []]
    return [tiny.tiny_sample(grids[i % 6], 3 + i % 5, i) for i in range(24)]


def packs(seq_len: int) -> list[list[tiny.Sample]]:
    """GLOBAL_PACKS of them, first fit; text-only ones together, so that a rank has nothing else."""
    filled: list[list[tiny.Sample]] = []
    for sample in sorted(samples(), key=lambda s: len(s.image_grid_thw) == 0):
        text = not len(sample.image_grid_thw)
        for pack in filled:
            same = (not len(pack[0].image_grid_thw)) == text
            if same and sum(len(s.input_ids) for s in (*pack, sample)) <= seq_len:
                pack.append(sample)
                break
        else:
            filled.append([sample])
    assert len(filled) <= GLOBAL_PACKS
    return filled + [[] for _ in range(GLOBAL_PACKS - len(filled))]


def label_count() -> int:
    return sum(int((s.labels != -100).sum()) for s in samples())


def make(family: str, *, tied: bool = False) -> Any:
    model = tiny.tiny_model(family)
    if tied:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    use_varlen(model)
    model.train()
    return model


def micro_batches(model: Any, ranks: Ranks, accumulation: int, seq_len: int) -> Iterator[Any]:
    each = GLOBAL_PACKS // ranks.world_size
    mine = packs(seq_len)[ranks.rank * each :][:each]
    size = each // accumulation
    for start in range(0, each, size):
        yield tiny.pack(model, mine[start : start + size], seq_len)


def accumulate(model: Any, ranks: Ranks, accumulation: int = 1, seq_len: int = 80) -> float:
    loss = 0.0
    for batch in micro_batches(model, ranks, accumulation, seq_len):
        weights_R = torch.ones(batch.num_label_tokens)
        part = sft_loss(label_log_probs(model, batch, row_weights=weights_R), label_count())
        part.backward()
        loss += float(part.detach())
    return ranks.sums([loss])[0]


def gradients(model: Any) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = full_tensor(parameter.grad).clone()
    model.zero_grad(set_to_none=True)
    return found


def invariance(ranks: Ranks, family: str) -> dict[str, Any]:
    model = make(family)
    shard(model, ranks)
    return {
        f"{accumulation}/{seq_len}": (
            accumulate(model, ranks, accumulation, seq_len),
            gradients(model),
        )
        for accumulation in ACCUMULATIONS
        for seq_len in SEQ_LENS
    }


def once(ranks: Ranks, family: str, *, tied: bool = False, frozen: Any = (), **options: Any) -> Any:
    model = make(family, tied=tied)
    freeze(model, frozen)
    shard(model, ranks, **options)
    return accumulate(model, ranks), gradients(model)


def frozen_later(ranks: Ranks) -> Any:
    """A step of all, then one without vision: as RL does after SFT."""
    model = make("qwen3_vl")
    shard(model, ranks, activation_checkpointing=True)
    accumulate(model, ranks)
    gradients(model)
    freeze(model, ["vision", "merger"])
    return accumulate(model, ranks), gradients(model)


def steps(ranks: Ranks, *, lora: bool) -> dict[str, Any]:
    """Three updates; after the second, weights and optimiser go through a checkpoint."""
    model = make("qwen3_vl", tied=not lora)
    if lora:
        add_lora(model, LoRA(rank=3, alpha=6), seed=1)
    shard(model, ranks)
    rates = {"lr": 1e-2, "merger_lr": 3e-3, "vision_lr": 1e-3, "weight_decay": 0.1, "beta2": 0.99}
    optimizer = new_optimizer(model, **rates)
    losses, norms = [], []
    for step in range(3):
        losses.append(accumulate(model, ranks))
        norms.append(clip_gradients([p for g in optimizer.param_groups for p in g["params"]], 0.5))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 1:
            made = tempfile.mkdtemp() if ranks.is_first else None
            folder = ranks.gather(made)[0]
            with Checkpoints(folder, ranks) as checkpoints:
                checkpoints.save(model, optimizer, {})
                checkpoints.wait()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.zero_()
                optimizer = new_optimizer(model, **rates)
                saved = checkpoints.latest()
                assert saved is not None
                saved.load_model(model)
                saved.load_optimizer(model, optimizer)
            ranks.barrier()
            if made:
                shutil.rmtree(made)
    return {
        "losses": losses,
        "norms": norms,
        "weights": merged_weights(model, full_weights(model)),
    }


def bfloat16(ranks: Ranks) -> dict[str, Any]:
    model = make("qwen3_vl")
    freeze(model, ["vision"])
    shard(model, ranks, dtype=torch.bfloat16)
    stored = {n: p.dtype for n, p in model.named_parameters()}
    optimizer = new_optimizer(model, lr=1e-6, weight_decay=0.0, beta2=0.99)
    before = full_weights(model)
    loss = accumulate(model, ranks)
    kinds = {p.grad.dtype for p in model.parameters() if p.grad is not None}
    found = {n: full_tensor(p.grad).clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    after = full_weights(model)
    return {
        "loss": loss, "stored": stored, "gradient_dtypes": kinds, "gradients": found,
        "before": before, "after": after,
    }  # fmt: skip


def rollouts(ranks: Ranks) -> dict[str, Any]:
    """Generation before any step, after one, and a step after that. Ranks ask different prompts."""
    model = make("qwen2_5_vl")
    shard(model, ranks)

    def ask(count: int) -> Any:
        prompts = [
            _Prompt(s.input_ids.int().numpy(), s.pixel_values.numpy(), s.image_grid_thw.numpy())
            for s in samples()[:count]
        ]
        made = generate(
            model, prompts, max_new_tokens=6, eos=tiny.EOS, banned=(tiny.IMAGE, tiny.VIDEO), seed=3
        )
        return [c.ids.tolist() for c in made[:2]], [c.logprobs for c in made[:2]]

    before = ask(2 + ranks.rank)
    loss = accumulate(model, ranks)
    found = gradients(model)
    return {"before": before, "after": ask(2 + ranks.rank), "loss": loss, "gradients": found}


def reference(ranks: Ranks) -> dict[str, Any]:
    """A policy's step with its reference model's log-probabilities between forward and backward."""
    made = tempfile.mkdtemp() if ranks.is_first else None
    folder = ranks.gather(made)[0]
    if ranks.is_first:
        tiny.tiny_model("qwen2_5_vl", seed=1).save_pretrained(folder)
    ranks.barrier()
    other = get_reference(Path(folder), ranks, torch.float32)
    ranks.barrier()
    if made:
        shutil.rmtree(made)
    model = make("qwen2_5_vl")
    shard(model, ranks)
    loss = 0.0
    for batch in micro_batches(model, ranks, 2, 80):
        log_probs = label_log_probs(model, batch).log_probs
        with torch.no_grad():
            wanted = label_log_probs(other, batch).log_probs
        part = ((log_probs - wanted) ** 2).sum() / label_count()
        part.backward()
        loss += float(part.detach())
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in other.parameters())
    return {
        "loss": ranks.sums([loss])[0],
        "gradients": gradients(model),
        "share": held / sum(p.numel() for p in other.parameters()),
        "trained": any(p.requires_grad or p.grad is not None for p in other.parameters()),
    }


class _Prompt:
    def __init__(self, input_ids: Any, pixel_values: Any, image_grid_thw: Any) -> None:
        self.input_ids, self.pixel_values = input_ids, pixel_values
        self.image_grid_thw = image_grid_thw


def compiled_batches(ranks: Ranks) -> dict[str, Any]:
    """Ten batches of other shapes: how many frames were met, and how many compiled."""
    from torch._dynamo.utils import counters

    model = make("qwen3_vl")
    shard(model, ranks, compile_blocks=True, compile_backend="aot_eager")
    use_varlen(make("qwen3_vl"))  # another model, as RL's reference is
    counters.clear()
    every, met = samples(), []
    for i in range(10):
        rows = [[every[i], every[(5 * i + 1) % 24]], [every[(i + 3) % 24]]]
        batch = tiny.pack(model, rows, 60)
        label_log_probs(model, batch).log_probs.sum().backward()
        met.append(counters["frames"]["total"])
    return {"met": met, "compiled": counters["frames"]["ok"], "breaks": [*counters["graph_break"]]}


def different_weights(ranks: Ranks) -> str:
    model = make("qwen3_vl")
    with torch.no_grad():
        model.model.visual.merger.norm.bias[0] += ranks.rank
    try:
        shard(model, ranks)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


CASES: dict[str, Callable[[Ranks], Any]] = {
    "invariance qwen3_vl": lambda ranks: invariance(ranks, "qwen3_vl"),
    "qwen2_5_vl": lambda ranks: once(ranks, "qwen2_5_vl"),
    "qwen2_vl": lambda ranks: once(ranks, "qwen2_vl"),
    "tied": lambda ranks: once(ranks, "qwen3_vl", tied=True),
    "checkpointed": lambda ranks: once(ranks, "qwen3_vl", activation_checkpointing=True),
    "frozen vision": lambda ranks: once(ranks, "qwen3_vl", frozen=["vision"]),
    "frozen tower": lambda ranks: once(ranks, "qwen2_5_vl", frozen=["vision", "merger"]),
    "frozen later": frozen_later,
    "compiled": lambda ranks: once(
        ranks,
        "qwen3_vl",
        activation_checkpointing=True,
        compile_blocks=True,
        compile_backend="aot_eager",
    ),
    "compiled batches": compiled_batches,
    "steps": lambda ranks: steps(ranks, lora=False),
    "lora": lambda ranks: steps(ranks, lora=True),
    "bfloat16": bfloat16,
    "rollouts": rollouts,
    "reference": reference,
    "different weights": different_weights,
}


def run_rank(out: Path, names: list[str]) -> None:
    with start_ranks(timeout_seconds=600) as ranks:
        results = {name: CASES[name](ranks) for name in names}
        if ranks.is_first:
            torch.save(results, out / f"{ranks.world_size}.pt")


def free_port() -> int:
    """One that is free, and that the system gives to no connection in the meantime."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def launch(out: Path, world_size: int, names: list[str]) -> bool:
    """Fork the ranks and wait for them; whether all went well."""
    port = str(free_port())
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            values = (rank, world_size, rank, "127.0.0.1", port)
            names_ = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
            os.environ |= dict(zip(names_, map(str, values), strict=True))
            try:
                run_rank(out, names)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return not any(statuses)


def load_before_the_fork() -> None:
    """What every rank would import for itself, in seconds."""
    import peft

    make("qwen3_vl")
    add_lora(make("qwen2_5_vl"), LoRA(rank=1, alpha=1), seed=0)
    assert peft


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_before_the_fork()
    folder, *sizes = sys.argv[1:]
    chosen = [name for name in os.environ.get("CASES", "").split(",") if name] or [
        name for name in CASES if not name.startswith("compiled")
    ]  # which takes as long as all others
    ended = [launch(Path(folder), int(size), chosen) for size in sizes]
    sys.exit(0 if all(ended) else 1)
