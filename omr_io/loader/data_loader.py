"""The loader: an iterator of batches whose whole state is a few integers and fingerprints.

loader = omr_io.DataLoader("shards/train", tokenizer="tokenizer/", vision=VisionConfig(),
                           seq_len=4096, packs_per_step=64)
for epoch in range(loader.epoch, 2):
    for batch in loader:
        ...
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from omr_io.batches import Batch, Failure, make_batch
from omr_io.cache import Cache
from omr_io.chat import ChatFormat
from omr_io.chat.conversation import Truncate
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode import Decoder, make_decoder
from omr_io.index import ShardSet
from omr_io.loader import state
from omr_io.loader.lengths import Truncation, measure, truncate_lengths
from omr_io.loader.prefetch import ordered_map
from omr_io.loader.quarantine import FailureBudget, Quarantine
from omr_io.loader.samples import SampleEncoder
from omr_io.loader.state import Position
from omr_io.ops import pack_implementation
from omr_io.packing import Plan, TooLong, check_samples, check_world, plan_epoch
from omr_io.telemetry import LoaderStats, Meter
from omr_io.tokenizer import Tokenizer
from omr_io.types import Int64Array


class DataLoader:
    """Batches of packed samples from a shard set, planned ahead, in an order fixed by the seed.

    Iterating yields the rest of the current epoch; when it ends, the loader stands at the start of
    the next one, and iterating again goes on there. Breaking off and iterating again goes on after
    the last batch that was yielded. Only one iteration runs at a time: a new one ends the old.

    Args:
        shards: a shard set's folder, or an open `ShardSet` (which the caller closes).
        vision: how images become patches.
        seq_len: T, tokens of a pack.
        packs_per_step: packs of an optimiser step over all ranks; a multiple of world_size.
        tokenizer: a `Tokenizer`, or a folder with tokenizer.json; may be left out with `chat`.
        chat: how a record becomes tokens; None: `ChatFormat.for_family(vision.family, tokenizer)`.
        seed: of the order.
        decoder: "cpu", "dali", or a `Decoder` (which the caller closes).
        rank, world_size: of this process; None: torch.distributed's if it is initialised, else 0
            of 1. Not part of the order: a run may go on with another world size.
        packs_per_batch: B, packs of a batch; divides packs_per_step / world_size; None: all of
            them, one batch a step.
        samples: (m,) numbers of the samples to load, each once; None: the whole shard set.
        window: samples that are shuffled and packed together; None: the whole corpus.
        too_long: samples of more than seq_len tokens are an "error", or "drop" leaves them out
            and `dropped` counts them.
        truncate: "completion" first cuts the end of completions (and the token that closes them)
            where that makes a sample fit seq_len; `truncation` says what. Prompts and images are
            never cut: where they alone are too long, `too_long` decides. "refuse" cuts nothing.
        cache: keep the lengths of texts between runs, so that the next start reads no text: in
            ~/.cache/omr_io/lengths, or where OMR_IO_CACHE_DIR says (see `omr_io.cache`).
        num_threads: each assembles whole batches; 0 assembles them in the consumer's thread.
        prefetch: batches that may wait for the consumer, beside the one in work on each thread.
        failure_budget: how many samples may fail to decode.
        device: where the batches' tensors are. On "cuda" the thread that makes a batch also sends
            it there, through pinned memory and without waiting, on its current stream (the default
            one): a consumer that works on another stream waits for that one first. Batches that
            wait for the consumer then take the GPU's memory. Else send them with `Batch.to`.
        implementation: of the assembly, see `omr_io.ops`; "auto" takes the kernel on "cuda" where
            Triton is installed, and C++ elsewhere.
        pixel_dtype: of pixel_values: float32, or bfloat16 or float16, which hold the float32 values
            rounded to the nearest and are half the bytes. Not part of the order.
        pin_memory: patches are written into page-locked memory, so that `Batch.pin_memory` need not
            copy them; None: where CUDA is available.

    Raises:
        ConfigError: an option that cannot be right.
        SourceError, IntegrityError: the shard set cannot be opened.
        TokenizerError: the tokenizer is missing or lacks a token.
        SampleTooLongError: a sample has more tokens than seq_len.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        *,
        vision: VisionConfig,
        seq_len: int,
        packs_per_step: int,
        tokenizer: str | Path | Tokenizer | None = None,
        chat: ChatFormat | None = None,
        seed: int = 0,
        decoder: str | Decoder = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        packs_per_batch: int | None = None,
        samples: Int64Array | None = None,
        window: int | None = None,
        too_long: TooLong = "error",
        truncate: Truncate = "refuse",
        cache: bool = True,
        num_threads: int = 1,
        prefetch: int = 2,
        failure_budget: FailureBudget | None = None,
        device: torch.device | str = "cpu",
        implementation: str = "auto",
        pixel_dtype: torch.dtype = torch.float32,
        pin_memory: bool | None = None,
    ) -> None:
        self.rank, self.world_size = _world(rank, world_size)
        self.packs_per_batch = _packs_per_batch(
            packs_per_step, self.rank, self.world_size, packs_per_batch
        )
        if truncate not in ("refuse", "completion"):
            raise ConfigError(f"truncate {truncate!r}", mend='Use "refuse" or "completion"')
        if num_threads < 0 or prefetch < 0:
            raise ConfigError(f"num_threads {num_threads} and prefetch {prefetch} must be >= 0")
        self.vision = vision
        self.seq_len = seq_len
        self.packs_per_step = packs_per_step
        self.num_threads = num_threads
        self.prefetch = prefetch
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device {device}, but no CUDA device is here",
                mend='Leave device at "cpu", or see what `omr-io doctor` says',
            )
        self._pack = pack_implementation(implementation, device)
        self._chat = _chat(chat, tokenizer, vision)
        self._pad_id = self._chat.pad_token_id
        self._owns_shards = not isinstance(shards, ShardSet)
        self._shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        self._owns_decoder = isinstance(decoder, str)
        self._decoder = make_decoder(decoder, vision) if isinstance(decoder, str) else decoder
        lengths = measure(self._shards, self._chat, vision, Cache.of("lengths") if cache else None)
        self.truncation: Truncation | None = None
        """What was cut (`truncate`); None where nothing may be."""
        if truncate == "completion":
            lengths, self.truncation = truncate_lengths(lengths, self._chat, seq_len)
        self.lengths = lengths
        self._planning: dict[str, Any] = {
            "seed": seed,
            "seq_len": seq_len,
            "packs_per_step": packs_per_step,
            "window": window,
            "too_long": too_long,
        }
        self._samples = None if samples is None else check_samples(samples, len(self._shards))
        self._fingerprint = state.fingerprints(
            self._shards, self._chat, vision, self.lengths, self._samples, self._planning
        )
        self._encoder = SampleEncoder(
            self._shards,
            self._chat,
            vision,
            self._decoder,
            self.lengths,
            max_tokens=None if truncate == "refuse" else seq_len,
            pixel_dtype=pixel_dtype,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        )
        self._quarantine = Quarantine(failure_budget or FailureBudget(), len(self._shards))
        self._meter = Meter()
        self._position = Position(0, 0, 0)
        self._planned = self._plan_epoch(0)
        self._active: weakref.ref[Generator[Batch, None, None]] | None = None

    # The order

    @property
    def plan(self) -> Plan:
        """The plan of the current epoch."""
        if self._planned.epoch != self._position.epoch:
            self._planned = self._plan_epoch(self._position.epoch)
        return self._planned

    @property
    def epoch(self) -> int:
        """The epoch of the batch that comes next, from 0."""
        return self._position.epoch

    @property
    def micro_steps(self) -> int:
        """Batches of a rank in one optimiser step."""
        return self.packs_per_step // self.world_size // self.packs_per_batch

    @property
    def dropped(self) -> int:
        """Samples left out because they are longer than seq_len (with too_long="drop")."""
        return len(self.plan.dropped)

    def __len__(self) -> int:
        """Batches of the whole current epoch on this rank: the same on every rank."""
        return self.plan.num_steps * self.micro_steps

    def num_steps(self, epochs: int) -> int:
        """Optimiser steps of the first `epochs` epochs together, from their plans: exact.

        Epochs may differ by a step, since packs are formed anew in each.
        """
        return sum(self._plan_epoch(epoch).num_steps for epoch in range(epochs))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; in the current epoch already, nothing changes.

        So it may be called before each epoch, also after `load_state_dict` into the middle of one.

        Raises:
            ConfigError: the epoch is negative.
        """
        if epoch < 0:
            raise ConfigError(f"epoch {epoch} is negative")
        if epoch != self._position.epoch:
            self._stop()
            self._position = Position(epoch, 0, 0)

    def _plan_epoch(self, epoch: int) -> Plan:
        return plan_epoch(
            self.lengths,
            epoch=epoch,
            keys=state.Keys(self._shards),
            samples=self._samples,
            **self._planning,
        )

    # The batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current position to the end of its epoch.

        Raises:
            FailureBudgetError: too many samples failed.
            IntegrityError: a shard is not what was written.
        """
        self._stop()
        iteration = self._iterate()
        self._active = weakref.ref(iteration)
        return iteration

    def _iterate(self) -> Generator[Batch, None, None]:
        plan, first = self.plan, self._position
        places = (
            Position(first.epoch, step, micro_step)
            for step in range(first.step, plan.num_steps)
            for micro_step in range(first.micro_step if step == first.step else 0, self.micro_steps)
        )
        ready = ordered_map(
            lambda place: self._make(plan, place),
            places,
            threads=self.num_threads,
            ahead=self.prefetch,
        )
        try:
            while True:
                self._meter.start_waiting()
                made = next(ready, None)
                if made is None:
                    return
                batch, bytes_read = made
                self._quarantine.take(batch.failures, batch.num_samples)
                self._meter.deliver(batch, bytes_read)
                self._position = self._after(plan, batch)
                yield batch
        finally:
            ready.close()
            self._meter.pause()

    def _after(self, plan: Plan, batch: Batch) -> Position:
        if batch.micro_step + 1 < self.micro_steps:
            return Position(batch.epoch, batch.step, batch.micro_step + 1)
        if batch.step + 1 < plan.num_steps:
            return Position(batch.epoch, batch.step + 1, 0)
        return Position(batch.epoch + 1, 0, 0)

    def _make(self, plan: Plan, place: Position) -> tuple[Batch, int]:
        """Read, decode and assemble one batch; the bytes read beside it. Runs on any thread."""
        begin = place.micro_step * self.packs_per_batch
        packs = plan.rank_packs(place.step, self.rank, self.world_size)
        bins = [plan.pack(number) for number in packs[begin : begin + self.packs_per_batch]]
        numbers = [number for bin_ in bins for number in bin_]
        try:
            encoded = iter(self._encoder.encode_many(numbers))
            rows = [[next(encoded) for _ in bin_] for bin_ in bins]
            arrays = self._pack(
                rows,
                seq_len=self.seq_len,
                pad_id=self._pad_id,
                image_token_id=self._chat.image_token_id,
                merge_size=self.vision.merge_size,
            )
        except Exception as error:
            error.add_note(f"while making the batch of {place} on rank {self.rank}")
            raise
        failures = [
            Failure(self._shards.shard(number), sample.key, sample.failure)
            for number, sample in zip(numbers, (s for row in rows for s in row), strict=True)
            if sample.failure is not None
        ]
        batch = make_batch(
            arrays,
            rows,
            vision=self.vision,
            step_label_tokens=int(plan.step_label_tokens[place.step]),
            epoch=place.epoch,
            step=place.step,
            micro_step=place.micro_step,
            failures=failures,
            pixel_dtype=self._encoder.pixel_dtype,
        )
        parts = (part for number in numbers for part in self._shards.parts(number))
        return batch, sum(part.size for part in parts)

    # The state

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, as plain JSON under 1 KB: the same on every rank.

        It counts the batches that were yielded, the current one included, and none that wait.
        """
        layout = {"world_size": self.world_size, "packs_per_batch": self.packs_per_batch}
        return state.to_dict(self._position, layout, self._fingerprint)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go to where another loader stood; the batches that follow are bit for bit the same.

        World size, packs_per_batch, threads, prefetch and decoder may differ from the loader that
        was saved, at the start of an optimiser step; inside one, world size and packs_per_batch
        must be the same.

        Raises:
            ResumeError: the state is of another corpus, tokenizer, chat format, vision
                configuration or plan; it names what differs.
        """
        layout = {"world_size": self.world_size, "packs_per_batch": self.packs_per_batch}
        position = state.from_dict(saved, layout, self._fingerprint)
        plan = self.plan if position.epoch == self.epoch else self._plan_epoch(position.epoch)
        state.check_range(position, plan.num_steps, self.micro_steps)
        self._stop()
        self._position, self._planned = position, plan

    # What happened, and the end

    @property
    def quarantine(self) -> list[Failure]:
        """The distinct samples whose images failed so far in this process, on this rank."""
        return self._quarantine.failures

    def stats(self) -> LoaderStats:
        """Counts and times so far."""
        return self._meter.snapshot()

    def close(self) -> None:
        """End the iteration and its threads, and free what the loader opened. May be repeated."""
        self._stop()
        if self._owns_decoder:
            self._decoder.close()
        if self._owns_shards:
            self._shards.close()

    def _stop(self) -> None:
        active = self._active() if self._active is not None else None
        self._active = None
        if active is not None:
            active.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _packs_per_batch(
    packs_per_step: int, rank: int, world_size: int, packs_per_batch: int | None
) -> int:
    if packs_per_step < 1:
        raise ConfigError(f"packs_per_step {packs_per_step} must be at least 1")
    check_world(packs_per_step, rank, world_size)
    share = packs_per_step // world_size
    if packs_per_batch is None:
        return share
    if packs_per_batch < 1 or share % packs_per_batch:
        raise ConfigError(
            f"packs_per_batch {packs_per_batch} does not divide a rank's {share} packs of a step",
            mend="It must divide packs_per_step / world_size",
        )
    return packs_per_batch


def _chat(
    chat: ChatFormat | None, tokenizer: str | Path | Tokenizer | None, vision: VisionConfig
) -> ChatFormat:
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
