"""Training's targets on a CPU with the demo model: the data stall, packs, shared prompts.

    python -m benchmarks.run train [--rounds 5]

data     SFT by train_example.py itself (`--measure-stall`) with one thread for the model and one
         for the loader: stretches of steps, each from the loader and then replayed. The share of
         the step that it waited for a batch, and how long a step is to the replayed one.
padded   the same rows as packs and as a padded batch: right-padded to the longest, transformers'
         own SDPA with the 4-D mask that it makes of the attention mask, loss by its own forward;
         and once more with the head on labels only, as ours. All give the same loss. With the
         images of the demo's recipe, and with those of OpenMedReason, whose patches cost the demo's
         tower about as much as its text model either way.
prefix   a GRPO update of a prompt with 300 image tokens and 8 completions of 400 tokens, laid out
         once a group and once a completion. Both give the same loss.

Rows and images have OpenMedReason's statistics (loader_corpus.py). The sides of padded and prefix
take turns in one process on one core; what counts is the median ratio of neighbouring runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import bench_shared_prefix, loader_corpus
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.images.decode import make_decoder
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.loader.samples import SampleEncoder
from omr_io.tokenizer import Tokenizer
from omr_io.train.model import build_demo_model, label_log_probs
from omr_io.train.objectives import sft_loss
from omr_io.train.run import get_token_ids, pack_rollouts
from omr_io.train.shared_prefix import pack_shared_rollouts
from omr_io.types import EncodedSample

SEQ_LEN = 8192
CORPUS = 200  # rows
PARTS = ("data", "padded", "prefix")
IMAGES = {
    "the demo's images": VisionConfig(min_pixels=16384, max_pixels=16384),  # of 16 tokens
    "OpenMedReason's images": VisionConfig(),  # of 256 to 768 tokens
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RECIPE = """
name: bench
data: {{train: {shards}, test: {shards}, seq_len: 2048, packs_per_step: 1, num_threads: 1}}
model: {{tokenizer: {tokenizer}}}
vision: {{family: qwen3_vl, min_pixels: 16384, max_pixels: 16384}}
sft: {{steps: 1, lr: 1.0e-3}}
rl: {{steps: 0, lr: 0, prompts_per_step: 1, group: 2, max_new_tokens: 1}}
evaluation: {{max_new_tokens: 1}}
"""
"""The demo's model and images; its packs are twice as long, for rows of OpenMedReason's length."""


# The data stall


def data(corpus: loader_corpus.Corpus, steps: int) -> dict[str, Any]:
    """What `train_example.py --measure-stall` writes, of so many steps from the loader."""
    import train_example
    from omr_io.train.seen import Synthetic

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        recipe = Path("bench.yaml")
        recipe.write_text(RECIPE.format(shards=corpus.shards, tokenizer=corpus.tokenizer))
        with contextlib.redirect_stdout(io.StringIO()):
            train_example.train(recipe, synthetic=Synthetic("measure-stall", steps))
        measured: dict[str, Any] = json.loads(
            Path("runs/bench-measure-stall/measured.json").read_text()
        )
    ratios = [pair["real_seconds"] / pair["synthetic_seconds"] for pair in measured["rounds"]]
    return measured | {"times_replayed": statistics.median(ratios)}


# Packs against padded batches


@dataclasses.dataclass(frozen=True)
class Rows:
    """The same samples, packed and padded."""

    packed: Any
    padded: dict[str, Tensor]
    labels: Tensor
    tokens: int


def rows_of(
    corpus: loader_corpus.Corpus, vision: VisionConfig, seq_len: int, count: int
) -> list[Rows]:
    """The loader's first batches of one pack, as they are and as padded rows."""
    tokenizer = Tokenizer.from_pretrained(corpus.tokenizer)
    chat = ChatFormat.for_family(vision.family, tokenizer)
    made = []
    with (
        ShardSet.open(corpus.shards) as shards,
        contextlib.closing(make_decoder("cpu", vision)) as decoder,
        DataLoader(
            shards,
            vision=vision,
            chat=chat,
            seq_len=seq_len,
            packs_per_step=1,
            decoder=decoder,
            num_threads=0,
        ) as loader,
    ):
        number_of = {shards.key(number): number for number in range(len(shards))}
        encoder = SampleEncoder(shards, chat, vision, decoder)
        for batch in itertools.islice(loader, count):
            members = encoder.encode_many([number_of[key] for key in batch.keys[0]])
            made.append(Rows(batch, *pad(members, encoder), batch.num_tokens))
    return made


