"""Reading Parquet: every row gives one Record or one Refusal; broken files say what broke."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omr_io.corpus import (
    ReadOptions,
    count_rows,
    list_sources,
    read_source,
    source_fingerprint,
)
from omr_io.corpus.formats import parquet as parquet_format
from omr_io.corpus.formats.arrow import column_type
from omr_io.corpus.schemas.kinds import UNIT_FIELDS
from omr_io.errors import ConfigError, SourceError
from omr_io.types import AXES, EncodedImage, Option, Record, Refusal, RubricUnit

Row = dict[str, Any]
GOOD: Row = {
    "image": {"bytes": b"\xff\xd8jpeg", "path": "a.jpg"},
    "question": "Which modality is it?\nA. CT\nB. MR",
    "reasoning": "<think>Bone is bright.</think>\n<answer>A</answer>",
    "answer": "A",
}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
UNIT_TYPE = pa.list_(pa.struct([(name, pa.string()) for name in UNIT_FIELDS]))
TYPES = {
    "image": IMAGE_TYPE,
    "question": pa.string(),
    "reasoning": pa.string(),
    "answer": pa.string(),
    "id": pa.string(),
    "note": pa.string(),
}


def text_array(values: list[str | bytes | None]) -> Any:
    """A string column whose bytes nobody checked, as a Parquet writer may leave it."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    binary = pa.array(raw, pa.binary())
    return pa.StringArray.from_buffers(len(binary), *binary.buffers()[1:], binary.buffers()[0])


