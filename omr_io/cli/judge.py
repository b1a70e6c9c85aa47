"""`omr-io judge`: TraceScore of reasoning traces, and preference of two models', by a judge."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from omr_io.cli.common import AsJson, epilog, finish
from omr_io.cli.stopping import stoppable
from omr_io.errors import ConfigError
from omr_io.terminal import Reporter, table
from omr_io.text import counted, printable

if TYPE_CHECKING:
    from omr_io.judge import Estimate, Judge, PreferenceReport, Prices, TraceReport, Usage
    from omr_io.train.statistics import Interval

CODES = (
    "Exit codes: 0 done; 1 the completions are wrong, or more judge errors than --max-errors "
    "(results are written all the same); 2 usage; 3 no shard set, the endpoint refuses or is down; "
    "4 writing failed; 5 bytes on disk are not what was written; 130 interrupted."
)
SCORE_EXAMPLES = (
    "omr-io judge score run/completions.jsonl shards/test --endpoint http://127.0.0.1:8000/v1 "
    "--judge-model Qwen3-VL-235B --dry-run",
    "omr-io judge score run/completions.jsonl shards/test --endpoint https://HOST/v1 "
    "--judge-model NAME --key-variable JUDGE_KEY --price-in 2.5 --price-out 10",
)
PREFER_EXAMPLES = (
    "omr-io judge prefer rl/completions.jsonl base/completions.jsonl shards/test "
    "--endpoint http://127.0.0.1:8000/v1 --judge-model Qwen3-VL-235B",
)
EXAMPLES = (SCORE_EXAMPLES[0], *PREFER_EXAMPLES)
ADVICE = "run the same command again to go on; what was answered is kept"

app = typer.Typer(
    help="Have a language model judge reasoning traces.",
    epilog=epilog(*EXAMPLES, codes=CODES),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Lines = Annotated[
    Path, typer.Argument(metavar="COMPLETIONS", help="JSON lines that `omr-io eval` wrote.")
]
ShardFolder = Annotated[
    str, typer.Argument(metavar="SET", help="The shard set that was evaluated: a folder or URL.")
]
Url = Annotated[
    str, typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible: its base, to /v1.")
]
JudgeModel = Annotated[
    str, typer.Option("--judge-model", metavar="NAME", help="As the endpoint calls it.")
]
KeyVariable = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The environment variable that holds the key, if any."),
]
EndpointName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What stands for the endpoint in cache and results; default: its URL. For URLs that "
        "change from job to job.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=JSON",
        help="A field of each request, as temperature=0.2; null leaves one out; repeatable.",
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, max=1024, help="Requests at once, at most.")]
Tries = Annotated[int, typer.Option(min=1, help="Of one request, before it is a judge error.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that one try may take.")]
Deadline = Annotated[float, typer.Option(min=0.1, help="Seconds for one question, all its tries.")]
MaxErrors = Annotated[
    float, typer.Option(min=0, max=1, help="Share of judge errors above which the exit code is 1.")
]
KeepGoing = Annotated[
    bool,
    typer.Option(
        "--keep-going", help="A request that is refused (400, 413, 422) is a judge error, no end."
    ),
]
CacheFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where answers are kept; see docs/judge.md.")
]
CacheBytes = Annotated[int, typer.Option(min=0, help="That they may take; 0 keeps none.")]
PriceIn = Annotated[
    float | None, typer.Option(min=0, help="Of a million prompt tokens, in any currency.")
]
PriceOut = Annotated[float | None, typer.Option(min=0, help="Of a million completion tokens.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Rows with equal values of it (the study) are not independent; default: equal images.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be asked and cost, and send nothing.")
]
OfModel = Annotated[
    str | None, typer.Option(help="Whose completions, where the file holds several models'.")
]
ModelA = Annotated[str | None, typer.Option(help="Whose in A, where it holds several models'.")]
ModelB = Annotated[str | None, typer.Option(help="Whose in B; A and B may be one file.")]
OfSet = Annotated[
    str | None, typer.Option("--set-name", help="Of which set, where the file holds several.")
]


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """What would be sent; `cost` is None without prices."""

    estimate: Estimate
    cost: float | None


@app.command(epilog=epilog(*SCORE_EXAMPLES, codes=CODES))
def score(
    completions: Lines,
    shards: ShardFolder,
    endpoint: Url,
    judge_model: JudgeModel,
    key_variable: KeyVariable = None,
    endpoint_name: EndpointName = None,
    settings: Settings = None,
    concurrency: Concurrency = 8,
    tries: Tries = 6,
    timeout: Timeout = 120.0,
    deadline: Deadline = 600.0,
    max_errors: MaxErrors = 0.05,
    keep_going: KeepGoing = False,
    cache: CacheFolder = None,
    cache_bytes: CacheBytes = 1 << 30,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    model: OfModel = None,
    set_name: OfSet = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Judge every rubric unit of every trace: perception, knowledge, rationale, TraceScore.

    Writes trace-scores-MODEL-SET.jsonl beside the completions. The images go with questions of
    perception alone. Answers are kept: the same command goes on where it was stopped.
    """
    from omr_io.index import ShardSet
    from omr_io.judge import Prices, estimate_traces, read_completions, score_traces

    prices = Prices(price_in, price_out)
    asker = _judge(
        endpoint, judge_model, key_variable, endpoint_name, settings, concurrency, tries, timeout,
        deadline, keep_going, cache, cache_bytes,
    )  # fmt: skip
    with asker, ShardSet.open(shards) as opened:
        found = read_completions(
            completions, opened, model=model, set_name=set_name, cluster=cluster
        )
        if dry_run:
            _finish_dry_run(as_json, estimate_traces(asker, opened, found), prices)
            return
        with _progress("judge") as progress:
            report = score_traces(asker, opened, found, prices=prices, progress=progress)
    finish(as_json, report, _print_traces)
    if report.error_share > max_errors:
        raise typer.Exit(1)


