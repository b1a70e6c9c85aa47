"""Hugging Face's `Trainer` on planned batches, with exact resume.

    trainer = LoaderTrainer(
        model,
        TrainingArguments(
            "runs/sft",
            max_steps=loader.num_steps(2),
            gradient_accumulation_steps=loader.micro_steps,
            ignore_data_skip=True,
        ),
        loader=loader,
    )
    trainer.train(resume_from_checkpoint=True)

The loss is that of a plain loop: summed over the batch's labels, and divided by the planned number
of labels of the whole step (`Batch.step_label_tokens`), so that every label counts the same.
Trainer by itself does not do that for Qwen's models, which declare `accepts_loss_kwargs = False`:
it takes the mean of each micro batch, and the mean of these over micro batches and ranks.

Needs accelerate, and a transformers whose Trainer knows `loss_is_scaled_for_ga` (5.23 does).

Legend: B packs, K columns in which some pack's hidden state predicts a label, N = B x K, V
vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from omr_io.batches import Batch
from omr_io.errors import ConfigError, DataError
from omr_io.loader import DataLoader
from omr_io.storage import write_atomically

LOADER_STATE = "loader.json"
"""The file of a checkpoint that holds the loader's state."""


class TrainerDataset(IterableDataset[Batch]):
    """A loader as a dataset of batches, epoch after epoch without end: steps are what is counted.

    It belongs to one process. In workers of a torch DataLoader each would load everything.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.epochs_done = float(loader.epoch)
        """Epochs done, the batch that was yielded last included."""

    def __iter__(self) -> Iterator[Batch]:
        """Go on where the loader stands.

        Raises:
            ConfigError: called in a worker process.
            DataError: an epoch has no batch.
        """
        if torch.utils.data.get_worker_info() is not None:
            raise ConfigError(
                "a planned loader in worker processes would load everything in each",
                mend="Use dataloader_num_workers=0: the loader has threads of its own",
            )
        while True:
            steps = len(self.loader) // self.loader.micro_steps
            if not steps:
                raise DataError("the loader's epoch has no batch")
            for batch in self.loader:
                self.epochs_done = batch.epoch + (batch.step + 1) / steps
                yield batch


def collate(batch: Batch, *, need_images: bool = False) -> dict[str, Any]:
    """What `LoaderTrainer.compute_loss` takes: `Batch.model_inputs`, and of the loss

    - logits_to_keep (K,) int64: the columns for which the model makes logits;
    - targets (B, K) int64: what they predict, IGNORE_INDEX where that is no label;
    - step_label_tokens: the labels of the whole step over all ranks.

    Args:
        need_images: refuse a batch without any image: under sharded training the ranks' vision
            towers must all run, or all wait.

    Raises:
        DataError: there is no image, and need_images.
    """
    if need_images and batch.has_dummy_image:
        raise DataError(
            f"no sample of step {batch.step} on this rank has an image; under FSDP or ZeRO-3 the "
            "other ranks would wait for its vision tower forever",
            mend="Leave out text-only samples (DataLoader(samples=...)), or use DDP",
        )
    packs, seq_len = batch.labels.shape
    rows = batch.label_rows
    columns_K = rows if packs == 1 else torch.unique(rows % seq_len)
    return {
        **batch.model_inputs(),
        "logits_to_keep": columns_K,
        # The first token of a sample is never a label, so no row looks into the pack below it.
        "targets": batch.labels.index_select(1, columns_K + 1),
        "step_label_tokens": batch.step_label_tokens,
    }


class LoaderTrainer(transformers.Trainer):
    """A `Trainer` that takes its batches from a planned loader and keeps its place.

    The loader makes whole batches for this rank, so accelerate's sharding of datasets, which reads
    a batch ahead, is left out. A checkpoint folder holds the loader's state in `loader.json`;
    `train(resume_from_checkpoint=...)` reads it, on any number of ranks. `state.epoch`, and with
    it what is logged, follows the loader's epochs.

    Args:
        model, args, kwargs: as for `transformers.Trainer`; there is no train_dataset.
        loader: of this rank. The run goes on where it stands.

    Raises:
        ConfigError: args that do not fit the loader; it names them.
    """

    def __init__(
        self,
        model: Any,
        args: transformers.TrainingArguments,
        *,
        loader: DataLoader,
        **kwargs: Any,
    ) -> None:
        if not hasattr(transformers.Trainer, "loss_is_scaled_for_ga"):
            raise ConfigError(
                f"transformers {transformers.__version__} would divide the loss once more",
                mend="pip install 'transformers>=5.23'",
            )
        _check_arguments(args, loader)
        self._batches = TrainerDataset(loader)
        super().__init__(model, args, train_dataset=self._batches, **kwargs)
        self.loss_is_scaled_for_ga = True  # by `compute_loss`: Trainer must not divide once more
        self.loader = loader
        self.add_callback(_KeepPlace(self._batches))

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Batches as the loader makes them: nothing is fetched before it is asked for."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return torch.utils.data.DataLoader(
            self._batches,
            batch_size=None,
            collate_fn=partial(collate, need_images=sharded),
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This batch's share of the step's mean loss over all labels of all ranks.

        Times the number of ranks, since DDP and FSDP average gradients over them. Inputs that are
        not of `collate`, as in an evaluation on a dataset of another kind, go to Trainer's own.
        """
        if "targets" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        targets_BK, labels = inputs.pop("targets"), inputs.pop("step_label_tokens")
        outputs = model(**inputs)
        logits_NV = outputs.logits.flatten(0, 1).float()
        summed = cross_entropy(logits_NV, targets_BK.flatten(), reduction="sum")
        loss = summed / labels * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; arguments as for `transformers.Trainer.train`.

        Raises:
            ConfigError: there is no checkpoint, or it has no loader.json.
            ResumeError: its state is of another corpus, tokenizer or option.
        """
        folder = resume_from_checkpoint
        if folder is True:
            last: Any = get_last_checkpoint
            folder = last(str(self.args.output_dir))
            if folder is None:
                raise ConfigError(f"there is no checkpoint in {self.args.output_dir}")
        if isinstance(folder, str):
            self.loader.load_state_dict(_read_state(Path(folder)))
        return super().train(folder or None, trial, ignore_keys_for_eval)


class _KeepPlace(transformers.TrainerCallback):
    """Saves the loader's state with each checkpoint, and keeps `state.epoch` right."""

    def __init__(self, batches: TrainerDataset) -> None:
        self._batches = batches

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The loader's epoch and how much of it is done, for logs."""
        state.epoch = self._batches.epochs_done

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Beside the model: the state counts the batches of all steps so far, and no others."""
        if state.is_world_process_zero:  # it is the same on every rank
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            text = json.dumps(self._batches.loader.state_dict())
            write_atomically(folder / LOADER_STATE, text.encode())


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / LOADER_STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {LOADER_STATE}: it was saved by another trainer, or killed while it "
            "was saved",
            mend="Resume from an earlier checkpoint-N",
        ) from None
    return dict(state)


def _check_arguments(args: transformers.TrainingArguments, loader: DataLoader) -> None:
    """Refuse what would train on other batches than planned, or scale the loss wrongly.

    Raises:
        ConfigError: names the argument.
    """
    wanted = {
        "gradient_accumulation_steps": loader.micro_steps,
        "ignore_data_skip": True,  # the loader's state has the place; skipping would skip twice
        "auto_find_batch_size": False,
        "dataloader_num_workers": 0,
        "world_size": loader.world_size,
        "process_index": loader.rank,
    }
    wrong = [
        f"{name}={getattr(args, name)!r}, not {value!r}"
        for name, value in wanted.items()
        if getattr(args, name) != value
    ]
    if wrong:
        raise ConfigError(f"TrainingArguments that do not fit the loader: {'; '.join(wrong)}")
    if args.max_steps <= 0:
        raise ConfigError(
            f"max_steps={args.max_steps}: epochs may differ by a step, so steps are counted",
            mend="Use max_steps=loader.num_steps(EPOCHS)",
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process: DataParallel would cut packs apart",
            mend="Start a process a GPU with torchrun, or set CUDA_VISIBLE_DEVICES",
        )
