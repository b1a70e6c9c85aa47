"""The same with Lightning (needs lightning 2.2 or later).

    python examples/lightning_module.py SHARDS MODEL RUN --seq-len 8192 [--resume last]

The loader goes to `fit` as it is: it has a length, moves by `Batch.to`, and keeps its place in
Lightning's checkpoints by `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText

import omr_io
from omr_io.batches import Batch


class Corpus(lightning.LightningDataModule):
    """The loader, made when Lightning has started the ranks: it then knows its own."""

    def __init__(self, shards: Path, model: Path, **options: Any) -> None:
        super().__init__()
        self.shards, self.model, self.options = shards, model, options
        self.loader: omr_io.DataLoader | None = None

    def setup(self, stage: str) -> None:
        """On every rank, before the first batch."""
        if self.loader is None:
            vision = omr_io.VisionConfig.from_pretrained(self.model)
            self.loader = omr_io.DataLoader(
                self.shards, tokenizer=self.model, vision=vision, **self.options
            )

    def train_dataloader(self) -> omr_io.DataLoader:
        """Lightning asks for it each epoch, since epochs may differ by a step."""
        return self.loader

    def teardown(self, stage: str) -> None:
        """End its threads."""
        self.loader.close()


class Tuning(lightning.LightningModule):
    """A model that is trained on all its parameters."""

    def __init__(self, model: Path, lr: float) -> None:
        super().__init__()
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
        self.lr = lr

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The batch's share of the step's mean loss over all labels of all ranks.

        Lightning divides what this returns by accumulate_grad_batches, and DDP gradients by the
        world size; but step_label_tokens counts the whole step, so both are taken back.
        """
        hidden_BTH = self.model.model(**batch.model_inputs()).last_hidden_state
        logits_RV = self.model.lm_head(hidden_BTH.flatten(0, 1)[batch.label_rows])
        summed = cross_entropy(logits_RV, batch.label_targets, reduction="sum")
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return summed / batch.step_label_tokens * shares

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain AdamW."""
        return torch.optim.AdamW(self.parameters(), self.lr)


def main() -> None:
    """Steps are counted, not epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--packs-per-step", type=int, default=64, help="over all ranks")
    parser.add_argument("--packs-per-batch", type=int, default=1, help="what a rank's memory holds")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--save-steps", type=int, default=100)
    parser.add_argument("--resume", help='a checkpoint, or "last"')
    args = parser.parse_args()

    corpus = Corpus(
        args.shards,
        args.model,
        seq_len=args.seq_len,
        packs_per_step=args.packs_per_step,
        packs_per_batch=args.packs_per_batch,
    )
    trainer = lightning.Trainer(
        default_root_dir=args.run,
        devices=args.devices,
        max_steps=args.steps,
        max_epochs=-1,
        accumulate_grad_batches=args.packs_per_step // args.packs_per_batch // args.devices,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[
            ModelCheckpoint(
                args.run, every_n_train_steps=args.save_steps, save_top_k=-1, save_last=True
            )
        ],
    )
    trainer.fit(Tuning(args.model, args.lr), datamodule=corpus, ckpt_path=args.resume)


if __name__ == "__main__":
    main()
