"""Packed batches from WebDataset shards without an index: decoded, tokenized, packed as they come.

    python examples/webdataset_stream.py MODEL shards/train-*.tar --seq-len 8192 --workers 4

What a stream cannot give, and `omr_io.DataLoader` does, is in `omr_io.stages.Pack`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import webdataset as wds

import omr_io
from omr_io import stages


def main() -> None:
    """The last two stages are ours, the rest is webdataset's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("urls", nargs="+", help="tars, as webdataset takes them")
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--packs-per-batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    # The schema is found once, here, so that all workers read in the same way.
    record = stages.recognise(
        wds.DataPipeline(wds.SimpleShardList(args.urls[:1]), wds.tarfile_to_samples())
    )
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(args.urls, seed=0),
        wds.split_by_node,
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(1000, seed=0),
        stages.encode(
            tokenizer=args.model,
            vision=omr_io.VisionConfig.from_pretrained(args.model),
            record=record,
            max_tokens=args.seq_len,
        ),
        stages.pack(seq_len=args.seq_len, packs_per_batch=args.packs_per_batch, too_long="drop"),
    )
    for batch in wds.WebLoader(pipeline, batch_size=None, num_workers=args.workers):
        inputs = batch.model_inputs()  # what the model's forward takes
        filled = batch.num_tokens / batch.input_ids.numel()
        print(f"{tuple(inputs['input_ids'].shape)}: {batch.num_samples} samples, {filled:.1%} full")
        for failure in batch.failures:
            print(f"  {failure.shard} {failure.key}: {failure.reason}")


if __name__ == "__main__":
    main()
