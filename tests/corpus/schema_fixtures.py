"""A small file of every schema in its real form on disk, its known defects as rows, and what each
row must become. All content is made up; the images are real JPEG and PNG files.

`FIXTURES` are used row by row (test_schemas.py) and through the command line from the file on.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from omr_io.corpus.raw import ColumnType
from omr_io.types import EncodedImage, Option, Record, RubricUnit

Row = dict[str, Any]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = pa.string()
UNIT = ("unit_id", "topic", "claim", "presence_question", "correctness_question", "source_quote")


def picture(number: int, kind: str = "JPEG") -> bytes:
    """An image of 48 by 40 pixels, another one for each number."""
    image = Image.new("RGB", (48, 40), (10 * number % 256, 90, 40))
    image.paste((250, 240, 10 * number % 256), (8, 8, 30, 24))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class Expected:
    """What a row must become: a Record (all of it), or a refusal by its reason."""

    reason: str | None = None
    question: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    reasoning: str = ""
    images: tuple[EncodedImage, ...] = ()
    extra: Row = field(default_factory=dict)
    id: str | None = None
    rubric: tuple[RubricUnit, ...] = ()

    def record(self, file_name: str, row: int) -> Record:
        """The Record; ids that the schema does not take are those of the row's place."""
        lettered = zip(ascii_uppercase, self.options, strict=False)
        return Record(
            id=self.id or f"{Path(file_name).stem}-{row:08d}",
            question=self.question,
            options=tuple(Option(letter, text) for letter, text in lettered),
            answer=self.answer,
            reasoning=self.reasoning,
            rubric=self.rubric,
            images=self.images,
            source=f"{file_name}#{row}",
            extra=self.extra,
        )


@dataclass(frozen=True)
class Fixture:
    """A source of one schema.

    Attributes:
        schema: that it must be recognised as.
        file: its name; the suffix says the format: parquet, json, jsonl, csv or tar.
        rows, expected: in step.
        types: of a Parquet file's columns.
        images: beside the source, by name, in `root`: a folder ("images"), or a zip or tar.gz.
        options: further arguments of ReadOptions.
        written_as: the format, where the file's suffix lies about it.
    """

    schema: str
    file: str
    rows: tuple[Row, ...]
    expected: tuple[Expected, ...]
    types: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    root: str = "images"
    options: Row = field(default_factory=dict)
    written_as: str = ""

    @property
    def columns(self) -> dict[str, ColumnType]:
        """What a reader of this format says of the columns."""
        if self.file.endswith(".csv"):
            return {name: ColumnType("text") for name in self.rows[0]}
        if self.types:
            return {name: of_arrow(kind) for name, kind in self.types.items()}
        found: dict[str, ColumnType] = {}
        for row in self.rows:
            for name, value in row.items():
                found[name] = merged(found.get(name, ColumnType("null")), of_value(value))
        return found

    def write(self, folder: Path) -> tuple[Path, Path | None]:
        """Write the source, and its images: their paths."""
        path = folder / self.file
        WRITERS[self.written_as or path.suffix](self, path)
        if not self.images:
            return path, None
        root = folder / self.root
        write_images(root, self.images)
        return path, root


def of_value(value: object) -> ColumnType:
    """The type of a value of a JSON file."""
    if isinstance(value, dict):
        return ColumnType("struct", fields=tuple((n, of_value(v)) for n, v in value.items()))
    if isinstance(value, list):
        item = ColumnType("null")
        for one in value:
            item = merged(item, of_value(one))
        return ColumnType("list", item)
    kinds: dict[type, Any] = {str: "text", bool: "boolean", int: "integer", float: "float"}
    kinds |= {bytes: "bytes", type(None): "null"}
    return ColumnType(kinds[type(value)])


def merged(one: ColumnType, other: ColumnType) -> ColumnType:
    """The type of values of two types."""
    if one == other or other.kind == "null":
        return one
    if one.kind == "null":
        return other
    if one.kind == other.kind == "list" and one.item and other.item:
        return ColumnType("list", merged(one.item, other.item))
    if one.kind == other.kind == "struct":
        fields = dict(one.fields)
        for name, kind in other.fields:
            fields[name] = merged(fields.get(name, ColumnType("null")), kind)
        return ColumnType("struct", fields=tuple(fields.items()))
    return ColumnType("mixed")


def of_arrow(kind: Any) -> ColumnType:
    """The type of a Parquet column, for the few types of these fixtures."""
    if pa.types.is_list(kind):
        return ColumnType("list", of_arrow(kind.value_type))
    if pa.types.is_struct(kind):
        return ColumnType("struct", fields=tuple((f.name, of_arrow(f.type)) for f in kind))
    names: dict[Any, Any] = {pa.string(): "text", pa.binary(): "bytes", pa.int64(): "integer"}
    return ColumnType(names[kind])


