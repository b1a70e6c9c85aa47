"""`omr-io eval`: accuracy of models on shard sets, with baselines, intervals and differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, choices, finish, warnings_told
from omr_io.cli.stopping import stoppable
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter
from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.train.evaluation.comparison import Comparison
    from omr_io.train.evaluation.options import Dtype, EvaluationOptions, Named, Variant

EXAMPLES = (
    "omr-io eval shards/test --model sft=runs/a/sft-model --out runs/a/eval",
    "omr-io eval test=shards/test slake=shards/slake --model base=Qwen2.5-VL-7B-Instruct/ "
    "--model sft=runs/a/sft-model --model rl=runs/a/model --train shards/train --out eval/",
    "omr-io eval shards/test --model rl=runs/a/model --temperature 1 --runs 4 --out eval-4/",
    "omr-io eval shards/test --model rl=runs/a/model --no-blind --no-shuffled --out eval/ --json",
)
CODES = (
    "Exit codes: 0 done; 1 a text cannot be encoded, or an answer is none of its options; 2 usage, "
    "model, tokenizer, or completions that other options made; 3 a set or the weights cannot be "
    "read; 4 writing failed; 5 bytes on disk are not what was written; 130 or 143 stopped: the "
    "same command goes on."
)
_MODEL = "A Hugging Face folder, NAME=DIR; repeatable, in the order of comparison."
_INSTRUCTION = "Text below each question; NAME=TEXT for one model; repeatable."


def evaluate(
    sets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]SET...", help="Shard sets: folders or URLs."),
    ] = None,
    more_sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=SET", help="The same as an option; repeatable."),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME=DIR", help=_MODEL)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Completions and results.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Whose most frequent letters are the baseline."),
    ] = None,
    blind: Annotated[bool, typer.Option(help="Also with a blank for each image.")] = True,
    shuffled: Annotated[bool, typer.Option(help="Also with options in another order.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Where a completion is cut.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    runs: Annotated[int, typer.Option(help="Completions of an item, at a temperature.")] = 1,
    seed: Annotated[int, typer.Option(help="Of sampling, orders and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Completions at a time.")] = 16,
    limit: Annotated[int | None, typer.Option(help="The first so many items of a set.")] = None,
    skip_open_ended: Annotated[
        bool, typer.Option("--skip-open-ended", help="Leave items without options out.")
    ] = False,
    cluster_field: Annotated[
        str | None,
        typer.Option(help="A column whose equal values are not independent; default: the image."),
    ] = None,
    instruction: Annotated[list[str] | None, typer.Option(help=_INSTRUCTION)] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Of an image, resized.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Of an image, resized.")] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1.", autocompletion=choices("auto", "cpu"))
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the weights: auto is bfloat16 on a GPU, else float32.",
            autocompletion=choices("auto", "float32", "bfloat16", "float16"),
        ),
    ] = "auto",
    num_threads: Annotated[int, typer.Option(help="That decode images.")] = 4,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again what other options made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate models on shard sets: accuracy, blind, shuffled and majority-letter baselines.

    Writes completions, results.json and report.html to --out. Stopped at any time, the same command
    goes on where it was.
    """
    if out is None:
        raise ConfigError("no folder for the results", mend="Give --out DIR")
    from omr_io.train.evaluation.options import EvaluationOptions, named

    models = [named(text, "model", name_needed=True) for text in model or []]
    given = [named(text, "set", name_needed=False) for text in sets or []]
    given += [named(text, "set", name_needed=True) for text in more_sets or []]
    for_all, for_one = _instructions(instruction or [], [one.name for one in models])
    variants: list[Variant] = ["plain"]
    variants += ["blind"] if blind else []
    variants += ["shuffled"] if shuffled else []
    options = EvaluationOptions(
        variants=tuple(variants),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        runs=runs,
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        skip_open_ended=skip_open_ended,
        cluster_field=cluster_field,
        dtype=cast("Dtype", dtype),  # checked there
        device=device,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        system=system,
        instruction=for_all,
        instructions=for_one,
        num_threads=num_threads,
    )
    advice = f"what was answered is in {printable(str(out))}: run the same command again to go on"
    with stoppable(advice):
        made = _run(models, given, out, options, train, overwrite)
    finish(as_json, made, _print)


def _run(
    models: Sequence[Named],
    sets: Sequence[Named],
    out: Path,
    options: EvaluationOptions,
    train: str | None,
    overwrite: bool,
) -> Comparison:
    from omr_io.index import ShardSet
    from omr_io.train.evaluation.comparison import compare
    from omr_io.train.evaluation.log import alone
    from omr_io.train.evaluation.models import FolderModel
    from omr_io.train.evaluation.options import check_names
    from omr_io.train.report.comparison import write_comparison

    check_names(models, sets)
    for path in [one.path for one in sets] + ([] if train is None else [train]):
        ShardSet.open(path).close()  # what is wrong shows before weights are hashed for minutes
    with Reporter(Console(stderr=True)) as reporter, warnings_told():
        folders = []
        for one in models:

            def hashed(done: int, total: int, name: str = one.name) -> None:
                words = f"{human_bytes(done)} of {human_bytes(total)} of weights"
                reporter.update(f"{name}, fingerprint", done, total, words)

            folders.append(FolderModel(one, options, hashed))
        made = compare(
            folders, sets, out, options, train=train, overwrite=overwrite, progress=reporter.update
        )
    with alone(out):
        write_comparison(out / "report.html", made)
    return made


def _instructions(texts: Sequence[str], models: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    for_all: list[str] = []
    for_one: dict[str, str] = {}
    for text in texts:
        name, sign, rest = text.partition("=")
        if sign and name in models:
            if name in for_one:
                raise ConfigError(f"two instructions for {name!r}")
            for_one[name] = rest
        else:
            for_all.append(text)
    if len(for_all) > 1:
        raise ConfigError(
            "two instructions for all models",
            mend=f"NAME=TEXT is for one; names here: {', '.join(models) or 'none'}",
        )
    return (for_all[0] if for_all else None), for_one


def _print(made: Comparison, to: Console) -> None:
    from omr_io.train.report.comparison_text import print_comparison

    print_comparison(made, to)
