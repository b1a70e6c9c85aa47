"""Models: the demo model from a configuration, Hugging Face folders, and the forward pass.

Legend: B packs, T tokens, H hidden width, R rows that carry a label, V vocabulary, P patches,
D patch width, N images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from omr_io.errors import ConfigError, SourceError, TrainingError
from omr_io.text import one_line
from omr_io.train.attention import require_varlen, use_varlen
from omr_io.train.log_prob_backends import Backend
from omr_io.train.log_probs import LogProbs, log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen3VLForConditionalGeneration

T = TypeVar("T")


class PackedBatch(Protocol):
    """What the forward pass needs of `omr_io.batches.Batch`."""

    @property
    def label_rows(self) -> Tensor:
        """(R,) int64 places in the flattened B x T whose hidden states predict the labels."""

    @property
    def label_targets(self) -> Tensor:
        """(R,) int64, what they should predict."""

    @property
    def num_label_tokens(self) -> int:
        """R; known on the host."""

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward; no pixel_values if there are no images."""

    def vision_inputs(
        self, *, window_size: int | None = None, num_position_embeddings: int | None = None
    ) -> dict[str, Any]:
        """The vision tower's metadata, planned on the host; {} to let the tower compute it."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The control tokens that a model's configuration names, as ids.

    `unused` are ids that no token has: a head may have more rows than the tokenizer has tokens
    (Qwen2.5-VL-7B's 152,064 for 151,665).
    """

    image_pad: int
    video_pad: int
    vision_start: int
    vision_end: int
    eos: int
    pad: int
    unused: tuple[int, ...] = ()

    @property
    def banned(self) -> tuple[int, ...]:
        """What must never be sampled.

        An image token without an image breaks the next forward; an id without a token is no text.
        """
        return (self.image_pad, self.video_pad, self.vision_start, self.vision_end, *self.unused)

    def for_model(self, model: Any, num_tokens: int) -> TokenIds:
        """These ids where the tokenizer has `num_tokens`: rows beyond them are `unused`."""
        rows = model.config.get_text_config().vocab_size
        return replace(self, unused=tuple(range(num_tokens, rows)))


@dataclass(frozen=True, slots=True)
class DemoModelConfig:
    """A Qwen3-VL small enough for a laptop's CPU: about 1.9 M parameters with 2,000 tokens.

    The field names are those of transformers' Qwen3VLTextConfig and Qwen3VLVisionConfig.
    `mrope_section` counts frequencies for t, h, w and sums to half the head's width.
    `initializer_range` is about 1 / sqrt(width): the usual 0.02 belongs to widths of thousands, and
    leaves the layers of this model almost silent at the start. `patch_initializer` and
    `position_initializer` replace it in the vision tower's first layer and its position embedding,
    so that a patch's brightness and its place are of one size: its LayerNorm keeps only ratios.
    `num_position_embeddings` is a square: the learned grid is interpolated to each image's own.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    mrope_section: tuple[int, int, int] = (6, 5, 5)
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    initializer_range: float = 0.08
    patch_initializer: float = 0.02
    position_initializer: float = 0.5
    vision_depth: int = 3
    vision_hidden_size: int = 96
    vision_intermediate_size: int = 192
    vision_num_heads: int = 4
    deepstack_visual_indexes: tuple[int, ...] = (0, 1)
    num_position_embeddings: int = 256
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ConfigError(
                f"mrope_section {self.mrope_section} must sum to half of head_dim {self.head_dim}"
            )
        if round(self.num_position_embeddings**0.5) ** 2 != self.num_position_embeddings:
            raise ConfigError("num_position_embeddings must be a square")


def build_demo_model(
    vocab_size: int, token_ids: TokenIds, *, seed: int, config: DemoModelConfig | None = None
) -> Qwen3VLForConditionalGeneration:
    """A randomly initialised Qwen3-VL in float32 on the CPU, with our attention set (`use_varlen`).

    The same arguments give the same weights; the process' own random state is left as it was.

    Raises:
        ConfigError: an id is outside the vocabulary, or transformers is missing.
    """
    transformers = _transformers()
    c = config or DemoModelConfig()
    ids = (token_ids.eos, token_ids.pad, *token_ids.banned)
    if not all(0 <= i < vocab_size for i in ids):
        raise ConfigError(f"token ids {ids} are not all inside a vocabulary of {vocab_size}")
    text = {
        "vocab_size": vocab_size,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": c.rope_theta,
            "mrope_section": list(c.mrope_section),
            "mrope_interleaved": True,
        },
        "pad_token_id": token_ids.pad,
        "eos_token_id": token_ids.eos,
        **{name: getattr(c, name) for name in _TEXT_FIELDS},
    }
    vision = {
        "depth": c.vision_depth,
        "hidden_size": c.vision_hidden_size,
        "intermediate_size": c.vision_intermediate_size,
        "num_heads": c.vision_num_heads,
        "out_hidden_size": c.hidden_size,
        "deepstack_visual_indexes": list(c.deepstack_visual_indexes),
        **{name: getattr(c, name) for name in _VISION_FIELDS},
    }
    full = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_ids.image_pad,
        video_token_id=token_ids.video_pad,
        vision_start_token_id=token_ids.vision_start,
        vision_end_token_id=token_ids.vision_end,
        tie_word_embeddings=c.tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Qwen3VLForConditionalGeneration = transformers.Qwen3VLForConditionalGeneration(full)
    use_varlen(model)
    return model


_TEXT_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range",
)  # fmt: skip
_VISION_FIELDS = (
    "num_position_embeddings", "patch_size", "spatial_merge_size", "temporal_patch_size",
    "initializer_range",
)  # fmt: skip


def model_folder(path: str | Path, *, download: bool = True) -> Path:
    """The local folder of a model: one that exists, or the Hub's, downloaded once into its cache.

    Args:
        path: a folder; or "owner/name" or "owner/name@revision" (a branch, tag or commit). A folder
            of that name comes first.
        download: False: only what the cache holds, as for the ranks of a machine that did not
            download it.

    Raises:
        ConfigError: neither a folder nor such a name.
        SourceError: the Hub cannot be reached, or has no such model.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    match = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", str(path))
    if match is None or str(path).startswith("."):
        raise ConfigError(
            f"model {path} is no folder",
            mend="Give a Hugging Face folder, or a model on the Hub as owner/name",
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            "huggingface_hub is not installed", mend="pip install 'omr_io[train]'"
        ) from error
    try:
        found = snapshot_download(
            match[1],
            revision=match[2],
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"],
            local_files_only=not download,
        )
    except (OSError, ValueError) as error:  # the Hub's own errors are OSErrors, or ValueErrors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"model {path} is no folder here and cannot be had from the Hub: {reason}",
            mend="Check the name and the network (HF_HUB_OFFLINE, HF_TOKEN), or give a folder",
        ) from error
    return Path(found)


