"""The same with Hugging Face's Trainer (needs accelerate).

python examples/hf_trainer.py SHARDS MODEL RUN --seq-len 8192 [--resume]
torchrun --nproc-per-node 8 examples/hf_trainer.py SHARDS MODEL RUN
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText, TrainingArguments

import omr_io
from omr_io.integrations.hf import LoaderTrainer


def main() -> None:
    """What Trainer is told about data are three numbers of the loader's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--packs-per-step", type=int, default=64, help="over all ranks")
    parser.add_argument("--packs-per-batch", type=int, default=1, help="what a rank's memory holds")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--save-steps", type=int, default=100)
    parser.add_argument("--resume", action="store_true", help="from the newest checkpoint")
    args = parser.parse_args()

    loader = omr_io.DataLoader(
        args.shards,
        tokenizer=args.model,
        vision=omr_io.VisionConfig.from_pretrained(args.model),
        seq_len=args.seq_len,
        packs_per_step=args.packs_per_step,
        packs_per_batch=args.packs_per_batch,
        rank=int(os.environ.get("RANK", 0)),  # torchrun's
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )
    settings = TrainingArguments(
        str(args.run),
        max_steps=loader.num_steps(args.epochs),
        gradient_accumulation_steps=loader.micro_steps,
        ignore_data_skip=True,  # the loader keeps its own place
        learning_rate=args.lr,
        save_steps=args.save_steps,
        logging_steps=1,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32)
    with loader:
        LoaderTrainer(model, settings, loader=loader).train(resume_from_checkpoint=args.resume)
    if dist.is_initialized():  # ranks leave together
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
