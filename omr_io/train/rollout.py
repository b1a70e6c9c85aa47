"""Rollouts: sample completions from a vision-language model, with the log-probabilities they had.

A prompt's images are encoded and its tokens are prefilled once, whatever the size of its group: the
KV cache is repeated, not computed again.

Legend: B prompts, G completions of one prompt, R rows (B * G, fewer as they end), T tokens of the
longest prompt, V vocabulary, P patches, D patch width, N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.images.pixel_values import as_tensor
from omr_io.train.attention import text_attention
from omr_io.train.gathering import gathered
from omr_io.types import Float32Array, Int32Array, Int64Array, PixelValues


class Prompt(Protocol):
    """What `generate` needs of an EncodedSample encoded without a completion."""

    @property
    def input_ids(self) -> Int32Array:
        """(T,) int32, image placeholders expanded."""

    @property
    def pixel_values(self) -> PixelValues | None:
        """(P, D); None without images."""

    @property
    def image_grid_thw(self) -> Int64Array:
        """(N, 3) int64."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion of n tokens.

    Attributes:
        ids: (n,) int32, with the end token if `finished`.
        logprobs: (n,) float32, under the very distribution that was sampled from: after temperature
            and bans. Temperature 0 gives those of temperature 1.
        finished: False if it was cut at max_new_tokens.
    """

    ids: Int32Array
    logprobs: Float32Array
    finished: bool

    @property
    def said(self) -> Int32Array:
        """The ids without the end token that finished it; other control tokens are its own."""
        return self.ids[:-1] if self.finished else self.ids


def generate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    eos: int,
    banned: tuple[int, ...],
    temperature: float = 1.0,
    group_size: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    between: Callable[[], None] | None = None,
    places: Sequence[int] | None = None,
    of: int | None = None,
) -> list[Completion]:
    """Complete prompts: group_size completions each, in the order of the prompts, groups together.

    Every completion has its own random numbers, so the result depends on `seed` and on its place
    in `prompts`, not on `batch_size` (but for rounding). The process' own random state is neither
    used nor changed; the model's mode and attention are put back. Of a sharded model all weights
    are gathered meanwhile (`omr_io.train.gathering.gathered`), so every rank must make the call.

    Args:
        model: a Qwen VLM; its text part runs under SDPA here.
        eos: the token that ends a completion.
        banned: ids never sampled: `TokenIds.banned`.
        temperature: 0 takes the likeliest token.
        seed: any integer; see `seed_32`.
        batch_size: completions at a time, in whole groups: at least one.
        between: called before each batch; what it raises ends the call.
        places: each prompt's place among `of` prompts, of which these are a part (a rank's share):
            its completions are those it has where all are sampled together. None: these are all.

    Raises:
        ConfigError: an option that cannot be right, or an empty prompt.
    """
    _check(prompts, max_new_tokens, eos, banned, temperature, group_size, batch_size)
    places = range(len(prompts)) if places is None else places
    of = len(prompts) if of is None else of
    if len(places) != len(prompts) or not all(0 <= place < of for place in places):
        raise ConfigError(f"places {list(places)} are not those of {len(prompts)} of {of} prompts")
    uniforms = torch.zeros(1).expand(len(places), group_size, max_new_tokens)
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed_32(seed))
        uniforms = torch.rand(of, group_size, max_new_tokens, generator=generator)[list(places)]
    device = next(model.parameters()).device
    # Prompts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    step = max(1, batch_size // group_size)
    groups: dict[int, list[Completion]] = {}
    with torch.no_grad(), gathered(model), _evaluating(model), text_attention(model, "sdpa"):
        for start in range(0, len(order), step):
            if between is not None:
                between()
            chosen = order[start : start + step]
            prefix = _prefill(model, [prompts[i] for i in chosen], eos, device)
            made = _decode(
                model, prefix, uniforms[chosen].flatten(0, 1).to(device), group_size, eos,
                torch.tensor(banned, dtype=torch.int64, device=device), temperature,
            )  # fmt: skip
            for place, i in enumerate(chosen):
                groups[i] = made[place * group_size : (place + 1) * group_size]
    return [completion for i in range(len(prompts)) for completion in groups[i]]


def seed_32(seed: int) -> int:
    """A seed in 32 bits: itself if it has no more, else hashed.

    torch's generator on the CPU takes the low 32 bits of a seed and drops the others, so two seeds
    that differ above them would give the same numbers.
    """
    if 0 <= seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")


def _check(
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    eos: int,
    banned: tuple[int, ...],
    temperature: float,
    group_size: int,
    batch_size: int,
) -> None:
    if min(max_new_tokens, group_size, batch_size) < 1 or temperature < 0:
        raise ConfigError(
            "max_new_tokens, group_size and batch_size must be at least 1, temperature at least 0"
        )
    if temperature == 0 and group_size > 1:
        raise ConfigError(
            "temperature 0 would give a group of equal completions",
            mend="Use a temperature above 0, or group_size 1",
        )
    if eos in banned:
        raise ConfigError(f"the end token {eos} is banned: no completion would ever end")
    if not all(len(prompt.input_ids) for prompt in prompts):
        raise ConfigError("a prompt has no tokens")


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(slots=True)
class _Prefix:
    """Prefilled prompts: what the decoding loop goes on from."""

    cache: Any
    hidden: Tensor  # (B, H) after each prompt's last token
    valid: Tensor  # (B, T) bool; False on left padding
    next_position: Tensor  # (B,) M-RoPE position of the first new token, the same for t, h and w


def _prefill(model: Any, prompts: Sequence[Prompt], pad: int, device: torch.device) -> _Prefix:
    """Run prompts, padded on the left so that all end in the same column."""
    from transformers import DynamicCache

    width = max(len(prompt.input_ids) for prompt in prompts)
    ids = np.full((len(prompts), width), pad, np.int64)
    valid = np.zeros((len(prompts), width), np.bool_)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.input_ids) :] = prompt.input_ids
        valid[row, width - len(prompt.input_ids) :] = True
    input_ids = torch.from_numpy(ids).to(device)
    valid_BT = torch.from_numpy(valid).to(device)
    types_BT = (input_ids == model.config.image_token_id).long()
    inputs = _images(prompts, device)
    mrope_3BT, _ = model.model.get_rope_index(
        input_ids, mm_token_type_ids=types_BT,
        image_grid_thw=inputs.get("image_grid_thw"), attention_mask=valid_BT,
    )  # fmt: skip
    columns = torch.arange(width, device=device)
    causal_TT = columns[:, None] >= columns[None, :]
    # A padding row sees itself: a row that sees nothing is NaN in some kernels.
    itself_TT = columns[:, None] == columns[None, :]
    mask_B1TT = (causal_TT & valid_BT[:, None, None, :]) | itself_TT
    cache = DynamicCache(config=model.config.text_config)
    output = model.model(
        input_ids=input_ids,
        position_ids=torch.cat([(valid_BT.long().cumsum(1) - 1).clamp(min=0)[None], mrope_3BT]),
        attention_mask=mask_B1TT,
        mm_token_type_ids=types_BT,
        past_key_values=cache,
        use_cache=True,
        **inputs,
    )
    last_B = mrope_3BT.masked_fill(~valid_BT, 0).amax(dim=(0, 2))
    return _Prefix(cache, output.last_hidden_state[:, -1], valid_BT, last_B + 1)


def _images(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    pixels = [p.pixel_values for p in prompts if p.pixel_values is not None and len(p.pixel_values)]
    if not pixels:
        return {}
    grids = np.concatenate([p.image_grid_thw for p in prompts])
    return {
        "pixel_values": as_tensor(np.concatenate(pixels)).to(device),
        "image_grid_thw": torch.from_numpy(grids).to(device),
    }


def _decode(
    model: Any,
    prefix: _Prefix,
    uniforms_RS: Tensor,
    group_size: int,
    eos: int,
    banned: Tensor,
    temperature: float,
) -> list[Completion]:
    """Sample until all rows have ended; rows that have are taken out of the batch now and then."""
    rows, steps = uniforms_RS.shape
    cache = prefix.cache
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)
    hidden = prefix.hidden.repeat_interleave(group_size, 0)
    position = prefix.next_position.repeat_interleave(group_size, 0)
    seen = prefix.valid.repeat_interleave(group_size, 0)
    seen = torch.cat([seen, seen.new_ones(rows, steps)], 1)  # new tokens are all seen
    width = prefix.valid.shape[1]

    ids_RS = torch.full((rows, steps), eos, device=hidden.device)
    logprobs_RS = torch.zeros(rows, steps, device=hidden.device)
    lengths_R = torch.full((rows,), steps, device=hidden.device)
    finished_R = torch.zeros(rows, dtype=torch.bool, device=hidden.device)
    live = torch.arange(rows, device=hidden.device)  # which rows the batch still holds
    for step in range(steps):
        logits = model.lm_head(hidden)
        tokens, logprobs = _choose(logits, uniforms_RS[live, step], banned, temperature)
        ids_RS[live, step], logprobs_RS[live, step] = tokens, logprobs
        ended = (tokens == eos) & ~finished_R[live]
        lengths_R[live[ended]] = step + 1
        finished_R[live[ended]] = True
        going = ~finished_R[live]
        count = int(going.sum())
        if count == 0 or step == steps - 1:
            break
        if count <= 0.875 * len(live):  # taking rows out copies the cache: not for a single one
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            live, tokens, position, seen = live[keep], tokens[keep], position[keep], seen[keep]
        output = model.model(
            input_ids=tokens[:, None],
            position_ids=(position + step)[None, :, None].expand(4, -1, -1),
            attention_mask=seen[:, None, None, : width + step + 1],
            past_key_values=cache,
            use_cache=True,
        )
        hidden = output.last_hidden_state[:, -1]
    ids, scores = ids_RS.int().cpu().numpy(), logprobs_RS.cpu().numpy()
    ends = zip(lengths_R.tolist(), finished_R.tolist(), strict=True)
    return [
        Completion(ids[row, :length].copy(), scores[row, :length].copy(), done)
        for row, (length, done) in enumerate(ends)
    ]


def _choose(
    logits_RV: Tensor, uniforms_R: Tensor, banned: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """A token a row and its log-probability. Sampling inverts the cumulative distribution."""
    logits_RV = logits_RV.float().index_fill(1, banned, float("-inf"))
    logprobs_RV = (logits_RV / (temperature or 1.0)).log_softmax(1)
    if temperature == 0:
        tokens_R = logprobs_RV.argmax(1)
    else:
        # Double, so that no token of a large vocabulary is lost to rounding. The first token whose
        # cumulative share exceeds the number has a share above 0, so it is not a banned one.
        shares_RV = logprobs_RV.double().exp().cumsum(1)
        bounds_R1 = uniforms_R.double()[:, None] * shares_RV[:, -1:]
        tokens_R = (shares_RV <= bounds_R1).sum(1)
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None]).squeeze(1)
