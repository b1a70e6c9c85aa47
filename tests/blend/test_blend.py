"""Blends of real shard sets: names, filters, balance, and what is refused."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from omr_io.blend import Blend, JoinedSets, Source, open_blend
from omr_io.blend.opening import source_names
from omr_io.errors import ConfigError, DataError, SourceError
from omr_io.index import ShardSet
from omr_io.packing import Lengths


def lengths_of(count: int) -> Lengths:
    text = np.arange(count, dtype=np.int64) % 17 + 5
    return Lengths(text, text * 2, text - 2, text * 8)


def open_descriptors(folder: Path) -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())  # noqa: PTH115


def test_one_set_is_passed_through(folders, opened):
    with open_blend(Blend([Source(folders["mixed"])])) as blend:
        assert isinstance(blend.samples, ShardSet)
        drawing = blend.drawing()
        assert drawing.is_everything
        assert drawing.draw(5, 1).tolist() == list(range(30))
        assert blend.names == ("train",)
    with open_blend(Blend([Source(opened["mixed"])])) as blend:
        assert blend.samples is opened["mixed"]


def test_repeats_of_several_sets(folders):
    sources = [
        Source(folders["mixed"], repeat=2.5),
        Source(folders["single"], repeat=0.25),
        Source(str(folders["biased"])),
    ]
    with open_blend(Blend(sources)) as blend:
        assert isinstance(blend.samples, JoinedSets)
        assert blend.names == ("mixed/train", "single/train", "biased/train")
        drawing = blend.drawing()
        assert not drawing.is_everything
        total: Counter[int] = Counter()
        for epoch in range(4):
            numbers = drawing.draw(epoch, seed=3)
            assert len(numbers) == drawing.size(epoch) == 75 + 5 + 33
            total.update(numbers.tolist())
            assert [(d.source, d.samples, d.drawn) for d in drawing.counts(epoch)] == [
                ("mixed/train", 30, 75), ("single/train", 20, 5), ("biased/train", 33, 33)
            ]  # fmt: skip
        want = dict.fromkeys(range(30), 10) | dict.fromkeys(range(30, 50), 1)
        assert total == want | dict.fromkeys(range(50, 83), 4)


def test_shares_of_an_epoch(folders):
    sources = [Source(folders["mixed"], weight=70), Source(folders["single"], weight=30.0)]
    with open_blend(Blend(sources, samples_per_epoch=50)) as blend:
        drawing = blend.drawing()
        total: Counter[int] = Counter()
        for epoch in range(6):
            numbers = drawing.draw(epoch, 0)
            assert [int((numbers < 30).sum()), int((numbers >= 30).sum())] == [35, 15]
            total.update(numbers.tolist())
        assert {total[number] for number in range(30)} == {7}
        assert {total[number] for number in range(30, 50)} == {4, 5}


# One set in several sources


def test_one_set_in_several_sources_is_opened_once(folders, monkeypatch):
    seen = []
    real = ShardSet.open.__func__

    def counting(cls, path, options=None):
        seen.append(path)
        return real(cls, path, options)

    monkeypatch.setattr(ShardSet, "open", classmethod(counting))
    hard = Source(folders["biased"], repeat=2, where=lambda c: c.num_options == 4, name="hard")
    easy = Source(f"{folders['biased']}/", where=lambda c: c.num_options != 4, name="easy")
    other = Source(folders["single"])
    with open_blend(Blend([hard, other, easy])) as blend:
        assert len(seen) == 2
        assert isinstance(blend.samples, JoinedSets)
        assert blend.samples.names == ("hard+easy", "train")
        assert len(blend.samples) == 53
        assert blend.drawing().numbers().tolist() == list(range(53))
        counts = Counter(blend.drawing().draw(0, 0).tolist())
        for number in range(53):
            options = blend.samples.num_options[number]
            assert counts[number] == (2 if number < 33 and options == 4 else 1)


def test_equal_contents_are_one_set_wherever_they_are(folders, tmp_path):
    shutil.copytree(folders["single"], tmp_path / "copy")
    with open_blend(Blend([Source(folders["single"]), Source(tmp_path / "copy")])) as blend:
        assert len(blend.samples) == 20
        assert set(Counter(blend.drawing().draw(0, 0).tolist()).values()) == {2}


def test_draws_and_fingerprints_do_not_depend_on_paths_and_names(folders, tmp_path):
    def made(root, **names):
        sources = [
            Source(root / name / "train", repeat=0.5, name=names.get(name))
            for name in ("mixed", "single")
        ]
        with open_blend(Blend(sources)) as blend:
            drawing = blend.drawing()
            return blend.samples.fingerprint, drawing.fingerprint, drawing.draw(1, 8).tolist()

    root = folders["mixed"].parents[1]
    shutil.copytree(root, tmp_path / "elsewhere")
    assert made(root) == made(tmp_path / "elsewhere") == made(root, mixed="a", single="b")


# Filters


def test_filters_see_the_index(opened):
    one = opened["mixed"]
    images = [one.images(i) for i in range(len(one))]
    oracles = {
        "num_images": [len(of) for of in images],
        "widths": [of[0].oriented[0] if of else 0 for of in images],
        "heights": [of[0].oriented[1] if of else 0 for of in images],
        "formats": [of[0].format if of else "" for of in images],
        "megapixels": [sum(i.width * i.height for i in of) / 1e6 for of in images],
        "encoded_bytes": [sum(map(len, one.read_images(i))) for i in range(len(one))],
        "answers": one.answers(),
        "keys": [one.key(i) for i in range(len(one))],
        "num_options": one.num_options.tolist(),
        "question_bytes": one.question_bytes.tolist(),
        "reasoning_bytes": one.reasoning_bytes.tolist(),
        "shards": one.sample_shards.tolist(),
    }
    per_image = {
        "image_formats": one.image_formats(),
        "image_widths": [image.oriented[0] for of in images for image in of],
        "image_heights": [image.oriented[1] for of in images for image in of],
        "image_modes": [image.mode for of in images for image in of],
        "image_bytes": one.image_sizes().tolist(),
        "image_orientations": one.image_orientations.tolist(),
        "image_hashes": one.image_hashes.tolist(),
    }
    seen = []

    def where(columns):
        seen.append(columns)
        return columns.num_images == 1

    with open_blend(Blend([Source(one, where=where, name="m")])) as blend:
        drawing = blend.drawing(lengths_of(30))
    columns = seen[0]
    assert drawing.draw(0, 0).tolist() == [i for i, of in enumerate(images) if len(of) == 1]
    assert drawing.numbers().tolist() == drawing.draw(0, 0).tolist()
    assert columns.source == "m"
    assert columns.shard_names == one.shard_names
    assert len(columns) == 30
    for name, want in (oracles | per_image).items():
        column = getattr(columns, name)
        assert column.tolist() == want, name
        with pytest.raises(ValueError, match="read-only"):
            column[0] = column[0]
    assert columns.text_tokens.tolist() == lengths_of(30).text_tokens.tolist()
    jpeg = columns.image_formats == "jpeg"
    kinds = [{image.format for image in of} for of in images]
    assert columns.any_image(jpeg).tolist() == ["jpeg" in of for of in kinds]
    assert columns.all_images(jpeg).tolist() == [of <= {"jpeg"} for of in kinds]
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        columns.any_image(jpeg[:3])


def test_orientation_is_applied(tmp_path):
    from PIL import Image

    from tests import shard_sets

    exif = Image.Exif()
    exif[0x0112] = 6
    turned = shard_sets.encoded(1, size=(20, 50), exif=exif)
    shard_sets.write(tmp_path / "set", [shard_sets.record(1, [turned])])
    seen = []
    source = Source(tmp_path / "set", where=lambda c: seen.append(c) or c.widths < c.heights)
    with open_blend(Blend([source])) as blend:
        assert blend.drawing().size(0) == 1
    assert (seen[0].widths[0], seen[0].heights[0]) == (20, 50)


def test_lengths_of_each_source_are_its_own(folders):
    lengths = lengths_of(50)
    sources = [
        Source(folders["mixed"], where=lambda c: c.text_tokens < 10),
        Source(folders["single"], where=lambda c: c.image_tokens + c.label_tokens > 30),
    ]
    with open_blend(Blend(sources)) as blend:
        numbers = blend.drawing(lengths).draw(0, 0)
        want = [n for n in range(30) if lengths.text_tokens[n] < 10]
        both = lengths.image_tokens + lengths.label_tokens
        want += [n for n in range(30, 50) if both[n] > 30]
        assert sorted(numbers.tolist()) == want
        with pytest.raises(ConfigError, match="source mixed/train: `where` fails: the lengths"):
            blend.drawing()
        with pytest.raises(ConfigError, match="lengths of 49 samples for a blend of 50"):
            blend.drawing(lengths_of(49))


def _random(columns):
    return np.random.default_rng().integers(0, 2, len(columns)).astype(bool)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        (lambda c: c.num_option >= 4, ConfigError, "AttributeError: .*num_option"),
        (lambda c: 1 / 0, ConfigError, "ZeroDivisionError"),
        (lambda c: c.num_options >= 2 and c.num_images > 0, ConfigError, "each comparison in"),
        (lambda c: c.num_options, ConfigError, r"bool and shape \(30,\), not int32"),
        (lambda c: [True] * 30, ConfigError, "not list"),
        (lambda c: True, ConfigError, "not bool"),
        (lambda c: c.image_widths > 0, ConfigError, r"shape \(30,\), not bool and \(\d+,\)"),
        (lambda c: (c.num_options > 0)[:, None], ConfigError, r"not bool and \(30, 1\)"),
        (lambda c: c.num_options > 9, DataError, "takes none of 30 samples"),
        (_random, ConfigError, "another answer when it is asked again"),
        (lambda c: c.question_bytes.sort(), ConfigError, "read-only"),
    ],
)
def test_a_filter_that_is_wrong(folders, where, error, message):
    with open_blend(Blend([Source(folders["mixed"], where=where, name="m")])) as blend:
        with pytest.raises(error, match=message) as caught:
            blend.drawing()
        assert "source m: `where`" in str(caught.value)


def test_the_fingerprint_is_of_what_a_filter_takes_not_of_how(folders):
    def made(where, **options):
        with open_blend(Blend([Source(folders["mixed"], where=where, **options)])) as blend:
            return blend.drawing().fingerprint

    base = made(lambda c: c.num_images == 1)
    assert made(lambda c: (c.num_images > 0) & (c.num_images < 2)) == base
    others = [made(None), made(lambda c: c.num_images == 2), made(None, repeat=2)]
    others.append(made(lambda c: c.num_images == 1, repeat=Fraction(1, 3)))
    assert len({base, *others}) == 5


# Balanced answers


@pytest.mark.parametrize(("how", "each"), [("upsample", (20, 3)), ("subsample", (1, 1))])
def test_letters_are_balanced_exactly(folders, how, each):
    sources = [Source(folders["biased"], balance_answers=how), Source(folders["single"])]
    with open_blend(Blend(sources)) as blend:
        drawing, samples = blend.drawing(), blend.samples
        seen: set[int] = set()
        for epoch in range(20):
            counts: Counter[tuple[int, str]] = Counter()
            numbers = drawing.draw(epoch, 0)
            for n in numbers[numbers < 33].tolist():
                counts[int(samples.num_options[n]), samples.answer(n)] += 1
            four, two = each
            want = {(4, letter): four for letter in "ABCD"} | {(2, "A"): two, (2, "B"): two}
            assert counts == want | {(0, ""): 3}
            seen |= set(numbers.tolist())
        assert seen == set(range(53))
        names = [drawn.stratum for drawn in drawing.counts(0)]
        assert names[0] == "open-ended"
        assert names[1:3] == ["2 options, answer A", "2 options, answer B"]
        assert names[-1] == ""
        again = pickle.loads(pickle.dumps(drawing))
        assert again.draw(3, 1).tolist() == drawing.draw(3, 1).tolist()


def test_balanced_letters_by_shares(folders):
    source = Source(folders["biased"], weight=1, balance_answers="upsample")
    blend_ = Blend([source, Source(folders["single"], weight=1)], samples_per_epoch=90)
    with open_blend(blend_) as blend:
        drawing, samples = blend.drawing(), blend.samples
        total = 0
        for epoch in range(8):
            numbers = drawing.draw(epoch, 0)
            assert int((numbers >= 33).sum()) == 45
            mine = numbers[numbers < 33].tolist()
            assert abs(len(mine) - 45) < 4 + 2 + 1
            total += len(mine)
            counts = Counter((int(samples.num_options[n]), samples.answer(n)) for n in mine)
            assert len({counts[4, letter] for letter in "ABCD"}) == 1
            assert counts[2, "A"] == counts[2, "B"]
        assert abs(total - 8 * 45) < 4 + 2 + 1


def test_balance_after_a_filter(folders):
    with ShardSet.open(folders["biased"]) as one:
        last = len(one) - 1 - one.answers()[::-1].index("D")
    missing = Source(
        folders["biased"], where=lambda c: np.arange(len(c)) != last, balance_answers="upsample"
    )
    with open_blend(Blend([missing])) as blend, pytest.raises(DataError, match=r"none of 25 .* D,"):
        blend.drawing()
    fewer = Source(
        folders["biased"], where=lambda c: c.num_options == 2, balance_answers="subsample"
    )
    with open_blend(Blend([fewer])) as blend:
        assert blend.drawing().size(0) == 2


# What is refused, and what is closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 0}, "repeat is 0"),
        ({"repeat": -1.5}, "repeat is -1.5"),
        ({"repeat": float("nan")}, "repeat is nan"),
        ({"repeat": True}, "repeat is True"),
        ({"weight": 0}, "weight is 0"),
        ({"weight": 1, "repeat": 2}, "both repeat 2 and weight 1"),
        ({"where": "num_options >= 4"}, "where is a str, not a function"),
        ({"balance_answers": "up"}, 'Use "upsample" or "subsample"'),
        ({"name": ""}, "name of a source"),
    ],
)
def test_a_source_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Source("x", **options)


@pytest.mark.parametrize(
    ("sources", "total", "message"),
    [
        ([], None, "a list of sources"),
        (["x"], None, "a list of sources"),
        ([Source("x", weight=1)], None, "no samples_per_epoch"),
        ([Source("x", weight=1), Source("y")], None, "1 of 2 sources have a weight"),
        ([Source("x", weight=1), Source("y")], 10, "1 of 2 sources have no weight"),
        ([Source("x", repeat=2)], 10, "1 of 1 sources have no weight"),
        ([Source("x", weight=1)], 0, "samples_per_epoch 0"),
        ([Source("x", weight=1)], 1.5, "samples_per_epoch 1.5"),
        ([Source("x", weight=1)], True, "samples_per_epoch True"),
    ],
)
def test_a_blend_that_cannot_be(sources, total, message):
    with pytest.raises(ConfigError, match=message):
        Blend(sources, samples_per_epoch=total)
    with pytest.raises(ConfigError, match="not a path or a ShardSet"):
        Source(None)


def test_a_weight_that_is_too_small_for_a_sample(folders):
    sources = [
        Source(folders["mixed"], weight=1000, name="a"),
        Source(folders["single"], weight=1, name="b"),
    ]
    blend_ = Blend(sources, samples_per_epoch=20)
    with open_blend(blend_) as blend, pytest.raises(ConfigError, match="source b: its weight is"):
        blend.drawing()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/data/a/train"], ["train"]),
        (["/data/a/train", "/data/b/train"], ["a/train", "b/train"]),
        (["/data/a/train", "/data/b/test"], ["train", "test"]),
        (["/x/a/train", "/y/a/train", "/y/b"], ["x/a/train", "y/a/train", "b"]),
        (["s3://bucket/a/train/", "/data/b/train"], ["a/train", "b/train"]),
        (["/a", "/b/a"], ["a", "b/a"]),
        (["https://me:pw@h/train?key=1", "https://me:pw@i/train?key=2"], ["h/train", "i/train"]),
        (["hf://datasets/a/b/train", "/data"], ["train", "data"]),
    ],
)
def test_names_are_what_tells_paths_apart(paths, names):
    assert source_names([Source(path) for path in paths]) == names


def test_names_that_are_the_same():
    for sources in (
        [Source("/a/train"), Source("/a/train")],
        [Source("/a/train"), Source("/b", name="train")],
    ):
        with pytest.raises(ConfigError, match=r"several sources have the name train. .*name="):
            source_names(sources)


def test_only_what_was_opened_here_is_closed(folders, opened):
    given = opened["single"]
    with open_blend(Blend([Source(given), Source(folders["mixed"])])) as blend:
        for number in range(len(blend.samples)):
            blend.samples.read_record(number)
        assert open_descriptors(folders["mixed"])
        assert open_descriptors(folders["single"])
    assert not open_descriptors(folders["mixed"])
    assert open_descriptors(folders["single"])


def test_a_set_that_is_not_there(folders, tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        open_blend(Blend([Source(folders["mixed"]), Source(tmp_path / "nowhere")]))
