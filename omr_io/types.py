"""What flows between the stages: frozen, typed, host-side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes a second to import, and conversion does without it
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of tokens without a loss: torch's and transformers' default."""

ImageFormat = Literal["jpeg", "jpeg-progressive", "png", "webp", "tiff", "bmp", "gif"]
Axis = Literal["perception", "knowledge", "rationale"]
AXES: tuple[Axis, ...] = ("perception", "knowledge", "rationale")

Filter = Literal["bilinear", "bicubic", "lanczos"]
"""A resize's filter, named after Pillow's."""

UInt8Array = NDArray[np.uint8]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]

PixelValues = NDArray[np.float32 | np.float16 | np.uint16]
"""Patches on the host; uint16 holds the bits of bfloat16. `omr_io.images.pixel_values` makes
tensors of them."""

_NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as it came, still encoded. `name` is its path in the source, or ""."""

    data: bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's header says, before any pixel is decoded.

    `width` and `height` are in pixels as stored; `orientation` is the EXIF value 1 to 8 (1: as
    stored), and `oriented` is the size (width, height) after applying it. `mode` is Pillow's name
    for the pixel layout ("RGB", "L", "CMYK", "P", "I;16", ...).
    """

    width: int
    height: int
    format: ImageFormat
    mode: str
    orientation: int = 1

    @property
    def oriented(self) -> tuple[int, int]:
        """(width, height) after the EXIF orientation is applied: 5 to 8 swap the sides."""
        turned = self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)


@dataclass(frozen=True, slots=True)
class Option:
    """One answer option: its letter ("A") and its text ("computed tomography")."""

    letter: str
    text: str


@dataclass(frozen=True, slots=True)
class RubricUnit:
    """One unit of the test split's rubric: a claim that a good reasoning trace would make."""

    axis: Axis
    unit_id: str
    topic: str
    claim: str
    presence_question: str
    correctness_question: str
    source_quote: str
    importance: str


@dataclass(frozen=True, slots=True)
class Record:
    """A Parquet row, checked.

    Attributes:
        id: the row's own id, raw; unique in a shard set.
        question: what the model sees: the text of the source with its options inline.
        options: the parsed options, in order; letters A, B, ... without gaps; () for an open-ended
            question.
        answer: the letter of the right option, or free text where there are none.
        reasoning: the completion as it stands in the corpus: `<think>…</think>` then
            `<answer>X</answer>`; "" if the source has none.
        rubric: the units of all three axes; () on the train split.
        images: in the order of the question; () is legal.
        source: the file the row came from and its row number, "train.parquet#17".
        extra: any other column, as plain JSON values.
    """

    id: str
    question: str
    options: tuple[Option, ...]
    answer: str
    reasoning: str
    rubric: tuple[RubricUnit, ...] = ()
    images: tuple[EncodedImage, ...] = ()
    source: str = ""
    extra: Mapping[str, object] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that `convert` did not take, and why. `reason` is a short stable slug for counting."""

    source: str
    row: int
    id: str | None
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image that could not be decoded; the loader puts a blank of the planned size there.

    `reason` is a stable slug for counting (see `ImageError`), `detail` says it in words.
    """

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """How an image of values is cut into patches, and how the values lie in one.

    Attributes:
        height, width: of a patch in pixels. A patch may be a whole image: then the result is that
            image, channel by channel.
        merge_size: patches go by groups of merge_size x merge_size, groups by rows; 1: by rows.
        frames: how often an image is repeated within a patch.
        channels_last: values go by row, column, channel; else by channel, frame, row, column.
    """

    height: int
    width: int
    merge_size: int = 1
    frames: int = 1
    channels_last: bool = False

    @property
    def patch_width(self) -> int:
        """D: values in one patch."""
        return 3 * self.frames * self.height * self.width


