"""The text of a dataset card: the Hub's YAML, then what the sets hold, in Markdown."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from omr_io import __version__
from omr_io.publish.markdown import code, plain, quoted, table
from omr_io.shards.description import Description, Spread
from omr_io.shards.layout import REJECTS_NAME
from omr_io.text import human_bytes

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_MAX_SOURCES = 50
_ABOUT = (
    "Image-question-answer samples for training medical vision-language models, as WebDataset "
    "shards with an index."
)
_FIELDS = (
    "`id`, `question`, `options`, `answer`, `reasoning`, `rubric`, `images`, `source` and `extra`"
)


@dataclass(frozen=True, slots=True)
class Split:
    """A shard set as the card tells of it; `place` is "" or a path that ends in "/".

    `schema` is that of a foreign set's samples; None for shards that omr_io wrote.
    """

    about: Description
    place: str
    shard_names: tuple[str, ...]
    options: Mapping[str, object]
    rejects: bool
    schema: str | None = None

    @property
    def name(self) -> str:
        """The split's name on the Hub, which knows no hyphens in it."""
        return re.sub(r"[^A-Za-z0-9_]", "_", self.about.split)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Its shards, from the card: one pattern, or their names where no pattern fits."""
        start = f"{self.about.split}-"
        if all(name.startswith(start) and name.endswith(".tar") for name in self.shard_names):
            return (f"{glob.escape(self.place)}{start}*.tar",)
        return tuple(glob.escape(self.place + name) for name in self.shard_names)


def dataset_card(splits: Sequence[Split], license: str | None, title: str | None) -> str:
    """The whole text: front matter, then what the sets hold.

    Args:
        splits: of different names.
        license: checked; None leaves it to be filled in.
        title: the heading; None takes the splits' names.
    """
    heading = title or "Shards: " + ", ".join(split.about.split for split in splits)
    sections = [
        _front_matter(splits, license, title),
        f"# {plain(heading)}",
        _about(splits),
        _contents(splits),
        _answers(splits),
        _left_out(splits),
        _making(splits),
        _loading(splits),
        _integrity(splits),
        _limits(splits, license),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(splits: Sequence[Split], license: str | None, title: str | None) -> str:
    total = sum(split.about.samples for split in splits)
    size = _SIZES[min(max(len(str(total)) - 3, 0), len(_SIZES) - 1)]
    lines = [
        "---",
        f"license: {license}" if license else "# license: fill in, as cc-by-4.0",
        *([f"pretty_name: {quoted(title)}"] if title else []),
        "task_categories:",
        "- visual-question-answering",
        "size_categories:",
        f"- {size}",
        "tags:",
        "- medical",
        "- webdataset",
        "- omr_io",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split in splits:
        lines += [f"  - split: {quoted(split.name)}", "    path:"]
        lines += [f"    - {quoted(pattern)}" for pattern in split.patterns]
    return "\n".join([*lines, "---"])


def _about(splits: Sequence[Split]) -> str:
    own = [split for split in splits if split.schema is None]
    parts = [_ABOUT]
    if own:
        which = "Each sample" if len(own) == len(splits) else f"Each sample of {_names(own)}"
        parts.append(f"{which} has its images, then a JSON with {_FIELDS}.")
    for split in splits:
        if split.schema is not None:
            parts.append(
                f"The shards of {plain(split.about.split)} are as another program wrote them; "
                f"omr_io reads their samples by the schema {plain(split.schema)}, as records with "
                f"{_FIELDS}."
            )
    return " ".join(parts)


def _names(splits: Sequence[Split]) -> str:
    return ", ".join(plain(split.about.split) for split in splits)


def _contents(splits: Sequence[Split]) -> str:
    def counts(of: Mapping[str, int]) -> str:
        return ", ".join(f"{plain(name)} {count:,}" for name, count in of.items()) or "none"

    def three(of: Spread) -> str:
        return f"{of.low:,.0f} / {of.median:,.0f} / {of.high:,.0f}"

    facts: list[tuple[str, Callable[[Description], str]]] = [
        ("samples", lambda about: f"{about.samples:,}"),
        ("shards", lambda about: f"{about.shards:,} ({human_bytes(about.bytes)})"),
        ("images", lambda about: f"{about.images:,}"),
        ("image formats", lambda about: counts(about.formats)),
        ("pixels an image", lambda about: three(about.pixels) if about.images else "none"),
        ("images turned by EXIF", lambda about: f"{about.turned:,}"),
        ("images that repeat an earlier one", lambda about: f"{about.repeated_images:,}"),
        ("question, bytes of UTF-8", lambda about: three(about.question_bytes)),
        ("reasoning, bytes of UTF-8", lambda about: three(about.reasoning_bytes)),
    ]
    rows = [[name, *(tell(split.about) for split in splits)] for name, tell in facts]
    head = ["", *(plain(split.about.split) for split in splits)]
    return f"## Contents\n\n{table(head, rows)}\n\nThree numbers are smallest / median / largest."


def _answers(splits: Sequence[Split]) -> str:
    """How often each letter is the answer: the accuracy that guessing it would have."""
    letters = sorted({letter for split in splits for letter in split.about.answers if letter})

    def cell(about: Description, count: int) -> str:
        return f"{count:,} ({count / about.samples:.1%})" if about.samples else "0"

    def open_ended(about: Description) -> int:
        named = sum(count for letter, count in about.answers.items() if letter)
        return about.samples - named

    rows = [
        [plain(letter), *(cell(s.about, s.about.answers.get(letter, 0)) for s in splits)]
        for letter in letters
    ]
    rows.append(["open-ended", *(cell(s.about, open_ended(s.about)) for s in splits)])
    for number in sorted({n for s in splits for n in s.about.num_options}, key=int):
        found = (cell(s.about, s.about.num_options.get(number, 0)) for s in splits)
        rows.append([f"with {int(number)} options", *found])
    head = ["answer", *(plain(split.about.split) for split in splits)]
    return f"## Answers\n\n{table(head, rows)}"


def _left_out(splits: Sequence[Split]) -> str:
    reasons = sorted({reason for split in splits for reason in split.about.refusals})
    rows = [["rows read", *(f"{split.about.rows:,}" for split in splits)]]
    for reason in reasons:
        rows.append(
            [plain(reason), *(f"{split.about.refusals.get(reason, 0):,}" for split in splits)]
        )
    refused = [sum(split.about.refusals.values()) for split in splits]
    rows.append(["refused in all", *(f"{count:,}" for count in refused)])
    head = ["", *(plain(split.about.split) for split in splits)]
    files = [f"{split.place}{REJECTS_NAME}" for split in splits if split.rejects]
    named = ", ".join(plain(name) for name in files)
    told = f"\n\nEach refused row is named, with its reason, in {named}." if files else ""
    return f"## Rows left out\n\n{table(head, rows)}{told}"


def _making(splits: Sequence[Split]) -> str:
    own = [split for split in splits if split.schema is None]
    foreign = [split for split in splits if split.schema is not None]
    parts = ["## How it was made"]
    if own:
        which = "" if not foreign else f"{_names(own)}: "
        parts.append(
            f"{which}by `omr-io convert`. Shards are a pure function of the sources and of the "
            "options below."
        )
    if foreign:
        parts.append(
            f"{_names(foreign)}: shards by another program, index and manifest by `omr-io index`."
        )
    parts.append(f"This card: by omr_io {plain(__version__)}.")
    for split in splits:
        about = split.about
        shown = [f"- {plain(source)}" for source in about.sources[:_MAX_SOURCES]]
        hidden = len(about.sources) - _MAX_SOURCES
        if hidden > 0:
            shown.append(f"- and {hidden:,} more, all in the manifest")
        listed = "\n".join(shown) or "- not recorded"
        parts.append(f"Sources of {plain(about.split)}:\n\n{listed}")
        options = json.dumps(split.options, indent=1, ensure_ascii=True, sort_keys=True)
        lines = "\n".join(code(line) for line in options.splitlines())
        parts.append(f"Options of {plain(about.split)}:\n\n```json\n{lines}\n```")
    return "\n\n".join(parts)


def _loading(splits: Sequence[Split]) -> str:
    first = splits[0]
    files = {split.name: list(split.patterns) for split in splits}
    shards = [first.place + name for name in first.shard_names]
    if first.patterns == (f"{first.place}{first.about.split}-*.tar",):
        last = first.about.shards - 1
        if last:
            shards = [f"{first.place}{first.about.split}-{{000000..{last:06d}}}.tar"]
    given = repr(shards[0] if len(shards) == 1 else shards)
    return f"""## Loading

