"""The batch: what the loader yields and what a transformers vision-language model's forward takes.

Legend: B packs, T seq_len, S segments, R labels, P patches, D patch width, N images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omr_io.batches.boundaries import HostBoundaries, pack_boundaries
from omr_io.batches.transfer import Block, by_block, move, send
from omr_io.batches.vision_tower import VISION_BOUNDARIES, Grid, vision_arrays
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, DataError, Where
from omr_io.images.pixel_values import as_tensor
from omr_io.types import EncodedSample, Int64Array, PackedArrays, PackedTensors, PixelValues


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample with an image that could not be read; a blank took its place, its labels are masked.

    `shard` is the tar's file name, `key` the sample's key.
    """

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Packs of one micro step on one rank.

    All tensors are on one device, and may be views of one allocation: in a loader's batch all are,
    so whoever keeps one keeps the memory of all (`.clone()` keeps it alone). Ids, labels, positions
    and token types are int64 as the loader makes them; `omr_io.ops` can give int32.

    Attributes:
        input_ids: (B, T) int64; packs of whole samples, the tail is padding.
        labels: (B, T) int64, unshifted; IGNORE_INDEX on prompts, image tokens, padding and the
            first token of each sample. So hidden state t may be trained on label t + 1 of the
            flattened row without a look at the boundaries.
        position_ids: (4, B, T) int64; row 0 counts from 0 in each segment, rows 1 to 3 are M-RoPE's
            t, h, w.
        segment_ids: (B, T) int32; the segment that a token belongs to, counted over the flattened
            B x T: a sample, or the padding tail of a pack.
        loss_weights: (B, T) float32; its sample's loss_weight where there is a label, else 0. The
            loss is their weighted sum over `step_label_tokens`, which counts labels, not weights.
        label_rows: (R,) int64; ascending places in the flattened B x T, each one before a label:
            the hidden states there predict the labels. Known on the host, so that no scan for
            labels stops a GPU.
        cu_seqlens: (S + 1,) int32; bounds of the segments over the flattened B x T.
        max_seqlen: tokens of the longest segment, on the host.
        pixel_values: (P, D) float32, or the loader's pixel_dtype; the normalised patches of all
            images, in the model's order.
        image_grid_thw: (N, 3) int64; patches per image before merging.
        mm_token_type_ids: (B, T) int64; 1 on image tokens, else 0.
        has_dummy_image: no sample here has an image, and pixel_values and image_grid_thw hold one
            blank image instead that has no placeholder. See `model_inputs`.
        grids: image_grid_thw on the host.
        boundaries: cu_seqlens on the host.
        keys: the keys of each pack's samples, in order.
        num_tokens: real tokens, padding left out.
        num_label_tokens: R, labels that are not IGNORE_INDEX.
        step_label_tokens: planned labels of the whole optimiser step over all ranks and micro
            steps: what the step's summed loss is divided by. It counts the labels of failed samples
            too, so that it needs no communication.
        epoch, step, micro_step: where the batch stands; micro_step counts within the step.
        failures: the samples whose images were replaced by blanks.
        vision: how pixels became patches.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    loss_weights: Tensor
    label_rows: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pixel_values: Tensor
    image_grid_thw: Tensor
    mm_token_type_ids: Tensor
    has_dummy_image: bool
    grids: tuple[Grid, ...]
    boundaries: HostBoundaries
    keys: tuple[tuple[str, ...], ...]
    num_tokens: int
    num_label_tokens: int
    step_label_tokens: int
    epoch: int
    step: int
    micro_step: int
    failures: tuple[Failure, ...]
    vision: VisionConfig

    @property
    def num_images(self) -> int:
        """Images of the samples; the dummy image is none."""
        return 0 if self.has_dummy_image else len(self.grids)

    @property
    def num_samples(self) -> int:
        """Samples in all packs."""
        return sum(len(keys) for keys in self.keys)

    @property
    def label_targets(self) -> Tensor:
        """(R,) int64: the tokens that `label_rows` predict; gathered on the batch's device."""
        return self.labels.flatten().index_select(0, self.label_rows + 1).long()

    @property
    def label_weights(self) -> Tensor:
        """(R,) float32: what each of them counts in the loss; gathered on the batch's device."""
        return self.loss_weights.flatten().index_select(0, self.label_rows + 1)

    def model_inputs(self, *, varlen: bool = True) -> dict[str, Any]:
        """The keyword arguments of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL forward, without labels.

        There is no attention_mask and no KV cache: with either, transformers builds a plain causal
        mask and the samples of a pack see each other. position_ids has its four rows for the same
        reason. Attention functions that know segments take cu_seq_lens_q and friends; others
        (SDPA) ignore them and follow row 0 of position_ids.

        A dummy image is left out, since it has no placeholder. To give the vision tower a (zero)
        gradient on such a batch, which sharded training needs, run it before the model's forward on
        pixel_values and image_grid_thw, and add 0 x the sum of all its outputs to the loss.

        Args:
            varlen: include cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k and
                text_boundaries.
        """
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "mm_token_type_ids": self.mm_token_type_ids,
            "use_cache": False,
        }
        if not self.has_dummy_image:
            inputs["pixel_values"] = self.pixel_values
            inputs["image_grid_thw"] = self.image_grid_thw
        if varlen:
            inputs["cu_seq_lens_q"] = inputs["cu_seq_lens_k"] = self.cu_seqlens
            inputs["max_length_q"] = inputs["max_length_k"] = self.max_seqlen
            inputs["text_boundaries"] = self.boundaries
        return inputs

    def vision_inputs(
        self, *, window_size: int | None = None, num_position_embeddings: int | None = None
    ) -> dict[str, Any]:
        """The vision tower's metadata, to be passed to the forward beside `model_inputs`.

        Computed on the host and sent to the batch's device in one copy that nothing waits for, so
        that the tower does not wait for the GPU to read the grids back. {} when there is no image.
        Needs transformers 5.23's names.

        Args:
            window_size: Qwen2.5-VL's `vision_config.window_size`, in pixels; else None.
            num_position_embeddings: Qwen3-VL's `vision_config.num_position_embeddings`; else None.

        Raises:
            ConfigError: num_position_embeddings is not a square, or window_size smaller than a
                merged patch.
        """
        window = side = None
        if window_size is not None:
            window = window_size // self.vision.merge_size // self.vision.patch_size
            if window < 1:
                raise ConfigError(f"window_size {window_size} is smaller than a merged patch")
        if num_position_embeddings is not None:
            side = round(num_position_embeddings**0.5)
            if side * side != num_position_embeddings:
                raise ConfigError(f"num_position_embeddings {num_position_embeddings} is no square")
        if self.has_dummy_image:
            return {}
        arrays = vision_arrays(
            self.grids, merge_size=self.vision.merge_size, window=window, side=side
        )
        tensors = send(
            {name: value for name, value in arrays.items() if not isinstance(value, int)},
            self.input_ids.device,
        )
        inputs: dict[str, Any] = {name: tensors.get(name, arrays[name]) for name in arrays}
        kinds = (arrays[name] for name in VISION_BOUNDARIES if name in arrays)
        inputs["image_host_boundaries"] = HostBoundaries(
            tuple(tuple(kind.tolist()) for kind in kinds if not isinstance(kind, int))
        )
        return inputs

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch with all tensors on `device`.

        Tensors that share a block, as all of a loader's batch do, go in one copy, and are views of
        one allocation there. To a CUDA device, and non-blocking, nothing waits: what is page-locked
        (as the loader's batches are where there is CUDA) is sent from where it is, all else is
        joined in page-locked memory first.
        """
        target = torch.device(device)
        sent: dict[str, Any] = {**move(self._named(), target, non_blocking=non_blocking)}
        return dataclasses.replace(self, **sent)

    def pin_memory(self) -> Batch:
        """The batch with all tensors in page-locked memory; needs a CUDA device.

        Tensors that are on a device already stay there.
        """
        pinned: dict[str, Any] = {
            **by_block(self._named(), lambda run: run.pin_memory() if run.is_cpu else run)
        }
        return dataclasses.replace(self, **pinned)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        return list(self._named().values())

    def _named(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def __getstate__(self) -> list[Any]:
        """For pickle and copies: tensors without the block that they are views of.

        torch writes the whole storage of a tensor, so a batch would be written a dozen times.
        """
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [_by_itself(value) if isinstance(value, Tensor) else value for value in values]


def _by_itself(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def as_tensors(
    arrays: PackedArrays, device: torch.device | None = None, block: Block | None = None
) -> PackedTensors:
    """The same as tensors: sharing memory on the CPU, by copies on another device.

    To another device they go in one copy, and the host does not wait for it.

    Args:
        block: where they are, or are put, and which is then sent with all else that it holds.
    """
    device = device or torch.device("cpu")
    names = [field.name for field in dataclasses.fields(PackedTensors)]
    values = {name: getattr(arrays, name) for name in names}
    there = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    if block is None:
        return PackedTensors(**(values | send(there, device)))
    laid = {name: block.tensor(array) for name, array in there.items()}
    block.send(device)
    return PackedTensors(**(values | {name: block.sent(laid[name]) for name in laid}))


def make_batch(
    arrays: PackedTensors | PackedArrays,
    packs: Sequence[Sequence[EncodedSample]],
    *,
    vision: VisionConfig,
    step_label_tokens: int,
    epoch: int,
    step: int,
    micro_step: int,
    failures: Sequence[Failure] = (),
    pixel_dtype: torch.dtype = torch.float32,
    pixel_values: Tensor | None = None,
    image_grid_thw: Tensor | None = None,
) -> Batch:
    """Wrap packs and what was assembled from them as a batch; shares their memory.

    Where the integers are on a GPU, patches and grids follow them there through pinned memory, on
    the current stream and without waiting. Without images the batch gets a dummy: one of 2 x 2
    merged patches (a 4 x 4 grid at merge_size 2), all zeros.

    Args:
        pixel_dtype: of the dummy's values; images have theirs.
        pixel_values: (P, D), the patches of all samples in order, on the host or where the integers
            are; None: the samples hold them. Where no sample has an image: none, or the dummy's.
        image_grid_thw: (N, 3) int64, what `image_grids` gives, where the integers are; None: it
            follows from the samples.

    Raises:
        DataError: the patches are not as many as the grids ask for.
    """
    samples = [sample for pack in packs for sample in pack]
    grids_N3, has_dummy_image = image_grids(samples, vision)
    if pixel_values is None and not has_dummy_image:
        pixel_values = as_tensor(join_patches(samples))
    elif pixel_values is None or (has_dummy_image and not len(pixel_values)):
        shape = (dummy_patches(vision), vision.patch_width)
        pixel_values = torch.zeros(shape, dtype=pixel_dtype)
    if len(pixel_values) != int(grids_N3.prod(axis=1).sum()):
        raise DataError(
            f"image_grid_thw asks for {grids_N3.prod(axis=1).sum()} patches, pixel_values has "
            f"{len(pixel_values)}"
        )
    if image_grid_thw is None:
        image_grid_thw = torch.from_numpy(grids_N3)
    packed = as_tensors(arrays) if isinstance(arrays, PackedArrays) else arrays
    device = packed.input_ids.device
    batch = Batch(
        input_ids=packed.input_ids,
        labels=packed.labels,
        position_ids=packed.position_ids,
        segment_ids=packed.segment_ids,
        loss_weights=packed.loss_weights,
        label_rows=packed.label_rows,
        cu_seqlens=packed.cu_seqlens,
        max_seqlen=packed.max_seqlen,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        mm_token_type_ids=packed.mm_token_type_ids,
        has_dummy_image=has_dummy_image,
        grids=tuple((frames, rows, columns) for frames, rows, columns in grids_N3.tolist()),
        boundaries=pack_boundaries(
            [[len(sample.input_ids) for sample in pack] for pack in packs],
            arrays.input_ids.shape[1],
        ),
        keys=tuple(tuple(sample.key for sample in pack) for pack in packs),
        num_tokens=packed.num_tokens,
        num_label_tokens=packed.num_label_tokens,
        step_label_tokens=step_label_tokens,
        epoch=epoch,
        step=step,
        micro_step=micro_step,
        failures=tuple(failures),
        vision=vision,
    )
    return batch.to(device)


def image_grids(samples: Sequence[EncodedSample], vision: VisionConfig) -> tuple[Int64Array, bool]:
    """(N, 3) int64, the grids of all samples in order; of a dummy (and True) where none has any."""
    grids_N3 = np.concatenate([np.empty((0, 3), np.int64), *(s.image_grid_thw for s in samples)])
    if len(grids_N3):
        return grids_N3, False
    side = 2 * vision.merge_size
    return np.asarray([[1, side, side]], np.int64), True


def dummy_patches(vision: VisionConfig) -> int:
    """Patches of the dummy image that a batch without images gets: 2 x 2 merged ones."""
    return (2 * vision.merge_size) ** 2


def join_patches(samples: Sequence[EncodedSample]) -> PixelValues:
    """(P, D): the patches of all samples in order; (0, 0) float32 without any.

    Samples that were encoded together hold neighbouring rows of one array, which is then given
    back as it is: at 15 MB an image a copy would cost more than the decoding.

    Raises:
        DataError: a sample's patches are not as many as its grids ask for, or of another dtype than
            the first's.
    """
    parts: list[PixelValues] = []
    for sample in samples:
        expected = int(sample.image_grid_thw.prod(axis=1).sum())
        found = 0 if sample.pixel_values is None else len(sample.pixel_values)
        if found != expected:
            raise DataError(
                f"image_grid_thw asks for {expected} patches, pixel_values has {found}",
                where=Where(key=sample.key),
            )
        if sample.pixel_values is not None and found:
            parts.append(sample.pixel_values)
            if parts[-1].dtype != parts[0].dtype:
                raise DataError(
                    f"pixel_values is {parts[-1].dtype}, the first sample's {parts[0].dtype}",
                    where=Where(key=sample.key),
                    mend="Encode all samples of a batch with one pixel_dtype",
                )
    if not parts:
        return np.empty((0, 0), np.float32)
    base, end = parts[0].base, parts[0].ctypes.data
    for part in parts:
        if base is None or part.base is not base or part.ctypes.data != end:
            return np.concatenate(parts)
        end += part.nbytes
    rows = sum(len(part) for part in parts)
    return np.lib.stride_tricks.as_strided(parts[0], (rows, parts[0].shape[1]))