@dataclass(frozen=True, slots=True)
class PatchTarget:
    """What one image becomes: resized as Pillow does, then cut into patches.

    Attributes:
        height, width: after the resize, in pixels; multiples of the layout's patch x merge_size.
        layout: how it is cut.
        filter: the resize's.
        vertical_first: the order of its passes; see `config.PassOrder`. A pass whose size does not
            change is skipped.
    """

    height: int
    width: int
    layout: PatchLayout
    filter: Filter = "bicubic"
    vertical_first: bool = False

    @property
    def num_patches(self) -> int:
        """P: patches of the image."""
        return (self.height // self.layout.height) * (self.width // self.layout.width)


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample ready to be packed.

    Legend: T tokens of this sample, P patches of all its images, D patch width, N images.

    Attributes:
        key: the sample's WebDataset key.
        input_ids: (T,) int32; image placeholders already expanded to one id a merged patch.
        trained: (T,) bool; True where the token carries a loss. labels follow from it.
        pixel_values: (P, D) normalised patches in the model's order, float32 or what the loader
            was asked for; None without images.
        image_grid_thw: (N, 3) int64, patches per image before merging.
        failure: why an image was replaced by a blank (then nothing in `trained` is True), or None.
        loss_weight: what each of its labels counts in the loss; finite in float32.
    """

    key: str
    input_ids: Int32Array
    trained: NDArray[np.bool_]
    pixel_values: PixelValues | None
    image_grid_thw: Int64Array
    failure: str | None = None
    loss_weight: float = 1.0


IdType = Literal["int64", "int32"]
"""The dtype of a batch's ids, labels and positions: int64 is what transformers and losses take."""

IdArray = NDArray[np.int64] | NDArray[np.int32]

MAX_PACKED_TOKENS = 2**27 - 1
"""B x T is at most this, in every implementation: the kernel's offsets are int32, and the tensors
of a batch take sixteen times as many 4-byte words as there are tokens."""

SPAN_FIELDS = 10
"""Columns of a span table; see `SpanTable`."""


@dataclass(frozen=True, slots=True, eq=False)
class SpanTable:
    """What a batch's integers follow from: all tokens once, and a row for each run of them.

    A run is text of one sample with at most one trained stretch, one image, or the padding of a
    pack. So a sample with a prompt, an image and a completion takes three rows.

    Legend: B packs, T seq_len, K spans, V tokens, S segments.

    Attributes:
        tokens: (V,) int32; the ids of all samples one after the other, without padding.
        spans: (K, SPAN_FIELDS) int32, in order, covering all B x T positions without a gap. The
            columns: 0 destination, the run's first position in the flattened B x T; 1 source, its
            first token in `tokens`, or -1 for padding; 2 text position and 3 M-RoPE position of its
            first token; 4 and 5 the destinations from and to which tokens are labels (equal where
            none is); 6 and 7 rows and columns of the image's merged patches, 0 where there is no
            image; 8 segment; 9 the bits of the float32 that a label weighs in the loss.
        cu_seqlens: (S + 1,) int32; bounds of the segments (samples and padding) in B x T.
        max_seqlen: tokens of the longest segment.
        num_tokens: V.
        num_label_tokens: labels that are not IGNORE_INDEX.
        num_packs: B.
        seq_len: T.
        pad_id: the id of padding.
    """

    tokens: Int32Array
    spans: Int32Array
    cu_seqlens: Int32Array
    max_seqlen: int
    num_tokens: int
    num_label_tokens: int
    num_packs: int
    seq_len: int
    pad_id: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedArrays:
    """The integers of a list of packs on the host; `PackedTensors` says what each is.

    Attributes:
        input_ids, labels, mm_token_type_ids: (B, T) int64 or int32.
        position_ids: (4, B, T), of the same dtype.
        segment_ids: (B, T) int32.
        loss_weights: (B, T) float32.
        label_rows: (R,) int64.
        cu_seqlens: (S + 1,) int32.
        max_seqlen, num_tokens, num_label_tokens: counts.
    """

    input_ids: IdArray
    labels: IdArray
    position_ids: IdArray
    mm_token_type_ids: IdArray
    segment_ids: Int32Array
    loss_weights: Float32Array
    label_rows: Int64Array
    cu_seqlens: Int32Array
    max_seqlen: int
    num_tokens: int
    num_label_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensors:
    """The integers of a list of packs: what every implementation of `omr_io.ops` makes.

    Legend: B packs, T seq_len, S segments (samples and padding tails), R labels. The tensors are on
    one device, and may be views of one allocation.

    Attributes:
        input_ids: (B, T) int64 or int32; a pack's samples one after the other, then the padding id.
        labels: (B, T), as input_ids, unshifted; IGNORE_INDEX on tokens without a loss, image
            tokens, padding and the first token of each sample.
        position_ids: (4, B, T), as input_ids; row 0 counts from 0 in each segment, rows 1 to 3 are
            t, h, w of M-RoPE, as in transformers' Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
        mm_token_type_ids: (B, T), as input_ids; 1 on image tokens, else 0.
        segment_ids: (B, T) int32; the number of the token's segment.
        loss_weights: (B, T) float32; its sample's loss_weight where there is a label, else 0.
        label_rows: (R,) int64; ascending places in the flattened (B x T), each one before a label:
            the hidden states there predict the labels.
        cu_seqlens: (S + 1,) int32; segment s is tokens cu_seqlens[s] to cu_seqlens[s + 1] of the
            flattened (B x T).
        max_seqlen: tokens of the longest segment.
        num_tokens: tokens of samples, padding left out.
        num_label_tokens: R, labels that are not IGNORE_INDEX.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    mm_token_type_ids: Tensor
    segment_ids: Tensor
    loss_weights: Tensor
    label_rows: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    num_tokens: int
    num_label_tokens: int
