"""A small file of every schema in its real form on disk, its known defects as rows.

`FIXTURES` are used row by row (test_schemas.py) and from the file on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from omr_io.types import RubricUnit
from tests.corpus.conversation_fixtures import (
    LLAVA,
    LLAVA_MED,
    LLAVA_PARQUET,
    MS_SWIFT,
    PUBMEDVISION,
    TRL,
    TRL_MESSAGES,
    TRL_TEXT,
    VERL,
)  # fmt: skip
from tests.corpus.source_fixture import (
    HEART,
    IMAGE,
    TEXT,
    Expected,
    Fixture,
    Row,
    embedded,
    lined,
    no,
    picture,
    shown,
)  # fmt: skip

__all__ = ["FIXTURES", "MAPPED", "PMC_VQA", "Fixture"]

UNIT = ("unit_id", "topic", "claim", "presence_question", "correctness_question", "source_quote")
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