def pad(members: Sequence[EncodedSample], encoder: SampleEncoder) -> tuple[dict[str, Tensor], Any]:
    """What transformers' forward takes of rows that are padded on the right, and its labels."""
    chat, longest = encoder.chat, max(len(sample.input_ids) for sample in members)
    shape = (len(members), longest)
    ids = np.full(shape, chat.pad_token_id, np.int64)
    mask = np.zeros(shape, np.int64)
    labels = np.full(shape, -100, np.int64)
    for row, sample in enumerate(members):
        length = len(sample.input_ids)
        ids[row, :length] = sample.input_ids
        mask[row, :length] = 1
        labels[row, :length] = np.where(sample.trained, sample.input_ids, -100)
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == chat.image_token_id).astype(np.int64),
        "pixel_values": np.concatenate([np.asarray(s.pixel_values) for s in members]),
        "image_grid_thw": np.concatenate([s.image_grid_thw for s in members]),
    }
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return inputs, torch.from_numpy(labels)


def padded_model(model: Any) -> Any:
    """The same weights under transformers' own SDPA, text and vision."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "sdpa"
    made = type(model)(config)
    made.load_state_dict(model.state_dict())
    return made


def step_packed(model: Any, rows: Rows) -> float:
    """Forward and backward of a pack; the mean loss of its labels."""
    model.zero_grad(set_to_none=True)
    loss = sft_loss(label_log_probs(model, rows.packed), rows.packed.num_label_tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def step_padded(model: Any, rows: Rows) -> float:
    """The same of the padded batch, by transformers' forward with labels."""
    model.zero_grad(set_to_none=True)
    loss = model(**rows.padded, labels=rows.labels, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


def step_padded_head(model: Any, rows: Rows) -> float:
    """The same with the head on the rows that carry a label only."""
    model.zero_grad(set_to_none=True)
    hidden = model.model(**rows.padded, use_cache=False).last_hidden_state
    targets = rows.labels[:, 1:]
    kept = targets != -100
    logits = model.lm_head(hidden[:, :-1][kept])
    loss = torch.nn.functional.cross_entropy(logits, targets[kept])
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def padded(
    corpus: loader_corpus.Corpus,
    vision: VisionConfig,
    count: int,
    seq_len: int,
    rounds: int,
    clock: str = "wall",
) -> dict[str, Any]:
    """Seconds of so many packs, and of the same rows padded, in turn."""
    made = rows_of(corpus, vision, seq_len, count)
    tokenizer = Tokenizer.from_pretrained(corpus.tokenizer)
    model = build_demo_model(tokenizer.vocab_size, get_token_ids(tokenizer), seed=0)
    usual = padded_model(model)
    sides: dict[str, Callable[[Rows], float]] = {
        "packed": lambda rows: step_packed(model, rows),
        "padded": lambda rows: step_padded(usual, rows),
        "padded, head on labels": lambda rows: step_padded_head(usual, rows),
    }
    losses = {name: [side(rows) for rows in made] for name, side in sides.items()}
    for name in sides:
        assert np.allclose(losses[name], losses["packed"], rtol=1e-4), f"{name} trains otherwise"
    seconds = alternate({name: _over(side, made) for name, side in sides.items()}, rounds, clock)
    tokens = sum(rows.tokens for rows in made)
    layout = {
        "rows": sum(len(rows.labels) for rows in made),
        "batches": len(made),
        "real_tokens": tokens,
        "packed_tokens": sum(rows.packed.input_ids.numel() for rows in made),
        "padded_tokens": sum(rows.labels.numel() for rows in made),
    }
    faster = ratios(seconds, "packed")
    speeds = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    return layout | {"tokens_per_second": speeds, "packed_is_faster_by": faster, "rounds": seconds}


def _over(side: Callable[[Rows], float], made: Sequence[Rows]) -> Callable[[], None]:
    def run() -> None:
        for rows in made:
            side(rows)

    return run


# Shared prompts


def prefix(
    rounds: int,
    clock: str = "wall",
    *,
    image: tuple[int, int] = (15, 20),
    words: int = 90,
    completion: int = 400,
) -> dict[str, Any]:
    """Seconds of an update of one prompt and 8 completions, in both layouts in turn."""
    bench, group = bench_shared_prefix, 8
    prompt = image[0] * image[1] + 2 + words
    asked, made = bench.rollout(1, prompt, image[0], completion, columns=image[1], group=group)
    sides = {
        # As long as what they hold: neither side computes padding.
        "unshared": (pack_rollouts, group * (prompt + completion)),
        "shared": (pack_shared_rollouts, prompt + group * completion),
    }
    batches = {
        name: bench.batches(pack, asked, made, seq_len, group)
        for name, (pack, seq_len) in sides.items()
    }
    model = build_demo_model(bench.VOCABULARY, bench.IDS, seed=0)
    losses = {name: bench.step(model, side) for name, side in batches.items()}
    assert np.isclose(losses["shared"], losses["unshared"], rtol=1e-4), losses
    calls = {
        "unshared": lambda: bench.step(model, batches["unshared"]),
        "shared": lambda: bench.step(model, batches["shared"]),
    }
    seconds = alternate(calls, rounds, clock)
    settings = {"image_tokens": image[0] * image[1], "prompt": prompt, "completion": completion}
    tokens = {name: seq_len for name, (_, seq_len) in sides.items()}
    faster = ratios(seconds, "shared")["unshared"]
    return settings | {"group": group, "tokens": tokens, "shared_is_faster_by": faster,
                       "rounds": seconds}  # fmt: skip


def alternate(
    sides: dict[str, Callable[[], Any]], rounds: int, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each side, in turn so many times."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = now()
            side()
            seconds[name].append(now() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], own: str) -> dict[str, float]:
    """How many times as long the others take, the median over neighbouring runs."""
    return {
        name: statistics.median(a / b for a, b in zip(taken, seconds[own], strict=True))
        for name, taken in seconds.items()
        if name != own
    }


# The report


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets that were measured, each with its bound."""
    rows = []
    if "data" in results:
        found = results["data"]
        rows += [
            _row("waiting for data, share of a step", found["wait_share"], 0.02, at_most=True),
            _row("a step to the replayed one", found["times_replayed"], 1.05, at_most=True),
        ]
    if "padded" in results:
        rows += [
            _row(f"packs to {name}, {images}", value, 1.7)
            for images, found in results["padded"].items()
            for name, value in found["packed_is_faster_by"].items()
        ]
    if "prefix" in results:
        value = results["prefix"]["shared_is_faster_by"]
        rows.append(_row("updates with shared prompts to unshared", value, 1.8))
    return rows


def _row(name: str, measured: float, bound: float, *, at_most: bool = False) -> dict[str, Any]:
    met = measured <= bound if at_most else measured >= bound
    kind = "at most" if at_most else "at least"
    return {"row": name, "measured": measured, "bound": f"{kind} {bound:g}", "met": met}


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--train-parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--train-packs", type=int, default=2, help="packed and padded")
    parser.add_argument("--train-steps", type=int, default=100, help="from the loader")


def report(given: argparse.Namespace) -> None:
    """Measure, write benchmarks/results/train.json, print the table."""
    from benchmarks.run import measure, write  # it imports this module

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "corpus"
        loader_corpus.make(folder, CORPUS)
        turns = ["--rounds", str(given.rounds), "--clock", given.clock]
        options = {
            "data": ["--steps", str(given.train_steps)],
            "padded": ["--packs", str(given.train_packs), *turns],
            "prefix": turns,
        }
        results = {
            part: measure(
                "bench_train", [part, str(folder), *options[part]], all_cores=part == "data"
            )
            for part in given.train_parts
        }
    whole = set(given.train_parts) == set(PARTS)
    settings = {
        "clock": given.clock,
        "packs": given.train_packs,
        "seq_len": SEQ_LEN,
        "model": "demo, float32",
    }
    rows = table(results)
    name = "train" if whole else f"train_{'_'.join(given.train_parts)}"
    write(name, {"settings": settings, "table": rows} | results)
    for row in rows:
        verdict = "met" if row["met"] else "NOT met"
        print(f"train, {row['row']}: {row['measured']:.4g} ({row['bound']}: {verdict})")


def main() -> None:
    """One part; one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path, help="of loader_corpus.py")
    parser.add_argument("--packs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    corpus = loader_corpus.Corpus(given.folder.resolve())
    if given.part == "data":
        result = data(corpus, given.steps)
    elif given.part == "padded":
        result = {
            name: padded(corpus, vision, given.packs, SEQ_LEN, given.rounds, given.clock)
            for name, vision in IMAGES.items()
        }
    else:
        result = prefix(given.rounds, given.clock)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
