"""Samples of a stream → tokens and patches.

Legend: N images of a sample, T its tokens, P its patches, D patch width.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omr_io.batches import Failure
from omr_io.chat import ChatFormat
from omr_io.chat.conversation import EncodedText
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, ImageError, SampleTooLongError, Where
from omr_io.images import check_caps, image_grid_thw, num_image_tokens, probe, smart_resize
from omr_io.images.decode import Decoded, Decoder, make_decoder
from omr_io.images.patch_arguments import DTYPES
from omr_io.images.patches import blank_pixels, patch_target, value_table
from omr_io.images.pixel_values import as_tensor, empty_values
from omr_io.loader.quarantine import FailureBudget, Quarantine
from omr_io.ops import patches_implementation
from omr_io.stages.records import RecordOf, Sample, key_of, own_record, shard_of
from omr_io.stages.samples import SampleForm, StreamedSample
from omr_io.text import one_line
from omr_io.tokenizer import Tokenizer
from omr_io.types import ImageFailure, ImageInfo, PixelValues, Record, Refusal, UInt8Array

OnBad = Literal["blank", "skip", "raise"]
"""What to do with a sample that cannot be encoded; see `encode`."""


def encode(
    *,
    vision: VisionConfig,
    tokenizer: str | Path | Tokenizer | None = None,
    chat: ChatFormat | None = None,
    record: RecordOf | None = None,
    decoder: str | Decoder = "cpu",
    on_bad: OnBad = "blank",
    failure_budget: FailureBudget | None = None,
    max_tokens: int | None = None,
    pixel_dtype: torch.dtype = torch.float32,
    together: int = 8,
) -> Encode:
    """The stage from samples as `webdataset.tarfile_to_samples` gives them to `StreamedSample`s.

    Args:
        vision: how images become patches.
        tokenizer: a `Tokenizer`, or a folder with tokenizer.json; may be left out with `chat`.
        chat: how a record becomes tokens; None: `ChatFormat.for_family(vision.family, tokenizer)`.
        record: from a sample's dict to a `Record` with its images' bytes, or to a `Refusal`; None
            takes the layout that `omr-io convert` writes. See `omr_io.stages.recognise`. To be sent
            to workers it must be a function of a module, not a lambda.
        decoder: "cpu", "dali", or a `Decoder` on the host (which the caller closes). By name, each
            iteration makes its own, in the process it runs in.
        on_bad: an image that cannot be decoded becomes a "blank" of the size its header gives (the
            smallest size, where there is no header), and nothing of the sample is trained; a sample
            whose text or record cannot be had is left out. "skip" leaves out both kinds. "raise"
            stops at the first. What is left out is in `failures`, and in `Batch.failures` of the
            batch that the sample after it is in.
        failure_budget: how many may fail before the run stops; per process, so per worker.
        max_tokens: cut the end of completions where that makes a sample fit; give `pack`'s seq_len.
            Prompts and images are never cut. None cuts nothing.
        pixel_dtype: of the patches: float32, bfloat16 or float16.
        together: samples whose texts are encoded and images decoded in one call.

    Raises:
        ConfigError: an option that cannot be right.
        TokenizerError: the tokenizer is missing or lacks a token.
    """
    if on_bad not in ("blank", "skip", "raise"):
        raise ConfigError(f"on_bad {on_bad!r}", mend='Use "blank", "skip" or "raise"')
    if together < 1:
        raise ConfigError(f"together {together} must be at least 1")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens {max_tokens} must be at least 1, or None")
    if pixel_dtype not in DTYPES:
        raise ConfigError(f"no patches of {pixel_dtype}", mend="Use float32, bfloat16 or float16")
    if isinstance(decoder, str):
        make_decoder(decoder, vision).close()  # refused here rather than in a worker
    elif decoder.device != "cpu":
        raise ConfigError(f"a decoder on {decoder.device}", mend="Stages decode on the host")
    return Encode(
        _chat_format(chat, tokenizer, vision),
        vision,
        record or own_record,
        decoder,
        on_bad,
        failure_budget or FailureBudget(),
        max_tokens,
        pixel_dtype,
        together,
    )


class Encode:
    """Made by `encode`. Its counts are those of its own process: a worker has a copy."""

    def __init__(
        self,
        chat: ChatFormat,
        vision: VisionConfig,
        record: RecordOf,
        decoder: str | Decoder,
        on_bad: OnBad,
        failure_budget: FailureBudget,
        max_tokens: int | None,
        pixel_dtype: torch.dtype,
        together: int,
    ) -> None:
        self._chat = chat
        self._vision = vision
        self._record = record
        self._decoder = decoder
        self._on_bad = on_bad
        self._max_tokens = max_tokens
        self._together = together
        self._form = SampleForm(chat.pad_token_id, chat.image_token_id, vision, pixel_dtype)
        self._table_3x256 = value_table(vision)
        self._quarantine = Quarantine(failure_budget, sys.maxsize)
        self.cut_samples = 0
        """Samples whose completions were cut (`max_tokens`)."""
        self.cut_tokens = 0
        """Tokens cut off them."""

    @property
    def failures(self) -> list[Failure]:
        """The distinct samples that failed so far in this process."""
        return self._quarantine.failures

    def __call__(self, samples: Iterable[Sample]) -> Iterator[StreamedSample]:
        """Encode a stream, in its order.

        Raises:
            FailureBudgetError: too many samples failed.
            DataError: on_bad="raise" and a sample failed, or none of the stream could be encoded.
            ConfigError: samples of another layout, or decoded before they came here.
        """
        held: StreamedSample | None = None
        lost: list[Failure] = []
        for made in self._encoded(iter(samples)):
            if isinstance(made, Failure):
                lost.append(made)
                continue
            if held is not None:
                yield held
            # One sample is held back, so that what is lost at the end of the stream goes with it.
            held = dataclasses.replace(made, lost=tuple(lost))
            lost = []
        if held is not None:
            yield dataclasses.replace(held, lost=(*held.lost, *lost))
        elif lost:
            raise DataError(
                f"none of the stream's {len(lost)} samples could be encoded: {lost[-1].reason}",
                where=Where(shard=lost[-1].shard or None, key=lost[-1].key),
            )

    def _encoded(self, samples: Iterator[Sample]) -> Iterator[StreamedSample | Failure]:
        """Each sample encoded, or why it is left out."""
        given = self._decoder
        decoder = make_decoder(given, self._vision) if isinstance(given, str) else given
        with closing(decoder) if isinstance(given, str) else nullcontext():
            while chunk := list(islice(samples, self._together)):
                made = self._encode_chunk(chunk, decoder)
                failures = [failure for failure, _ in made if failure is not None]
                self._quarantine.take(tuple(failures), len(chunk))
                for failure, sample in made:
                    if sample is not None:
                        yield sample
                    elif failure is not None:
                        yield failure

    def _encode_chunk(
        self, chunk: Sequence[Sample], decoder: Decoder
    ) -> list[tuple[Failure | None, StreamedSample | None]]:
        """For each sample: why it failed, and what came of it."""
        places = [(key_of(sample), shard_of(sample)) for sample in chunk]
        taken = [self._take(sample) for sample in chunk]
        drafts = self._texts(taken)
        sound = [draft for draft in drafts if isinstance(draft, _Draft)]
        self._decode(sound, decoder)
        made: list[tuple[Failure | None, StreamedSample | None]] = []
        for (key, shard), draft in zip(places, drafts, strict=True):
            reason = draft if isinstance(draft, str) else draft.failure()
            failure = None if reason is None else Failure(shard, key, reason)
            if failure is not None and self._on_bad == "raise":
                raise _error(failure)
            if isinstance(draft, str) or (failure is not None and self._on_bad == "skip"):
                made.append((failure, None))
            else:
                made.append((failure, self._finish(draft, shard, key, reason)))
        return made

    def _take(self, sample: Sample) -> Record | str:
        """The sample's record, or why it has none."""
        try:
            taken = self._record(sample)
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # of the user's function: counted, and the budget stops the run
            if self._on_bad == "raise":
                raise
            return f"record: {type(error).__name__}: {one_line(error)}"
        if isinstance(taken, Refusal):
            return f"{taken.reason}: {taken.detail}"
        if not isinstance(taken, Record):
            raise ConfigError(
                f"record=... gave a {type(taken).__name__}, not a Record or a Refusal"
            )
        return taken

    def _texts(self, taken: Sequence[Record | str]) -> list[_Draft | str]:
        """Records with their images planned and their texts encoded; or why not."""
        records = [one for one in taken if isinstance(one, Record)]
        images = [[self._plan(image.data) for image in record.images] for record in records]
        counts = [self._image_tokens(planned) for planned in images]
        texts = iter(self._encode_texts(records, counts))
        planned = iter(images)
        drafts: list[_Draft | str] = []
        for one in taken:
            if isinstance(one, str):
                drafts.append(one)
                continue
            text, of_text = next(texts), next(planned)
            drafts.append(text if isinstance(text, str) else _Draft(text, of_text))
        return drafts

    def _encode_texts(
        self, records: Sequence[Record], counts: Sequence[Sequence[int]]
    ) -> Sequence[EncodedText | str]:
        cut: dict[str, Any] = {"max_tokens": self._max_tokens, "truncate": "completion"}
        options = {} if self._max_tokens is None else cut
        try:
            made: Sequence[EncodedText | str] = list(
                self._chat.encode_batch(records, counts, **options)
            )
        except DataError:  # one of them: find out which
            made = [
                self._encode_text(record, count, options)
                for record, count in zip(records, counts, strict=True)
            ]
        for text in made:
            if not isinstance(text, str) and (
                lost := text.num_cut_completion + text.num_cut_closing
            ):
                self.cut_samples += 1
                self.cut_tokens += lost
        return made

    def _encode_text(
        self, record: Record, counts: Sequence[int], options: Mapping[str, Any]
    ) -> EncodedText | str:
        try:
            return self._chat.encode(record, counts, **options)
        except SampleTooLongError:  # even without its completion: `pack` decides
            return self._chat.encode(record, counts)
        except DataError as error:
            return f"text: {error.what}"

    def _plan(self, data: bytes) -> _Planned:
        """The size an image gets, by its header; the smallest one where it has no sound header."""
        side = self._vision.patch_size * self._vision.merge_size
        size, info = smart_resize(side, side, self._vision), None
        try:
            info = probe(data)
            (grid_3,) = image_grid_thw([info], self._vision)
            size = (
                int(grid_3[1]) * self._vision.patch_size,
                int(grid_3[2]) * self._vision.patch_size,
            )
            check_caps(info, len(data))
        except ImageError as error:
            return _Planned(b"", None, size, ImageFailure(error.reason, error.what))
        return _Planned(data, info, size)

    def _image_tokens(self, planned: Sequence[_Planned]) -> list[int]:
        grid_N3 = self._grids(planned)
        return [int(count) for count in num_image_tokens(grid_N3, self._vision.merge_size)]

    def _grids(self, planned: Sequence[_Planned]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(N, 3) int64 patches per image before merging."""
        patch = self._vision.patch_size
        rows = [(1, image.size[0] // patch, image.size[1] // patch) for image in planned]
        return np.asarray(rows, np.int64).reshape(-1, 3)

    def _decode(self, drafts: Sequence[_Draft], decoder: Decoder) -> None:
        """Decode the images of all drafts in one call, into them."""
        waiting = [image for draft in drafts for image in draft.images if image.decoded is None]
        infos = [image.info for image in waiting if image.info is not None]
        files = [image.data for image in waiting]
        for image, decoded in zip(waiting, decoder.decode(files, infos), strict=True):
            image.decoded = decoded
            if isinstance(decoded, ImageFailure):
                continue
            if smart_resize(decoded.shape[0], decoded.shape[1], self._vision) != image.size:
                size = f"{decoded.shape[1]}x{decoded.shape[0]} pixels"
                what = f"decoded to {size}, which its header does not say"
                image.decoded = ImageFailure("image-changed", what)

    def _finish(self, draft: _Draft, shard: str, key: str, reason: str | None) -> StreamedSample:
        text = draft.text
        return StreamedSample(
            key=key,
            input_ids=text.input_ids,
            trained=text.trained if reason is None else np.zeros_like(text.trained),
            pixel_values=self._pixels(draft.images) if draft.images else None,
            image_grid_thw=self._grids(draft.images),
            failure=reason,
            form=self._form,
            shard=shard,
        )

    def _pixels(self, images: Sequence[_Planned]) -> PixelValues:
        """(P, D): each sample's own array, so that a packed sample's memory is freed."""
        pixels: list[UInt8Array | torch.Tensor] = [
            blank_pixels()
            if image.decoded is None or isinstance(image.decoded, ImageFailure)
            else image.decoded
            for image in images
        ]
        targets = [
            patch_target((one.shape[0], one.shape[1]), image.size, self._vision)
            for one, image in zip(pixels, images, strict=True)
        ]
        num_patches = sum(target.num_patches for target in targets)
        pixels_PD = empty_values(num_patches, self._vision.patch_width, self._form.pixel_dtype)
        patches = patches_implementation("cpu")
        dtype = self._form.pixel_dtype
        patches(pixels, targets, self._table_3x256, dtype=dtype, out=as_tensor(pixels_PD))
        return pixels_PD


@dataclass(slots=True)
class _Planned:
    """An image: its file, its header, the (height, width) it is resized to, and what came of it.

    `info` is None where `decoded` says at once why there are no pixels.
    """

    data: bytes
    info: ImageInfo | None
    size: tuple[int, int]
    decoded: Decoded | None = None


@dataclass(slots=True)
class _Draft:
    """A sample whose text is encoded."""

    text: EncodedText
    images: list[_Planned]

    def failure(self) -> str | None:
        """Why images of it failed, in the loader's words."""
        several = len(self.images) > 1
        reasons = [
            f"{image.decoded.reason}: {f'image {place}: ' if several else ''}{image.decoded.detail}"
            for place, image in enumerate(self.images)
            if isinstance(image.decoded, ImageFailure)
        ]
        return "; ".join(reasons) or None


def _error(failure: Failure) -> DataError:
    slug, _, detail = failure.reason.partition(": ")
    where = Where(shard=failure.shard or None, key=failure.key)
    mend = 'on_bad="blank" or "skip" goes on, and counts such samples'
    if slug.startswith("image-"):
        return ImageError(detail or slug, where=where, mend=mend, reason=slug)
    return DataError(failure.reason, where=where, mend=mend)


def _chat_format(
    chat: ChatFormat | None, tokenizer: str | Path | Tokenizer | None, vision: VisionConfig
) -> ChatFormat:
    if (chat is None) == (tokenizer is None):
        raise ConfigError("give a tokenizer or a chat format, one of them")
    if chat is not None:
        return chat
    assert tokenizer is not None
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_pretrained(tokenizer)
    return ChatFormat.for_family(vision.family, tokenizer)
