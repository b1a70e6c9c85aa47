"""Models asked, item by item, in blocks whose completions are on disk before the next begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from omr_io.errors import ResumeError, Where
from omr_io.train.evaluation.items import Item, ItemSet
from omr_io.train.evaluation.log import CompletionsLog, Line
from omr_io.train.evaluation.models import Answerer, Ask
from omr_io.train.evaluation.options import VARIANTS, EvaluationOptions, Variant
from omr_io.train.evaluation.scoring import rescored, scored

BLOCK = 64
"""Prompts that are completed before their lines are written. A constant, and no option: which
random numbers a completion gets depends on it."""

Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, words)"""


def complete_all(
    model: Answerer,
    sets: Sequence[ItemSet],
    folder: Path,
    options: EvaluationOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[list[Line]]:
    """Have a model complete what its files do not hold yet.

    A model whose files are complete is never asked, so its weights are not loaded. All files are
    opened and checked before the first completion. Variants go one after the other over all sets,
    "plain" first.

    Args:
        model: who answers.
        sets: what is asked.
        folder: of the files; see `omr_io.train.evaluation.log`.
        options: variants, runs, seed and sampling.
        overwrite: make again what was made by something else.
        progress: called now and then.

    Returns:
        The lines of each set: every item in every variant that it has, `runs` times, in the order
        in which they were made.

    Raises:
        ResumeError, IntegrityError, ConfigError, DiskError: as `CompletionsLog`; and what
        `model.answer` raises.
    """
    with ExitStack() as stack:
        logs = []
        for of in sets:
            made_by = _made_by(model, of, options)
            about = {**model.about, "set_path": of.path}
            log = CompletionsLog(folder, made_by, about, overwrite=overwrite)
            logs.append(stack.enter_context(log))
        for log, of in zip(logs, sets, strict=True):
            _read_again(log, of)
        try:
            for variant in (one for one in VARIANTS if one in options.variants):
                for log, of in zip(logs, sets, strict=True):
                    _complete(model, of, variant, log, options, progress)
        finally:
            model.close()
        return [_in_order(log.lines, of, options) for log, of in zip(logs, sets, strict=True)]


def _made_by(model: Answerer, of: ItemSet, options: EvaluationOptions) -> dict[str, Any]:
    """What the completions of a model on a set depend on."""
    return {
        **model.made_by,
        "model": model.name,
        "set": of.name,
        "set_fingerprint": of.shards.fingerprint,
        "seed": options.seed,
        "temperature": options.temperature,
        "runs": options.runs,
        "max_new_tokens": options.max_new_tokens,
        "limit": options.limit,
        "open_ended_left_out": len(of.open_ended),
        "block": BLOCK,
    }


def _complete(
    model: Answerer,
    of: ItemSet,
    variant: Variant,
    log: CompletionsLog,
    options: EvaluationOptions,
    progress: Progress | None,
) -> None:
    there = {line.place for line in log.lines}
    items = [item for item in of.items if item.shown(variant) is not None]
    total, done = len(items) * options.runs, 0
    for number, block in enumerate(_blocks(items, of)):
        wanted = [
            (item, run)
            for item in block
            for run in range(options.runs)
            if (variant, item.key, run) not in there
        ]
        if wanted:
            said = model.answer(
                of.shards,
                [_ask(item, variant) for item in block],
                runs=options.runs,
                seed=_block_seed(options.seed, of, variant, number),
            )
            texts = dict(zip((item.key for item in block), said, strict=True))
            log.add(
                scored(model.name, of.name, item, variant, run, texts[item.key][run])
                for item, run in wanted
            )
        done += len(block) * options.runs
        if progress is not None:
            progress(
                f"{model.name} on {of.name}, {variant}", done, total, f"{done} of {total} answers"
            )


def _blocks(items: Sequence[Item], of: ItemSet) -> Iterator[Sequence[Item]]:
    """Items of like length together, the longest first: what does not fit shows at once."""
    shards = of.shards

    def size(item: Item) -> int:
        begin, end = shards.image_offsets[item.number : item.number + 2].tolist()
        pixels = (
            shards.image_widths[begin:end].astype(np.int64) * shards.image_heights[begin:end]
        ).sum()
        return -int(pixels // 1024 + shards.question_bytes[item.number] // 4)

    ordered = sorted(items, key=size)
    for start in range(0, len(ordered), BLOCK):
        yield ordered[start : start + BLOCK]


def _ask(item: Item, variant: Variant) -> Ask:
    shown = item.shown(variant)
    assert shown is not None
    return Ask(item.number, item.key, variant, shown.record)


def _block_seed(seed: int, of: ItemSet, variant: Variant, number: int) -> int:
    text = f"{seed} {of.shards.fingerprint} {variant} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _read_again(log: CompletionsLog, of: ItemSet) -> None:
    """Score kept lines by today's parser; the file is rewritten if they were read by another.

    Raises:
        ResumeError: a line is of no item of the set, or its options were shown in another order.
    """
    items = {item.key: item for item in of.items}
    lines = []
    for line in log.lines:
        item = items.get(line.key)
        shown = item.shown(line.variant) if item is not None else None
        # Without `shown` the variant is not asked for now, or this item cannot be had in it.
        if item is None or (item.refused if shown is None else shown.letters != line.order):
            raise ResumeError(
                f"{log.path} holds a completion that this version would not have asked for",
                where=Where(key=line.key),
                mend="Give another --out, or remove that file to make it again",
            )
        lines.append(rescored(line, item) if shown is not None else line)
    if lines != log.lines:
        log.replace(lines)


def _in_order(lines: Sequence[Line], of: ItemSet, options: EvaluationOptions) -> list[Line]:
    """The lines that were asked for, sorted by variant, item and run."""
    places = {item.key: number for number, item in enumerate(of.items)}
    asked = [line for line in lines if line.variant in options.variants]
    return sorted(
        asked, key=lambda line: (VARIANTS.index(line.variant), places[line.key], line.run)
    )
