"""Tiny random Qwen2-VL, 2.5-VL and 3-VL, and packs built by hand, apart from the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, START, END, EOS, PAD = 5, 6, 7, 8, 1, 0
VOCAB = 99
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
EVERY_FAMILY = (*FAMILIES, "qwen2_vl")


def tiny_model(family: str, seed: int = 0, head_dim: int = 12) -> Any:
    """A float32 model with grouped query heads, on transformers' own SDPA attention.

    GPU kernels need a `head_dim` that is a multiple of 8.
    """
    import transformers

    width = 4 * head_dim
    text = {
        "vocab_size": VOCAB, "bos_token_id": EOS, "eos_token_id": EOS,
        "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [head_dim // 2 - 4, 2, 2],
        },
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
        "out_hidden_size": width, "patch_size": 4, "initializer_range": 0.15,
    }  # fmt: skip
    ids = {
        "image_token_id": IMAGE, "video_token_id": VIDEO,
        "vision_start_token_id": START, "vision_end_token_id": END,
    }  # fmt: skip
    config: Any
    if family == "qwen3_vl":
        text |= {"head_dim": head_dim}
        text["rope_parameters"] |= {"mrope_interleaved": True}  # type: ignore[operator]
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
        kind: Any = transformers.Qwen3VLForConditionalGeneration
    elif family == "qwen2_vl":
        # Here hidden_size is the width after merging.
        vision = {
            "depth": 3, "embed_dim": 32, "hidden_size": width, "mlp_ratio": 2, "num_heads": 2,
            "patch_size": 4, "initializer_range": 0.15,
        }  # fmt: skip
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        kind = transformers.Qwen2VLForConditionalGeneration
    else:
        # A window of 2 x 2 merged patches, so that images of this size have several.
        vision |= {"fullatt_block_indexes": [2], "window_size": 16}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        kind = transformers.Qwen2_5_VLForConditionalGeneration
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


@dataclass(frozen=True)
class Sample:
    input_ids: Tensor  # (T,)
    pixel_values: Tensor  # (P, D)
    image_grid_thw: Tensor  # (N, 3)
    num_prompt_tokens: int

    @property
    def mm_token_type_ids(self) -> Tensor:
        return (self.input_ids == IMAGE).int()

    @property
    def labels(self) -> Tensor:
        labels = self.input_ids.clone()
        labels[: self.num_prompt_tokens] = -100
        return labels


def tiny_sample(grids: list[tuple[int, int]], text: int, seed: int) -> Sample:
    """Two words, the images of `grids` (height, width in patches), then `text` more tokens."""
    g = torch.Generator().manual_seed(seed)

    def words(n: int) -> Tensor:
        return torch.randint(10, VOCAB, (n,), generator=g)

    parts = [words(2)]
    for h, w in grids:
        parts += [torch.tensor([START]), torch.full((h * w // 4,), IMAGE), torch.tensor([END])]
    prompt = sum(len(p) for p in parts) + 1
    parts.append(words(text))
    patches = sum(h * w for h, w in grids)
    return Sample(
        input_ids=torch.cat(parts),
        pixel_values=torch.randn(patches, 3 * 2 * 4 * 4, generator=g),
        image_grid_thw=torch.tensor([(1, h, w) for h, w in grids], dtype=torch.int64).reshape(
            -1, 3
        ),
        num_prompt_tokens=prompt,
    )


def rope_positions(model: Any, sample: Sample) -> Tensor:
    """(4, T): transformers' own M-RoPE for one sample, under a row of text positions."""
    length = len(sample.input_ids)
    if not len(sample.image_grid_thw):
        return torch.arange(length).expand(4, -1)
    mrope, _ = model.model.get_rope_index(
        sample.input_ids[None],
        mm_token_type_ids=sample.mm_token_type_ids[None],
        image_grid_thw=sample.image_grid_thw,
    )
    return torch.cat([torch.arange(length)[None, None], mrope]).squeeze(1)


@dataclass(frozen=True)
class TinyBatch:
    """The fields of a Batch that a forward pass needs, for one or more packs."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None

    @property
    def label_rows(self) -> Tensor:
        return (self.labels.flatten()[1:] != -100).nonzero().squeeze(1)

    @property
    def label_targets(self) -> Tensor:
        return self.labels.flatten()[self.label_rows + 1]

    @property
    def num_label_tokens(self) -> int:
        return int((self.labels != -100).sum())

    def model_inputs(self) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": None,
            "use_cache": False,
            "mm_token_type_ids": (self.input_ids == IMAGE).int(),
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "max_length_k": self.max_seqlen,
        }
        if self.pixel_values is not None:
            inputs |= {"pixel_values": self.pixel_values, "image_grid_thw": self.image_grid_thw}
        return inputs

    def vision_inputs(self, **_kwargs: int | None) -> dict[str, Any]:
        return {}


def pack(model: Any, packs: list[list[Sample]], seq_len: int | None = None) -> TinyBatch:
    """Samples into packs of `seq_len` (None: the longest pack), padded; padding is a segment."""
    width = seq_len or max(sum(len(s.input_ids) for s in samples) for samples in packs)
    rows, labels, positions, lengths = [], [], [], []
    for samples in packs:
        space = width - sum(len(s.input_ids) for s in samples)
        rows.append(torch.cat([s.input_ids for s in samples] + [torch.full((space,), PAD)]))
        labels.append(torch.cat([s.labels for s in samples] + [torch.full((space,), -100)]))
        tail = torch.arange(space).expand(4, -1)
        positions.append(torch.cat([rope_positions(model, s) for s in samples] + [tail], dim=1))
        lengths += [len(s.input_ids) for s in samples] + ([space] if space else [])
    everything = [s for samples in packs for s in samples]
    grids = torch.cat(
        [torch.empty(0, 3, dtype=torch.int64)] + [s.image_grid_thw for s in everything]
    )
    return TinyBatch(
        input_ids=torch.stack(rows),
        labels=torch.stack(labels),
        position_ids=torch.stack(positions, dim=1),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_seqlen=max(lengths),
        pixel_values=torch.cat([s.pixel_values for s in everything]) if len(grids) else None,
        image_grid_thw=grids if len(grids) else None,
    )


def alone(model: Any, sample: Sample) -> Tensor:
    """(T, V) logits of one sample by itself, all else transformers' defaults: the oracle."""
    inputs: dict[str, Any] = {"input_ids": sample.input_ids[None]}
    if len(sample.image_grid_thw):
        inputs |= {
            "pixel_values": sample.pixel_values,
            "image_grid_thw": sample.image_grid_thw,
            "mm_token_type_ids": sample.mm_token_type_ids[None],
        }
    logits: Tensor = model(**inputs).logits
    return logits[0]