def load_model(
    folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> PreTrainedModel:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL from a local Hugging Face folder, with our attention set.

    Nothing is downloaded (see `model_folder`), and only safetensors weights are read.

    Args:
        dtype: of the weights; "auto": as they are stored.

    Raises:
        ConfigError: no such folder, or another kind of model.
        SourceError: its files cannot be read, or some weights are absent or of another shape:
            transformers would draw those at random, and go on.
    """
    transformers = _transformers()
    root = Path(folder)
    if not (root / "config.json").is_file():
        raise ConfigError(
            f"{root} holds no config.json",
            mend="Give a Hugging Face model folder, such as one written by `export_hf`",
        )
    classes = {
        "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
        "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    }
    with _load_errors(root):
        kind = transformers.AutoConfig.from_pretrained(root, local_files_only=True).model_type
    if kind not in classes:
        raise ConfigError(f"model_type {kind!r} is not one of {', '.join(sorted(classes))}")
    model: PreTrainedModel
    with _load_errors(root):
        model, told = classes[kind].from_pretrained(
            root, dtype=dtype, local_files_only=True, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    wrong = {
        "absent": sorted(told["missing_keys"]),
        "of another shape": sorted(name for name, *_ in told["mismatched_keys"]),
    }
    for what, names in wrong.items():
        if names:
            raise SourceError(
                f"{len(names)} weights of {root} are {what}, the first is {names[0]}",
                mend="Fetch or export it again, whole; a LoRA adapter is merged into its model "
                "before it is saved",
            )
    use_varlen(model)
    return model


@contextmanager
def _load_errors(root: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SourceError(
            f"the model in {root} cannot be loaded: {one_line(error).rstrip('.!')}",
            mend="Copy or download the whole folder again: config.json and all *.safetensors",
        ) from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "transformers is not installed", mend="pip install 'omr_io[train]'"
        ) from error
    return transformers


FORWARD_METHOD = "omr_run_as_forward"
"""Where `omr_io.train.parallel.shard` puts a method of the model that FSDP2 takes for a forward."""


def run_as_forward(model: Any, function: Callable[[], T]) -> T:
    """Call a function that uses the model's parameters, as one forward pass of the whole model.

    On a sharded model FSDP2 makes the root's parameters whole around it; on any other it is a plain
    call. The result's tensors must be in tuples, lists or dicts: it follows those to know where the
    backward pass begins.
    """
    run: Any = getattr(model, FORWARD_METHOD, None)
    if run is None:
        return function()
    result: T = run(function)
    if not torch.is_grad_enabled():
        release_root(model)
    return result


def release_root(model: Any) -> None:
    """Free what a forward pass of a sharded model without a backward pass left whole."""
    if not getattr(model, GATHERED, False):
        model.reshard()


GATHERED = "omr_gathered"
"""An attribute of a sharded model: within `omr_io.train.gathering.gathered`."""


def forward(model: Any, batch: PackedBatch) -> Tensor:
    """The last hidden states of packs, (B, T, H): before the language-model head.

    A batch without images still runs the vision tower, on a small dummy image whose features are
    multiplied by zero: its parameters get zero gradients rather than none. It runs where images
    would, before the text model, so that ranks with and without images gather and reduce the same
    blocks in the same order; else each would wait for the other.

    Raises:
        ConfigError: prompts are shared and the model is not under our attention.
    """
    return run_as_forward(model, lambda: _hidden_states(model, batch))


def _hidden_states(model: Any, batch: PackedBatch) -> Tensor:
    inputs = batch.model_inputs()
    if "shared_prefixes" in inputs:
        require_varlen(model)
    if "pixel_values" in inputs:
        vision = model.config.vision_config
        inputs |= batch.vision_inputs(
            window_size=getattr(vision, "window_size", None),
            num_position_embeddings=getattr(vision, "num_position_embeddings", None),
        )
    else:
        embeddings_BTH = model.get_input_embeddings()(inputs.pop("input_ids"))
        nothing = 0.0 * _dummy_image_features(model)
        inputs["inputs_embeds"] = embeddings_BTH + nothing.to(embeddings_BTH.dtype)
    # A KV cache makes transformers build a plain causal mask, across samples.
    hidden_BTH: Tensor = model.model(**(inputs | {"use_cache": False})).last_hidden_state
    return hidden_BTH


def _dummy_image_features(model: Any) -> Tensor:
    """The sum of all the vision tower's outputs, deepstack's too, for a grid of 2 x 2 tokens."""
    vision = model.config.vision_config
    in_channels = getattr(vision, "in_channels", None) or 3
    width = in_channels * vision.temporal_patch_size * vision.patch_size**2
    parameter = next(model.model.visual.parameters())
    side = 2 * vision.spatial_merge_size
    pixels_PD = torch.zeros(side * side, width, dtype=parameter.dtype, device=parameter.device)
    grid_N3 = torch.tensor([[1, side, side]], device=parameter.device)
    output = model.model.get_image_features(pixels_PD, grid_N3, return_dict=True)
    total = torch.cat(tuple(output.pooler_output)).sum()
    for features in getattr(output, "deepstack_features", None) or ():
        total = total + torch.cat(tuple(features)).sum()
    return total


def label_log_probs(
    model: Any,
    batch: PackedBatch,
    *,
    row_weights: Tensor | float | None = None,
    entropy: bool = False,
    temperature: float = 1.0,
    banned: tuple[int, ...] = (),
    backend: Backend = "torch",
) -> LogProbs:
    """Log-probabilities of a batch's labels, in the order of the flattened labels.

    Only rows that carry a label meet the language-model head. Arguments and result are those of
    `omr_io.train.log_probs.log_probs`; temperature and banned are the rollout's, for RL.

    Raises:
        ConfigError: the head is not a linear layer without bias: its weight alone would not be
            what it computes (an adapter's part would silently be left out); and as `log_probs`.
        TrainingError: the batch counts other labels than it lists; and as `log_probs`.
    """
    head: object = model.lm_head
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"lm_head is a {type(head).__name__} with more than a weight",
            mend="Leave lm_head out of LoRA's target_modules and modules_to_save, or merge it",
        )
    rows_R, targets_R = batch.label_rows, batch.label_targets
    if not len(rows_R) == len(targets_R) == batch.num_label_tokens:
        raise TrainingError(
            f"{len(rows_R)} label rows and {len(targets_R)} targets, but the batch counts "
            f"{batch.num_label_tokens} labels",
            mend="num_label_tokens counts the labels that rows and targets list",
        )

    def scores() -> tuple[Tensor, Tensor | None, Tensor | None]:
        # The head's weight is looked up here: outside, a sharded model's is a part of it.
        result = log_probs(
            _hidden_states(model, batch), model.lm_head.weight, targets_R, rows=rows_R,
            row_weights=row_weights, entropy=entropy, temperature=temperature, banned=banned,
            backend=backend,
        )  # fmt: skip
        return result.log_probs, result.entropy, result.weighted_sum

    return LogProbs(*run_as_forward(model, scores))
