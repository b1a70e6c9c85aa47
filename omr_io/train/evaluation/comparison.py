"""Several models on several sets, from folders to figures: what `omr-io eval` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from omr_io import __version__
from omr_io.errors import ConfigError
from omr_io.index import ShardSet
from omr_io.storage import write_atomically, writing
from omr_io.train.evaluation.figures import Figures, TrainAnswers, figures
from omr_io.train.evaluation.items import read_items
from omr_io.train.evaluation.judged import Judged, read_judged
from omr_io.train.evaluation.log import alone
from omr_io.train.evaluation.models import Answerer
from omr_io.train.evaluation.options import EvaluationOptions, Named, check_names
from omr_io.train.evaluation.run import Progress, complete_all

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Reported:
    """A figure of the paper, in percent: of the base model, and after training."""

    what: str
    before: float | None
    after: float


PAPER = (
    Reported("Benchmark (OpenMedReason's test split)", 47.11, 78.51),
    Reported("VQA average", 49.71, 60.04),
    Reported("Traces preferred over the base model's", None, 86.1),
)
"""What OpenMedReason's authors report of Qwen2.5-VL-7B, for orientation."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that an evaluation found.

    Attributes:
        figures: accuracies, baselines and differences.
        judged: what `omr-io judge` left in the folder.
        options: as given.
        models: by name, what was asked and how: path, weights, dtype, texts.
        paper: what the authors report, for orientation.
        notes: what a reader must know, in sentences.
        version: of omr_io.
    """

    figures: Figures
    judged: Judged
    options: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    paper: tuple[Reported, ...]
    notes: tuple[str, ...]
    version: str


def compare(
    models: Sequence[Answerer],
    sets: Sequence[Named],
    folder: Path,
    options: EvaluationOptions,
    *,
    train: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate models on shard sets, and write results.json.

    Models go one after the other, so that only one is in memory. What is in `folder` already is
    not made again: the same call goes on where one was stopped, and several processes may share a
    folder if each has models of its own (one last call then puts all together).

    Args:
        models: who answers; see `FolderModel`.
        sets: shard sets: folders or URLs.
        folder: for completions and results.
        options: of the evaluation.
        train: a shard set whose most frequent letters are a baseline; None: each set's own.
        overwrite: make again what other options made.
        progress: called now and then.

    Raises:
        ConfigError: names that cannot be; a set without options; no GPU memory.
        SourceError, IntegrityError: a set or a file cannot be read.
        ResumeError: there are completions that something else made.
        DiskError: the folder cannot be written.
    """
    check_names([Named(model.name, "") for model in models], sets)
    unknown = sorted(options.instructions.keys() - {model.name for model in models})
    if unknown:
        raise ConfigError(f"an instruction is for {unknown[0]!r}, which is no model here")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        opened = [
            read_items(of, stack.enter_context(ShardSet.open(of.path)), options) for of in sets
        ]
        answers = _train_answers(train)
        lines = {
            model.name: complete_all(
                model, opened, folder, options, overwrite=overwrite, progress=progress
            )
            for model in models
        }
        found = figures(opened, lines, options, answers)
        judged = read_judged(folder, opened, lines, options)
    made = Comparison(
        figures=found,
        judged=judged,
        options=asdict(options),
        models={model.name: {**model.made_by, **model.about} for model in models},
        paper=PAPER,
        notes=_notes(found, judged, models),
        version=__version__,
    )
    text = json.dumps(asdict(made), indent=1, ensure_ascii=True, allow_nan=False)
    with alone(folder):
        write_atomically(folder / RESULTS, f"{text}\n".encode())
    return made


def _train_answers(path: str | None) -> TrainAnswers | None:
    if path is None:
        return None
    with ShardSet.open(path) as shards:
        pairs = [
            (answer, count)
            for answer, count in zip(shards.answers(), shards.num_options.tolist(), strict=True)
            if answer in tuple(ascii_uppercase[:count])
        ]
    if not pairs:
        raise ConfigError(
            f"--train {path} has no sample whose answer is the letter of an option",
            mend="Give the train split of a multiple-choice set, or leave --train out",
        )
    return TrainAnswers(path, [answer for answer, _ in pairs], [count for _, count in pairs])


def _notes(found: Figures, judged: Judged, models: Sequence[Answerer]) -> tuple[str, ...]:
    notes = []
    if any(of.majority_is_upper_bound for of in found.sets):
        notes.append(
            "The most frequent letter is taken from the very set it is scored on, so that its "
            "accuracy is an upper bound of what guessing by letter can reach; --train SET takes it "
            "from a train split."
        )
    for of in found.sets:
        if of.open_ended:
            notes.append(f"{of.name}: {len(of.open_ended)} open-ended samples were left out.")
        if of.not_shuffled:
            notes.append(
                f"{of.name}: {len(of.not_shuffled)} of {of.items} questions cannot be asked with "
                "their options in another order, and are not in its shuffled accuracy; "
                f"{RESULTS} names them."
            )
    for model in models:
        parts = [
            part
            for score in found.scores
            for part in (score.plain, score.blind, score.shuffled)
            if score.model == model.name and part is not None
        ]
        total, cut = sum(part.completions for part in parts), sum(part.cut for part in parts)
        if cut > total // 20:
            notes.append(
                f"{model.name}: {cut} of {total} completions were cut at max_new_tokens, most "
                "likely before their answer; such are wrong. Raise --max-new-tokens."
            )
        failed = sum(part.failed_images for part in parts)
        if failed:
            notes.append(f"{model.name}: {failed} prompts had an image that cannot be decoded.")
    for name in ("vision", "dtype", "system", "instruction"):
        if len({json.dumps(model.made_by.get(name), sort_keys=True) for model in models}) > 1:
            notes.append(f"The models differ in {name}: see {RESULTS}.")
    notes += [f"{name} is not shown: {why}." for name, why in judged.passed_over.items()]
    return tuple(notes)
