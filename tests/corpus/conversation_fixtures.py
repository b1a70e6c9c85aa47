"""A small file of every schema of conversations: verl, LLaVA, PubMedVision, ms-swift, TRL."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tests.corpus.source_fixture import (
    HEART,
    IMAGE,
    TEXT,
    Expected,
    Fixture,
    Row,
    embedded,
    no,
    picture,
    shown,
)  # fmt: skip

# verl: messages as the prompt, the reward model's ground truth, extra_info

INSTRUCTION = "You FIRST think, then answer in tags."
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
