"""The demo corpus: its schema, its truths (measured again with Pillow alone), its split."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageStat

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("skimage")
pytest.importorskip("data_store")

from omr_io.demo_corpus import DemoCorpusSummary, build  # noqa: E402
from omr_io.demo_corpus.plan import split_studies  # noqa: E402
from omr_io.demo_corpus.readers import PLANES, read_dicom, read_volume  # noqa: E402
from omr_io.demo_corpus.sources import (  # noqa: E402
    FOLDERS,
    LEFT_OUT,
    MODALITIES,
    SHIPPED,
    files_left_out,
    folder_of,
)
from omr_io.demo_corpus.studies import Study, collect, similarity  # noqa: E402
from omr_io.errors import ConfigError, DiskError, ImageError, SourceError  # noqa: E402

TRAIN, TEST = 120, 40
UNIT = ["unit_id", "topic", "claim", "presence_question", "correctness_question", "source_quote",
        "importance"]  # fmt: skip
BODY_AND_LETTER = re.compile(
    r"<think>(.+) That is option ([A-E])\.</think><answer>([A-E])</answer>"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpusSummary:
    def refuse(*_: object) -> None:
        raise AssertionError("the demo corpus must not use the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        out = tmp_path_factory.mktemp("demo") / "deep" / "demo.parquet"
        return build(out, train_rows=TRAIN, test_rows=TEST)


@pytest.fixture(scope="module")
def splits(made: DemoCorpusSummary) -> dict[str, list[dict]]:
    return {split: pq.read_table(path).to_pylist() for split, path in made.paths.items()}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[dict]]) -> list[dict]:
    return splits["train"] + splits["test"]


@pytest.fixture(scope="module")
def studies() -> tuple[Study, ...]:
    return collect()[0]


def options_of(row: dict) -> dict[str, str]:
    lines = row["question"].split("\n")[1:]
    matches = [re.fullmatch(r"([A-E])([.)]) (.+)", line) for line in lines]
    assert all(matches), row["question"]
    assert len({match[2] for match in matches}) == 1
    return {match[1]: match[3] for match in matches}


def truth(row: dict) -> str:
    return options_of(row)[row["answer"]]


def mean(image: Image.Image, box: tuple[int, int, int, int]) -> float:
    return ImageStat.Stat(image.crop(box)).mean[0]


def decode(row: dict) -> Image.Image:
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    image.load()
    return image


def test_schema_is_that_of_openmedreason_and_three_columns_of_our_own(made):
    units = pa.list_(pa.struct([(name, pa.string()) for name in UNIT]))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = [("question", pa.string()), ("reasoning", pa.string()), ("answer", pa.string())]
    own = [("id", pa.string()), ("study", pa.string()), ("task", pa.string())]
    axes = [(axis, units) for axis in ("perception", "knowledge", "rationale")]
    assert pq.read_schema(made.paths["train"]).equals(pa.schema([("image", image), *text, *own]))
    assert pq.read_schema(made.paths["test"]).equals(
        pa.schema([("image", image), *text, *axes, *own])
    )
    assert made.paths["test"].name == "demo-test.parquet"
    assert not list(made.paths["train"].parent.glob(".*"))


def test_ids_and_paths(rows):
    assert len({row["id"] for row in rows}) == len(rows) == TRAIN + TEST
    for row in rows:
        suffix = {"JPEG": ".jpg", "PNG": ".png"}[decode(row).format]
        assert row["image"]["path"] == row["id"] + suffix


def test_quadrants_and_halves_are_true_of_the_stored_image(rows):
    seen = Counter()
    for row in rows:
        image = decode(row).convert("RGB").convert("L")
        w, h = image.size
        if row["task"] == "quadrant":
            boxes = {
                "upper left": (0, 0, w // 2, h // 2),
                "upper right": (w // 2, 0, w, h // 2),
                "lower left": (0, h // 2, w // 2, h),
                "lower right": (w // 2, h // 2, w, h),
            }
        elif row["task"] == "half":
            boxes = {
                "left half": (0, 0, w // 2, h),
                "right half": (w // 2, 0, w, h),
                "top half": (0, 0, w, h // 2),
                "bottom half": (0, h // 2, w, h),
            }
        else:
            continue
        asked = {name: mean(image, boxes[name]) for name in options_of(row).values()}
        best = max(asked, key=asked.__getitem__)
        assert best == truth(row), row["id"]
        others = [value for name, value in asked.items() if name != best]
        assert asked[best] - max(others) >= 11, row["id"]
        seen[best] += 1
    assert len(seen) == 8
    assert max(seen.values()) <= 2.5 * min(seen.values())


def test_inversion_is_true_of_the_stored_image(rows):
    for row in rows:
        if row["task"] == "inversion":
            histogram = decode(row).convert("RGB").convert("L").histogram()
            dark, bright = sum(histogram[:52]), sum(histogram[204:])
            assert (bright > dark) == (truth(row) == "yes"), row["id"]


def test_metadata_answers_are_those_of_the_files(rows):
    shipped = {item.study: item for item in SHIPPED}
    checked = Counter()
    for row in rows:
        item = shipped[row["study"]]
        if row["task"] == "modality" and item.reader == "dicom":
            header = pydicom.dcmread(folder_of(item.folder) / item.file, stop_before_pixels=True)
            assert truth(row) == MODALITIES[header.Modality]
        elif row["task"] == "body_part":
            assert truth(row) in ("head", "abdomen", "eye", "chest", "leg", "shoulder", "heart")
            assert item.body_part in (None, truth(row))
        elif row["task"] == "plane":
            assert truth(row) in PLANES
        checked[row["task"]] += 1
    assert min(checked[task] for task in ("modality", "body_part", "plane")) > 0


def test_metadata_answers_occur_in_both_splits(splits):
    for task in ("modality", "plane", "body_part"):
        offered = {
            split: {
                text for row in rows if row["task"] == task for text in options_of(row).values()
            }
            for split, rows in splits.items()
        }
        answers = {truth(row) for row in splits["train"] if row["task"] == task}
        assert offered["test"] <= answers
        assert len(answers) >= 2


def test_images_hold_something_and_vary_in_size_and_storage(rows):
    kinds = Counter()
    sizes = set()
    for row in rows:
        image = decode(row)
        assert 96 <= min(image.size) <= max(image.size) <= 256
        assert np.asarray(image.convert("RGB")).std() >= 7
        sizes.add(image.size)
        kinds[image.format, image.mode, bool(image.info.get("progressive"))] += 1
    assert len(sizes) > 40
    assert {("JPEG", "RGB", False), ("JPEG", "L", False), ("PNG", "I;16", False),
            ("PNG", "P", False), ("PNG", "LA", False)} <= set(kinds)  # fmt: skip
    assert sum(number for (_, _, progressive), number in kinds.items() if progressive) >= 4


def test_no_study_and_no_image_is_in_both_splits(splits, made):
    train, test = ({row["study"] for row in splits[split]} for split in ("train", "test"))
    assert not train & test
    assert train <= set(made.studies["train"])
    assert test <= set(made.studies["test"])
    assert not set(made.studies["train"]) & set(made.studies["test"])
    hashes = [hashlib.sha256(row["image"]["bytes"]).digest() for rows in splits.values()
              for row in rows]  # fmt: skip
    assert len(set(hashes)) == len(hashes)


def test_no_picture_is_in_studies_of_both_splits(studies):
    def shape(study: Study) -> np.ndarray:
        small = [Image.fromarray(view.pixels).convert("L").resize((24, 24)) for view in study.views]
        flat = np.stack([np.asarray(image, dtype=np.float64).ravel() for image in small])
        return flat

    split = split_studies(studies, seed=0)
    assert len(split["train"]) + len(split["test"]) == len(studies) == len(SHIPPED)
    for first in split["train"]:
        for second in split["test"]:
            together = np.abs(np.corrcoef(shape(first), shape(second)))
            assert together[: len(first.views), len(first.views) :].max() < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_every_modality_with_two_studies_is_in_both_splits(studies, seed):
    split = split_studies(studies, seed)
    counts = Counter(study.modality for study in studies)
    for modality, number in counts.items():
        present = [any(s.modality == modality for s in group) for group in split.values()]
        assert all(present) if number >= 2 else present == [True, False]
    assert 0.2 <= len(split["test"]) / len(studies) <= 0.4


def test_letters_are_even_among_questions_with_as_many_options(splits):
    for rows in splits.values():
        groups: dict[int, Counter] = {}
        for row in rows:
            options = options_of(row)
            assert list(options) == list("ABCDE"[: len(options)])
            assert len(set(options.values())) == len(options)
            groups.setdefault(len(options), Counter())[row["answer"]] += 1
        assert {2, 3, 4} <= set(groups) <= {2, 3, 4, 5}
        for number, letters in groups.items():
            counts = [letters[letter] for letter in "ABCDE"[:number]]
            assert max(counts) - min(counts) <= 1


def test_traces_name_the_fact_and_agree_with_the_answer(rows):
    for row in rows:
        match = BODY_AND_LETTER.fullmatch(row["reasoning"])
        assert match, row["reasoning"]
        body, letter, answer = match.groups()
        assert letter == answer == row["answer"]
        said, known = body.split(".", 1)
        assert said.startswith(truth(row))
        wrong = set(options_of(row).values()) - {truth(row)}
        assert not any(text in body for text in wrong if len(text) > 3)  # not "no" in "normal"
        if row["task"] == "inversion":
            assert ("background is bright" in said) == (truth(row) == "yes")
            assert ("background is dark" in said) == (truth(row) == "no")
        assert known.strip()
        assert len(row["question"].split()) <= 40
        assert 12 <= len(row["reasoning"].split()) <= 40


def test_rubric_units_are_whole_and_quote_the_trace(splits):
    ids = []
    for row in splits["test"]:
        for axis in ("perception", "knowledge", "rationale"):
            assert 1 <= len(row[axis]) <= 2
            for unit in row[axis]:
                assert list(unit) == UNIT
                assert all(unit.values())
                assert unit["source_quote"] in row["reasoning"]
                ids.append(unit["unit_id"])
    assert len(set(ids)) == len(ids)


def test_summary_counts_what_was_written(splits, made):
    assert made.rows == {"train": TRAIN, "test": TEST}
    for split, rows in splits.items():
        assert made.tasks[split] == Counter(row["task"] for row in rows)
        assert made.letters[split] == {
            letter: number / len(rows)
            for letter, number in Counter(row["answer"] for row in rows).items()
        }
        assert sum(made.modalities[split].values()) == len(rows)
    shares = {task: number / TRAIN for task, number in made.tasks["train"].items()}
    assert shares == pytest.approx(
        {"quadrant": 0.35, "half": 0.30, "inversion": 0.2, "modality": 0.05, "plane": 0.05,
         "body_part": 0.05}, abs=1 / TRAIN)  # fmt: skip


def test_same_seed_same_rows_and_progress(made, tmp_path):
    calls: list[tuple[str, int, int]] = []
    again = build(tmp_path / "x.parquet", train_rows=TRAIN, test_rows=TEST,
                  progress=lambda *call: calls.append(call))  # fmt: skip
    for split, path in again.paths.items():
        assert path.read_bytes() == made.paths[split].read_bytes()
    assert [call for call in calls if call[1] == call[2]] == [
        ("studies", len(SHIPPED), len(SHIPPED)), ("train", TRAIN, TRAIN), ("test", TEST, TEST)
    ]  # fmt: skip


def make_extra(folder: Path) -> Path:
    """New pictures, copies of shipped ones in other encodings, and files that cannot be read."""
    rng = np.random.default_rng(5)
    for name in ("one.png", "two.jpg"):
        noise = Image.fromarray(rng.integers(0, 255, (6, 7), dtype=np.uint8))
        noise.resize((210, 180), Image.Resampling.BICUBIC).save(folder / name)
    volume = rng.random((30, 40, 44))  # stored as inferior, right, back: not RAS
    affine = np.array([[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "volume.nii.gz")
    (folder / "sub").mkdir()
    shutil.copy(folder_of("pydicom") / "MR_small_RLE.dcm", folder / "sub" / "copy.dcm")
    shutil.copy(folder_of("pydicom") / "MR_truncated.dcm", folder / "cut.dcm")
    shutil.copy(folder_of("pydicom") / "liver_1frame.dcm", folder / "mask.dcm")
    (folder / "broken.png").write_bytes((folder / "one.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_extra_folders_bias_and_named_refusals(tmp_path):
    folder = make_extra(tmp_path)
    made = build(tmp_path / "out" / "demo.parquet", train_rows=TRAIN, test_rows=TEST, seed=3,
                 extra=[folder], answer_bias=0.77)  # fmt: skip
    names = set(made.studies["train"]) | set(made.studies["test"])
    assert {"extra/one.png", "extra/two.jpg", "extra/volume.nii.gz"} <= names
    assert len(names) == len(SHIPPED) + 3  # the RLE copy joined the study it shows
    reasons = {Path(name).name: why for name, why in made.left_out if str(folder) in name}
    assert set(reasons) == {"cut.dcm", "mask.dcm", "broken.png", "notes.txt"}
    assert "SEG" in reasons["mask.dcm"]
    assert "not a DICOM" in reasons["notes.txt"]
    rows = {split: pq.read_table(path).to_pylist() for split, path in made.paths.items()}
    four = [row for row in rows["train"] if len(options_of(row)) == 4]
    assert sum(row["answer"] == "A" for row in four) == round(0.77 * len(four))
    held_out = Counter(row["answer"] for row in rows["test"] if row["task"] == "quadrant")
    assert max(held_out.values()) - min(held_out.values()) <= 2


def test_a_copy_in_another_encoding_is_the_same_study(tmp_path):
    shutil.copy(folder_of("pydicom-data") / "MR2_J2KR.dcm", tmp_path / "copy.dcm")
    found, _ = collect([tmp_path])
    (whole,) = [study for study in found if study.name == "mr-shoulder"]
    assert str(tmp_path / "copy.dcm") in whole.files
    assert len(found) == len(SHIPPED)
    assert similarity(whole, whole) == pytest.approx(1, abs=1e-5)


def test_planes_of_a_volume_come_from_its_affine(tmp_path):
    make_extra(tmp_path)
    sizes = {
        view.plane: view.pixels.shape for view in read_volume(tmp_path / "volume.nii.gz").views
    }
    # x (left to right) has 40 voxels, y 44, z 30; a view is (height, width).
    assert sizes == {"axial": (44, 40), "coronal": (30, 40), "sagittal": (30, 44)}


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.93, -0.37], "axial"),
        ([0.57, 0.82, 0, 0, 0, -1], None),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_window_polarity_and_plane(tmp_path, cosines, plane, photometric):
    dataset = pydicom.dcmread(folder_of("pydicom") / "CT_small.dcm")
    stored = np.linspace(0, 4000, 128 * 128).astype(np.int16).reshape(128, 128)
    dataset.PixelData = stored.tobytes()
    dataset.PhotometricInterpretation = photometric
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.WindowCenter, dataset.WindowWidth = 1000, 2000
    dataset.ImageOrientationPatient = cosines
    dataset.save_as(tmp_path / "ramp.dcm")
    reading = read_dicom(tmp_path / "ramp.dcm")
    # PS3.3 C.11.2.1.2: c - 0.5 and w - 1, linear in between.
    units = stored * 2.0 - 1000
    grey = np.clip(((units - 999.5) / 1999 + 0.5) * 255, 0, 255)
    wanted = 255 - grey if photometric == "MONOCHROME1" else grey
    (view,) = reading.views
    assert np.abs(view.pixels - wanted).max() <= 1
    assert (view.plane, reading.modality) == (plane, "CT")


def test_shipped_studies_need_no_optional_decoder(monkeypatch):
    import pydicom.pixels

    used = set()
    original = pydicom.pixels.pixel_array

    def spy(dataset, *, decoding_plugin="", **rest):
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            used.add(decoding_plugin)
        return original(dataset, decoding_plugin=decoding_plugin, **rest)

    monkeypatch.setattr(pydicom.pixels, "pixel_array", spy)
    for item in SHIPPED:
        if item.reader == "dicom":
            assert read_dicom(folder_of(item.folder) / item.file).views
    assert used == {"pillow"}


def test_every_file_of_the_packages_is_taken_or_left_out_with_a_reason():
    left = dict(files_left_out())
    assert left["pydicom/SC_rgb_rle.dcm"].startswith("a colour or grey test pattern")
    for item in SHIPPED:
        assert (folder_of(item.folder) / item.file).exists()
        assert f"{item.folder}/{item.file}" not in left
    assert len({item.study for item in SHIPPED}) == len(SHIPPED)
    assert all(any(Path(f).match(where) for f in FOLDERS) for where, _, _ in LEFT_OUT)
    assert json.dumps(left)


@pytest.mark.parametrize(
    "wrong",
    [{"train_rows": 0}, {"test_rows": -1}, {"answer_bias": 1.5}, {"answer_bias": float("nan")}],
)
def test_arguments_out_of_range(tmp_path, wrong):
    with pytest.raises(ConfigError):
        build(tmp_path / "demo.parquet", **wrong)
    assert not list(tmp_path.iterdir())


def test_wrong_paths(tmp_path):
    with pytest.raises(ConfigError, match="parquet"):
        build(tmp_path / "demo.csv")
    with pytest.raises(SourceError, match="does not exist"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(ImageError, match="alike"):
        read_dicom(folder_of("nibabel-dicom") / "decimal_rescale.dcm")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        build(tmp_path / "file" / "demo.parquet", train_rows=1, test_rows=1)
    (tmp_path / "demo-test.parquet").mkdir()
    with pytest.raises(DiskError, match=r"demo-test\.parquet"):
        build(tmp_path / "demo.parquet", train_rows=8, test_rows=8)
    assert not list(tmp_path.glob(".*"))


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "skimage" else original(name)
    )
    with pytest.raises(ConfigError, match=r"pip install omr_io\[demo\]"):
        build(tmp_path / "demo.parquet", train_rows=1, test_rows=1)
