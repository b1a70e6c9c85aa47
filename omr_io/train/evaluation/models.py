"""A Hugging Face folder as something that answers questions about images."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from omr_io import __version__
from omr_io.chat import ChatFormat
from omr_io.config import VisionConfig
from omr_io.errors import ConfigError, SourceError
from omr_io.images import num_image_tokens
from omr_io.images.decode import make_decoder
from omr_io.loader.samples import SampleEncoder
from omr_io.sample_set import SampleSet
from omr_io.tokenizer import Tokenizer
from omr_io.train.evaluation.options import EvaluationOptions, Named, Variant
from omr_io.train.evaluation.scoring import Said
from omr_io.train.model import load_model
from omr_io.train.rollout import generate
from omr_io.train.run import blind, get_token_ids
from omr_io.types import EncodedSample, Record

_CONFIGURATION = ("config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt to be completed.

    Attributes:
        number: of the sample in its shard set, for its images.
        key: the sample's key.
        variant: "blind" has a blank in place of each image.
        record: as the model is to see it: options in their shown order.
    """

    number: int
    key: str
    variant: Variant
    record: Record


class Answerer(Protocol):
    """What an evaluation needs of a model."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Everything of it that completions depend on, as JSON values; without the weights."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What else a reader wants to know of it."""

    def answer(
        self, shards: SampleSet, asks: Sequence[Ask], *, runs: int, seed: int
    ) -> list[list[Said]]:
        """`runs` completions of each prompt; the same arguments give the same ones."""

    def close(self) -> None:
        """Give back its memory."""


class FolderModel:
    """A model in a Hugging Face folder; its weights are loaded when it is first asked.

    Nothing is downloaded. Tokenizer, image processor and the fingerprint of the weights are read at
    once, so that what is wrong with the folder is known before any work.

    Args:
        of: name and folder.
        options: dtype, device, pixels, texts and sampling.
        progress: called with bytes of weights hashed and bytes in all.

    Raises:
        ConfigError: no such folder, no weights, or a device that is not there.
        TokenizerError: the tokenizer cannot be read, or its template differs from our chat format.
        SourceError: the weights cannot be read, or (once they are loaded) some are absent.
    """

    def __init__(
        self,
        of: Named,
        options: EvaluationOptions,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = of.name
        self._folder, self._options = Path(of.path), options
        self._device = choose_device(options.device)
        self._dtype = choose_dtype(options.dtype, self._device)
        changes = {
            name: value
            for name in ("min_pixels", "max_pixels")
            if (value := getattr(options, name)) is not None
        }
        weights = fingerprint_folder(self._folder, progress)
        self._vision = VisionConfig.from_pretrained(self._folder, **changes)
        tokenizer = Tokenizer.from_pretrained(self._folder)
        self._chat = ChatFormat.for_family(
            self._vision.family,
            tokenizer,
            system=options.system,
            instruction=options.instruction_for(of.name),
        )
        self._ids = get_token_ids(tokenizer)
        self._model: Any = None
        self.made_by = {
            "weights": weights,
            "chat": self._chat.fingerprint,
            "system": self._chat.system,
            "instruction": self._chat.instruction,
            "vision": asdict(self._vision),
            "dtype": str(self._dtype).removeprefix("torch."),
        }
        self.about = {
            "model_path": of.path,
            "device": str(self._device),
            "omr_io": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def answer(
        self, shards: SampleSet, asks: Sequence[Ask], *, runs: int, seed: int
    ) -> list[list[Said]]:
        """Complete prompts, greedily or by sampling.

        Raises:
            ConfigError: the GPU has too little memory for the batch.
        """
        options = self._options
        if self._model is None:
            self._model = load_model(self._folder, self._dtype).to(self._device)  # type: ignore[arg-type]
            self._ids = self._ids.for_model(self._model, self._chat.tokenizer.vocab_size)
        shards.will_read([ask.number for ask in asks])
        with closing(make_decoder("cpu", self._vision)) as decoder:
            encoder = SampleEncoder(
                shards, self._chat, self._vision, decoder, pixel_dtype=self._dtype
            )
            with ThreadPoolExecutor(options.num_threads) as pool:
                prompts = list(pool.map(lambda ask: prompt_of(ask, encoder), asks))
        try:
            completions = generate(
                self._model,
                prompts,
                max_new_tokens=options.max_new_tokens,
                eos=self._ids.eos,
                banned=self._ids.banned,
                temperature=options.temperature,
                group_size=runs,
                seed=seed,
                batch_size=options.batch_size,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise ConfigError(
                f"{self._device} has too little memory for {options.batch_size} completions of "
                f"{self.name} at a time",
                mend="Run it again with a smaller --batch-size: it goes on where it stopped",
            ) from error
        decode = self._chat.tokenizer.decode
        texts = [
            Said(
                decode(completion.said),  # as the rewards' parser sees it
                completion.finished,
                prompts[place // runs].failure,
            )
            for place, completion in enumerate(completions)
        ]
        return [texts[i : i + runs] for i in range(0, len(texts), runs)]

    def close(self) -> None:
        """Forget the weights; the next `answer` loads them again."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def prompt_of(ask: Ask, encoder: SampleEncoder) -> EncodedSample:
    """The prompt of a sample, with its record's text replaced by what is asked."""
    prompt = encoder.prompt(ask.number)
    if ask.variant == "blind":
        return replace(blind(prompt, encoder), failure=None)
    if ask.variant == "plain":
        return prompt
    tokens = num_image_tokens(prompt.image_grid_thw, encoder.vision.merge_size).tolist()
    text = encoder.chat.encode(replace(ask.record, images=()), tokens, completion=None)
    return replace(
        prompt, input_ids=text.input_ids, trained=np.zeros(len(text.input_ids), np.bool_)
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"no device {name!r}", mend="Use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no {name}: torch sees {torch.cuda.device_count()} GPUs", mend="Use auto"
        )
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(f"no device {name!r}", mend="Use auto, cpu, cuda or cuda:N")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights; "auto" is bfloat16 on a GPU, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    }[name]  # fmt: skip


def fingerprint_folder(folder: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """32 hex digits that stand for a folder's weights and configuration.

    SHA-256 over the names and the SHA-256 of its safetensors files, config.json and the image
    processor's file. Names of folders are no part of it: a copy is the same model.

    Args:
        folder: a Hugging Face model folder.
        progress: called with bytes read and bytes in all.

    Raises:
        ConfigError: it holds no config.json or no safetensors.
        SourceError: a file cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no config.json",
            mend="Give a Hugging Face model folder, such as one written by `export_hf`",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(
            f"{folder} holds no *.safetensors", mend="Save the model again with safetensors"
        )
    others = [folder / name for name in _CONFIGURATION if (folder / name).is_file()]
    whole = hashlib.sha256()
    try:
        total, done = sum(path.stat().st_size for path in weights), 0
        for path in (*weights, *others):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.name} {digest}\n".encode())
            if progress is not None and path in weights:
                done += path.stat().st_size
                progress(done, total)
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
    return whole.hexdigest()[:32]
