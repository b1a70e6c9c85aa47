"""What the first step of any of the trainers must come to, by transformers' own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import omr_io

SEQ_LEN, PACKS_PER_STEP, PACKS_PER_BATCH, LR = 256, 4, 1, 1e-3

OPTIONS = (
    "--seq-len", SEQ_LEN, "--packs-per-step", PACKS_PER_STEP,
    "--packs-per-batch", PACKS_PER_BATCH, "--lr", LR,
)  # fmt: skip


def make_loader(corpus: Path, model_folder: Path, **options: Any) -> omr_io.DataLoader:
    base = {
        "tokenizer": model_folder,
        "vision": omr_io.VisionConfig.from_pretrained(model_folder),
        "seq_len": SEQ_LEN,
        "packs_per_step": PACKS_PER_STEP,
        "packs_per_batch": PACKS_PER_BATCH,
    }
    return omr_io.DataLoader(corpus, **(base | options))


def first_step(corpus: Path, model_folder: Path) -> tuple[float, float]:
    """The mean loss over the labels of step 0, and the norm of its gradients.

    Each pack goes through the model's own forward, labels and loss included; means are weighted by
    the labels that they are over.
    """
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    total, labels = torch.zeros(()), 0
    with make_loader(corpus, model_folder) as loader:
        for batch in loader:
            if batch.step:
                break
            mean = model(**batch.model_inputs(), labels=batch.labels).loss
            count = int((batch.labels != -100).sum())
            total = total + mean * count
            labels += count
    (total / labels).backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(total.detach() / labels), float(torch.cat(grads).norm())


def num_steps(corpus: Path, model_folder: Path, epochs: int = 2) -> int:
    with make_loader(corpus, model_folder) as loader:
        return loader.num_steps(epochs)
