"""Milliseconds to lay out the integers of one batch of 64k tokens on one core, without its pixels.

Sides, each in a process of its own (`python -m benchmarks.run pack`):

- omr_io-cpu: samples to all of a batch's integers, by the C++ twin of the kernel.
- reference: the same by the definition in NumPy, as the loader did before.
- get_rope_index: transformers' Qwen2.5-VL makes the M-RoPE positions, and nothing else, from padded
  ids with a mask, as a training step of transformers does. The class's own method.
- padding-free: ids, labels and text positions, and nothing else, flattened as TRL's
  padding-free collator does it: from lists of Python integers, as `datasets` gives them. Written
  after its behaviour; TRL itself is not run.

With a CUDA device also omr_io-triton, from samples until the GPU is done, and omr_io-launch, one
launch of the kernel from a span table that is there, until the GPU is done.

What counts is the least of many runs: others on the machine only add to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.bench_plan import corpus_like
from omr_io.batches.spans import span_table
from omr_io.ops import pack_implementation
from omr_io.packing import plan_epoch
from omr_io.types import IGNORE_INDEX, EncodedSample

PACKS = 8
SEQ_LEN = 8192
MERGE_SIZE = 2
PAD_ID, IMAGE_ID = 151643, 151655
OPTIONS: dict[str, Any] = {
    "seq_len": SEQ_LEN,
    "pad_id": PAD_ID,
    "image_token_id": IMAGE_ID,
    "merge_size": MERGE_SIZE,
}
Side = Callable[[], Any]


def corpus_packs() -> list[list[EncodedSample]]:
    """PACKS full packs of samples with the corpus' lengths: prompt, image, prompt, completion."""
    lengths = corpus_like(2000)
    plan = plan_epoch(lengths, epoch=0, seed=0, seq_len=SEQ_LEN, packs_per_step=PACKS)
    rng = np.random.default_rng(0)

    def sample(number: int) -> EncodedSample:
        image_tokens = int(lengths.image_tokens[number])
        text_tokens = int(lengths.text_tokens[number])
        trained_tokens = int(lengths.label_tokens[number])
        rows = next(n for n in range(int(image_tokens**0.5), 0, -1) if image_tokens % n == 0)
        grid = [1, MERGE_SIZE * rows, MERGE_SIZE * image_tokens // rows]
        ids = rng.integers(0, 151_000, text_tokens + image_tokens).astype(np.int32)
        ids[15 : 15 + image_tokens] = IMAGE_ID
        trained = np.zeros(len(ids), np.bool_)
        trained[len(ids) - trained_tokens - 1 : -1] = True
        return EncodedSample(str(number), ids, trained, None, np.asarray([grid], np.int64))

    return [[sample(int(number)) for number in plan.pack(pack)] for pack in range(PACKS)]


def ours(name: str, packs: list[list[EncodedSample]]) -> Side:
    """An implementation of omr_io."""
    pack = pack_implementation(name)
    return lambda: pack(packs, **OPTIONS)


def get_rope_index(packs: list[list[EncodedSample]]) -> Side:
    """The method of a model without weights; its positions are checked against ours once."""
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    with torch.device("meta"):
        model = Qwen2_5_VLModel(Qwen2_5_VLConfig())
    samples = [sample for pack in packs for sample in pack]
    longest = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), longest), PAD_ID)
    mask = torch.zeros((len(samples), longest), dtype=torch.long)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = torch.from_numpy(sample.input_ids)
        mask[row, : len(sample.input_ids)] = 1
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE_ID).int(),
        "image_grid_thw": torch.from_numpy(np.concatenate([s.image_grid_thw for s in samples])),
        "attention_mask": mask,
    }
    positions_3ST, _ = model.get_rope_index(**inputs)
    made = pack_implementation("cpu")(packs, **OPTIONS)
    real = made.input_ids.flatten() != PAD_ID
    expected = torch.cat([positions_3ST[:, row, mask[row] == 1] for row in range(len(samples))], 1)
    if not torch.equal(made.position_ids[1:].flatten(1)[:, real], expected):
        raise SystemExit("error: get_rope_index and omr_io disagree")
    return lambda: model.get_rope_index(**inputs)


def padding_free(packs: list[list[EncodedSample]]) -> Side:
    """Lists of integers to one flat row: ids, labels by the completion's mask, positions."""
    examples = [
        {"input_ids": s.input_ids.tolist(), "completion_mask": s.trained.astype(int).tolist()}
        for pack in packs
        for s in pack
    ]

    def collate() -> dict[str, torch.Tensor]:
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        masks = [torch.tensor(example["completion_mask"]) for example in examples]
        positions = torch.cat([torch.arange(len(row)) for row in ids])[None]
        input_ids = torch.cat(ids)[None]
        labels = input_ids.clone()
        labels[torch.cat(masks)[None] == 0] = IGNORE_INDEX
        labels[positions == 0] = IGNORE_INDEX
        return {"input_ids": input_ids, "labels": labels, "position_ids": positions}

    made = pack_implementation("cpu")(packs, **OPTIONS)
    real = made.input_ids != PAD_ID
    flat = collate()
    if not torch.equal(made.labels[real], flat["labels"][0]):
        raise SystemExit("error: the padding-free collator and omr_io disagree")
    return collate


SIDES: dict[str, Callable[[list[list[EncodedSample]]], Side]] = {
    "omr_io-cpu": lambda packs: ours("cpu", packs),
    "reference": lambda packs: ours("reference", packs),
    "get_rope_index": get_rope_index,
    "padding-free": padding_free,
}


def main() -> None:
    """Time one side and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=list(SIDES))
    parser.add_argument("--seconds", type=float, default=3.0, help="to repeat for")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packs = corpus_packs()
    run = SIDES[arguments.side](packs)
    times: list[float] = []
    end = time.perf_counter() + arguments.seconds
    while time.perf_counter() < end or len(times) < 10:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    table = span_table(packs, **OPTIONS)
    result = {
        "side": arguments.side,
        "milliseconds": 1e3 * min(times),
        "median_milliseconds": 1e3 * statistics.median(times),
        "runs": len(times),
        "samples": sum(map(len, packs)),
        "tokens": table.num_tokens,
        "spans": len(table.spans),
        "label_tokens": table.num_label_tokens,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
