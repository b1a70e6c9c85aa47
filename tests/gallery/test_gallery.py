"""What a gallery holds: which samples, which pictures, how large, and how it is written."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omr_io.errors import ConfigError, DiskError, IntegrityError, SourceError
from omr_io.gallery import GalleryOptions, choose, write_gallery
from omr_io.gallery.cards import MOST_CHARS, split_options, split_trace, text, trace_answer
from omr_io.gallery.pictures import thumbnail
from omr_io.gallery.style import STYLE
from omr_io.images import probe
from omr_io.index import ShardSet
from omr_io.markup import escape, is_hidden
from omr_io.types import ImageFailure, Option
from tests.contrast import contrast, themes
from tests.gallery.browser import Dom
from tests.shard_sets import encoded, mixed_records, record, single_records, write
from tests.test_cli import omr_io  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "mixed"
    write(path, mixed_records(30), max_shard_samples=7)
    return path


def page_of(folder: Path, out: Path, **options: object) -> Dom:
    write_gallery(folder, out, GalleryOptions(**options))
    return Dom(out.read_text(encoding="utf-8"))


def test_every_sample_is_told_in_full(folder: Path, tmp_path: Path) -> None:
    dom = page_of(folder, tmp_path / "p.html")
    rows = mixed_records(30)
    assert len(dom.articles) == 30
    assert len(dom.all("img")) == sum(len(row.images) for row in rows)
    for row, (attributes, words) in zip(rows, dom.articles, strict=True):
        stem = row.question.split("\n")[0]
        for said in (row.id, stem, "A.one", "B.two", row.source, "study"):
            assert said in words
        assert f"Because {int(row.id[5:])}." in words
        assert words.count("✓ answer") == 1
        assert attributes["data-rubric"] == str(int(bool(row.rubric)))
        for image in row.images:
            assert image.name in words
        for unit in row.rubric:
            assert unit.claim in words
            assert unit.source_quote in words
    assert "All 30 samples." in dom.text


def test_a_draw_is_seeded_and_counted(folder: Path, tmp_path: Path) -> None:
    with ShardSet.open(folder) as shards:
        first, again = (choose(shards, limit=8, seed=1) for _ in range(2))
        other = choose(shards, limit=8, seed=2)
        everything = choose(shards, limit=99)
    assert first == again
    assert first.samples != other.samples
    assert len(set(first.samples)) == 8
    assert list(first.samples) == sorted(first.samples)
    assert everything.samples == tuple(range(30))
    dom = page_of(folder, tmp_path / "p.html", limit=8, seed=1)
    shown = [int(re.search(r"sample (\d+)", words)[1]) for _, words in dom.articles]
    assert shown == list(first.samples)
    assert "8 of 30 samples; drawn at random with seed 1." in dom.text


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (["options=2"], lambda n, row: True),
        (["answer=B"], lambda n, row: n % 2 == 1),
        (["answer=A,B"], lambda n, row: True),
        (["images=0"], lambda n, row: not row.images),
        (["images=2,3", "answer=A"], lambda n, row: len(row.images) > 1 and n % 2 == 0),
        (
            ["format=png"],
            lambda n, row: any(image.data.startswith(b"\x89PNG") for image in row.images),
        ),
        (["shard=train-000001.tar"], lambda n, row: 7 <= n < 14),
        (["shard=*2.tar"], lambda n, row: 14 <= n < 21),
        (["key=case%2E000?"], lambda n, row: n < 10),
        (["turned=no"], lambda n, row: True),
        (["rubric=yes"], lambda n, row: n % 5 == 0),
        (["rubric=no", "options=2"], lambda n, row: n % 5 != 0),
        (["text=BECAUSE 2"], lambda n, row: str(n).startswith("2")),
    ],
)
def test_filters(folder: Path, filters: list[str], fits) -> None:
    rows = mixed_records(30)
    with ShardSet.open(folder) as shards:
        choice = choose(shards, limit=99, filters=filters)
    assert list(choice.samples) == [n for n, row in enumerate(rows) if fits(n, row)]
    assert choice.matching == len(choice.samples)


def test_turned_images_are_found_and_shown_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    rows = [
        record(0, [encoded(0)]),
        record(1, [encoded(1, size=(40, 80), exif=exif.tobytes())]),
    ]
    write(tmp_path / "set", rows)
    with ShardSet.open(tmp_path / "set") as shards:
        assert choose(shards, limit=9, filters=["turned=yes"]).samples == (1,)
    dom = page_of(tmp_path / "set", tmp_path / "p.html", filters=("turned=yes",))
    [image] = dom.all("img")
    assert (image["width"], image["height"]) == ("40", "80")
    assert "40 \N{MULTIPLICATION SIGN} 80" in "".join(dom.text)
    assert "1 of 2 samples; 1 pass the filters." in dom.text


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("optoins=2", "do you mean 'options'"),
        ("options", "NAME=VALUE"),
        ("options=", "NAME=VALUE"),
        ("options=two", "needs numbers"),
        ("rubric=maybe", "yes or no"),
        ("answer=Z", "no sample of 30 passes"),
    ],
)
def test_filters_that_cannot_be_right(folder: Path, filters: str, words: str) -> None:
    with ShardSet.open(folder) as shards, pytest.raises(ConfigError, match=words):
        choose(shards, limit=5, filters=[filters])


def test_thumbnails_are_the_trained_pixels_made_small() -> None:
    pixels = np.zeros((900, 1800, 3), np.uint8)
    pixels[:, 900:] = (255, 0, 0)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    data = out.getvalue()
    picture = thumbnail(data, probe(data), 50_000)
    assert not isinstance(picture, ImageFailure)
    encoded_small = base64.b64decode(picture.uri.removeprefix("data:image/jpeg;base64,"))
    assert len(encoded_small) <= 50_000
    with Image.open(io.BytesIO(encoded_small)) as image:
        assert image.size == (picture.width, picture.height) == (720, 360)
        assert image.getpixel((50, 100)) == (0, 0, 0)
        assert image.getpixel((700, 100))[0] > 250
    noise = encoded(3, "PNG", (700, 900))
    sizes = {}
    for most in (200_000, 20_000, 3_000):
        picture = thumbnail(noise, probe(noise), most)
        sizes[most] = len(picture.uri)
        assert len(picture.uri) * 3 / 4 <= most + 40
    assert sizes[200_000] > sizes[20_000] > sizes[3_000]
    grey = io.BytesIO()
    Image.fromarray(np.full((30, 30), 7, np.uint8)).save(grey, "PNG")
    picture = thumbnail(grey.getvalue(), probe(grey.getvalue()), 9999)
    with Image.open(io.BytesIO(base64.b64decode(picture.uri[23:]))) as image:
        assert image.mode == "L"


def test_the_page_keeps_to_its_size(tmp_path: Path) -> None:
    rows = [record(n, [encoded(n, size=(400, 500)), encoded(n + 99)]) for n in range(40)]
    write(tmp_path / "set", rows)
    for name, changes in (("a", {}), ("b", {"max_bytes": 1 << 20})):
        write_gallery(tmp_path / "set", tmp_path / name, GalleryOptions(**changes))
    sizes = [(tmp_path / name).stat().st_size for name in ("a", "b")]
    assert sizes[0] > 1 << 20 >= sizes[1]
    assert len(Dom((tmp_path / "b").read_text()).articles) == 40


def test_texts_that_do_not_fit_are_cut_and_counted(tmp_path: Path) -> None:
    rows = [record(n, reasoning="<think>" + "word " * 9000 + "</think>") for n in range(80)]
    write(tmp_path / "set", rows)
    summary = write_gallery(tmp_path / "set", tmp_path / "p", GalleryOptions(max_bytes=1 << 20))
    page = (tmp_path / "p").read_text()
    assert len(page.encode()) == summary.bytes <= 1 << 20
    assert 10 < summary.shown < 80
    assert f"{summary.shown} of 80 samples. 80 were asked for, and no more fit" in page
    assert f"{9000 * 5 - 1 - MOST_CHARS:,} more characters" in page


def test_broken_images_are_shown_as_broken_and_broken_texts_stop(tmp_path: Path) -> None:
    write(tmp_path / "set", [*single_records(3), record(7, [encoded(9)[:500]])], check="header")
    path = tmp_path / "set" / "train-000000.tar"
    with ShardSet.open(tmp_path / "set") as shards:
        image, text_part = shards.parts(1)
        count = len(shards)
    data = bytearray(path.read_bytes())
    data[image.offset + 300] ^= 1
    path.write_bytes(data)
    summary = write_gallery(tmp_path / "set", tmp_path / "p.html")
    assert summary.failures["not-as-written"] == 1
    assert summary.images == count - sum(summary.failures.values())
    words = Dom((tmp_path / "p.html").read_text()).articles[1][1]
    assert "cannot be shown: not-as-written" in words
    assert "CRC-32C" in words
    assert "Because 1." in words
    data[text_part.offset + 30] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="case%2E0001"):
        write_gallery(tmp_path / "set", tmp_path / "q.html")
    assert not (tmp_path / "q.html").exists()


def test_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_gallery(folder, path, GalleryOptions(limit=2))
    first = path.read_bytes()
    with pytest.raises(ConfigError, match="--overwrite"):
        write_gallery(folder, path)
    with pytest.raises(ConfigError, match="Name a file"):
        write_gallery(folder, tmp_path, GalleryOptions(overwrite=True))
    with pytest.raises(DiskError):
        write_gallery(folder, tmp_path / "none" / "page.html")
    with pytest.raises(SourceError):
        write_gallery(tmp_path / "none", tmp_path / "x.html")
    with pytest.raises(ConfigError, match="limit"):
        write_gallery(folder, tmp_path / "x.html", GalleryOptions(limit=0))

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DiskError, match="No space left"):
            write_gallery(folder, path, GalleryOptions(limit=3, overwrite=True))
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    write_gallery(folder, path, GalleryOptions(limit=3, overwrite=True))
    assert path.read_bytes() != first


def test_command(omr_io, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "page.html"
    asked = ("view", folder, "-o", path, "--limit", 3, "--filter", "answer=B")
    code, out, err = omr_io(*asked)
    assert (code, err) == (0, "")
    assert "3 of 30 (15 pass the filters)" in out
    assert path.exists()
    code, _, err = omr_io(*asked)
    assert code == 2
    assert "--overwrite" in err
    code, out, _ = omr_io(*asked, "--overwrite", "--json")
    about = json.loads(out)
    assert (about["shown"], about["matching"], about["samples"]) == (3, 15, 30)
    assert about["bytes"] == path.stat().st_size


def test_hidden_characters_are_told() -> None:
    assert text("a\u202eb\u200b") == (
        'a<span class="hid">U+202E</span>b<span class="hid">U+200B</span>'
    )
    assert text("x\r\ny\tz") == "x\ny\tz"
    assert text("a\rb<") == 'a<span class="hid">U+000D</span>b&lt;'
    assert escape("a\u2066\x1b") == "a\\u2066\\x1b"
    for (
        char
    ) in "\u00ad\u034f\u061c\u115f\u1160\u180e\u200d\u2060\u2800\u3164\ufe0f\uffa0\U000e0041":
        assert is_hidden(char), hex(ord(char))
    for char in "a é\n\tא中\u00a0\u2009✓😀é":
        assert not is_hidden(char), hex(ord(char))


TWO = (Option("A", "one"), Option("B", "two"))


@pytest.mark.parametrize(
    ("question", "stem", "labels"),
    [
        ("Which?\nA. one\nB. two", "Which?", ["A.", "B."]),
        ("Which?\n\nA) one \nB)  two\n", "Which?", ["A)", "B)"]),
        ("Which?\nA. one\nB. tw0", None, ["A.", "B."]),
        ("A. one\nB. two", None, ["A.", "B."]),
        ("Which? A. one B. two", None, ["A.", "B."]),
    ],
)
def test_options_in_the_question(question: str, stem: str | None, labels: list[str]) -> None:
    assert split_options(question, TWO) == (question if stem is None else stem, labels)


def test_traces() -> None:
    whole = "<think>a</think>\n<answer>B</answer>"
    assert split_trace(whole) == [("think", "a"), ("answer", "B")]
    assert trace_answer(whole) == "B"
    assert split_trace("x<think>a") == [("text", "x<think>a")]
    assert split_trace("plain") == [("text", "plain")]
    assert split_trace("") == []
    assert trace_answer("no") is None
    assert len(split_trace("<think>" * 200_000)) == 1  # and in no time


def test_contrast_is_aa_in_light_and_dark() -> None:
    light, dark = themes(STYLE)
    dark = light | dark

    for theme in (light, dark):
        for ink in ("text", "quiet"):
            for back in ("page", "card", "soft"):
                assert contrast(theme[ink], theme[back]) >= 4.5, (ink, back)
        assert contrast(theme["right"], theme["right-back"]) >= 4.5
        assert contrast(theme["quiet"], theme["right-back"]) >= 4.5
        assert contrast(theme["text"], theme["right-back"]) >= 4.5
        assert contrast(theme["warn"], theme["warn-back"]) >= 4.5
        assert contrast(theme["on-mat"], theme["mat"]) >= 4.5
        for back in ("page", "field"):
            assert contrast(theme["edge"], theme[back]) >= 3
        assert contrast(theme["accent"], theme["card"]) >= 3


def test_the_page_is_accessible(folder: Path, tmp_path: Path) -> None:
    dom = page_of(folder, tmp_path / "p.html")
    assert dom.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in dom.all("img"))
    identifiers = [attributes["id"] for _, attributes in dom.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {attributes["aria-labelledby"] for attributes, _ in dom.articles} <= set(identifiers)
    levels = [int(tag[1]) for tag, _ in dom.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    controls = [*dom.all("select"), *dom.all("input")]
    assert all("aria-label" in one or one.get("type") == "checkbox" for one in controls)


def test_one_thing_is_not_told_as_several(tmp_path: Path) -> None:
    row = record(0, [encoded(0)], reasoning="<think>x</think><answer>A</answer>")
    write(tmp_path / "one", [row])
    words = page_of(tmp_path / "one", tmp_path / "p.html").articles[0][1]
    assert "1 unit" in words
    assert "1 units" not in words
    assert "1 character" in words
    assert "1 characters" not in words
