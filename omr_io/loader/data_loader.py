"""The loader: an iterator of batches whose whole state is a few integers and fingerprints.

loader = omr_io.DataLoader("shards/train", tokenizer="tokenizer/", vision=VisionConfig(),
                           seq_len=4096, packs_per_step=64)
for epoch in range(loader.epoch, 2):
    for batch in loader:
        ...

    order ─▶ Place ─making─▶ BatchJob ─engine, threads─▶ Made ─▶ Batch
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.data import get_worker_info

from omr_io.batches import Batch, Failure
from omr_io.blend import Blend, open_blend
from omr_io.cache import Cache
from omr_io.chat import ChatFormat
from omr_io.chat.conversation import Truncate
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError
from omr_io.images.decode import Decoder, make_decoder
from omr_io.index import ShardSet
from omr_io.loader import options, state
from omr_io.loader.arguments import checked, whole
from omr_io.loader.engine import Engine
from omr_io.loader.lengths import Truncation, measure, truncate_lengths
from omr_io.loader.making import BatchMaker, Made
from omr_io.loader.options import Depth, Layout
from omr_io.loader.order import Order
from omr_io.loader.quarantine import FailureBudget, Quarantine
from omr_io.loader.samples import SampleEncoder
from omr_io.loader.selection import Selection, as_blend
from omr_io.loader.state import Position
from omr_io.loader.step_counts import StepCounts
from omr_io.ops import Pack, pack_implementation
from omr_io.packing import CostModel, TooLong
from omr_io.packing.epoch import EpochPlan
from omr_io.remote_storage import RemoteOptions
from omr_io.telemetry import LiveLine, LoaderStats, Meter
from omr_io.tokenizer import Tokenizer
from omr_io.types import Int64Array


class DataLoader:
    """Batches of packed samples from a shard set, planned ahead, in an order fixed by the seed.

    Iterating yields the rest of the current epoch; when it ends, the loader stands at the start of
    the next one, and iterating again goes on there. Breaking off and iterating again goes on after
    the last batch that was yielded. Only one iteration runs at a time: a new one ends the old.

    It starts no process, and threads only while it is iterated. After a fork the child goes on
    where the parent stood, with threads of its own; pickled, it is made anew from its arguments at
    the same position (which is how it goes to a process that is spawned).

    Args:
        shards: a shard set's folder or URL (`ShardSet.open` has the kinds), an open `ShardSet`
            (which the caller closes), or a `Blend` of several: weights, filters, subsets, balanced
            letters. A blend whose filters are lambdas cannot be pickled, nor can its loader.
        vision: how images become patches.
        seq_len: T, tokens of a pack.
        packs_per_step: packs of an optimiser step over all ranks; a multiple of world_size.
        tokenizer: a `Tokenizer`, or a folder with tokenizer.json; may be left out with `chat`.
        chat: how a record becomes tokens; None: `ChatFormat.for_family(vision.family, tokenizer)`.
        seed: of the order.
        decoder: "cpu", whose pixels are exact; "dali" or "nvimgcodec", which decode where `device`
            is (on a GPU near the exact pixels, not equal); "auto", the best that is installed
            there; or a `Decoder` (which the caller closes). See `omr_io.images.decode`.
        rank, world_size: of this process; None: torch.distributed's if it is initialised, else 0
            of 1, which is refused where the environment's WORLD_SIZE says that there are others.
            Not part of the order: a run may go on with another world size.
        packs_per_batch: B, packs of a batch; divides packs_per_step / world_size; None: all of
            them, one batch a step.
        cost: what a pack costs the model that is trained: CostModel.from_config(MODEL_FOLDER) of
            `omr_io.packing`, as `omr-io plan --model` takes it; None: Qwen2.5-VL-7B's. It decides
            which rank takes which packs of a step, so it must be equal on all ranks. Not part of
            the order.
        samples: (m,) numbers of the samples of a shard set to load, each once; None: all of them.
        window: samples that are shuffled and packed together; None: the whole corpus.
        too_long: samples of more than seq_len tokens are an "error", or "drop" leaves them out
            and `dropped` counts them.
        truncate: "completion" first cuts the end of completions (and the token that closes them)
            where that makes a sample fit seq_len; `truncation` says what. Prompts and images are
            never cut: where they alone are too long, `too_long` decides. "refuse" cuts nothing.
        cache: keep the lengths of texts between runs, so that the next start reads no text, and the
            steps of epochs that take long to count: in ~/.cache/omr_io/lengths and steps, or where
            OMR_IO_CACHE_DIR says (see `omr_io.cache`).
        remote: how what a URL names is read ahead, tried again, and kept in a local cache.
        num_threads: that read, decode and encode; they share the samples of a batch. 0 does it all
            in the consumer's thread.
        prefetch: batches that may wait for the consumer, beside those in work.
        prefetch_bytes: of the batches that wait or are in work; one is always made.
        failure_budget: how many samples may fail to decode.
        device: where the batches' tensors are. On "cuda" the thread that makes a batch also sends
            it there, through pinned memory and without waiting, on a stream of the loader's own.
            The stream that is current where the batch is taken waits for it, on the GPU. Batches
            that wait for the consumer then take the GPU's memory. Else send them with `Batch.to`.
        implementation: of the assembly, see `omr_io.ops`; "auto" takes the kernel on "cuda" where
            Triton is installed, and C++ elsewhere.
        pixel_dtype: of pixel_values: float32, or bfloat16 or float16, which hold the float32 values
            rounded to the nearest and are half the bytes. Not part of the order.
        pin_memory: batches on the host lie in page-locked memory, from which `Batch.to` sends them
            as they are; None: where CUDA is available.

    Raises:
        ConfigError: an option of another type, or that cannot be right.
        SourceError, IntegrityError: the shard set cannot be opened.
        TokenizerError: the tokenizer is missing or lacks a token.
        SampleTooLongError: a sample has more tokens than seq_len.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet | Blend,
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
        cost: CostModel | None = None,
        samples: Int64Array | Sequence[int] | None = None,
        window: int | None = None,
        too_long: TooLong = "error",
        truncate: Truncate = "refuse",
        cache: bool = True,
        remote: RemoteOptions | None = None,
        num_threads: int = 1,
        prefetch: int = 2,
        prefetch_bytes: int = 1 << 30,
        failure_budget: FailureBudget | None = None,
        device: torch.device | str = "cpu",
        implementation: str = "auto",
        pixel_dtype: torch.dtype = torch.float32,
        pin_memory: bool | None = None,
    ) -> None:
        given = checked({name: value for name, value in locals().items() if name != "self"})
        seq_len, seed, window = (given[name] for name in ("seq_len", "seed", "window"))
        numbers: Int64Array | None = given["samples"]
        self._layout = Layout.of(
            given["packs_per_step"],
            given["rank"],
            given["world_size"],
            given["packs_per_batch"],
            cost,
        )
        self._arguments = given | {"rank": self.rank, "world_size": self.world_size}
        options.check_plan_options(seq_len, too_long, truncate)
        self._depth = Depth(given["num_threads"], given["prefetch"], given["prefetch_bytes"])
        self.vision, self.seq_len = vision, seq_len
        self._device = options.check_device(device)
        pack = pack_implementation(implementation, self._device)
        self._chat = options.choose_chat(chat, tokenizer, vision)
        self._owns_decoder = isinstance(decoder, str)
        with ExitStack() as undone:  # what is refused below leaves nothing open
            self._opened = open_blend(as_blend(shards, numbers), remote)
            undone.callback(self._opened.close)
            self._shards = self._opened.samples
            self._decoder = self._make_decoder(decoder) if isinstance(decoder, str) else decoder
            if self._owns_decoder:
                undone.callback(self._decoder.close)
            options.check_decoder_device(self._decoder.device, self._device)
            kept = Cache.of("lengths") if cache else None
            self.lengths = measure(self._shards, self._chat, vision, kept, check_images=False)
            self._selection = Selection(self._opened, self.lengths, numbers, seed)
            self.truncation: Truncation | None = None
            """What was cut (`truncate`); None where nothing may be."""
            if truncate == "completion":
                self.lengths, self.truncation = truncate_lengths(self.lengths, self._chat, seq_len)
            self._plan_epochs(seed, window, too_long, Cache.of("steps") if cache else None)
            self._make_maker(pack, pixel_dtype, options.check_pinned(pin_memory))
            undone.pop_all()
        budget = failure_budget or FailureBudget()
        self._quarantine = Quarantine(budget, self._selection.num_samples)
        self._meter = Meter()
        self._position = Position()
        self._engine: Engine[Made] | None = None
        self._is_closing = False
        self._live: LiveLine | None = None
        self._made_in_worker = get_worker_info() is not None  # with a rank of its own, maybe
        self._active: weakref.ref[Generator[Batch, None, None]] | None = None

    def _make_maker(self, pack: Pack, pixel_dtype: torch.dtype, pin_memory: bool) -> None:
        """What makes samples and batches."""
        depth = self._depth
        self._encoder = SampleEncoder(
            self._shards,
            self._chat,
            self.vision,
            self._decoder,
            self.lengths,
            max_tokens=None if self.truncation is None else self.seq_len,
            pixel_dtype=pixel_dtype,
        )
        self._maker = BatchMaker(
            self._encoder,
            self.lengths,
            pack,
            seq_len=self.seq_len,
            device=self._device,
            keep=depth.prefetch + depth.num_threads + 2,
            most_positions=self.packs_per_batch * self.seq_len,
            num_threads=depth.num_threads,
            pin_memory=pin_memory,
            rank=self.rank,
        )
        self._pad_id = self._maker.pad_id

    def _make_decoder(self, name: str) -> Decoder:
        heights, widths = self._shards.image_heights, self._shards.image_widths
        largest = int(heights.max(initial=0)), int(widths.max(initial=0))
        return make_decoder(name, self.vision, str(self._device), largest=largest)

    def _plan_epochs(
        self, seed: int, window: int | None, too_long: TooLong, kept: Cache | None
    ) -> None:
        planning = {
            "seed": seed,
            "seq_len": self.seq_len,
            "packs_per_step": self.packs_per_step,
            "window": window,
            "too_long": too_long,
        }
        names = self._fingerprint = state.fingerprints(
            self._shards,
            self._chat,
            self.vision,
            self.lengths,
            self._selection.fingerprint,
            planning,
        )
        cache = kept or Cache(None)
        self._order = Order(
            self.lengths,
            self._selection.of,
            seed=seed,
            seq_len=self.seq_len,
            packs_per_step=self.packs_per_step,
            window=window,
            too_long=too_long,
            keys=state.Keys(self._shards),
            cost=self._layout.cost,
            # Not by way of `self`: a loader in a circle waits for the collector, with its buffers.
            kept=lambda epoch: StepCounts(cache, names, epoch),
        )

    # The order

    def samples_of(self, epoch: int) -> Int64Array | None:
        """(m,) int64 numbers of the samples of an epoch, as often as they come; None: all, once."""
        return self._selection.of(epoch)

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._layout.rank

    @property
    def world_size(self) -> int:
        """Ranks that share each step."""
        return self._layout.world_size

    @property
    def packs_per_step(self) -> int:
        """Packs of an optimiser step over all ranks."""
        return self._layout.packs_per_step

    @property
    def packs_per_batch(self) -> int:
        """B, packs of a batch."""
        return self._layout.packs_per_batch

    @property
    def num_threads(self) -> int:
        """Threads that make batches."""
        return self._depth.num_threads

    @property
    def prefetch(self) -> int:
        """Batches that may wait for the consumer, beside those in work."""
        return self._depth.prefetch

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch."""
        return self._order.epoch(self._position.epoch)

    @property
    def epoch(self) -> int:
        """The epoch of the batch that comes next, from 0."""
        return self._position.epoch

    @property
    def micro_steps(self) -> int:
        """Batches of a rank in one optimiser step."""
        return self._layout.micro_steps

    @property
    def dropped(self) -> int:
        """Samples left out because they are longer than seq_len (with too_long="drop")."""
        return self._order.dropped(self.epoch)

    def __len__(self) -> int:
        """Batches of the whole current epoch on this rank: the same on every rank."""
        return self.plan.num_steps * self.micro_steps

    def num_steps(self, epochs: int) -> int:
        """Optimiser steps of the first `epochs` epochs together, from their plans: exact.

        Epochs may differ by a step, since packs are formed anew in each.

        Raises:
            ConfigError: `epochs` is no whole number from 0.
        """
        epochs = whole("epochs", epochs)
        if epochs < 0:
            raise ConfigError(f"epochs {epochs} is negative")
        return sum(self._order.epoch(epoch).num_steps for epoch in range(epochs))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; in the current epoch already, nothing changes.

        So it may be called before each epoch, also after `load_state_dict` into the middle of one.

        Raises:
            ConfigError: the epoch is no whole number from 0.
        """
        epoch = whole("epoch", epoch)
        if not 0 <= epoch <= state.MOST:
            raise ConfigError(f"epoch {epoch} must be 0 to {state.MOST}")
        if epoch != self._position.epoch:
            self._stop()
            self._position = Position(epoch)

    # The batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current position to the end of its epoch.

        Raises:
            ConfigError: one of several worker processes of a torch DataLoader asks, or this thread
                does while another one waits for a batch.
            FailureBudgetError: too many samples failed.
            IntegrityError: a shard is not what was written.
            SourceError: a shard on the network cannot be had.
        """
        self._check_worker()
        self._stop()
        self._is_closing = False
        iteration = self._iterate()
        self._active = weakref.ref(iteration)
        return iteration

    def _check_worker(self) -> None:
        """Refuse to give the same batches in several processes."""
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1 and not self._made_in_worker:
            raise ConfigError(
                f"each of {worker.num_workers} workers of a torch DataLoader would give all "
                "batches",
                mend="Use num_workers=0: the loader has threads of its own (num_threads)",
            )

    def _iterate(self) -> Generator[Batch, None, None]:
        epoch = self._position.epoch
        engine = self._engine = self._start()
        try:
            while not self._is_closing:
                if engine.pid != os.getpid():  # this is the child of a fork: threads are not
                    engine = self._engine = self._start()
                self._meter.start_waiting()
                made = next(engine, None)
                if made is None:
                    if engine.is_closed:  # `close`, on another thread or by a signal's handler
                        return
                    if self._position.epoch == epoch:  # nothing of it was left
                        self._position = Position(epoch + 1)
                    return
                batch = made.batch
                if made.ready is not None and self._maker.stream is not None:
                    self._maker.stream.hand_over(made.ready, batch.tensors())
                self._quarantine.take(batch.failures, batch.num_samples)
                self._meter.deliver(batch, made.bytes_read)
                after = made.place.after
                handed = [batch]
                del made, batch  # while the consumer works, only the consumer holds the batch
                if self._live is not None:
                    self._live.update()  # may fail: standard error may be closed
                self._position = after  # last: a batch that is not yielded must not count
                yield handed.pop()
        finally:
            engine.close()
            self._engine = None
            self._meter.pause()
            if self._is_closing:
                self._free()

    def _start(self) -> Engine[Made]:
        ahead = self._depth.num_threads > 0
        places = self._order.places(self._position, self._layout, ahead=ahead)
        jobs, around = self._maker.jobs(places), self._maker.around
        return Engine(jobs, self._depth, around, interrupt=self._encoder.interrupt)

    # The state

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, as plain JSON under 1 KB: the same on every rank.

        It counts the batches that were yielded, the current one included, and none that wait.
        """
        return state.to_dict(self._position, self._layout.saved, self._fingerprint)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go to where another loader stood; the batches that follow are bit for bit the same.

        World size, packs_per_batch, cost, threads, prefetch and decoder may differ from the loader
        that was saved, at the start of an optimiser step; inside one, world size, packs_per_batch
        and cost must be the same. Only the window that the state stands in is planned.

        Raises:
            ResumeError: the state is of another corpus, tokenizer, chat format, vision
                configuration or plan; it names what differs.
        """
        position = state.from_dict(saved, self._layout.saved, self._fingerprint)
        self._order.check(position, self.micro_steps)
        self._stop()
        self._position = position

    def check_ranks(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Refuse ranks that would not share one plan.

        Each rank plans by itself: an old copy of the set on one machine, or another option, would
        give some samples twice and others never, and nothing else would tell. So before the first
        batch let the ranks compare: `dist.all_gather_object(states, loader.state_dict())`.

        Args:
            states: `state_dict()` of all ranks, in their order.

        Raises:
            ConfigError: they differ; names what, and on which rank.
        """
        state.check_same(states, self.world_size)

    # What happened, and the end

    @property
    def quarantine(self) -> list[Failure]:
        """The distinct samples whose images failed so far in this process, on this rank."""
        return self._quarantine.failures

    def stats(self) -> LoaderStats:
        """Counts and times so far; any thread may ask."""
        engine = self._engine
        queue_batches, queue_bytes = engine.ready() if engine is not None else (0, 0)
        return dataclasses.replace(
            self._meter.snapshot(),
            queue_batches=queue_batches,
            queue_bytes=queue_bytes,
            quarantined=len(self._quarantine.failures),
            storage=self._shards.storage_stats(),
            decoder=self._decoder.name,
        )

    @contextmanager
    def live(self, line: LiveLine | None = None) -> Iterator[LiveLine]:
        """Within it, one line on standard error tells of every batch; see `LiveLine`."""
        with line or LiveLine(self) as shown:
            self._live = shown
            try:
                yield shown
            finally:
                self._live = None

    def close(self) -> None:
        """End the iteration and its threads, and free what the loader opened. May be repeated.

        Any thread may close the loader, and so may a signal's handler: who waits for a batch then
        finds the iteration at its end. Iterating again opens all anew and goes on where it stood.
        """
        try:
            self._stop()
        except ConfigError:  # it is at work, and frees all when it finds itself at its end
            self._is_closing = True
            engine = self._engine
            if engine is not None:
                engine.close()
            return
        self._free()

    def _free(self) -> None:
        if self._owns_decoder:
            self._decoder.close()
        self._maker.buffers.clear()
        self._opened.close()

    def _stop(self) -> None:
        """End the iteration, which must not be at work."""
        active = self._active() if self._active is not None else None
        if active is not None:
            try:
                active.close()
            except ValueError:  # Python's words: generator already executing
                raise ConfigError(
                    "a batch of this loader is being waited for, on another thread or below a "
                    "signal's handler, and it has one place only",
                    mend="Give each thread a loader of its own; in a signal's handler set a flag "
                    "that the loop looks at",
                ) from None
        self._active = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_anew, (self._arguments, self._position)


def _made_anew(arguments: dict[str, Any], position: Position) -> DataLoader:
    loader = DataLoader(**arguments)
    loader._position = position
    return loader
