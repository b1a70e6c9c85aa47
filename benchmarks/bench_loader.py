"""Batches a second from a shard set: omr_io against the usual way with Hugging Face and webdataset.

The usual way: webdataset, Pillow, transformers' Qwen2VLImageProcessorPil, the same tokenizer
through its chat template, and greedy packing without padding. Both sides make the pixels and ids of
every sample of the set on one core; each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import torch

from omr_io.chat import corpus_completion
from omr_io.config import VisionConfig
from omr_io.index import ShardSet
from omr_io.loader import DataLoader
from omr_io.tokenizer import Tokenizer, train_bpe

VISION = VisionConfig(min_pixels=256 * 28 * 28, max_pixels=512 * 28 * 28)
SEQ_LEN = 4096


def tokenizer_for(shards: Path, folder: Path) -> Tokenizer:
    """A byte-level BPE trained on the set's texts, with a ChatML template."""
    with ShardSet.open(shards) as opened:
        records = [opened.read_record(i, images=False) for i in range(len(opened))]
    texts = [text for r in records for text in (r.question, corpus_completion(r))]
    tokenizer = train_bpe(texts, vocab_size=3072)
    tokenizer.save(folder)
    return tokenizer


def ours(shards: Path, tokenizer: Path, samples: int) -> tuple[int, float]:
    """(samples, seconds) of the loader, in the consumer's own thread."""
    loader = DataLoader(
        shards,
        tokenizer=tokenizer,
        vision=VISION,
        seq_len=SEQ_LEN,
        packs_per_step=1,
        num_threads=0,
    )
    done = 0
    with loader:
        started = time.perf_counter()
        for batch in loader:
            done += batch.num_samples
            if done >= samples:
                break
        return done, time.perf_counter() - started


def usual(shards: Path, tokenizer: Path, samples: int) -> tuple[int, float]:
    """(samples, seconds) of webdataset, transformers and a packing loop, in one process."""
    import webdataset
    from PIL import Image
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    text = AutoTokenizer.from_pretrained(tokenizer)
    processor = Qwen2VLImageProcessorPil(
        patch_size=VISION.patch_size,
        merge_size=VISION.merge_size,
        size={"shortest_edge": VISION.min_pixels, "longest_edge": VISION.max_pixels},
        image_mean=list(VISION.image_mean),
        image_std=list(VISION.image_std),
    )
    paths = sorted(str(path) for path in shards.glob("*.tar"))
    done, room = 0, SEQ_LEN
    pack: list[Any] = []
    started = time.perf_counter()
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
        data = json.loads(sample["json"])
        name = next(key for key in sample if key in ("jpg", "png"))
        image = Image.open(io.BytesIO(sample[name]))
        pixels = processor(images=image, return_tensors="pt")
        pads = int(pixels["image_grid_thw"].prod()) // VISION.merge_size**2
        user = "<|vision_start|>" + "<|image_pad|>" * pads + "<|vision_end|>" + data["question"]
        turns = [
            {"role": "user", "content": user},
            {"role": "assistant", "content": data["reasoning"]},
        ]
        ids = text.apply_chat_template(turns, tokenize=True, return_dict=False)
        if len(ids) > room:
            _collate(pack)
            pack, room = [], SEQ_LEN
        pack.append((ids, pixels["pixel_values"], pixels["image_grid_thw"]))
        room -= len(ids)
        done += 1
        if done >= samples:
            break
    _collate(pack)
    return done, time.perf_counter() - started


def _collate(pack: list[Any]) -> dict[str, torch.Tensor]:
    """One row without padding: ids, position ids, pixels and grids, joined."""
    return {
        "input_ids": torch.tensor([i for ids, _, _ in pack for i in ids])[None],
        "position_ids": torch.cat([torch.arange(len(ids)) for ids, _, _ in pack])[None],
        "pixel_values": torch.cat([pixels for _, pixels, _ in pack]),
        "image_grid_thw": torch.cat([grid for _, _, grid in pack]),
    }


def main() -> None:
    """Time one side and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["ours", "usual"])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side = ours if arguments.side == "ours" else usual
    done, seconds = side(arguments.shards, arguments.tokenizer, arguments.samples)
    result = {"side": arguments.side, "samples": done, "seconds": seconds}
    print(json.dumps(result | {"samples_per_second": done / seconds}))


if __name__ == "__main__":
    main()
