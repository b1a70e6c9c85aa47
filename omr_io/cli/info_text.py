"""The statistics of shard sets as text: a row a fact, a column a set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.text import Text

from omr_io.text import human_bytes, printable

if TYPE_CHECKING:
    from omr_io.shards import Description, Spread

_FIRST_SOURCES = 3
_BREAK = ",\n"
"""Between counts; one set shows them in a line, several under each other."""

Row = tuple[str, list[str]]
Section = tuple[str, list[Row]]


def info_text(called: Sequence[str], sets: Sequence[Description]) -> Text:
    """All facts, aligned; lines are never cut, so that pipes and logs get them whole.

    Args:
        called: what each set is called, above its column where there are several.
    """
    sections = _sections(sets)
    left = max(cell_len(name) for _, rows in sections for name, _ in rows) + 4
    text = Text()
    if len(sets) == 1:
        widths = [0]
    else:
        names = [printable(name) for name in called]
        cells = [names, *(values for _, rows in sections for _, values in rows)]
        widths = [
            max(cell_len(line) for row in cells for line in row[column].split("\n"))
            for column in range(len(sets))
        ]
        text.append(_lines("", left, names, widths), style="bold")
    for number, (title, rows) in enumerate(sections):
        text.append("\n" if number else "")
        text.append(f"{title}\n", style="bold cyan")
        for name, values in rows:
            shown = [value.replace(_BREAK, ", ") for value in values] if len(sets) == 1 else values
            lines = _lines(f"  {name}", left, shown, widths)
            text.append(lines[:left], style="bold")
            text.append(lines[left:])
    text.append(
        "\nx / y / z (a to b): 5% are below x, half below y, 5% above z; a lowest, b highest"
    )
    return text


def _lines(name: str, left: int, values: Sequence[str], widths: Sequence[int]) -> str:
    """A row, as many lines high as its highest cell."""
    columns = [value.split("\n") for value in values]
    out = []
    for number in range(max(map(len, columns))):
        line = f"{'' if number else name:<{left}}"
        for column, width in zip(columns, widths, strict=True):
            cell = column[number] if number < len(column) else ""
            line += cell + " " * (width - cell_len(cell)) + "   "
        out.append(line.rstrip() + "\n")
    return "".join(out)


def _sections(sets: Sequence[Description]) -> list[Section]:
    def row(name: str, show: Callable[[Description], str]) -> Row:
        return name, [show(about) for about in sets]

    return [
        (
            "Set",
            [
                row("split", lambda about: printable(about.split)),
                row("samples", lambda about: f"{about.samples:,}"),
                row("rows read", lambda about: f"{about.rows:,}"),
                row("rows refused", lambda about: _counts(about.refusals)),
                row("shards", lambda about: f"{about.shards:,} ({human_bytes(about.bytes)})"),
                row("samples a shard", lambda about: _ends(about.shard_samples, _whole)),
                row("bytes a shard", lambda about: _ends(about.shard_bytes, human_bytes)),
            ],
        ),
        ("Images", _image_rows(row)),
        (
            "Texts, bytes of UTF-8",
            [
                row("question", lambda about: _spread(about.question_bytes, _whole)),
                row("reasoning", lambda about: _spread(about.reasoning_bytes, _whole)),
                row("without reasoning", lambda about: _part(about.without_reasoning, about)),
            ],
        ),
        ("Options and answers", _answer_rows(sets)),
        (
            "Origin",
            [
                row("sources", lambda about: _sources(about.sources)),
                row("source fingerprint", lambda about: about.source_fingerprint or "none"),
                *_option_rows(sets),
                row("fingerprint", lambda about: about.fingerprint),
            ],
        ),
    ]


def _image_rows(row: Callable[[str, Callable[[Description], str]], Row]) -> list[Row]:
    return [
        row("images", lambda about: f"{about.images:,}"),
        row("images a sample", lambda about: _counts(about.images_per_sample, about.samples)),
        row("formats", lambda about: _counts(about.formats, about.images)),
        row("modes", lambda about: _counts(about.modes, about.images)),
        row("megapixels", lambda about: _spread(about.pixels, _mega)),
        row("short side", lambda about: _spread(about.short_side, _whole)),
        row("long side", lambda about: _spread(about.long_side, _whole)),
        row("long / short side", lambda about: _spread(about.aspect, "{:.2f}".format)),
        row("encoded size", lambda about: _spread(about.image_bytes, human_bytes)),
        row("turned by EXIF", lambda about: f"{about.turned:,}"),
        row("repeated images", lambda about: f"{about.repeated_images:,}"),
    ]


def _answer_rows(sets: Sequence[Description]) -> list[Row]:
    rows: list[Row] = []
    for number in _union((about.num_options for about in sets), key=int):
        name = f"{number} options" if number != "0" else "open-ended"
        rows.append((name, [_part(about.num_options.get(number, 0), about) for about in sets]))
    rows.append(
        ("answers", [_counts(about.answers, sum(about.answers.values())) for about in sets])
    )
    for number in _union((about.answers_by_options for about in sets), key=int):
        found = [about.answers_by_options.get(number, {}) for about in sets]
        shown = [_counts(counts, sum(counts.values())) for counts in found]
        rows.append((f"answers of {number}", shown))
    return rows


def _option_rows(sets: Sequence[Description]) -> list[Row]:
    """Options that the sets were made with, a row each."""
    flat = [dict(_flat(about.options)) for about in sets]
    names = list(dict.fromkeys(name for options in flat for name in options))
    return [
        (f"made with {name}", [printable(str(options.get(name, "(none)"))) for options in flat])
        for name in names
    ]


def _flat(options: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            yield before + name, ", ".join(map(str, value)) or "(none)"
        else:
            yield before + name, value


def _union(counts: Iterable[Mapping[str, Any]], key: Callable[[str], int]) -> list[str]:
    return sorted({name for names in counts for name in names}, key=key)


def _counts(counts: Mapping[str, int], total: int | None = None) -> str:
    """ "jpeg: 5 (83.3%), png: 1 (16.7%)"."""
    parts = []
    for name, count in counts.items():
        share = f" ({count / total:.1%})" if total else ""
        parts.append(f"{printable(name)}: {count:,}{share}")
    return _BREAK.join(parts) or "none"


def _part(count: int, about: Description) -> str:
    return f"{count:,} ({count / about.samples:.1%})" if count and about.samples else f"{count:,}"


def _spread(of: Spread, show: Callable[[float], str]) -> str:
    if not of.high:
        return "none"
    ends = f"{show(of.low)} to {show(of.high)}"
    return f"{show(of.p5)} / {show(of.median)} / {show(of.p95)} ({ends})"


def _ends(of: Spread, show: Callable[[float], str]) -> str:
    if of.low == of.high:
        return show(of.low)
    return f"{show(of.low)} to {show(of.high)}, median {show(of.median)}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _mega(pixels: float) -> str:
    return f"{pixels / 1e6:.3g}"


def _sources(names: Sequence[str]) -> str:
    first = ", ".join(printable(name) for name in names[:_FIRST_SOURCES])
    more = len(names) - _FIRST_SOURCES
    return f"{len(names):,}: {first}, ... and {more:,} more" if more > 0 else first or "none"