def write_images(root: Path, images: dict[str, bytes]) -> None:
    """A folder, a zip or a tar of images."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)
    elif root.suffixes[-2:] == [".tar", ".gz"]:
        with tarfile.open(root, "w:gz") as tar:
            add_members(tar, images)
    else:
        for name, data in images.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


def add_members(tar: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        about = tarfile.TarInfo(name)
        about.size = len(data)
        tar.addfile(about, io.BytesIO(data))


def write_parquet(fixture: Fixture, path: Path) -> None:
    arrays = [
        pa.array([row.get(name) for row in fixture.rows], kind)
        for name, kind in fixture.types.items()
    ]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(fixture.types)), path)


def write_json(fixture: Fixture, path: Path) -> None:
    path.write_text(json.dumps(list(fixture.rows), ensure_ascii=False, indent=1), "utf-8")


def write_jsonl(fixture: Fixture, path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in fixture.rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_csv(fixture: Fixture, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(fixture.rows[0]))
        writer.writeheader()
        writer.writerows(fixture.rows)


def write_webdataset(fixture: Fixture, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for row in fixture.rows:
            for name, value in row.items():
                if name == "__key__" or value is None:
                    continue
                data = value if isinstance(value, bytes) else str(value).encode()
                if isinstance(value, dict):
                    data = json.dumps(value).encode()
                add_members(tar, {f"{row['__key__']}.{name}": data})


WRITERS = {
    ".parquet": write_parquet,
    ".json": write_json,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".tar": write_webdataset,
}


def no(reason: str) -> Expected:
    """A refusal."""
    return Expected(reason=reason)


def shown(*images: tuple[str, bytes]) -> tuple[EncodedImage, ...]:
    return tuple(EncodedImage(data, name) for name, data in images)


def embedded(number: int, name: str | None = None) -> Row:
    return {"bytes": picture(number), "path": name}


def lined(stem: str, *options: str) -> str:
    """A question with its options, a line each."""
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([stem, *lines])


# OpenMedReason: rubrics as structs, as JSON text, the alias of reasoning

AXES = ("perception", "knowledge", "rationale")
UNIT_TYPE = pa.list_(pa.struct([(name, TEXT) for name in (*UNIT, "importance")]))
SPINE = lined("Which plane is it?", "Axial", "Sagittal", "Coronal")
TRACE = "<think>The spine runs lengthwise.</think>\n<answer>B</answer>"


def unit(axis: str) -> Row:
    return {name: f"{axis} {name}" for name in (*UNIT, "importance")}


def units() -> tuple[RubricUnit, ...]:
    return tuple(RubricUnit(axis=axis, **unit(axis)) for axis in AXES)  # type: ignore[arg-type]


OPENMEDREASON = Fixture(
    schema="openmedreason",
    file="openmedreason-test.parquet",
    types={
        "image": IMAGE, "question": TEXT, "reasoning": TEXT, "answer": TEXT, "pmcid": TEXT,
        **dict.fromkeys(AXES, UNIT_TYPE),
    },
    rows=(
        {
            "image": embedded(1, "PMC1_F1.jpg"), "question": SPINE, "reasoning": TRACE,
            "answer": "B", "pmcid": "PMC1", **{axis: [unit(axis)] for axis in AXES},
        },
        {"image": {"bytes": None, "path": "F2.jpg"}, "question": SPINE, "answer": "B"},
        {"image": embedded(2), "question": SPINE, "reasoning": TRACE, "answer": "A"},
        {"image": embedded(3), "question": "Which plane is it?", "answer": "B"},
    ),
    expected=(
        Expected(
            question=SPINE, options=("Axial", "Sagittal", "Coronal"), answer="B", reasoning=TRACE,
            images=shown(("PMC1_F1.jpg", picture(1))), extra={"pmcid": "PMC1"}, rubric=units(),
        ),
        no("image-not-embedded"),
        no("answer-mismatch"),
        no("no-options"),
    ),
)  # fmt: skip

OPENMEDREASON_ALIAS = Fixture(
    schema="openmedreason",
    file="openmedreason-alias.parquet",
    types={
        "id": TEXT, "image": IMAGE, "question": TEXT, "reasoning_trace": TEXT, "answer": TEXT,
        **dict.fromkeys(AXES, TEXT),
    },
    rows=(
        {
            "id": "a.1", "image": embedded(4), "question": SPINE, "reasoning_trace": TRACE,
            "answer": "(B)", **{axis: json.dumps([unit(axis)]) for axis in AXES},
        },
        {"id": None, "image": embedded(5), "question": SPINE, "answer": "B"},
    ),
    expected=(
        Expected(
            id="a.1", question=SPINE, options=("Axial", "Sagittal", "Coronal"), answer="B",
            reasoning=TRACE, images=shown(("", picture(4))), rubric=units(),
        ),
        no("null-id"),
    ),
)  # fmt: skip

# MedVLThinker: options as JSON text, the answer by letter and by text

MEDVLTHINKER = Fixture(
    schema="medvlthinker",
    file="medvlthinker.parquet",
    types={
        "images": pa.list_(IMAGE), "question": TEXT, "options": TEXT, "answer_label": TEXT,
        "answer": TEXT, "reasoning": TEXT, "dataset_name": TEXT, "dataset_index": pa.int64(),
    },
    rows=(
        {
            "images": [embedded(1), embedded(2)], "question": "Which scan is newer?",
            "options": '{"A": "The first", "B": "The second"}', "answer_label": "B",
            "answer": "the second.", "reasoning": "The clip is there only later.",
            "dataset_name": "pmc_vqa", "dataset_index": 7,
        },
        {  # text only: no images at all
            "images": [], "question": "What does aspirin inhibit?", "options": '["COX", "ACE"]',
            "answer_label": "A", "answer": "COX", "dataset_name": "m23k",
        },
        {  # the label and the text are at odds
            "images": [embedded(3)], "question": "Which organ?",
            "options": '{"A": "Liver", "B": "Spleen"}', "answer_label": "A", "answer": "Spleen",
        },
        {
            "images": [embedded(3)], "question": "Which organ?",
            "options": '{"A": "Liver", "C": "Spleen"}', "answer_label": "A", "answer": "Liver",
        },
        {
            "images": [embedded(3)], "question": "Which organ?", "options": "{'A': 'Liver'",
            "answer_label": "A", "answer": "Liver",
        },
        {
            "images": [embedded(3)], "question": "Which organ?",
            "options": '{"A": "Liver", "B": "Spleen"}', "answer_label": "E", "answer": "Liver",
        },
    ),
    expected=(
        Expected(
            question=lined("Which scan is newer?", "The first", "The second"),
            options=("The first", "The second"), answer="B",
            reasoning="<think>The clip is there only later.</think>\n<answer>B</answer>",
            images=shown(("", picture(1)), ("", picture(2))),
            extra={"dataset_name": "pmc_vqa", "dataset_index": 7},
        ),
        Expected(
            question=lined("What does aspirin inhibit?", "COX", "ACE"), options=("COX", "ACE"),
            answer="A", extra={"dataset_name": "m23k", "dataset_index": None},
        ),
        no("label-mismatch"),
        no("bad-options"),
        no("bad-options"),
        no("answer-not-an-option"),
    ),
)  # fmt: skip

# verl: messages as the prompt, the reward model's ground truth, extra_info

INSTRUCTION = "You FIRST think, then answer in tags."
HEART = lined("Which chamber is enlarged?", "Left atrium", "Right ventricle")
MESSAGE = pa.struct([("content", TEXT), ("role", TEXT)])
INFO = pa.struct([("answer", TEXT), ("index", pa.int64()), ("question", TEXT), ("split", TEXT)])


def verl_row(prompt: list[Row], truth: str | None, question: str, **more: Any) -> Row:
    info = {"answer": truth, "index": 0, "question": question, "split": "train"}
    reward = {"ground_truth": truth, "style": "rule"}
    base = {"data_source": "med", "prompt": prompt, "ability": "vqa", "extra_info": info}
    return {**base, "reward_model": reward, "images": [embedded(1)], **more}


def verl_extra(row: Row, *names: str) -> Row:
    kept = ("data_source", *names, "ability", "reward_model", "extra_info")
    return {name: row[name] for name in kept}


VERL_ROWS = (
    verl_row([{"content": f"<image>{HEART} {INSTRUCTION}", "role": "user"}], "B", HEART),
    verl_row(
        [
            {"content": "Be brief.", "role": "system"},
            {"content": "<image> How many nodules?", "role": "user"},
        ],
        "3",
        "How many nodules?",
    ),
    verl_row([{"content": "Compare <image> with <image>.", "role": "user"}], "same", ""),
    verl_row([{"content": f"<image>{HEART}", "role": "user"}], "C", HEART),
    verl_row([{"content": f"<image>{HEART}", "role": "user"}], None, HEART),
)
VERL = Fixture(
    schema="verl",
    file="verl.parquet",
    types={
        "data_source": TEXT, "prompt": pa.list_(MESSAGE), "images": pa.list_(IMAGE),
        "ability": TEXT, "reward_model": pa.struct([("ground_truth", TEXT), ("style", TEXT)]),
        "extra_info": INFO,
    },
    rows=VERL_ROWS,
    expected=(
        Expected(
            question=f"{HEART} {INSTRUCTION}", options=("Left atrium", "Right ventricle"),
            answer="B", images=shown(("", picture(1))), extra=verl_extra(VERL_ROWS[0]),
        ),
        Expected(
            question="How many nodules?", answer="3", images=shown(("", picture(1))),
            extra=verl_extra(VERL_ROWS[1], "prompt"),
        ),
        no("image-count"),
        no("answer-not-an-option"),
        no("null-answer"),
    ),
)  # fmt: skip

# EasyR1: <image> in the problem

EASYR1 = Fixture(
    schema="easyr1",
    file="easyr1.parquet",
    types={"images": pa.list_(IMAGE), "problem": TEXT, "answer": TEXT},
    rows=(
        {"images": [embedded(1)], "problem": f"<image>{HEART}", "answer": "Right ventricle"},
        {"images": [embedded(1)], "problem": "<image>What is the angle?", "answer": "48"},
        {
            "images": [embedded(1), embedded(2)],
            "problem": "Before: <image>\nAfter: <image>\nDid it grow?", "answer": "yes",
        },
        {"images": [embedded(1)], "problem": "<image><image>Did it grow?", "answer": "yes"},
        {"images": [embedded(1)], "problem": "<image>Which is it?", "answer": "B"},
        {"images": [embedded(1)], "problem": "<image>", "answer": "x"},
        {"images": None, "problem": "What is 2 + 2?", "answer": "4"},
    ),
    expected=(
        Expected(
            question=HEART, options=("Left atrium", "Right ventricle"), answer="B",
            images=shown(("", picture(1))),
        ),
        Expected(question="What is the angle?", answer="48", images=shown(("", picture(1)))),
        Expected(
            question="Before: (image 1)\nAfter: (image 2)\nDid it grow?", answer="yes",
            images=shown(("", picture(1)), ("", picture(2))),
            extra={"problem": "Before: <image>\nAfter: <image>\nDid it grow?"},
        ),
        no("image-count"),
        no("no-options"),
        no("empty-question"),
        Expected(question="What is 2 + 2?", answer="4"),
    ),
)  # fmt: skip

# R1-V, Med-R1: options inline with commas, the solution in tags

MODALITY = "What imaging technique was used? A)CT, B)X-ray, C)MRI, with contrast, D)Ultrasound"
R1V = Fixture(
    schema="r1v",
    file="med-r1.json",
    images={"Images/1.png": picture(1, "PNG")},
    rows=(
        {"image": "Images/1.png", "problem": MODALITY, "solution": "<answer> C </answer>"},
        {
            "image": "Images/1.png", "problem": f"{MODALITY}\n",
            "solution": "<think>Bones are white.</think><answer>B</answer>",
        },
        {
            "image": "Images/1.png", "problem": "How many items are there?",
            "solution": "<answer> 5 </answer>",
        },
        {"image": "Images/1.png", "problem": MODALITY, "solution": "<answer> E </answer>"},
        {
            "image": "Images/1.png", "problem": "Which? A)CT, C)MRI",
            "solution": "<answer> A </answer>",
        },
        {"image": "Images/1.png", "problem": "Which is it?", "solution": "<answer>A</answer>"},
        {"image": "../1.png", "problem": MODALITY, "solution": "<answer>A</answer>"},
    ),
    expected=(
        Expected(
            question=MODALITY, options=("CT", "X-ray", "MRI, with contrast", "Ultrasound"),
            answer="C", images=shown(("Images/1.png", picture(1, "PNG"))),
        ),
        Expected(
            question=f"{MODALITY}\n", options=("CT", "X-ray", "MRI, with contrast", "Ultrasound"),
            answer="B", reasoning="<think>Bones are white.</think><answer>B</answer>",
            images=shown(("Images/1.png", picture(1, "PNG"))),
        ),
        Expected(
            question="How many items are there?", answer="5",
            images=shown(("Images/1.png", picture(1, "PNG"))),
        ),
        no("answer-not-an-option"),
        no("bad-options"),
        no("no-options"),
        no("image-outside-root"),
    ),
)  # fmt: skip

# LLaVA: several turns, no image, an instruction below the options; LLaVA-Med: "conversatons"


def llava(*texts: str) -> list[Row]:
    return [
        {"from": "gpt" if number % 2 else "human", "value": text}
        for number, text in enumerate(texts)
    ]


SHORT = "Answer with the option's letter from the given choices directly."
LLAVA = Fixture(
    schema="llava",
    file="llava.json",
    images={"a/1.jpg": picture(1), "a/2.jpg": picture(2)},
    options={"turns": "first"},
    rows=(
        {"id": "x", "image": "a/1.jpg", "conversations": llava("<image>\nWhat?", "A chest film.")},
        {
            "id": "x", "image": "a/1.jpg",
            "conversations": llava("What?\n<image>", "A film.", "Which view?", "Frontal."),
        },
        {"id": 3, "conversations": llava("What is a nodule?", "A small lump.")},
        {
            "id": "y", "image": ["a/1.jpg", "a/2.jpg"],
            "conversations": llava(f"<image>\n<image>\n{HEART}\n{SHORT}", "B"),
        },
        {"id": "z", "image": "a/1.jpg", "conversations": llava("<image>\n<image>\nQ?", "R")},
        {"id": "z", "image": "a/3.jpg", "conversations": llava("<image>\nQ?", "R")},
        {"id": "z", "image": "a/1.jpg", "conversations": llava("<image>\nQ?")},
        {"id": "z", "image": "a/1.jpg", "conversations": llava("<image>\nQ?", "R")[::-1]},
        {"id": "z", "image": "a/1.jpg", "conversations": []},
        {"id": "z", "image": "a/1.jpg", "conversations": llava(f"<image>\n{HEART}", "E")},
        {"id": "z", "image": "a/1.jpg", "conversations": llava(f"{HEART}\nand?\n<image>", "B")},
        {
            "id": "z", "image": "a/1.jpg",
            "conversations": llava(f"<image>\n{HEART}", "The left one, since it bulges."),
        },
    ),
    expected=(
        Expected(
            question="What?", answer="A chest film.", reasoning="A chest film.",
            images=shown(("a/1.jpg", picture(1))), extra={"id": "x"},
        ),
        Expected(
            question="What?", answer="A film.", reasoning="A film.",
            images=shown(("a/1.jpg", picture(1))),
            extra={
                "id": "x",
                "conversations": llava("What?\n<image>", "A film.", "Which view?", "Frontal."),
            },
        ),
        Expected(
            question="What is a nodule?", answer="A small lump.", reasoning="A small lump.",
            extra={"id": 3},
        ),
        Expected(
            question=f"{HEART}\n{SHORT}", options=("Left atrium", "Right ventricle"), answer="B",
            images=shown(("a/1.jpg", picture(1)), ("a/2.jpg", picture(2))), extra={"id": "y"},
        ),
        no("image-count"),
        no("missing-image"),
        no("null-answer"),
        no("bad-turns"),
        no("bad-turns"),
        no("answer-not-an-option"),
        no("bad-options"),
        Expected(  # a reply in words to a question with options is a reply in words
            question=HEART, answer="The left one, since it bulges.",
            reasoning="The left one, since it bulges.", images=shown(("a/1.jpg", picture(1))),
            extra={"id": "z"},
        ),
    ),
)  # fmt: skip

LLAVA_MED = Fixture(
    schema="llava",
    file="llava_med.jsonl",
    images={"1.jpg": picture(1)},
    rows=(
        {
            "id": "PMC9_F1", "image": "1.jpg", "domain": {"ct_scan": True, "mri": False},
            "conversatons": llava("What is shown?\n<image>", "A CT of the head."),
        },
        {
            "id": "PMC9_F1", "image": "1.jpg", "domain": {"ct_scan": True, "mri": False},
            "conversatons": llava("What?\n<image>", "A CT.", "Why?", "Density."),
        },
    ),
    expected=(
        Expected(
            question="What is shown?", answer="A CT of the head.", reasoning="A CT of the head.",
            images=shown(("1.jpg", picture(1))),
            extra={"id": "PMC9_F1", "domain": {"ct_scan": True, "mri": False}},
        ),
        no("several-turns"),
    ),
)  # fmt: skip

LLAVA_PARQUET = Fixture(
    schema="llava",
    file="llava.parquet",
    types={
        "id": TEXT, "image": IMAGE,
        "conversations": pa.list_(pa.struct([("from", TEXT), ("value", TEXT)])),
    },
    rows=(
        {"id": "1", "image": embedded(1), "conversations": llava("<image>\nWhat?", "A film.")},
        {"id": "2", "image": None, "conversations": llava("What is a cyst?", "A sac.")},
        {"id": "3", "image": embedded(2), "conversations": llava("A\x00", "B")},
    ),
    expected=(
        Expected(
            question="What?", answer="A film.", reasoning="A film.",
            images=shown(("", picture(1))), extra={"id": "1"},
        ),
        Expected(
            question="What is a cyst?", answer="A sac.", reasoning="A sac.", extra={"id": "2"}
        ),
        no("control-characters"),
    ),
)  # fmt: skip

# PubMedVision: lists of paths, no placeholders in the text

PUBMEDVISION = Fixture(
    schema="pubmedvision",
    file="PubMedVision_Alignment_VQA.json",
    images={"images/pmc_1_0.jpg": picture(1), "images/pmc_1_1.jpg": picture(2)},
    rows=(
        {
            "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"],
            "id": "Alignment_VQA_0", "modality": "CT", "body_part": "Chest",
            "conversations": llava("Describe these.", "Two CT slices."),
        },
        {  # some images that are named are in none of the zips
            "image": ["images/pmc_9_0.jpg"], "id": "Alignment_VQA_1", "modality": "CT",
            "body_part": "Chest", "conversations": llava("Describe this.", "One slice."),
        },
    ),
    expected=(
        Expected(
            id="Alignment_VQA_0", question="Describe these.", answer="Two CT slices.",
            reasoning="Two CT slices.", extra={"modality": "CT", "body_part": "Chest"},
            images=shown(("images/pmc_1_0.jpg", picture(1)), ("images/pmc_1_1.jpg", picture(2))),
        ),
        no("missing-image"),
    ),
)  # fmt: skip

# ms-swift: messages with text contents, images as paths, a solution for RL


def chat(*texts: Any, system: str | None = None) -> list[Row]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    return opening + [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(texts)
    ]


SWIFT_SYSTEM = chat("<image>Which side?", "Left.", system="You are a radiologist.")
MS_SWIFT = Fixture(
    schema="ms-swift",
    file="swift.jsonl",
    images={"1.jpg": picture(1)},
    rows=(
        {"messages": chat("<image>What is it?", "A hand."), "images": ["1.jpg"]},
        {"messages": SWIFT_SYSTEM, "images": ["1.jpg"]},
        {
            "messages": chat(f"<image>{HEART}"), "images": ["1.jpg"],
            "solution": "<answer>A</answer>", "objects": {"ref": [], "bbox": []},
        },
        {
            "messages": chat(
                f"<image>{HEART}", "<think>The shadow is double.</think><answer>A</answer>"
            ),
            "images": ["1.jpg"],
        },
        {"messages": chat("<image>What is it?"), "images": ["1.jpg"]},
        {"messages": chat("<video>What is it?", "A gait."), "videos": ["1.mp4"]},
        {"messages": chat("Q?", "R") + chat("S?"), "images": []},
        {"messages": [{"role": "tool", "content": "x"}], "images": []},
    ),
    expected=(
        Expected(
            question="What is it?", answer="A hand.", reasoning="A hand.",
            images=shown(("1.jpg", picture(1))),
            extra={"objects": None, "videos": None},
        ),
        Expected(
            question="Which side?", answer="Left.", reasoning="Left.",
            images=shown(("1.jpg", picture(1))),
            extra={"messages": SWIFT_SYSTEM, "objects": None, "videos": None},
        ),
        Expected(
            question=HEART, options=("Left atrium", "Right ventricle"), answer="A",
            images=shown(("1.jpg", picture(1))),
            extra={"objects": {"ref": [], "bbox": []}, "videos": None},
        ),
        Expected(
            question=HEART, options=("Left atrium", "Right ventricle"), answer="A",
            reasoning="<think>The shadow is double.</think><answer>A</answer>",
            images=shown(("1.jpg", picture(1))), extra={"objects": None, "videos": None},
        ),
        no("null-answer"),
        no("other-media"),
        no("several-turns"),
        no("bad-turns"),
    ),
)  # fmt: skip

# TRL: parts of type image and text, prompt and completion, text prompts

PART = pa.struct([("text", TEXT), ("type", TEXT)])
PARTS = pa.list_(pa.struct([("content", pa.list_(PART)), ("role", TEXT)]))


def parts(role: str, *texts: str | None) -> Row:
    """A message whose parts are text, or an image for None."""
    content = [{"text": text, "type": "text" if text is not None else "image"} for text in texts]
    return {"content": content, "role": role}


TRL = Fixture(
    schema="trl",
    file="trl.parquet",
    types={"images": pa.list_(IMAGE), "prompt": PARTS, "completion": PARTS},
    rows=(
        {
            "images": [embedded(1)], "prompt": [parts("user", None, "What is it?")],
            "completion": [parts("assistant", "A knee.")],
        },
        {
            "images": [embedded(1)], "prompt": [parts("user", None, None, "What is it?")],
            "completion": [parts("assistant", "A knee.")],
        },
        {
            "images": [], "prompt": [parts("user", "Q?"), parts("assistant", "R."),
            parts("user", "S?")], "completion": [parts("assistant", "T.")],
        },
    ),
    expected=(
        Expected(
            question="What is it?", answer="A knee.", reasoning="A knee.",
            images=shown(("", picture(1))),
        ),
        no("image-count"),
        no("several-turns"),
    ),
)  # fmt: skip

TRL_TEXT = Fixture(
    schema="trl",
    file="trl_grpo.jsonl",
    images={"1.jpg": picture(1)},
    rows=(
        {"prompt": HEART, "image": "1.jpg", "solution": "B"},
        {"prompt": "Is it fluid?", "image": "1.jpg", "solution": "no"},
    ),
    expected=(
        Expected(
            question=HEART,
            options=("Left atrium", "Right ventricle"),
            answer="B",
            images=shown(("1.jpg", picture(1))),
        ),
        Expected(question="Is it fluid?", answer="no", images=shown(("1.jpg", picture(1)))),
    ),
)

TRL_MESSAGES = Fixture(
    schema="trl-messages",
    file="trl_messages.parquet",
    types={"messages": PARTS, "images": pa.list_(IMAGE)},
    rows=(
        {
            "messages": [parts("user", None, "What?"), parts("assistant", "A wrist.")],
            "images": [embedded(1)],
        },
        {"messages": [parts("user", None, "What?")], "images": [embedded(1)]},
    ),
    expected=(
        Expected(
            question="What?",
            answer="A wrist.",
            reasoning="A wrist.",
            images=shown(("", picture(1))),
        ),
        no("null-answer"),
    ),
)

# PMC-VQA: choices with their letters, labels that contradict the answer, shifted columns


def pmc(figure: str, question: str, answer: str, choices: Sequence[str], label: str) -> Row:
    named = {f"Choice {letter}": text for letter, text in zip("ABCD", choices, strict=True)}
    return {
        "Figure_path": figure, "Question": question, "Answer": answer, **named,
        "Answer_label": label,
    }  # fmt: skip


UPTAKE = (" A:Diffuse uptake ", " B:Focal uptake ", " C:No uptake ", " D:Cannot tell ")
UPTAKE_TEXTS = ("Diffuse uptake", "Focal uptake", "No uptake", "Cannot tell")
QUOTED = ('A:"Hot", in part', "B:Cold, all over", "C:Neither", "D:Both")
PMC_VQA = Fixture(
    schema="pmc-vqa",
    file="train.csv",
    root="images.zip",
    images={"PMC1_F1.jpg": picture(1)},
    rows=(
        pmc("PMC1_F1.jpg", "What is the uptake?", " Focal uptake ", UPTAKE, "B"),
        pmc("PMC1_F1.jpg", "What, then?", 'B: "Hot"', QUOTED, "A"),
        pmc("PMC1_F1.jpg", "What is the uptake?", "No uptake", UPTAKE, "B"),
        pmc("PMC1_F1.jpg", "Shifted", "A:x", ("B:y", "C:z", "D:w", "A"), "A"),
        pmc("PMC1_F1.jpg", "What is the uptake?", "Focal uptake", UPTAKE, "Focal"),
        pmc("PMC1_F1.jpg", "Three?", "Hot", ("A:Hot", "B:Cold", "C:", ""), "A"),
        pmc("PMC1_F1.jpg", "A gap?", "Hot", ("A:Hot", "B:", "C:Cold", "D:Mild"), "A"),
        pmc("PMC2_F1.jpg", "What is the uptake?", "Focal uptake", UPTAKE, "B"),
        pmc("", "What is the uptake?", "Focal uptake", UPTAKE, "B"),
    ),
    expected=(
        Expected(
            question=lined("What is the uptake?", *UPTAKE_TEXTS),
            options=UPTAKE_TEXTS,
            answer="B",
            images=shown(("PMC1_F1.jpg", picture(1))),
        ),
        no("label-mismatch"),
        no("label-mismatch"),
        no("bad-options"),
        no("bad-answer"),
        Expected(
            question=lined("Three?", "Hot", "Cold"),
            options=("Hot", "Cold"),
            answer="A",
            images=shown(("PMC1_F1.jpg", picture(1))),
        ),
        no("bad-options"),
        no("missing-image"),
        no("null-image"),
    ),
)

PMC_VQA_2 = Fixture(
    schema="pmc-vqa",
    file="test_2.csv",
    root="images_2.zip",
    images={"PMC1_F1.jpg": picture(1)},
    rows=(
        {
            "index": "0", "Figure_path": "PMC1_F1.jpg", "Caption": 'A "hot", large node',
            "Question": "Which node?", "Choice A": "A. baumannii", "Choice B": "E. coli",
            "Choice C": "C. albicans", "Choice D": "None", "Answer": "C", "split": "test",
        },
        {
            "index": "1", "Figure_path": "PMC1_F1.jpg", "Caption": "", "Question": "Which node?",
            "Choice A": "One", "Choice B": "Two", "Choice C": "Three", "Choice D": "Four",
            "Answer": "five", "split": "test",
        },
    ),
    expected=(
        Expected(
            question=lined("Which node?", "A. baumannii", "E. coli", "C. albicans", "None"),
            options=("A. baumannii", "E. coli", "C. albicans", "None"), answer="C",
            images=shown(("PMC1_F1.jpg", picture(1))),
            extra={"index": "0", "Caption": 'A "hot", large node', "split": "test"},
        ),
        no("answer-not-an-option"),
    ),
)  # fmt: skip

# VQA-RAD, PathVQA; SLAKE as JSON with images, both languages

VQA_RAD = Fixture(
    schema="vqa",
    file="vqa_rad.parquet",
    types={"image": IMAGE, "question": TEXT, "answer": TEXT},
    rows=(
        {"image": embedded(1), "question": "is there effusion?", "answer": "yes"},
        {"image": embedded(1), "question": "which lobe?", "answer": "right  upper lobe\t"},
        {"image": embedded(1), "question": "which panel?", "answer": "B"},
        {"image": embedded(1), "question": "where?", "answer": " "},
        {"image": embedded(1), "question": "where?", "answer": None},
        {"image": None, "question": "where?", "answer": "left"},
    ),
    expected=(
        Expected(question="is there effusion?", answer="yes", images=shown(("", picture(1)))),
        Expected(
            question="which lobe?", answer="right  upper lobe", images=shown(("", picture(1)))
        ),
        Expected(question="which panel?", answer="B", images=shown(("", picture(1)))),
        no("empty-answer"),
        no("null-answer"),
        no("null-image"),
    ),
)


def slake(number: int, language: str, question: str, answer: str) -> Row:
    return {
        "img_id": 1, "img_name": "xmlab1/source.jpg", "question": question, "answer": answer,
        "q_lang": language, "location": "Lung", "modality": "X-Ray", "answer_type": "OPEN",
        "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": number,
    }  # fmt: skip


def slake_extra(row: Row) -> Row:
    return {n: v for n, v in row.items() if n not in ("img_name", "question", "answer")}


SLAKE_ROWS = (
    slake(0, "en", "Which organ is it?", "Lung"),
    slake(1, "zh", "这是什么器官", "肺"),
    {**slake(2, "en", "Which?", "Lung"), "img_name": "xmlab2/source.jpg"},
)
SLAKE = Fixture(
    schema="slake",
    file="slake.json",
    root="imgs.zip",
    images={"xmlab1/source.jpg": picture(1)},
    rows=SLAKE_ROWS,
    expected=(
        Expected(
            question="Which organ is it?",
            answer="Lung",
            extra=slake_extra(SLAKE_ROWS[0]),
            images=shown(("xmlab1/source.jpg", picture(1))),
        ),
        Expected(
            question="这是什么器官",
            answer="肺",
            extra=slake_extra(SLAKE_ROWS[1]),
            images=shown(("xmlab1/source.jpg", picture(1))),
        ),
        no("missing-image"),
    ),
)

# VLAA-Thinking: JSON Lines, though their name ends in .json; images in a tar.gz

VLAA_THINKING = Fixture(
    schema="vlaa-thinking",
    file="VLAA-Thinking-SFT.json",
    written_as=".jsonl",
    root="images.tar.gz",
    images={"arxivqa/1.jpg": picture(1)},
    rows=(
        {
            "id": "arxivqa-1", "image": "arxivqa/1.jpg", "question": HEART, "gt": "B",
            "answer": "It is \\boxed{B}", "reasoning": "The apex points up.",
        },
        {
            "id": "arxivqa-2", "image": "arxivqa/1.jpg", "question": "How many?", "gt": None,
            "answer": "There are \\boxed{4}.", "reasoning": "<think>One by one.</think>",
        },
        {
            "id": "arxivqa-3", "image": "arxivqa/1.jpg", "question": HEART, "gt": "B",
            "answer": "A", "reasoning": "<think>x</think><answer>A</answer>",
        },
        {
            "id": "arxivqa-4", "image": "arxivqa/1.jpg", "question": "How many?", "gt": None,
            "answer": "Some.", "reasoning": "",
        },
    ),
    expected=(
        Expected(
            question=HEART, options=("Left atrium", "Right ventricle"), answer="B",
            reasoning="<think>The apex points up.</think>\n<answer>B</answer>",
            images=shown(("arxivqa/1.jpg", picture(1))),
            extra={"id": "arxivqa-1", "answer": "It is \\boxed{B}"},
        ),
        Expected(
            question="How many?", answer="4",
            reasoning="<think>One by one.</think>\n<answer>4</answer>",
            images=shown(("arxivqa/1.jpg", picture(1))),
            extra={"id": "arxivqa-2", "answer": "There are \\boxed{4}."},
        ),
        no("answer-mismatch"),
        no("null-answer"),
    ),
)  # fmt: skip

# BIOMEDICA: WebDataset samples of an image, its caption, metadata

BIOMEDICA = Fixture(
    schema="biomedica",
    file="000001.tar",
    options={"question": "Describe this figure."},
    rows=(
        {
            "__key__": "1-PMC1-0-fig1", "jpg": picture(1),
            "json": {"image_panel_type": "single", "article_license": "CC BY", "labels": ["CT"]},
            "txt": "An axial CT of the chest.\n",
        },
        {
            "__key__": "1-PMC1-1-fig2", "jpg": picture(2),
            "json": {"image_panel_type": "single", "article_license": "CC BY", "labels": []},
            "txt": " ",
        },
        {
            "__key__": "1-PMC1-2-fig3", "jpg": None,
            "json": {"image_panel_type": "single", "article_license": "CC BY", "labels": []},
            "txt": "Lost.",
        },
    ),
    expected=(
        Expected(
            id="1-PMC1-0-fig1", question="Describe this figure.",
            answer="An axial CT of the chest.", reasoning="An axial CT of the chest.",
            images=shown(("1-PMC1-0-fig1.jpg", picture(1))),
            extra={
                "json": {
                    "image_panel_type": "single", "article_license": "CC BY", "labels": ["CT"]
                }
            },
        ),
        no("empty-answer"),
        no("null-image"),
    ),
)  # fmt: skip

# Columns of no schema, mapped by hand

MAPPED = Fixture(
    schema="mapped",
    file="own.jsonl",
    images={"1.jpg": picture(1)},
    options={
        "column_map": (
            ("question", "query"), ("answer", "label"), ("image", "file"), ("options", "choices"),
            ("reasoning", "cot"),
        )
    },
    rows=(
        {
            "query": "<image>Which?", "label": 1, "file": "1.jpg", "choices": ["A. CT", "B. MR"],
            "cot": "Bone is dark.", "id": 17, "note": "kept",
        },
        {
            "query": "Which?", "label": "ct", "file": "1.jpg", "choices": ["CT", "MR"],
            "cot": None, "id": 18, "note": None,
        },
        {
            "query": "Which?", "label": "PET", "file": "1.jpg", "choices": ["CT", "MR"],
            "cot": None, "id": 19, "note": None,
        },
        {
            "query": "Which?", "label": "PET", "file": "1.jpg", "choices": [], "cot": None,
            "id": 20, "note": None,
        },
    ),
    expected=(
        Expected(
            id="17", question=lined("Which?", "CT", "MR"), options=("CT", "MR"), answer="B",
            reasoning="<think>Bone is dark.</think>\n<answer>B</answer>",
            images=shown(("1.jpg", picture(1))), extra={"note": "kept"},
        ),
        Expected(
            id="18", question=lined("Which?", "CT", "MR"), options=("CT", "MR"), answer="A",
            images=shown(("1.jpg", picture(1))), extra={"note": None},
        ),
        no("answer-not-an-option"),
        no("no-options"),
    ),
)  # fmt: skip

FIXTURES = (
    OPENMEDREASON, OPENMEDREASON_ALIAS, MEDVLTHINKER, VERL, EASYR1, R1V, LLAVA, LLAVA_MED,
    LLAVA_PARQUET, PUBMEDVISION, MS_SWIFT, TRL, TRL_TEXT, TRL_MESSAGES, PMC_VQA, PMC_VQA_2, VQA_RAD,
    SLAKE, VLAA_THINKING, BIOMEDICA, MAPPED,
)  # fmt: skip
