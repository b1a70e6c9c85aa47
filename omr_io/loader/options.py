"""What is asked of a loader, checked before anything is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from omr_io.chat import ChatFormat
from omr_io.chat.conversation import Truncate
from omr_io.config import VisionConfig, fingerprint
from omr_io.errors import ConfigError
from omr_io.packing import CostModel, TooLong, check_world
from omr_io.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Layout:
    """How the packs of a step are shared by ranks and batches.

    Args:
        rank, world_size: of this process.
        packs_per_step: packs of an optimiser step over all ranks; a multiple of world_size.
        packs_per_batch: divides packs_per_step / world_size.
        cost: what decides which rank takes which packs, where that is not the default.
    """

    rank: int
    world_size: int
    packs_per_step: int
    packs_per_batch: int
    cost: CostModel | None = None

    @classmethod
    def of(
        cls,
        packs_per_step: int,
        rank: int | None,
        world_size: int | None,
        packs_per_batch: int | None,
        cost: CostModel | None = None,
    ) -> Layout:
        """The layout with its defaults: torch.distributed's world, one batch a step.

        Raises:
            ConfigError: an option that cannot be right.
        """
        rank, world_size = _world(rank, world_size)
        if packs_per_step < 1:
            raise ConfigError(f"packs_per_step {packs_per_step} must be at least 1")
        check_world(packs_per_step, rank, world_size)
        share = packs_per_step // world_size
        if packs_per_batch is None:
            packs_per_batch = share
        if packs_per_batch < 1 or share % packs_per_batch:
            raise ConfigError(
                f"packs_per_batch {packs_per_batch} does not divide a rank's {share} packs of a "
                "step",
                mend="It must divide packs_per_step / world_size",
            )
        return cls(rank, world_size, packs_per_step, packs_per_batch, cost)

    @property
    def micro_steps(self) -> int:
        """Batches of a rank in one optimiser step."""
        return self.packs_per_step // self.world_size // self.packs_per_batch

    @property
    def saved(self) -> dict[str, int | str]:
        """What must stay where a state stands inside a step, and be equal on all ranks."""
        saved: dict[str, int | str] = {
            "world_size": self.world_size,
            "packs_per_batch": self.packs_per_batch,
        }
        if self.cost is not None and self.cost != CostModel():
            saved["cost"] = fingerprint(self.cost)
        return saved


@dataclass(frozen=True, slots=True)
class Depth:
    """How far ahead of the consumer batches are made.

    Args:
        num_threads: that make batches; 0 makes them in the consumer's.
        prefetch: batches that may wait for the consumer.
        prefetch_bytes: of the batches that wait or are in work; one batch is always made.
    """

    num_threads: int
    prefetch: int
    prefetch_bytes: int

    def __post_init__(self) -> None:
        if self.num_threads < 0 or self.prefetch < 0 or self.prefetch_bytes < 0:
            raise ConfigError(
                f"num_threads {self.num_threads}, prefetch {self.prefetch} and prefetch_bytes "
                f"{self.prefetch_bytes} must be >= 0"
            )


def check_plan_options(seq_len: int, too_long: TooLong, truncate: Truncate) -> None:
    """Refuse what no plan can be made of.

    Raises:
        ConfigError: as said.
    """
    if seq_len < 1:
        raise ConfigError(f"seq_len {seq_len} must be at least 1")
    if too_long not in ("error", "drop"):
        raise ConfigError(f'too_long must be "error" or "drop", not {too_long!r}')
    if truncate not in ("refuse", "completion"):
        raise ConfigError(f"truncate {truncate!r}", mend='Use "refuse" or "completion"')


def check_device(device: torch.device | str) -> torch.device:
    """The device, if batches can be made there; a CUDA device with its index.

    The index is that of the calling thread: other threads have a current device of their own.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"device {device!r} is none that torch knows", mend='Use "cpu", "cuda" or "cuda:0"'
        ) from None
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device}, but no CUDA device is here",
            mend='Leave device at "cpu", or see what `omr-io doctor` says',
        )
    if str(checked) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return checked


def check_pinned(pin_memory: bool | None) -> bool:
    """Whether memory on the host is page-locked: None where CUDA is available.

    Raises:
        ConfigError: it shall be, and there is no CUDA.
    """
    available = torch.cuda.is_available()
    if pin_memory and not available:
        raise ConfigError(
            "pin_memory, but no CUDA device is here",
            mend="Leave pin_memory out, or see what `omr-io doctor` says",
        )
    return available if pin_memory is None else pin_memory


def check_decoder_device(decoder_device: str, device: torch.device) -> None:
    """Refuse pixels on a GPU for batches that are not there.

    Raises:
        ConfigError: as said.
    """
    if decoder_device == "cpu":
        return
    found = torch.device(decoder_device)
    if found.type != device.type or found.index not in (None, device.index):
        raise ConfigError(
            f"the decoder's pixels are on {decoder_device}, the batches on {device}",
            mend=f'Use device="{decoder_device}", or decoder="cpu"',
        )


def choose_chat(
    chat: ChatFormat | None, tokenizer: str | Path | Tokenizer | None, vision: VisionConfig
) -> ChatFormat:
    """The chat format: the one given, or that of the model family with this tokenizer.

    Raises:
        ConfigError: neither is given, or they disagree.
        TokenizerError: the tokenizer cannot be read or lacks a token.
    """
    if tokenizer is None:
        if chat is None:
            raise ConfigError("no tokenizer", mend="Give tokenizer=FOLDER, or a chat format")
        return chat
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_pretrained(tokenizer)
    if chat is None:
        return ChatFormat.for_family(vision.family, tokenizer)
    if chat.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ConfigError("chat has another tokenizer", mend="Leave out tokenizer, or use one")
    return chat


def _world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    others = os.environ.get("WORLD_SIZE", "")  # torchrun's
    if others.isdecimal() and int(others) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {others}, and torch.distributed is not initialised: each of these "
            "processes would read all samples",
            mend="Make the loader after init_process_group, or give rank and world_size",
        )
    return 0, 1
