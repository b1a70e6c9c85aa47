"""What `omr-io plan` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from omr_io.terminal import table
from omr_io.text import counted, printable

if TYPE_CHECKING:
    from omr_io.cli.plan import PlannedSource, PlanReport
    from omr_io.packing.summary import Balance, Percentiles

_LENGTHS = {"tokens": "a sample", "text": "text", "images": "images", "labels": "labels"}


def print_plan(report: PlanReport, to: Console) -> None:
    """The facts of the report, a line each."""
    from omr_io.packing import CostModel

    made = report.plan
    share = made.samples / max(made.packs, 1)
    least, mean, most = made.step_label_tokens
    rows = [_source(source) for source in report.sources] if len(report.sources) > 1 else []
    rows += [
        ("steps", f"{made.steps:,} of {counted(made.packs_per_step, 'pack')}"),
        ("windows", f"{made.windows:,}"),
        ("packs", f"{made.packs:,}, {share:.1f} samples each; {made.empty_packs:,} left empty"),
        ("packing efficiency", f"{made.efficiency:.2%} of {made.seq_len:,} tokens"),
        ("samples", f"{made.samples:,}"),
        ("dropped", f"{made.dropped:,} longer than {made.seq_len:,} tokens"),
        ("cut", f"{counted(report.cut_samples, 'completion')} by {report.cut_tokens:,} tokens"),
        ("tokens", f"{made.tokens:,}"),
        ("  text", _part(made.text_tokens, made.tokens)),
        ("  images", _part(made.image_tokens, made.tokens)),
        ("  with a label", _part(made.label_tokens, made.tokens)),
        ("labels a step", f"{mean:,.0f} ({least:,} to {most:,})"),
    ]
    rows += [(f"tokens, {_LENGTHS[name]}", _spread(made.lengths[name])) for name in _LENGTHS]
    rows += [_balance(balance) for balance in made.balance]
    to.print(table(rows), soft_wrap=True, highlight=False)
    dealt = "" if report.cost == CostModel() else ", where the loader gets this model's cost="
    to.print(
        "\nx / y / z (a to b): 5% of samples are below x, half below y, 5% above z; a least, b most"
        f"\nFLOPs (of {printable(report.cost_of)}): the dearest rank's of a step / the mean rank's"
        f"{dealt}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _part(count: int, of: int) -> str:
    return f"{count:,} ({count / max(of, 1):.1%})"


def _spread(of: Percentiles) -> str:
    return f"{of.p5:,} / {of.p50:,} / {of.p95:,} ({of.least:,} to {of.most:,}), mean {of.mean:,.0f}"


def _balance(of: Balance) -> tuple[str, str]:
    ranks = counted(of.world_size, "rank")
    text = f"FLOPs {of.mean:.4f} mean, {of.worst:.4f} worst"
    if of.worst_full is not None and of.worst_full != of.worst:
        text += f" ({of.worst_full:.4f} without steps that are filled up)"
    packs, batches = counted(of.packs_a_rank, "pack"), counted(of.batches_a_step, "batch")
    batches = batches.replace("batchs", "batches")
    return ranks, f"{packs} in {batches} a step; {text}"


def _source(of: PlannedSource) -> tuple[str, str]:
    text = f"{of.drawn:,} of {counted(of.samples, 'sample')}"
    if of.drawn != of.samples:
        text += f" ({of.drawn / of.samples:.2f} times)"
    if of.strata:
        counts = ", ".join(f"{one.stratum} {one.drawn:,}" for one in of.strata)
        text += f"; {counts}"
    return f"source {printable(of.name)}", printable(text)
