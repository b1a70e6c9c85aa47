"""`omr-io plan`: what an epoch comes to before a GPU is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, choices, finish, warnings_told
from omr_io.cli.plan_text import print_plan
from omr_io.cli.remote_options import SET_HELP, RemoteCache, RemoteCacheBytes, remote_options
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter

if TYPE_CHECKING:
    from omr_io.blend import Blend, Drawn, OpenBlend
    from omr_io.chat import ChatFormat
    from omr_io.config import VisionConfig
    from omr_io.loader.lengths import Truncation
    from omr_io.packing import CostModel, PlanSummary

EXAMPLES = (
    "omr-io plan shards/train --model Qwen2.5-VL-7B-Instruct/ --seq-len 8192 --packs-per-step 64",
    "omr-io plan shards/train --tokenizer tokenizer/ --family qwen3_vl --seq-len 4096 "
    "--packs-per-step 64 --world-size 8 --world-size 16 --packs-per-batch 2",
    "omr-io plan shards/train --model Qwen3-VL-8B/ --seq-len 2048 --packs-per-step 128 "
    "--truncate completion --too-long drop --json > plan.json",
    "omr-io plan --blend blend.yaml --model Qwen3-VL-8B/ --seq-len 8192 --packs-per-step 64",
    "omr-io plan s3://bucket/train more-shards/ --remote-cache /local/ssd --model Qwen3-VL-8B/ "
    "--seq-len 8192 --packs-per-step 64",
)
CODES = (
    "Exit codes: 0 done; 1 a sample is longer than seq_len, or nothing is left to plan; 2 usage, "
    "tokenizer or model; 3 no shard set, or it cannot be read; 5 bytes on disk are not what was "
    "written; 130 interrupted."
)

_FAMILIES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}  # and their patch sizes


def plan(
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of a pack.")],
    packs_per_step: Annotated[
        int, typer.Option(min=1, help="Packs of an optimiser step over all ranks.")
    ],
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SET", help=f"{SET_HELP} Of several, each sample comes once an epoch."
        ),
    ] = None,
    blend: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of SET: a YAML or JSON file of sources, each with shards and, as in "
            "Source, repeat, weight, balance_answers, name; and samples_per_epoch.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A Hugging Face model folder: patches, pixel budget, costs and, without "
            "--tokenizer, the tokenizer.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with tokenizer.json.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Without --model: qwen2_vl, qwen2_5_vl or qwen3_vl, at omr_io's pixel budget.",
            autocompletion=choices(*_FAMILIES),
        ),
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Of an image, resized.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Of an image, resized.")] = None,
    world_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Ranks to balance for; repeatable. Default: 1, 2, 4, ... 64."),
    ] = None,
    packs_per_batch: Annotated[
        int | None, typer.Option(min=1, help="Packs of a micro batch; default: all of a rank's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Counted from 0.")] = 0,
    window: Annotated[
        int | None, typer.Option(min=1, help="Samples that are planned together; default: all.")
    ] = None,
    too_long: Annotated[
        str,
        typer.Option(
            help="Samples of more than seq_len tokens: error, drop.",
            autocompletion=choices("error", "drop"),
        ),
    ] = "error",
    truncate: Annotated[
        str,
        typer.Option(
            help="Completions that make a sample too long: refuse, or cut them (completion).",
            autocompletion=choices("refuse", "completion"),
        ),
    ] = "refuse",
    vision_frozen: Annotated[
        bool,
        typer.Option("--vision-frozen", help="The vision tower is not trained: it costs less."),
    ] = False,
    cache: Annotated[
        bool, typer.Option(help="Keep the lengths of texts for the next run, and use kept ones.")
    ] = True,
    remote_cache: RemoteCache = None,
    remote_cache_bytes: RemoteCacheBytes = None,
    as_json: AsJson = False,
) -> None:
    """Plan an epoch and say what it comes to: steps, packing efficiency, tokens, balance of ranks.

    The plan is the loader's own, from lengths alone: every sample's text is counted once (and kept
    for the loader), no image is read.
    """
    import numpy as np

    from omr_io.blend import open_blend
    from omr_io.cache import Cache
    from omr_io.loader.lengths import measure, truncate_lengths
    from omr_io.loader.selection import Selection
    from omr_io.loader.state import Keys
    from omr_io.packing import CostModel, EpochPlan, summarize

    if too_long not in ("error", "drop") or truncate not in ("refuse", "completion"):
        raise ConfigError(
            f"--too-long {too_long} --truncate {truncate}",
            mend="--too-long is error or drop, --truncate is refuse or completion",
        )
    vision = _vision(model, family, {"min_pixels": min_pixels, "max_pixels": max_pixels})
    cost = CostModel() if model is None else CostModel.from_config(model)
    if vision_frozen:
        cost = cost.with_frozen_vision()
    chat = _chat(vision, tokenizer or model)
    sources = _blend(shards, blend)
    remote = remote_options(remote_cache, remote_cache_bytes)
    kept = Cache.of("lengths") if cache else None
    with open_blend(sources, remote) as opened, Reporter(Console(stderr=True)) as reporter:
        told = reporter.update
        lengths = measure(opened.samples, chat, vision, kept, check_images=False, progress=told)
        selection = Selection(opened, lengths, None, seed)
        cut: Truncation | None = None
        if truncate == "completion":
            lengths, cut = truncate_lengths(lengths, chat, seq_len)
        made = EpochPlan(
            lengths,
            epoch=epoch,
            seed=seed,
            seq_len=seq_len,
            packs_per_step=packs_per_step,
            window=window,
            too_long="drop" if too_long == "drop" else "error",
            cost=cost,
            keys=Keys(opened.samples),
            samples=selection.of(epoch),
        )
        summary = summarize(
            made,
            lengths,
            world_sizes=world_size or (),
            packs_per_batch=packs_per_batch,
            progress=lambda done, total: told("plan", done, total, f"{done} of {total} windows"),
        )
        planned = _planned(opened, selection.counts(epoch))
    report = PlanReport(
        sources=planned,
        seed=seed,
        window=window,
        cost=cost,
        cost_of="Qwen2.5-VL-7B" if model is None else str(model),
        cut_samples=0 if cut is None else len(cut.samples),
        cut_tokens=0 if cut is None else int(np.sum(cut.tokens)),
        plan=summary,
    )
    finish(as_json, report, print_plan)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What `omr-io plan` prints.

    Attributes:
        sources: the sets, and what the epoch takes of each.
        seed, window: as given.
        cost, cost_of: what packs are balanced by, and the model that it was made for.
        cut_samples, cut_tokens: completions cut by --truncate completion.
        plan: see `omr_io.packing.PlanSummary`.
    """

    sources: tuple[PlannedSource, ...]
    seed: int
    window: int | None
    cost: CostModel
    cost_of: str
    cut_samples: int
    cut_tokens: int
    plan: PlanSummary


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A source, and what the epoch takes of it.

    Attributes:
        name: in keys and errors, where there are several.
        shards: the folder, or the URL without its secrets.
        samples: of the set that the source takes.
        drawn: of the epoch, with repetition; too long ones included.
        strata: where answers are balanced: the same for each letter.
    """

    name: str
    shards: str
    samples: int
    drawn: int
    strata: tuple[Drawn, ...]


def _blend(shards: Sequence[str] | None, file: Path | None) -> Blend:
    from omr_io.blend import Blend, Source, read_blend

    if bool(shards) == (file is not None):
        raise ConfigError(
            "give shard sets or --blend FILE" + (", not both" if shards else ""),
            mend="See omr-io plan --help",
        )
    if file is not None:
        return read_blend(file)
    return Blend([Source(one) for one in shards or ()])


def _planned(opened: OpenBlend, counts: Sequence[Drawn]) -> tuple[PlannedSource, ...]:
    from omr_io.remote.urls import place_of

    planned = []
    for name, source in zip(opened.names, opened.blend.sources, strict=True):
        mine = [one for one in counts if one.source == name]
        planned.append(
            PlannedSource(
                name=name,
                shards=str(place_of(str(source.shards))),
                samples=sum(one.samples for one in mine),
                drawn=sum(one.drawn for one in mine),
                strata=tuple(one for one in mine if one.stratum),
            )
        )
    return tuple(planned)


def _vision(model: Path | None, family: str | None, budget: dict[str, int | None]) -> VisionConfig:
    from omr_io.config import VisionConfig

    changes: dict[str, Any] = {name: value for name, value in budget.items() if value is not None}
    if (model is None) == (family is None):
        raise ConfigError("give either --model DIR or --family", mend="See omr-io plan --help")
    if model is not None:
        return VisionConfig.from_pretrained(model, **changes)
    if family not in _FAMILIES:
        raise ConfigError(f"--family {family}", mend=f"Use one of {', '.join(_FAMILIES)}")
    return VisionConfig(family=family, patch_size=_FAMILIES[family], **changes)  # type: ignore[arg-type]


def _chat(vision: VisionConfig, tokenizer: Path | None) -> ChatFormat:
    from omr_io.chat import ChatFormat
    from omr_io.tokenizer import Tokenizer

    if tokenizer is None:
        raise ConfigError("no tokenizer", mend="Give --tokenizer DIR, or --model DIR with one")
    with warnings_told():
        return ChatFormat.for_family(vision.family, Tokenizer.from_pretrained(tokenizer))
