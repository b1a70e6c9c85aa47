"""Fine-tune a Qwen vision-language model on packed batches, in plain torch.

    python examples/plain_loop.py SHARDS MODEL RUN --seq-len 8192
    torchrun --nproc-per-node 8 examples/plain_loop.py SHARDS MODEL RUN

SHARDS is a shard set (`omr-io convert`), MODEL a Hugging Face folder, RUN where checkpoints go.
Start it again after a stop of any kind, on any number of ranks that divides the packs of a step,
and it goes on as if it had not been stopped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText

import omr_io
from omr_io.batches import Batch
from omr_io.train.attention import use_varlen


def main() -> None:
    """One flat loop; everything else is the loader's."""
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
    args = parser.parse_args()

    device = start_process()
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).to(device)
    use_varlen(model)  # attention that knows where samples end; without it SDPA builds a mask
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)

    loader = omr_io.DataLoader(  # rank and world size are torch.distributed's
        args.shards,
        tokenizer=args.model,
        vision=omr_io.VisionConfig.from_pretrained(args.model),
        seq_len=args.seq_len,
        packs_per_step=args.packs_per_step,
        packs_per_batch=args.packs_per_batch,
        device=device,
    )
    total = loader.num_steps(args.epochs)
    step = resume(args.run, model, optimizer, loader)

    with loader:
        while step < total:
            for batch in loader:  # the rest of an epoch
                loss = loss_of(model, batch)
                loss.backward()
                if batch.micro_step < loader.micro_steps - 1:
                    continue
                sum_gradients(model)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step % args.save_steps == 0 or step == total:
                    save(args.run, step, model, optimizer, loader)
                print(f"step {step} of {total}, epoch {batch.epoch}", flush=True)
    if dist.is_initialized():  # ranks leave together
        dist.barrier()
        dist.destroy_process_group()


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    """This batch's share of the step's loss: the mean over all labels of all ranks.

    The number of those labels is planned, so nothing is communicated, and gradients are summed over
    micro batches and ranks. Only hidden states that predict a label meet the head.
    """
    hidden_BTH = model.model(**batch.model_inputs()).last_hidden_state
    logits_RV = model.lm_head(hidden_BTH.flatten(0, 1)[batch.label_rows])
    return cross_entropy(logits_RV, batch.label_targets, reduction="sum") / batch.step_label_tokens


def start_process() -> torch.device:
    """Join the other ranks, if torchrun started this process."""
    on_gpu = torch.cuda.is_available()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if on_gpu
        else torch.device("cpu")
    )


def sum_gradients(model: torch.nn.Module) -> None:
    """Over ranks. DDP would average them instead: then multiply the loss by the world size."""
    if not dist.is_initialized():
        return
    for parameter in model.parameters():
        if parameter.grad is None:  # no image on this rank, perhaps on others
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def save(run: Path, step: int, model, optimizer, loader: omr_io.DataLoader) -> None:
    """A checkpoint that is whole or not there. The loader's state is the same on every rank."""
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    run.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
    }
    torch.save(state, run / "checkpoint.tmp")
    (run / "checkpoint.tmp").replace(run / "checkpoint.pt")


def resume(run: Path, model, optimizer, loader: omr_io.DataLoader) -> int:
    """Go to where the checkpoint stands, if there is one; the steps made so far."""
    if not (run / "checkpoint.pt").exists():
        return 0
    state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    loader.load_state_dict(state["loader"])
    return state["step"]


if __name__ == "__main__":
    main()
