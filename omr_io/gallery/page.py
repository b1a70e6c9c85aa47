"""The gallery as one HTML file that loads nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omr_io.errors import ConfigError, IntegrityError
from omr_io.gallery.cards import Shown, card, text
from omr_io.gallery.choose import Choice, choose
from omr_io.gallery.pictures import Picture, thumbnail
from omr_io.gallery.script import SCRIPT
from omr_io.gallery.style import STYLE
from omr_io.index import ShardSet
from omr_io.markup import Markup, document, element, join
from omr_io.remote.urls import last_part
from omr_io.remote_storage import RemoteOptions
from omr_io.sample_set import in_turn
from omr_io.storage import write_atomically, writing
from omr_io.text import human_bytes
from omr_io.types import ImageFailure

MOST_IMAGES = 16
"""Images shown of a sample; the page says how many more there are."""

_FRAME_BYTES = 64 << 10  # for all that is not a card
_IMAGE_SHARE = 0.7  # of the page, before base64
_LEAST_IMAGE_BYTES = 2048

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class GalleryOptions:
    """What a gallery shows.

    Attributes:
        limit: at most this many samples.
        seed: of the draw, when more samples pass the filters.
        filters: see `omr_io.gallery.FILTERS`.
        max_bytes: of the page. Images are made small enough; if the texts alone are too large, the
            page holds fewer samples and says so.
        overwrite: replace a file that is there.
    """

    limit: int = 200
    seed: int = 0
    filters: tuple[str, ...] = ()
    max_bytes: int = 20 << 20
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class GallerySummary:
    """What was written.

    Attributes:
        path: the page.
        bytes: its size.
        shown: samples on it.
        matching: samples that passed the filters.
        samples: samples of the set.
        images: thumbnails on the page.
        failures: images that could not be decoded, by reason; the page shows why.
    """

    path: Path
    bytes: int
    shown: int
    matching: int
    samples: int
    images: int
    failures: dict[str, int]


def write_gallery(
    folder: str | Path,
    out: str | Path,
    options: GalleryOptions | None = None,
    progress: Progress | None = None,
    remote: RemoteOptions | None = None,
) -> GallerySummary:
    """Write a page that shows samples of a shard set.

    Every string of the data is escaped, hidden characters are shown as their codes, nothing is
    loaded from anywhere, and a content security policy allows only the page's own style sheet and
    script, by their hashes. The bytes are a pure function of the set's content, its name
    and the options (and Pillow's version, for the thumbnails).

    Args:
        folder: a shard set: a folder or a URL.
        out: the page; its folder must exist.
        options: what to show.
        progress: called with ("filter" or "view", samples done, samples in all).
        remote: how what a URL names is read.

    Raises:
        ConfigError: `out` is there already, or an option or filter cannot be right.
        SourceError: there is no shard set.
        IntegrityError: a text of the set is not what was written. (A broken image is shown as one.)
        DiskError: the page cannot be written.
    """
    settings = options or GalleryOptions()
    target = Path(out)
    if settings.max_bytes < 1 << 20:
        raise ConfigError("a page of less than 1 MiB holds no gallery", mend="Allow 1 MiB or more")
    with writing(target):
        there = target.exists()
        is_folder = target.is_dir()
    if is_folder or (there and not settings.overwrite):
        mend = "Name a file" if is_folder else "Choose another name, or pass --overwrite"
        raise ConfigError(f"{target} is there already", mend=mend)
    with ShardSet.open(folder, remote) as shards:
        choice = choose(
            shards,
            limit=settings.limit,
            seed=settings.seed,
            filters=settings.filters,
            progress=(lambda done, total: progress("filter", done, total)) if progress else None,
        )
        cards, counts = _cards(shards, choice, settings, progress)
        page = _page(last_part(folder), shards, choice, settings, cards, counts.shown)
    data = page.encode("utf-8")
    write_atomically(target, data)
    return GallerySummary(
        target, len(data), len(cards), choice.matching, len(shards), counts.images,
        dict(sorted(counts.failures.items())),
    )  # fmt: skip


class _Counts:
    def __init__(self) -> None:
        self.images = 0
        self.failures: Counter[str] = Counter()
        self.shown: list[Shown] = []


def _cards(
    shards: ShardSet, choice: Choice, settings: GalleryOptions, progress: Progress | None
) -> tuple[list[Markup], _Counts]:
    """The cards that fit the page."""
    counts = _Counts()
    num_images = sum(min(len(shards.images(i)), MOST_IMAGES) for i in choice.samples)
    room = settings.max_bytes - _FRAME_BYTES
    most = max(_LEAST_IMAGE_BYTES, int(room * _IMAGE_SHARE * 3 / 4 / max(num_images, 1)))
    cards: list[Markup] = []
    for place, i in enumerate(in_turn(shards, choice.samples, images=True), 1):
        shown = _look_at(shards, i, most)
        made = card(shown)
        room -= len(made.encode("utf-8"))
        if room < 0 and cards:
            break
        cards.append(made)
        counts.shown.append(shown)
        failed = [item.reason for item in shown.pictures if isinstance(item, ImageFailure)]
        counts.failures.update(failed)
        counts.images += len(shown.pictures) - len(failed)
        if progress is not None:
            progress("view", place, len(choice.samples))
    return cards, counts


def _look_at(shards: ShardSet, i: int, max_image_bytes: int) -> Shown:
    infos = shards.images(i)
    pictures: list[Picture | ImageFailure]
    try:
        record = shards.read_record(i)
    except IntegrityError as error:
        record = shards.read_record(i, images=False)  # a text that is broken stops here
        pictures = [ImageFailure("not-as-written", str(error)) for _ in infos[:MOST_IMAGES]]
    else:
        pairs = zip(record.images[:MOST_IMAGES], infos, strict=False)
        pictures = [thumbnail(image.data, info, max_image_bytes) for image, info in pairs]
    return Shown(
        number=i,
        shard=shards.shard(i),
        key=shards.key(i),
        record=record,
        names=[part.name for part in shards.parts(i)[: shards.num_images(i)]],
        infos=infos,
        pictures=pictures,
    )


def _page(
    name: str,
    shards: ShardSet,
    choice: Choice,
    settings: GalleryOptions,
    cards: Sequence[Markup],
    shown: Sequence[Shown],
) -> str:
    title = f"{name}: {shards.manifest.split} samples"
    body = element(
        "body",
        _top(name, shards, choice, settings, len(cards)),
        _bar(shown),
        element(
            "main",
            *cards,
            element("p", "No sample fits the filters.", class_="empty", id="empty", hidden=""),
        ),
        element(
            "footer",
            "Made by omr-io view. The page holds images and texts of the set: handle it as you "
            "handle the set itself. Images are small copies as training sees them (upright, 8-bit "
            "RGB); characters that cannot be seen are shown by their codes, such as ",
            element("span", "U+200B", class_="hid"),
            ".",
        ),
        element("script", Markup(SCRIPT)),
    )
    return document(title, Markup(STYLE), body, Markup(SCRIPT))


def _top(
    name: str, shards: ShardSet, choice: Choice, settings: GalleryOptions, shown: int
) -> Markup:
    total = len(shards)
    lead = f"All {total:,} samples." if shown == total else f"{shown:,} of {total:,} samples"
    if shown < total:
        if settings.filters:
            lead += f"; {choice.matching:,} pass the filters"
        if len(choice.samples) < choice.matching:
            lead += f"; drawn at random with seed {settings.seed}"
        lead += "."
    if shown < len(choice.samples):
        lead += (
            f" {len(choice.samples):,} were asked for, and no more fit a page of "
            f"{human_bytes(settings.max_bytes)}."
        )
    filters = join("Filters: ", text(", ".join(settings.filters), 2000), ". ")
    return element(
        "div",
        element("p", "omr_io gallery", class_="eyebrow"),
        element("h1", text(name, 200), " ", element("small", text(shards.manifest.split, 100))),
        element("p", lead, class_="lead"),
        element(
            "p",
            filters if settings.filters else None,
            f"Fingerprint {shards.fingerprint}.",
            class_="quiet",
        ),
        class_="top",
        role="banner",
    )


def _bar(shown: Sequence[Shown]) -> Markup:
    """Filters; hidden until the script runs, since they do nothing without it."""
    options = sorted({len(item.record.options) for item in shown})
    letters = sorted({item.record.answer for item in shown if item.record.options})
    formats = sorted({info.format for item in shown for info in item.infos})
    search = element(
        "input", type="search", name="q", placeholder="Search id, question, options, reasoning",
        aria_label="Search", autocomplete="off", spellcheck="false",
    )  # fmt: skip
    rubric = element("input", type="checkbox", name="rubric")
    form = element(
        "form",
        element("label", search, class_="search"),
        _select("options", "Options", [(str(n), str(n) if n else "open-ended") for n in options]),
        _select("answer", "Answer", [(letter, letter) for letter in letters]),
        _select("format", "Format", [(name, name) for name in formats]),
        element("label", rubric, element("span", "has rubric")),
        element("button", "Clear", type="reset"),
        element("output", id="count", aria_live="polite"),
        id="filters",
        title="Keys: / searches, j and k go to the next and previous sample",
        autocomplete="off",
    )
    return element("div", form, class_="bar", id="bar", hidden="", role="search")


def _select(name: str, label: str, choices: Sequence[tuple[str, str]]) -> Markup:
    pairs = [("", "any"), *choices]
    items = [element("option", words, value=value) for value, words in pairs]
    return element(
        "label", element("span", label), element("select", *items, name=name, aria_label=label)
    )