@app.command(epilog=epilog(*PREFER_EXAMPLES, codes=CODES))
def prefer(
    a: Annotated[Path, typer.Argument(metavar="A", help="Completions of one model.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Completions of another.")],
    shards: ShardFolder,
    endpoint: Url,
    judge_model: JudgeModel,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Whether the judge sees the images.")
    ] = True,
    key_variable: KeyVariable = None,
    endpoint_name: EndpointName = None,
    settings: Settings = None,
    concurrency: Concurrency = 8,
    tries: Tries = 6,
    timeout: Timeout = 120.0,
    deadline: Deadline = 600.0,
    max_errors: MaxErrors = 0.05,
    keep_going: KeepGoing = False,
    cache: CacheFolder = None,
    cache_bytes: CacheBytes = 1 << 30,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    model_a: ModelA = None,
    model_b: ModelB = None,
    set_name: OfSet = None,
    cluster: Cluster = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Ask which of two models' traces is better: each pair in both orders.

    Writes preference-A-B-SET.json beside A's completions. Orders that disagree make a tie, which
    is counted apart.
    """
    from omr_io.index import ShardSet
    from omr_io.judge import Prices, estimate_preference, read_completions
    from omr_io.judge import prefer as run

    prices = Prices(price_in, price_out)
    asker = _judge(
        endpoint, judge_model, key_variable, endpoint_name, settings, concurrency, tries, timeout,
        deadline, keep_going, cache, cache_bytes,
    )  # fmt: skip
    with asker, ShardSet.open(shards) as opened:
        one, other = (
            read_completions(path, opened, model=model, set_name=set_name, cluster=cluster)
            for path, model in ((a, model_a), (b, model_b))
        )
        if dry_run:
            estimate = estimate_preference(asker, opened, one, other, images=images)
            _finish_dry_run(as_json, estimate, prices)
            return
        with _progress("prefer") as progress:
            report = run(asker, opened, one, other, images=images, prices=prices, progress=progress)
    finish(as_json, report, _print_preference)
    if report.error_share > max_errors:
        raise typer.Exit(1)


def _judge(
    endpoint: str,
    judge_model: str,
    key_variable: str | None,
    endpoint_name: str | None,
    settings: list[str] | None,
    concurrency: int,
    tries: int,
    timeout: float,
    deadline: float,
    keep_going: bool,
    cache: Path | None,
    cache_bytes: int,
) -> Judge:
    """The judge that the options describe."""
    from omr_io.judge import AskOptions, Endpoint, Judge, key_of
    from omr_io.judge.endpoint import DEFAULT_SETTINGS, PATIENT

    who = Endpoint(
        endpoint,
        judge_model,
        key=key_of(key_variable),
        name=endpoint_name or "",
        settings={**DEFAULT_SETTINGS, **dict(map(_setting, settings or ()))},
    )
    how = AskOptions(
        concurrency=concurrency,
        policy=dataclasses.replace(PATIENT, tries=tries, timeout=timeout),
        deadline=deadline,
        keep_going=keep_going,
    )
    return Judge(who, how, cache_folder=cache, cache_bytes=cache_bytes)


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, json.loads(value)
    except ValueError:
        raise ConfigError(
            f"the setting {text!r} is not NAME=JSON",
            mend="Write --set temperature=0.2, or --set 'reasoning_effort=\"low\"'",
        ) from None


@contextmanager
def _progress(stage: str) -> Iterator[_Progress]:
    with stoppable(ADVICE), Reporter(Console(stderr=True)) as reporter:
        yield _Progress(stage, reporter)


@dataclass(frozen=True, slots=True)
class _Progress:
    stage: str
    reporter: Reporter

    def __call__(self, done: int, total: int) -> None:
        self.reporter.update(self.stage, done, total, f"{done} of {total} questions")


def _finish_dry_run(as_json: bool, estimate: Estimate, prices: Prices) -> None:
    cost = prices.cost(estimate.prompt_tokens, estimate.completion_tokens)
    finish(as_json, DryRunReport(estimate, cost), _print_dry_run)


def _print_dry_run(report: DryRunReport, to: Console) -> None:
    one = report.estimate
    tokens = f"about {one.prompt_tokens:,} in, {one.completion_tokens:,} out"
    rows = [
        ("questions", f"{one.questions:,}, {one.cached:,} of them answered by the cache"),
        ("requests", f"{one.requests:,}, if none fails; nothing was sent"),
        ("tokens", f"{tokens} (an estimate)"),
        ("cost", _money(report.cost)),
    ]
    to.print(table(rows), soft_wrap=True, highlight=False)


def _print_traces(report: TraceReport, to: Console) -> None:
    for axis, one in report.axes.items():
        line = f"{axis}: {_share(one.score)} = presence {_number(one.presence)} x correctness "
        line += f"{_number(one.correctness)}, {counted(one.traces, 'trace')}"
        notes = [
            (one.nothing_present, "with nothing present"),
            (one.without_units, "without units"),
            (one.unjudged, "not judged"),
            (one.errors, f"of {one.units} units failed"),
        ]
        line += "".join(f"; {count} {words}" for count, words in notes if count)
        to.print(line, soft_wrap=True, highlight=False, markup=False)
    traces = f"{report.scored} of {report.traces} scored; {report.samples} samples in the set"
    if report.without_rubric:
        traces += f"; {report.without_rubric} without a rubric"
    rows = [
        ("TraceScore", _share(report.score)),
        ("model", printable(report.model)),
        ("set", printable(report.set_name)),
        ("judge", printable(f"{report.judge_model} at {report.endpoint}")),
        ("traces", traces),
        ("judge errors", f"{report.errors} of {report.units} units ({report.error_share:.2%})"),
        *_sent(report.usage, report.cost),
        ("written", str(report.path)),
    ]
    _print_errors(report, to)
    to.print(table(rows), soft_wrap=True, highlight=False)


def _print_preference(report: PreferenceReport, to: Console) -> None:
    ties = f"{report.ties} ({report.disagreements} where the orders disagree"
    ties += f", {report.identical} of equal texts)"
    bias = f"first in both orders {report.first_in_both}, second {report.second_in_both}"
    if report.first_share is not None:
        bias += f"; the first place got {report.first_share:.1%} of all choices"
    p = "" if report.p is None else f", p {report.p:.2g}"
    rows = [
        ("A", printable(report.a)),
        ("B", printable(report.b)),
        ("A preferred", f"{_share(report.share)}{p} (ties count half)"),
        ("wins", f"A {report.wins_a}, B {report.wins_b}"),
        ("ties", ties),
        ("position bias", bias),
        ("judge", printable(f"{report.judge_model} at {report.endpoint}")),
        ("pairs", f"{report.judged} of {report.pairs} judged"),
        ("unpaired", f"{report.unpaired_a} of A, {report.unpaired_b} of B"),
        ("judge errors", f"{report.errors} of {report.pairs} pairs ({report.error_share:.2%})"),
        *_sent(report.usage, report.cost),
        ("written", str(report.path)),
    ]
    _print_errors(report, to)
    to.print(table(rows), soft_wrap=True, highlight=False)


def _print_errors(report: TraceReport | PreferenceReport, to: Console) -> None:
    for error in report.named_errors:
        line = printable(
            f"no verdict: key {error.key}, run {error.run}, {error.asked}: {error.why}"
        )
        to.print(line, soft_wrap=True, highlight=False, markup=False)


def _sent(usage: Usage, cost: float | None) -> list[tuple[str, str]]:
    requests = f"{usage.requests:,} ({usage.retries:,} retries, {usage.asked_again:,} asked again)"
    tokens = f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out"
    if usage.unreported:
        tokens += f"; not told for {counted(usage.unreported, 'answer')}"
    return [
        ("questions", f"{usage.questions:,}, {usage.cached:,} of them answered by the cache"),
        ("requests", requests),
        ("tokens", tokens),
        ("cost", _money(cost)),
    ]


def _money(cost: float | None) -> str:
    return "unknown: give --price-in and --price-out" if cost is None else f"{cost:,.4f}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _share(interval: Interval | None) -> str:
    if interval is None:
        return "none"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