def write(path: Path, rows: list[Row], types: dict[str, Any] | None = None, **how: Any) -> Path:
    """Write rows; text may be bytes, to plant what is not UTF-8."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(GOOD)
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        kind = (types or {}).get(name, TYPES.get(name))
        if kind == pa.string():
            arrays.append(text_array(values))
        else:
            arrays.append(pa.array(values, kind))
    pq.write_table(pa.Table.from_arrays(arrays, names=names), path, **how)
    return path


def read(path: Path, **options: Any) -> list[Record | Refusal]:
    pairs = list(read_source(path, ReadOptions(**options)))
    assert [row for row, _ in pairs] == list(range(len(pairs)))
    return [item for _, item in pairs]


def only(path: Path, **options: Any) -> Any:
    (item,) = read(path, **options)
    return item


def refusal(path: Path, **options: Any) -> Refusal:
    item = only(path, **options)
    assert isinstance(item, Refusal), item
    return item


def record(path: Path, **options: Any) -> Record:
    item = only(path, **options)
    assert isinstance(item, Record), item
    return item


def unit(axis: str, number: int = 0) -> dict[str, Any]:
    return {name: f"{axis} {name} {number} é" for name in UNIT_FIELDS}


# Records


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "train-00000.parquet", [GOOD, GOOD])
    assert read(path)[1] == Record(
        id="train-00000-00000001",
        question="Which modality is it?\nA. CT\nB. MR",
        options=(Option("A", "CT"), Option("B", "MR")),
        answer="A",
        reasoning="<think>Bone is bright.</think>\n<answer>A</answer>",
        images=(EncodedImage(b"\xff\xd8jpeg", "a.jpg"),),
        source="train-00000.parquet#1",
        extra={},
    )


def test_records_can_be_sent_to_another_process(tmp_path: Path) -> None:
    item = record(write(tmp_path / "a.parquet", [GOOD]))
    assert pickle.loads(pickle.dumps(item)) == item


def test_own_ids_are_kept_raw(tmp_path: Path) -> None:
    assert record(write(tmp_path / "a.parquet", [{**GOOD, "id": "1.2.840/x é"}])).id == (
        "1.2.840/x é"
    )
    path = write(tmp_path / "b.parquet", [{**GOOD, "id": 7}], {"id": pa.int32()})
    assert record(path).id == "7"


def test_reasoning_is_kept_as_it_stands(tmp_path: Path) -> None:
    for reasoning in (" <think>never closed", "plain", "<answer>none of them</answer>\n"):
        path = write(tmp_path / "a.parquet", [{**GOOD, "reasoning": reasoning}])
        assert record(path).reasoning == reasoning
    assert record(write(tmp_path / "a.parquet", [{**GOOD, "reasoning": None}])).reasoning == ""


def test_reasoning_trace_is_an_alias_only_when_reasoning_is_missing(tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "reasoning"}
    path = write(tmp_path / "a.parquet", [{**row, "reasoning_trace": "why"}])
    assert record(path).reasoning == "why"
    path = write(tmp_path / "a.parquet", [{**GOOD, "reasoning_trace": "why"}])
    assert record(path).reasoning == GOOD["reasoning"]
    assert record(path).extra == {"reasoning_trace": "why"}


@pytest.mark.parametrize("answer", ["A", " A\n", "A.", "A)", "A:", "(A)"])
def test_answers_become_a_bare_letter(tmp_path: Path, answer: str) -> None:
    assert record(write(tmp_path / "a.parquet", [{**GOOD, "answer": answer}])).answer == "A"


def test_a_list_of_images_may_hold_several_or_none(tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "image"}
    two = [{"bytes": b"1", "path": "1.png"}, {"bytes": b"2", "path": None}]
    types = {"images": pa.list_(IMAGE_TYPE)}
    items = read(
        write(
            tmp_path / "a.parquet",
            [{**row, "images": two}, {**row, "images": []}, {**row, "images": None}],
            types,
        )
    )
    assert isinstance(items[0], Record)
    assert items[0].images == (EncodedImage(b"1", "1.png"), EncodedImage(b"2", ""))
    assert isinstance(items[1], Record)
    assert items[1].images == ()
    assert isinstance(items[2], Refusal)
    assert items[2].reason == "null-image"


def expected_units() -> tuple[RubricUnit, ...]:
    return tuple(RubricUnit(axis=axis, **unit(axis, n)) for axis in AXES for n in range(2))


def test_rubrics_read_alike_from_structs_and_from_json_text(tmp_path: Path) -> None:
    units = {axis: [unit(axis, n) for n in range(2)] for axis in AXES}
    text = {axis: json.dumps(value) for axis, value in units.items()}
    structs = write(tmp_path / "a.parquet", [{**GOOD, **units}], dict.fromkeys(AXES, UNIT_TYPE))
    strings = write(tmp_path / "b.parquet", [{**GOOD, **text}], dict.fromkeys(AXES, pa.string()))
    assert record(structs).rubric == record(strings).rubric == expected_units()
    json_type = pa.table({axis: pa.array([text[axis]], pa.json_(pa.utf8())) for axis in AXES})
    table = pq.read_table(write(tmp_path / "c.parquet", [GOOD]))
    for axis in AXES:
        table = table.append_column(axis, json_type[axis])
    pq.write_table(table, tmp_path / "c.parquet")
    assert record(tmp_path / "c.parquet").rubric == expected_units()


def test_the_fields_of_structs_are_taken_by_name_not_by_place(tmp_path: Path) -> None:
    image = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    turned = pa.list_(pa.struct([(name, pa.string()) for name in reversed(UNIT_FIELDS)]))
    units = {axis: [unit(axis, n) for n in range(2)] for axis in AXES}
    types = {"image": image, **dict.fromkeys(AXES, turned)}
    item = record(write(tmp_path / "a.parquet", [{**GOOD, **units}], types))
    assert item.images == (EncodedImage(b"\xff\xd8jpeg", "a.jpg"),)
    assert item.rubric == expected_units()


def test_nested_columns_stay_with_their_rows_over_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_format, "_MAX_BATCH_ROWS", 3)
    rows: list[Row] = []
    for n in range(40):
        row = {name: value for name, value in GOOD.items() if name != "image"}
        row["images"] = [{"bytes": b"%d" % (n * 9 + k), "path": None} for k in range(n % 4)]
        row["perception"] = [unit("perception", n * 9 + k) for k in range(n % 3)]
        row["knowledge"] = None if n % 5 else [unit("knowledge", n)]
        rows.append({**row, "rationale": [], "tags": [f"{n}.{k}" for k in range(n % 6)]})
    types = {"images": pa.list_(IMAGE_TYPE), **dict.fromkeys(AXES, UNIT_TYPE)}
    path = write(tmp_path / "a.parquet", rows, types, row_group_size=17)
    for row, item in zip(rows, read(path), strict=True):
        assert isinstance(item, Record)
        assert [image.data for image in item.images] == [image["bytes"] for image in row["images"]]
        wanted = row["perception"] + (row["knowledge"] or [])
        assert [found.claim for found in item.rubric] == [one["claim"] for one in wanted]
        assert item.extra == {"tags": row["tags"]}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, pa.null()),
        (None, UNIT_TYPE),
        ([], UNIT_TYPE),
        ([], pa.list_(pa.null())),
        (None, pa.string()),
        ("", pa.string()),
        ("[]", pa.string()),
        ("null", pa.string()),
    ],
)
def test_empty_rubrics(tmp_path: Path, value: object, kind: Any) -> None:
    row = {**GOOD, **dict.fromkeys(AXES, value)}
    assert record(write(tmp_path / "a.parquet", [row], dict.fromkeys(AXES, kind))).rubric == ()


def test_null_topic_quote_and_importance_become_empty(tmp_path: Path) -> None:
    gaps = {**unit("x"), "topic": None, "source_quote": None, "importance": None}
    row = {**GOOD, "perception": [gaps], "knowledge": [], "rationale": []}
    item = record(write(tmp_path / "a.parquet", [row], dict.fromkeys(AXES, UNIT_TYPE)))
    assert item.rubric == (
        RubricUnit("perception", **{name: value or "" for name, value in gaps.items()}),
    )


def test_other_columns_become_plain_json(tmp_path: Path) -> None:
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    utc = moment.replace(tzinfo=datetime.UTC)
    extra: dict[str, tuple[Any, Any, Any]] = {
        "age": (61, pa.int8(), 61),
        "big": (2**64 - 1, pa.uint64(), 2**64 - 1),
        "dose": (0.25, pa.float32(), 0.25),
        "missing": (float("nan"), pa.float64(), None),
        "endless": (float("-inf"), pa.float64(), None),
        "flag": (True, pa.bool_(), True),
        "nothing": (None, pa.null(), None),
        "title": ("é\x00", pa.large_string(), "é\x00"),
        "site": ("chest", pa.dictionary(pa.int32(), pa.string()), "chest"),
        "day": (datetime.date(2020, 1, 2), pa.date32(), "2020-01-02"),
        "moment": (moment, pa.timestamp("ms"), "2020-01-02 03:04:05.000"),
        "utc": (utc, pa.timestamp("ms", "UTC"), "2020-01-02 03:04:05.000Z"),
        "price": (decimal.Decimal("1.20"), pa.decimal128(5, 2), "1.20"),
        "tags": (["a", None], pa.list_(pa.string()), ["a", None]),
        "pair": ([1.5, 2], pa.list_(pa.float64(), 2), [1.5, 2.0]),
        "deep": (
            {"x": [{"y": "z", "n": float("nan")}], "day": datetime.date(2020, 1, 2)},
            pa.struct(
                [
                    ("x", pa.list_(pa.struct([("y", pa.string()), ("n", pa.float64())]))),
                    ("day", pa.date32()),
                ]
            ),
            {"x": [{"y": "z", "n": None}], "day": "2020-01-02"},
        ),
    }
    row = {**GOOD, **{name: value for name, (value, _, _) in extra.items()}}
    types = {name: kind for name, (_, kind, _) in extra.items()}
    found = record(write(tmp_path / "a.parquet", [row], types)).extra
    assert dict(found) == {name: wanted for name, (_, _, wanted) in extra.items()}
    assert list(found) == list(extra)
    assert json.loads(json.dumps(dict(found), allow_nan=False)) == found


def test_what_the_datasets_library_writes_is_read_back_exactly(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {**GOOD, "image": {"bytes": os.urandom(99), "path": f"{n}.jpg"}, "answer": "AB"[n % 2]}
        for n in range(7)
    ]
    for row in rows:
        row["reasoning"] = f"<think>…</think><answer>{row['answer']}</answer>"
    features = datasets.Features(
        {name: datasets.Value("string") for name in GOOD} | {"image": datasets.Image(decode=False)}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "hf.parquet"))
    for row, item in zip(rows, read(tmp_path / "hf.parquet"), strict=True):
        assert isinstance(item, Record)
        assert item.images == (EncodedImage(row["image"]["bytes"], row["image"]["path"]),)
        assert (item.question, item.answer, item.reasoning) == (
            row["question"],
            row["answer"],
            row["reasoning"],
        )


# Refusals

BAD_TEXT = b"caf\xe9\nA. x\nB. y"
UNIT_BAD = {"perception": "[]", "knowledge": "[]", "rationale": "[]"}


def rubric_with(**changes: object) -> Row:
    changed = {name: value for name, value in (unit("x") | changes).items() if value is not ...}
    return UNIT_BAD | {"knowledge": json.dumps([unit("x"), changed])}


DEFECTS: list[tuple[Row, str, str]] = [
    ({"image": None}, "null-image", "null"),
    ({"image": {"bytes": None, "path": None}}, "null-image", "neither"),
    ({"image": {"bytes": None, "path": "x/PMC1.jpg"}}, "image-not-embedded", "x/PMC1.jpg"),
    ({"image": {"bytes": b"", "path": "a.jpg"}}, "empty-image", "a.jpg"),
    ({"image": {"bytes": b"x", "path": "a\x00.jpg"}}, "control-characters", "U+0000"),
    ({"question": None}, "null-question", "null"),
    ({"question": ""}, "empty-question", "blank"),
    ({"question": " \n\t"}, "empty-question", "blank"),
    ({"question": "A. x\nB. y"}, "empty-question", "before the options"),
    ({"question": "Which modality is it?"}, "no-options", "options"),
    ({"question": "Q?\nA. x\nC. y"}, "bad-options", "A, C"),
    ({"question": "Q?\nA. x"}, "bad-options", "only one"),
    ({"question": "Q\x07?\nA. x\nB. y"}, "control-characters", "U+0007 at character 1"),
    ({"question": BAD_TEXT}, "invalid-utf8", "column question"),
    ({"answer": None}, "null-answer", "null"),
    ({"answer": ""}, "bad-answer", "''"),
    ({"answer": "a"}, "bad-answer", "'a'"),
    ({"answer": "CT"}, "bad-answer", "'CT'"),
    ({"answer": "A and B"}, "bad-answer", "'A and B'"),
    ({"answer": "A\x00"}, "control-characters", "U+0000"),
    ({"answer": "C"}, "answer-not-an-option", "C, the options are A to B"),
    ({"answer": b"\xff"}, "invalid-utf8", "column answer"),
    ({"answer": "B"}, "answer-mismatch", "trace answers A, the answer is B"),
    ({"reasoning": "x\x1b[31m"}, "control-characters", "U+001B"),
    ({"reasoning": b"\xc3("}, "invalid-utf8", "column reasoning"),
    ({"reasoning": b"\xed\xa0\x80"}, "invalid-utf8", "column reasoning"),
    ({"note": b"\xff"}, "invalid-utf8", "column note"),
    ({"id": None, "note": "x"}, "null-id", "null"),
    ({"id": " "}, "null-id", "blank"),
    ({"id": "a\nb\x7f"}, "control-characters", "U+007F"),
    ({"id": b"\xff"}, "invalid-utf8", "column id"),
    (UNIT_BAD | {"knowledge": "[{"}, "bad-rubric", "knowledge is not JSON"),
    (UNIT_BAD | {"knowledge": "[" * 100_000}, "bad-rubric", "knowledge is not JSON"),
    (UNIT_BAD | {"knowledge": "{}"}, "bad-rubric", "not a list"),
    (UNIT_BAD | {"knowledge": "[3]"}, "bad-rubric", "unit 0 is not an object"),
    (rubric_with(claim=...), "bad-rubric", "knowledge unit 1 lacks claim"),
    (rubric_with(claim=None), "bad-rubric", "no text for claim"),
    (rubric_with(claim=" "), "bad-rubric", "no text for claim"),
    (rubric_with(importance=3), "bad-rubric", "no text for importance"),
    (rubric_with(difficulty="x"), "bad-rubric", "unknown field 'difficulty'"),
    (rubric_with(claim="\x00"), "control-characters", "claim"),
    (rubric_with(claim="\ud800"), "bad-rubric", "surrogate"),
]


@pytest.mark.parametrize(("changes", "reason", "detail"), DEFECTS)
def test_a_defect_refuses_its_row(tmp_path: Path, changes: Row, reason: str, detail: str) -> None:
    types = dict.fromkeys(AXES, pa.string())
    item = refusal(write(tmp_path / "a.parquet", [{**GOOD, **changes}], types))
    assert (item.source, item.row, item.reason) == ("a.parquet", 0, reason)
    assert detail in item.detail
    assert len(item.detail) < 400
    if "id" not in changes:
        assert item.id == "a-00000000"


def test_invalid_utf8_deep_inside_a_rubric_or_an_image_path(tmp_path: Path) -> None:
    def struct_array(names: list[str], bad: str) -> Any:
        texts: list[str | bytes | None] = ["ok", b"\xff\xfe", "ok"]
        columns = [text_array(texts if name == bad else ["ok"] * 3) for name in names]
        return pa.StructArray.from_arrays(columns, names=names)

    offsets = pa.array([0, 1, 2, 3], pa.int32())
    units = pa.ListArray.from_arrays(offsets, struct_array(list(UNIT_FIELDS), "claim"))
    table = pq.read_table(write(tmp_path / "a.parquet", [GOOD] * 3))
    for axis in AXES:
        table = table.append_column(axis, units)
    pq.write_table(table, tmp_path / "a.parquet")
    reasons = [getattr(item, "reason", None) for item in read(tmp_path / "a.parquet")]
    assert reasons == [None, "invalid-utf8", None]

    paths = text_array(["a.jpg", b"\xff.jpg", "c.jpg"])
    image = pa.StructArray.from_arrays([pa.array([b"x"] * 3), paths], names=["bytes", "path"])
    table = pq.read_table(write(tmp_path / "b.parquet", [GOOD] * 3))
    pq.write_table(table.set_column(0, "image", image), tmp_path / "b.parquet")
    reasons = [getattr(item, "reason", None) for item in read(tmp_path / "b.parquet")]
    assert reasons == [None, "invalid-utf8", None]


def test_answer_mismatch_can_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{**GOOD, "answer": "B"}])
    item = record(path, answer_mismatch="keep")
    assert (item.answer, item.reasoning) == ("B", GOOD["reasoning"])


PLANTED = [(GOOD, None), *((({**GOOD, **row}), why) for row, why, _ in DEFECTS)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(PLANTED), max_size=30),
    st.integers(1, 12),
    st.integers(1, 5),
    st.booleans(),
)
def test_no_row_is_lost_whatever_the_batches(
    tmp_path: Path, picks: list[tuple[Row, str | None]], group: int, batch: int, dictionary: bool
) -> None:
    columns = [*GOOD, "id", "note", *AXES]
    rows = [{"id": f"row {n}", **row} for n, (row, _) in enumerate(picks)]
    rows = [{name: row.get(name) for name in columns} for row in rows]
    path = tmp_path / "a.parquet"
    path.unlink(missing_ok=True)
    types = {**dict.fromkeys(AXES, pa.string())}
    if rows:
        write(path, rows, types, row_group_size=group, use_dictionary=dictionary)
    else:
        write(path, [], types)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_format, "_MAX_BATCH_ROWS", batch)
        items = read(path)
    assert [getattr(item, "reason", None) for item in items] == [why for _, why in picks]
    assert count_rows([path]) == len(picks)
    for number, item in enumerate(items):
        if isinstance(item, Record):
            assert (item.id, item.source) == (f"row {number}", f"a.parquet#{number}")
        else:
            assert (item.row, item.source) == (number, "a.parquet")


# Images beside the Parquet file


def image_file(tmp_path: Path, name: str | None) -> Path:
    row = {**GOOD, "image": {"bytes": None, "path": name}}
    return write(tmp_path / "a.parquet", [row])


def test_image_root_resolves_bare_names(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "é.jpg").write_bytes(b"pixels")
    (root / "link.jpg").symlink_to("sub/é.jpg")
    for name in ("sub/é.jpg", "./sub//é.jpg", "link.jpg"):
        item = record(image_file(tmp_path, name), image_root=root)
        assert item.images == (EncodedImage(b"pixels", name),)
    embedded = record(write(tmp_path / "b.parquet", [GOOD]), image_root=root)
    assert embedded.images == (EncodedImage(b"\xff\xd8jpeg", "a.jpg"),)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.jpg", "image-outside-root"),
        ("sub/../../secret.jpg", "image-outside-root"),
        ("sub/../a.jpg", "image-outside-root"),
        ("ABSOLUTE", "image-outside-root"),
        ("ABSOLUTE INSIDE", "image-outside-root"),
        ("out.jpg", "image-outside-root"),
        ("outdir/secret.jpg", "image-outside-root"),
        ("loop.jpg", "unreadable-image"),
        ("none.jpg", "missing-image"),
        ("sub", "missing-image"),
        (".", "missing-image"),
        ("pipe", "missing-image"),
        ("big.jpg", "image-too-large"),
        ("empty.jpg", "empty-image"),
        ("x" * 300, "unreadable-image"),
    ],
)
def test_image_root_lets_nothing_out(tmp_path: Path, name: str, reason: str) -> None:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    (root / "a.jpg").write_bytes(b"a")
    (root / "big.jpg").write_bytes(b"x" * 101)
    (root / "empty.jpg").touch()
    (root / "out.jpg").symlink_to(secret)
    (root / "outdir").symlink_to(tmp_path)
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(root / "pipe")
    absolute = {"ABSOLUTE": str(secret), "ABSOLUTE INSIDE": str(root / "a.jpg")}
    path = image_file(tmp_path, absolute.get(name, name))
    item = refusal(path, image_root=root, max_image_bytes=100)
    assert item.reason == reason
    assert len(item.detail) < 400


def test_options_that_cannot_be_right(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        ReadOptions(image_root=tmp_path / "none")
    with pytest.raises(ConfigError, match="answer_mismatch"):
        ReadOptions(answer_mismatch="drop")  # type: ignore[arg-type]


# Files that cannot be read


def test_missing_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    row = {"image": GOOD["image"], "questions": "x", "reasoning": "x"}
    with pytest.raises(SourceError) as caught:
        read_source(write(tmp_path / "a.parquet", [row]))
    text = str(caught.value)
    assert "missing columns question, answer" in text
    assert "the file has: image (struct<bytes: bytes, path: text>), questions (text)" in text
    assert "nearest to question is questions" in text
    assert "a.parquet" in text


def test_a_missing_reasoning_column_is_an_error_unless_allowed(tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "reasoning"}
    path = write(tmp_path / "a.parquet", [row])
    with pytest.raises(SourceError, match="missing column reasoning"):
        read_source(path)
    assert record(path, need_reasoning=False).reasoning == ""


def test_a_misspelt_axis_is_an_error(tmp_path: Path) -> None:
    row = {**GOOD, "preception": "[]", "knowledge": "[]", "rationale": "[]"}
    with pytest.raises(SourceError, match="nearest to perception is preception"):
        read_source(write(tmp_path / "a.parquet", [row]))


WRONG_TYPES: list[tuple[str, object, Any]] = [
    ("image", b"x", pa.binary()),
    ("image", "x", pa.string()),
    (
        "image",
        {"bytes": "x", "path": "x"},
        pa.struct([("bytes", pa.string()), ("path", pa.string())]),
    ),
    ("image", {"bytes": b"x"}, pa.struct([("bytes", pa.binary())])),
    ("image", [b"x"], pa.list_(pa.binary())),
    ("question", 3, pa.int64()),
    ("question", b"x", pa.binary()),
    ("question", ["x"], pa.list_(pa.string())),
    ("answer", 0, pa.int64()),
    ("reasoning", None, pa.null()),
    ("id", 1.5, pa.float64()),
    ("perception", 3, pa.int64()),
    ("perception", [{"claim": "x"}], pa.list_(pa.struct([("claim", pa.string())]))),
    ("perception", ["{}"], pa.list_(pa.string())),
]


@pytest.mark.parametrize(("name", "value", "kind"), WRONG_TYPES)
def test_wrong_types_name_column_found_and_wanted(
    tmp_path: Path, name: str, value: object, kind: Any
) -> None:
    row = GOOD | ({"knowledge": "[]", "rationale": "[]"} if name == "perception" else {})
    path = write(tmp_path / "a.parquet", [row | {name: value}], {name: kind})
    with pytest.raises(SourceError) as caught:
        read_source(path)
    found = column_type(pq.read_schema(path).field(name).type)
    assert f"column {name} has type {found}, wanted " in str(caught.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"x", pa.binary()),
        ({"a": [b"x"]}, pa.struct([("a", pa.list_(pa.binary()))])),
        (datetime.timedelta(1), pa.duration("s")),
        ([("a", 1)], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_other_columns_that_json_cannot_carry_must_be_left_out_by_name(
    tmp_path: Path, value: object, kind: Any
) -> None:
    path = write(tmp_path / "a.parquet", [{**GOOD, "thumb": value}], {"thumb": kind})
    with pytest.raises(SourceError, match=r"column thumb has type .*omit"):
        read_source(path)
    assert record(path, omit=("thumb",)).extra == {}
    with pytest.raises(SourceError, match="no column thump to omit"):
        read_source(path, ReadOptions(omit=("thump",)))


def test_a_column_that_appears_twice_is_an_error(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet", [GOOD]))
    pq.write_table(table.append_column("answer", pa.array(["B"])), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="answer appears twice"):
        read_source(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: b"hello, this is a text file\n" * 10,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:8] + data[-8:],
        lambda data: data[:-8] + b"\xff\xff\xff\x7f" + b"PAR1",
    ],
)
def test_what_is_not_a_whole_parquet_file(
    tmp_path: Path, break_it: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / "a.parquet", [GOOD] * 9)
    path.write_bytes(break_it(path.read_bytes()))
    for call in (read_source, lambda p: count_rows([p]), lambda p: source_fingerprint([p])):
        with pytest.raises(SourceError, match=r"not a Parquet file, or it was cut.*a\.parquet"):
            call(path)


def test_missing_files(tmp_path: Path) -> None:
    for call in (read_source, lambda p: count_rows([p]), lambda p: source_fingerprint([p])):
        with pytest.raises(SourceError, match=r"does not exist.*none\.parquet"):
            call(tmp_path / "none.parquet")
        with pytest.raises(SourceError):
            call(tmp_path)


def test_a_corrupt_page_names_its_row_group_and_rows(tmp_path: Path) -> None:
    marker = os.urandom(64)
    rows = [{**GOOD, "image": {"bytes": os.urandom(64), "path": None}} for _ in range(30)]
    rows[15]["image"]["bytes"] = marker
    path = write(
        tmp_path / "a.parquet",
        rows,
        row_group_size=10,
        compression="none",
        write_page_checksum=True,
    )
    data = bytearray(path.read_bytes())
    data[data.index(marker) + 5] ^= 1
    path.write_bytes(data)
    rows_read = read_source(path)
    assert [next(rows_read)[0] for _ in range(10)] == list(range(10))
    with pytest.raises(SourceError, match=r"row group 1 \(rows 10 to 19\).*checksum"):
        next(rows_read)


def test_flipped_bits_never_lose_a_row_silently(tmp_path: Path) -> None:
    rng = random.Random(3)
    units = {axis: [unit(axis)] for axis in AXES}
    path = write(
        tmp_path / "a.parquet",
        [GOOD | units] * 30,
        dict.fromkeys(AXES, UNIT_TYPE),
        row_group_size=10,
    )
    data = path.read_bytes()
    outcomes = set()
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            outcomes.add(len(read(path)))
        except SourceError:
            outcomes.add(-1)
    assert outcomes == {-1, 30}


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    image = os.urandom(100_000)
    rows = [
        {**GOOD, "image": {"bytes": bytes([n % 256]) + image, "path": None}} for n in range(800)
    ]
    how: dict[str, Any] = {"use_dictionary": False, "write_batch_size": 10}
    path = write(tmp_path / "a.parquet", rows, **how)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    assert path.stat().st_size > 80_000_000
    del rows
    before, peak = pa.total_allocated_bytes(), 0
    for _, item in read_source(path):
        assert isinstance(item, Record)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 1_000_000 < peak < 40_000_000


def test_a_reader_that_stops_early_leaves_no_file_open(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [GOOD] * 20, row_group_size=2)

    def opened() -> list[str]:
        links = list(Path("/proc/self/fd").iterdir())
        return [str(link.readlink()) for link in links if link.is_symlink()]

    rows = read_source(path)
    assert str(path) not in opened()
    next(rows)
    assert str(path) in opened()
    rows.close()  # type: ignore[attr-defined]
    assert str(path) not in opened()
    bad = write(tmp_path / "b.parquet", [{"x": "y"}])
    with pytest.raises(SourceError):
        read_source(bad)
    assert str(bad) not in opened()


# Sources


def test_list_sources_takes_files_folders_and_globs(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    files = [write(folder / f"train-0000{n}.parquet", [GOOD]) for n in (1, 0, 2)]
    write(folder / "sub" / "other.parquet", [GOOD])
    (folder / "readme.txt").write_text("x")
    ordered = tuple(sorted(files))
    assert list_sources(folder) == ordered
    assert list_sources(str(folder)) == ordered
    assert list_sources(str(folder / "train-*.parquet")) == ordered
    assert list_sources([files[0]]) == (files[0],)
    assert list_sources([files[2], str(files[0]), folder]) == ordered
    assert list_sources(folder / "readme.txt") == (folder / "readme.txt",)
    (tmp_path / "linked").symlink_to(folder)
    assert list_sources([folder, tmp_path / "linked"]) == ordered
    odd = tmp_path / "[x]"
    odd.mkdir()
    inside = write(odd / "a.parquet", [GOOD])
    assert list_sources(odd) == list_sources(inside) == (inside,)


def test_list_sources_refuses_what_matches_nothing(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for given_paths in ([], tmp_path / "none.parquet", str(tmp_path / "*.parquet"), tmp_path):
        with pytest.raises(SourceError):
            list_sources(given_paths)
    write(tmp_path / "sub" / "a.parquet", [GOOD])
    with pytest.raises(SourceError, match=r"There are some in .*sub"):
        list_sources(tmp_path)


def test_list_sources_refuses_to_mix_splits(tmp_path: Path) -> None:
    train = write(tmp_path / "demo.parquet", [GOOD])
    test = write(tmp_path / "demo-test.parquet", [GOOD])
    with pytest.raises(SourceError, match=r"different splits: demo\.parquet.*demo-test\.parquet"):
        list_sources(tmp_path)
    with pytest.raises(SourceError, match="different splits"):
        list_sources([train, test])
    assert list_sources(train) == (train,)
    assert list_sources(test) == (test,)
    assert list_sources(tmp_path, mixed_splits=True) == (test, train)


def test_list_sources_refuses_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [write(folder / "x.parquet", [GOOD]) for folder in (tmp_path, tmp_path / "b")]
    with pytest.raises(SourceError, match="the same name"):
        list_sources(files)


def test_the_fingerprint_follows_names_sizes_and_footers_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [GOOD] * 3)
    first = source_fingerprint([path])
    assert len(first) == 16
    os.utime(path, (1, 1))
    (tmp_path / "b").mkdir()
    same = tmp_path / "b" / "a.parquet"
    same.write_bytes(path.read_bytes())
    assert source_fingerprint([path]) == source_fingerprint([str(same)]) == first
    renamed = tmp_path / "c.parquet"
    renamed.write_bytes(path.read_bytes())
    assert source_fingerprint([renamed]) != first
    assert source_fingerprint([path, renamed]) not in (first, source_fingerprint([renamed, path]))
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:footer] + b"junk" + data[footer:])  # another size, the same footer
    assert source_fingerprint([path]) != first
    write(path, [GOOD] * 4)
    assert source_fingerprint([path]) != first
    write(path, [GOOD, GOOD, {**GOOD, "answer": "B"}])  # same size, other statistics
    assert source_fingerprint([path]) != first


def test_count_rows_sums_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.parquet", [GOOD] * n, row_group_size=2) for n in (1, 5)]
    assert count_rows(paths) == 6
    assert count_rows([]) == 0