From a copy of this repository, in its folder:

```python
# datasets
from datasets import load_dataset

dataset = load_dataset("webdataset", data_files={code(repr(files))})
```

```python
# webdataset
import webdataset as wds

samples = wds.WebDataset({code(given)}, shardshuffle=False)
```

```python
# omr_io: tokens, pixels, packs and exact resume
import omr_io

shards = omr_io.ShardSet.open({code(repr(first.place or "."))})
record = shards.read_record(0)
```

Each tar has a DALI index (`.idx`) beside it, for `fn.readers.webdataset`."""


def _integrity(splits: Sequence[Split]) -> str:
    rows = [[plain(s.about.split), f"`{s.about.fingerprint}`"] for s in splits]
    commands = "\n".join(
        code(f"    omr-io verify {shlex.quote(split.place or '.')} --decode") for split in splits
    )
    return (
        "## Integrity\n\nThe manifest holds the SHA-256 of every file, the index a CRC-32C of "
        "every image and text. The fingerprint stands for the whole content:\n\n"
        f"{table(['split', 'fingerprint'], rows)}\n\n{commands}"
    )


def _limits(splits: Sequence[Split], license: str | None) -> str:
    named = (
        f"The license is {plain(license)}."
        if license
        else ("The license is not stated yet: fill in `license` above.")
    )
    foreign = [split for split in splits if split.schema is not None]
    kept = f"`omr-io index` stripped none from {_names(foreign)}. " if foreign else ""
    return (
        "## Limits\n\n"
        "Metadata in image files (EXIF, comments, text chunks) may have been stripped when the "
        f"shards were made. {kept}**That is not de-identification**: names burnt into pixels, "
        "faces in head scans, and what questions, reasoning and ids say are still there. The "
        f"samples are for research; they are no medical advice.\n\n{named}"
    )
