"""What the other loaders' pipelines are made of, from the fastest public parts for the same output.

It imports nothing of omr_io, so that it runs in an environment of the peers'. Decode is simplejpeg
(libjpeg-turbo with the accurate DCT), resize is torch's antialiased bicubic on uint8, which is
Pillow-SIMD's code (7 to 12 times as fast as Pillow; at most 2 levels of 255 from it), patches are
cut as uint8 and become floats where they lie in the batch, text goes through `encode_batch` with
the template's constant ids around it. `usual` is what most training code does instead: Pillow,
transformers' processor, the chat template.

Legend: T tokens, P patches, D patch width, N images.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

IGNORE = -100
BLOCK = 128
"""Patches that become floats at a time, so that they stay in the cache from step to step."""

Batch = dict[str, Any]


class Sample(NamedTuple):
    """One encoded sample; `patches` is (P, 3, patch area) uint8, or (P, D) float32."""

    key: str
    ids: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    positions: np.ndarray[Any, Any]
    patches: torch.Tensor
    grid: tuple[int, int, int]


class Raw(NamedTuple):
    """What is stored of a sample."""

    key: str
    image: bytes
    question: str
    reasoning: str


def smart_resize(height: int, width: int, about: dict[str, Any]) -> tuple[int, int]:
    """transformers' function of this name, for images within its limits."""
    factor = about["patch_size"] * about["merge_size"]
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > about["max_pixels"]:
        beta = math.sqrt(height * width / about["max_pixels"])
        high = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif high * wide < about["min_pixels"]:
        beta = math.sqrt(about["min_pixels"] / (height * width))
        high = math.ceil(height * beta / factor) * factor
        wide = math.ceil(width * beta / factor) * factor
    return high, wide


def positions(before: int, grid: tuple[int, int, int], total: int, merge: int) -> Any:
    """(4, T): row 0 counts, rows 1 to 3 are M-RoPE's t, h, w of a sample with one image."""
    rows, columns = grid[1] // merge, grid[2] // merge
    made = np.empty((4, total), np.int64)
    made[:] = np.arange(total)
    pads = rows * columns
    made[1, before : before + pads] = before
    made[2, before : before + pads] = before + np.repeat(np.arange(rows), columns)
    made[3, before : before + pads] = before + np.tile(np.arange(columns), rows)
    made[1:, before + pads :] -= pads - max(rows, columns)
    return made


class Text:
    """Texts of several samples to ids and labels in one call of Hugging Face's tokenizers."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._merge = about["merge_size"]
        opening = "<|im_start|>user\n<|vision_start|>"
        parts = (opening, "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n")
        self._fixed = [self._ids(part) for part in parts]
        self._pad = self._ids("<|image_pad|>")[0]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, raws: Sequence[Raw], grids: Sequence[tuple[int, int, int]]) -> list[Any]:
        """(ids, labels, positions) of each."""
        texts = [text for raw in raws for text in (raw.question, raw.reasoning)]
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        head, middle, turn, end = self._fixed
        made = []
        for number, grid in enumerate(grids):
            question, answer = encoded[2 * number].ids, encoded[2 * number + 1].ids
            pads = grid[1] * grid[2] // self._merge**2
            prompt = [*head, *([self._pad] * pads), *middle, *question, *turn]
            ids = np.array([*prompt, *answer, *end], np.int64)
            labels = ids.copy()
            labels[: len(prompt)] = labels[-1] = IGNORE  # and the line break after the turn
            made.append((ids, labels, positions(len(head), grid, len(ids), self._merge)))
        return made


def decode(data: bytes) -> Any:
    """(H, W, 3) uint8 by libjpeg-turbo, as accurate as Pillow's."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)


def patches_of(pixels: Any, about: dict[str, Any]) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """(P, 3, patch area) uint8 in the model's order, and the grid; resized where needed."""
    size = smart_resize(pixels.shape[0], pixels.shape[1], about)
    image = torch.as_tensor(pixels).permute(2, 0, 1)[None]
    if tuple(image.shape[2:]) != size:
        image = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True)
    patch, merge = about["patch_size"], about["merge_size"]
    rows, columns = size[0] // patch, size[1] // patch
    split = image.view(3, rows // merge, merge, patch, columns // merge, merge, patch)
    ordered = split.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, patch * patch)
    return ordered, (1, rows, columns)


