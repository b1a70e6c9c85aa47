"""Encoded samples of a stream → batches, through a bounded buffer.

A buffer of waiting samples is all that can be chosen from. When it is full, one pack is made: of
the sample that waits longest, and of those others that together leave the least room. Every sum
that samples can make is a bit of one integer, so the best of all choices is found by a shift and an
OR a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from omr_io.batches import Batch, Failure, make_batch
from omr_io.errors import ConfigError, DataError, Where
from omr_io.ops import pack_implementation
from omr_io.packing.refusals import check_options, too_long
from omr_io.stages.samples import SampleForm, StreamedSample


def pack(
    *,
    seq_len: int,
    packs_per_batch: int = 1,
    too_long: Literal["error", "drop"] = "error",
    buffer_samples: int = 64,
    buffer_bytes: int = 256 << 20,
) -> Pack:
    """The stage from what `encode` yields to `Batch`es; see `Pack`.

    Args:
        seq_len: T, tokens of a pack.
        packs_per_batch: B, packs of a batch: the same in every batch.
        too_long: samples of more than seq_len tokens are an "error", or "drop" leaves them out;
            they are then counted in `dropped`, and are in `Batch.failures`.
        buffer_samples, buffer_bytes: what may wait to be packed, beside the packs of the batch in
            the making; a single sample may be larger.

    Raises:
        ConfigError: an option that cannot be right.
    """
    return Pack(seq_len, packs_per_batch, too_long, buffer_samples, buffer_bytes)


class Pack:
    """Made by `pack`. The order is a function of the stream's: nothing is drawn at random.

    Samples are packed as they come, whole, each once. When the stream ends, what waits is packed
    too, and the last batch is filled up with empty packs. What a plan would decide of a `Batch`:

    - `step` counts this process' batches from 0; `epoch` and `micro_step` are 0.
    - `step_label_tokens` is the batch's own `num_label_tokens`. To divide a step's summed loss by
      the labels of the whole step, add up this number over micro batches and, by an all-reduce,
      over ranks.
    - `failures` also has the samples that were left out: their keys are in no pack.

    What only `omr_io.DataLoader` gives, since it plans: every sample exactly once an epoch on any
    number of ranks and workers; the same number of steps on all ranks, so that none waits for a
    rank that ran out; a known `len`; exact resume, also on another world size; a global shuffle;
    packs balanced by cost over ranks; a step's number of labels without communication; reading
    ahead on threads in one process, without copies between workers.
    """

    def __init__(
        self,
        seq_len: int,
        packs_per_batch: int,
        too_long: Literal["error", "drop"],
        buffer_samples: int,
        buffer_bytes: int,
    ) -> None:
        check_options(packs_per_batch, seq_len, 0, 0, 1, "int64")
        if packs_per_batch < 1:
            raise ConfigError(f"packs_per_batch {packs_per_batch} must be at least 1")
        if too_long not in ("error", "drop"):
            raise ConfigError(f"too_long {too_long!r}", mend='Use "error" or "drop"')
        if buffer_samples < 1 or buffer_bytes < 1:
            raise ConfigError(
                f"buffer_samples {buffer_samples} and buffer_bytes {buffer_bytes} must be >= 1"
            )
        self._seq_len = seq_len
        self._packs_per_batch = packs_per_batch
        self._too_long = too_long
        self._buffer_samples = buffer_samples
        self._buffer_bytes = buffer_bytes
        self.dropped = 0
        """Samples left out as too long in this process."""

    def __call__(self, samples: Iterable[StreamedSample]) -> Iterator[Batch]:
        """Pack a stream.

        Raises:
            SampleTooLongError: a sample has more tokens than seq_len (unless they are dropped).
            DataError: the samples are not `encode`'s, or not all encoded in one way.
        """
        stream = _Stream(self._seq_len, self._packs_per_batch)
        buffer = _Buffer(self._seq_len, self._buffer_samples, self._buffer_bytes)
        for sample in samples:
            stream.meet(sample)
            if len(sample.input_ids) > self._seq_len:
                self._refuse(sample, stream)
                continue
            while not buffer.takes(sample):
                yield from stream.add(buffer.pop_pack())
            buffer.put(sample)
        while buffer:
            yield from stream.add(buffer.pop_pack())
        yield from stream.finish()

    def _refuse(self, sample: StreamedSample, stream: _Stream) -> None:
        if self._too_long == "error":
            raise too_long(sample, self._seq_len)
        self.dropped += 1
        tokens = f"{len(sample.input_ids)} tokens, seq_len is {self._seq_len}"
        stream.failures.append(Failure(sample.shard, sample.key, f"too-long: {tokens}"))


class _Buffer:
    """The samples that wait, oldest first."""

    def __init__(self, seq_len: int, max_samples: int, max_bytes: int) -> None:
        self._seq_len = seq_len
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._waiting: list[StreamedSample] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def takes(self, sample: StreamedSample) -> bool:
        """Whether it may wait here, too."""
        if not self._waiting:
            return True
        fits = self._bytes + sample.num_bytes <= self._max_bytes
        return fits and len(self._waiting) < self._max_samples

    def put(self, sample: StreamedSample) -> None:
        """Add a sample."""
        self._waiting.append(sample)
        self._bytes += sample.num_bytes

    def pop_pack(self) -> list[StreamedSample]:
        """Take the samples of one pack out; there must be one."""
        taken = set(fullest([len(one.input_ids) for one in self._waiting], self._seq_len))
        pack = [one for place, one in enumerate(self._waiting) if place in taken]
        self._waiting = [one for place, one in enumerate(self._waiting) if place not in taken]
        self._bytes -= sum(sample.num_bytes for sample in pack)
        return pack


def fullest(lengths: Sequence[int], seq_len: int) -> list[int]:
    """The first length and those others with which it fills seq_len best: exact, a subset sum.

    Args:
        lengths: each 1 to seq_len, oldest first.

    Returns:
        places in `lengths`, ascending. Of choices that are equally full, the one that can do
        without the youngest, then without the youngest but one, and so on.
    """
    # Bit s of reached[i]: s tokens can be had of the first length and some of the next i.
    whole = (2 << seq_len) - 1
    reached = [1 << lengths[0]]
    for length in lengths[1:]:
        reached.append(reached[-1] | (reached[-1] << length & whole))
        if reached[-1] >> seq_len:
            break
    total = reached[-1].bit_length() - 1
    chosen = []
    for place in range(len(reached) - 1, 0, -1):
        if not reached[place - 1] >> total & 1:
            chosen.append(place)
            total -= lengths[place]
    return [0, *reversed(chosen)]


class _Stream:
    """Packs of one stream as they become batches."""

    def __init__(self, seq_len: int, packs_per_batch: int) -> None:
        self.failures: list[Failure] = []
        self._seq_len = seq_len
        self._packs_per_batch = packs_per_batch
        self._assemble = pack_implementation("cpu")
        self._packs: list[list[StreamedSample]] = []
        self._form: SampleForm | None = None
        self._steps = 0

    def meet(self, sample: StreamedSample) -> None:
        """Take note of a sample's form and of what was lost before it."""
        if not isinstance(sample, StreamedSample):
            raise DataError(
                f"pack was given a {type(sample).__name__}",
                mend="It takes what omr_io.stages.encode yields",
            )
        if self._form is None:
            self._form = sample.form
        elif sample.form is not self._form and sample.form != self._form:
            raise DataError(
                "the samples of the stream were encoded in more than one way",
                where=Where(shard=sample.shard or None, key=sample.key),
                mend="Use one encode stage, with one tokenizer and one vision configuration",
            )
        self.failures += sample.lost

    def add(self, pack: list[StreamedSample]) -> Iterator[Batch]:
        """Take a pack; yields a batch if there was one.

        It waits for the pack after it, so that what is lost at the very end goes with the last.
        """
        if len(self._packs) == self._packs_per_batch:
            yield self._batch()
        self._packs.append(pack)

    def finish(self) -> Iterator[Batch]:
        """Yield the last batch; without any sample in the stream there is none."""
        if self._packs:
            yield self._batch()
        elif self.failures:
            first = self.failures[0]
            raise DataError(
                f"none of the stream's {len(self.failures)} samples could be packed; the first: "
                f"{first.reason}",
                where=Where(shard=first.shard or None, key=first.key),
            )

    def _batch(self) -> Batch:
        assert self._form is not None, "a sample was met"
        form, packs, failures = self._form, self._packs, self.failures
        packs += [[] for _ in range(self._packs_per_batch - len(packs))]
        self._packs, self.failures = [], []
        arrays = self._assemble(
            packs,
            seq_len=self._seq_len,
            pad_id=form.pad_token_id,
            image_token_id=form.image_token_id,
            merge_size=form.vision.merge_size,
        )
        blank = [
            Failure(sample.shard, sample.key, sample.failure)
            for pack in packs
            for sample in pack
            if sample.failure is not None
        ]
        self._steps += 1
        return make_batch(
            arrays,
            packs,
            vision=form.vision,
            step_label_tokens=arrays.num_label_tokens,
            epoch=0,
            step=self._steps - 1,
            micro_step=0,
            failures=[*blank, *failures],
            pixel_dtype=form.pixel_dtype,
        )
