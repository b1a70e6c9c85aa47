"""What a filter of a blend sees: the index of one shard set as arrays.

Legend: n samples, N images of all samples together.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.packing import Lengths
from omr_io.types import Int32Array, Int64Array, UInt8Array

BoolArray = NDArray[np.bool_]
Array = TypeVar("Array", bound="NDArray[Any]")


class IndexColumns:
    """The index of a source's shard set as read-only arrays; nothing is read from a shard.

    Every array has a row a sample, (n,), but for those that `image_offsets` cuts into samples:
    they have a row an image, (N,), are named image_..., and become a row a sample by `any_image`,
    `all_images`, or by NumPy on the offsets. Columns are made when they are first asked for.

        lambda columns: columns.num_options >= 4
        lambda columns: (columns.num_images == 1) & (columns.megapixels <= 1.5)
        lambda columns: columns.all_images(columns.image_formats == "jpeg")
        lambda columns: np.isin(columns.keys, keys_of_the_test_split, invert=True)

    Attributes:
        source: the source's name.
        shard_names: of the set's tars.
        shards: (n,) int32, each sample's place in `shard_names`.
        num_options: (n,) int32; 0 for an open-ended question.
        question_bytes, reasoning_bytes: (n,) int32, of UTF-8.
        image_offsets: (n+1,) int64; sample i's images are the rows
            image_offsets[i]:image_offsets[i+1] of the image columns.
        image_orientations: (N,) int32, EXIF 1 to 8.
        image_hashes: (N, 16) uint8, the XXH3-128 of the encoded image.
    """

    def __init__(self, source: str, shard_set: ShardSet, lengths: Lengths | None = None) -> None:
        self.source = source
        self.shard_names = shard_set.shard_names
        self.shards: Int32Array = _fixed(shard_set.sample_shards)
        self.num_options: Int32Array = _fixed(shard_set.num_options)
        self.question_bytes: Int32Array = _fixed(shard_set.question_bytes)
        self.reasoning_bytes: Int32Array = _fixed(shard_set.reasoning_bytes)
        self.image_offsets: Int64Array = _fixed(shard_set.image_offsets)
        self.image_orientations: Int32Array = _fixed(shard_set.image_orientations)
        self.image_hashes: UInt8Array = _fixed(shard_set.image_hashes)
        self._set = shard_set
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._set)

    # A row a sample

    @cached_property
    def answers(self) -> NDArray[np.str_]:
        """(n,) text, the letter of the right option; "" for an open-ended question."""
        return _texts(self._set.column("answer"))

    @cached_property
    def keys(self) -> NDArray[np.object_]:
        """(n,) str, the keys as they stand in the shards. Slow and large beside all else here."""
        return _fixed(np.array([self._set.key(i) for i in range(len(self))], object))

    @cached_property
    def num_images(self) -> Int64Array:
        """(n,) int64."""
        return _fixed(np.diff(self.image_offsets))

    @cached_property
    def widths(self) -> Int32Array:
        """(n,) int32 width in pixels of the first image as `image_widths`; 0 without images."""
        return self._of_first(self.image_widths)

    @cached_property
    def heights(self) -> Int32Array:
        """(n,) int32 height in pixels of the first image as `image_heights`; 0 without images."""
        return self._of_first(self.image_heights)

    @cached_property
    def formats(self) -> NDArray[np.str_]:
        """(n,) text, the format of the first image; "" without images."""
        return self._of_first(self.image_formats)

    @cached_property
    def megapixels(self) -> NDArray[np.float64]:
        """(n,) float64 million pixels of all its images together."""
        pixels = self.image_widths.astype(np.int64) * self.image_heights
        return _fixed(self._sums(pixels) / 1e6)

    @cached_property
    def encoded_bytes(self) -> Int64Array:
        """(n,) int64 bytes of all its images together, as encoded."""
        return _fixed(self._sums(self.image_bytes))

    # A row an image

    @cached_property
    def image_widths(self) -> Int32Array:
        """(N,) int32 pixels, upright: after the EXIF orientation is applied."""
        turned = self.image_orientations >= 5
        return _fixed(np.where(turned, self._set.image_heights, self._set.image_widths))

    @cached_property
    def image_heights(self) -> Int32Array:
        """(N,) int32 pixels, upright: after the EXIF orientation is applied."""
        turned = self.image_orientations >= 5
        return _fixed(np.where(turned, self._set.image_widths, self._set.image_heights))

    @cached_property
    def image_formats(self) -> NDArray[np.str_]:
        """(N,) text: "jpeg", "jpeg-progressive", "png", "webp", "tiff", "bmp", "gif"."""
        return _texts(self._set.column("format"))

    @cached_property
    def image_modes(self) -> NDArray[np.str_]:
        """(N,) text, Pillow's name for the pixel layout: "RGB", "L", "CMYK", "P", ...."""
        return _texts(self._set.column("mode"))

    @cached_property
    def image_bytes(self) -> Int64Array:
        """(N,) int64 bytes as encoded."""
        return _fixed(self._set.image_sizes())

    def any_image(self, mask: BoolArray) -> BoolArray:
        """(n,) bool, whether `mask` (N,) is True for any image of the sample."""
        return np.asarray(self._sums(np.asarray(mask, np.int64)) > 0)

    def all_images(self, mask: BoolArray) -> BoolArray:
        """(n,) bool, whether `mask` (N,) is True for all images; so it is without any."""
        return np.asarray(self._sums(np.asarray(mask, np.int64)) == self.num_images)

    # Of the lengths

    @property
    def text_tokens(self) -> Int64Array:
        """(n,) tokens that are not image tokens; only where lengths are known, as in the loader.

        Raises:
            ConfigError: they are not.
        """
        return _fixed(self._known().text_tokens)

    @property
    def image_tokens(self) -> Int64Array:
        """(n,) tokens of all its images; only where lengths are known, as in the loader."""
        return _fixed(self._known().image_tokens)

    @property
    def label_tokens(self) -> Int64Array:
        """(n,) tokens that carry a loss; only where lengths are known, as in the loader."""
        return _fixed(self._known().label_tokens)

    def _known(self) -> Lengths:
        if self._lengths is None:
            raise ConfigError(
                "the lengths of samples are not known where this filter runs",
                mend="Give lengths=omr_io.loader.lengths.measure(...) to OpenBlend.drawing, or "
                "filter by question_bytes, reasoning_bytes and megapixels",
            )
        return self._lengths

    def _of_first(self, values_N: Array) -> Array:
        out = np.zeros(len(self), values_N.dtype)
        has_any = self.num_images > 0
        out[has_any] = values_N[self.image_offsets[:-1][has_any]]
        return _fixed(out)  # type: ignore[return-value]

    def _sums(self, values_N: Int64Array) -> Int64Array:
        if values_N.shape != self.image_orientations.shape:
            count = len(self.image_orientations)
            raise ConfigError(f"an array of shape {values_N.shape}, where ({count},) images are")
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values_N)])
        return np.asarray(running[self.image_offsets[1:]] - running[self.image_offsets[:-1]])


def _fixed(values: Array) -> Array:
    """A view that cannot be written to: a filter must not change what others see."""
    view = values.view()
    view.flags.writeable = False
    return view


def _texts(column: pa.Array) -> NDArray[np.str_]:
    """As NumPy text, as wide as the longest."""
    encoded = column.dictionary_encode()
    known = np.array(encoded.dictionary.to_pylist(), np.str_)
    return _fixed(known[encoded.indices.to_numpy(zero_copy_only=False)])