class Fast:
    """Samples by the fastest public parts."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._about = about
        self._text = Text(folder / "tokenizer", about)

    def encode(self, raws: Sequence[Raw], images: Iterable[Any] | None = None) -> list[Sample]:
        """Encode samples together; `images` are their pixels if they are decoded already."""
        pixels = (decode(raw.image) for raw in raws) if images is None else images
        cut = [patches_of(one, self._about) for one in pixels]
        texts = self._text.encode(raws, [grid for _, grid in cut])
        return [
            Sample(raw.key, ids, labels, at, patches, grid)
            for raw, (ids, labels, at), (patches, grid) in zip(raws, texts, cut, strict=True)
        ]


class Usual:
    """Samples as most training code makes them: an image and a chat a call."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self._merge = about["merge_size"]
        self._processor: Any = Qwen2VLImageProcessorPil(
            patch_size=about["patch_size"],
            merge_size=self._merge,
            size={"shortest_edge": about["min_pixels"], "longest_edge": about["max_pixels"]},
            image_mean=about["image_mean"],
            image_std=about["image_std"],
        )

    def encode(self, raw: Raw, image: Any = None) -> Sample:
        """Encode one sample; `image` is a PIL image if it is opened already."""
        from PIL import Image

        image = Image.open(io.BytesIO(raw.image)) if image is None else image
        made = self._processor(images=image, return_tensors="pt")
        grid = tuple(made["image_grid_thw"][0].tolist())
        pads = "<|image_pad|>" * (grid[1] * grid[2] // self._merge**2)
        user = f"<|vision_start|>{pads}<|vision_end|>{raw.question}"
        turns = [{"role": "user", "content": user}]
        prompt = self._ids(turns, add_generation_prompt=True)
        ids = np.array(self._ids([*turns, {"role": "assistant", "content": raw.reasoning}]))
        labels = ids.copy()
        labels[: len(prompt)] = labels[-1] = IGNORE  # and the line break after the turn
        before = int(np.argmax(ids == self._tokenizer.convert_tokens_to_ids("<|image_pad|>")))
        at = positions(before, grid, len(ids), self._merge)
        return Sample(raw.key, ids, labels, at, made["pixel_values"], grid)

    def _ids(self, turns: list[dict[str, str]], **options: Any) -> list[int]:
        ids = self._tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=False, **options
        )
        return list(ids)


class Packer:
    """Whole samples in their order into rows of at most seq_len tokens, without padding.

    Args:
        ring: 0 gives every batch memory of its own, as torch does; else so many buffers take turns:
            faster, and a batch that the consumer still holds is written over.
    """

    def __init__(self, about: dict[str, Any], dtype: str = "float32", ring: int = 0) -> None:
        self._seq_len = about["seq_len"]
        mean, std = (torch.tensor(about[name])[:, None] for name in ("image_mean", "image_std"))
        self._scale, self._shift = 1 / (255 * std), mean / std
        self._frames = about["temporal_patch_size"]
        self._dtype = getattr(torch, dtype)
        self._waiting: list[Sample] = []
        self._room = self._seq_len
        rows = self._seq_len * about["merge_size"] ** 2
        width = 3 * self._frames * about["patch_size"] ** 2
        self._ring = [torch.empty((rows, width), dtype=self._dtype).fill_(0) for _ in range(ring)]

    def add(self, sample: Sample) -> Batch | None:
        """Take a sample; the batch that it did not fit into any more, if so."""
        full = None
        if len(sample.ids) > self._room:
            full = self.rest()
        self._waiting.append(sample)
        self._room -= len(sample.ids)
        return full

    def rest(self) -> Batch | None:
        """What waits, as a batch."""
        samples, self._waiting, self._room = self._waiting, [], self._seq_len
        if not samples:
            return None
        bounds = np.cumsum([0, *(len(sample.ids) for sample in samples)])
        return {
            "keys": [sample.key for sample in samples],
            "input_ids": torch.from_numpy(np.concatenate([s.ids for s in samples]))[None],
            "labels": torch.from_numpy(np.concatenate([s.labels for s in samples]))[None],
            "position_ids": torch.from_numpy(
                np.concatenate([s.positions for s in samples], axis=1)
            )[:, None],
            "cu_seqlens": torch.from_numpy(bounds.astype(np.int32)),
            "pixel_values": self._pixels([sample.patches for sample in samples]),
            "image_grid_thw": torch.tensor([sample.grid for sample in samples]),
        }

    def _pixels(self, patches: list[torch.Tensor]) -> torch.Tensor:
        if patches[0].dtype != torch.uint8:
            return torch.cat(patches).to(self._dtype)
        rows, area = sum(len(one) for one in patches), patches[0].shape[2]
        if self._ring:
            self._ring.append(self._ring.pop(0))
            out = self._ring[0][:rows]
        else:
            out = torch.empty((rows, 3 * self._frames * area), dtype=self._dtype)
        frames = out.view(rows, 3, self._frames, area)
        begin = 0
        for one in patches:
            for block in torch.split(one, BLOCK):
                values = block.float().mul_(self._scale).sub_(self._shift)
                frames[begin : begin + len(block)] = values[:, :, None]
                begin += len(block)
        return out


def packed(samples: Iterable[Sample], packer: Packer) -> Iterator[Batch]:
    """Batches of samples."""
    for sample in samples:
        if (full := packer.add(sample)) is not None:
            yield full
    if (last := packer.rest()) is not None:
        yield last


def of_json(key: str, image: bytes, data: bytes) -> Raw:
    """A sample of our shards: an image and its JSON."""
    fields = json.loads(data)
    return Raw(key, image, fields["question"], fields["reasoning"])


def groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Neighbours, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


Side = Callable[..., Iterator[Batch]]
