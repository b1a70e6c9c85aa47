"""Schemas: each fixture is of exactly one, every row becomes what it must, and none ever raises."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.cli.read_options import parse_map
from omr_io.corpus.raw import BadText, ColumnType
from omr_io.corpus.rows import ReadOptions
from omr_io.corpus.schemas import SCHEMAS, BoundSchema, bind
from omr_io.corpus.schemas.recognise import fit
from omr_io.corpus.schemas.row import Table
from omr_io.errors import ConfigError, ImageError, SourceError
from omr_io.types import Record, Refusal
from tests.corpus.schema_fixtures import FIXTURES, Fixture

BY_FILE = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.file)


class Root:
    """An image root in memory."""

    def __init__(self, images: dict[str, bytes]) -> None:
        self.images = images

    def read(self, name: str, max_bytes: int) -> bytes:
        if ".." in name:
            raise ImageError(f"{name} leads out", reason="image-outside-root")
        if name not in self.images:
            raise ImageError(f"there is no {name}", reason="missing-image")
        return self.images[name]


def bound(fixture: Fixture, **options: Any) -> BoundSchema:
    read = ReadOptions(**{**fixture.options, **options})
    return bind(fixture.columns, full(fixture), read, fixture.file)


def full(fixture: Fixture) -> list[dict[str, Any]]:
    """The rows as a reader gives them: every column in each."""
    return [{name: row.get(name) for name in fixture.columns} for row in fixture.rows]


def take(fixture: Fixture, schema: BoundSchema) -> list[Record | Refusal]:
    root = Root(fixture.images) if fixture.images else None
    return [
        schema.take(fixture.file, number, row, root) for number, row in enumerate(full(fixture))
    ]


@BY_FILE
def test_every_row_becomes_what_it_must(fixture: Fixture) -> None:
    schema = bound(fixture)
    assert schema.name == fixture.schema
    assert schema.columns == tuple(fixture.columns)
    for number, (item, wanted) in enumerate(
        zip(take(fixture, schema), fixture.expected, strict=True)
    ):
        if wanted.reason is None:
            assert item == wanted.record(fixture.file, number)
            assert isinstance(item, Record)
            assert list(item.extra) == [n for n in fixture.columns if n in item.extra]
        else:
            assert isinstance(item, Refusal), item
            assert (item.source, item.row, item.reason) == (fixture.file, number, wanted.reason)
            assert 0 < len(item.detail) < 400


@BY_FILE
def test_each_fixture_is_of_exactly_one_schema(fixture: Fixture) -> None:
    table = Table(fixture.columns, full(fixture), ReadOptions(**fixture.options))
    fitting = [schema.name for schema in SCHEMAS if not fit(schema, table).lacks]
    assert fitting == ([] if fixture.schema == "mapped" else [fixture.schema])
    relaxed = table._replace(options=dataclasses.replace(table.options, need_reasoning=False))
    assert [schema.name for schema in SCHEMAS if not fit(schema, relaxed).lacks] == fitting


def test_every_schema_has_a_fixture() -> None:
    assert {fixture.schema for fixture in FIXTURES} == {s.name for s in SCHEMAS} | {"mapped"}


@BY_FILE
def test_a_schema_can_be_forced_by_its_name(fixture: Fixture) -> None:
    schema = bound(fixture, schema=fixture.schema)
    assert take(fixture, schema) == take(fixture, bound(fixture))


@BY_FILE
def test_bound_schemas_travel_to_other_processes(fixture: Fixture) -> None:
    schema = bound(fixture)
    sent = pickle.loads(pickle.dumps(schema))
    assert sent == schema
    assert take(fixture, sent) == take(fixture, schema)


@BY_FILE
def test_nothing_that_a_row_says_is_lost(fixture: Fixture) -> None:
    """Every text of a row that is taken is found again in its record."""
    schema = bound(fixture)
    for row, item in zip(full(fixture), take(fixture, schema), strict=True):
        if not isinstance(item, Record):
            continue
        missing = words(row) - words(dataclasses.asdict(item)) - ROLES
        # An answer's text or number becomes a letter; the label of an empty option goes with it.
        assert missing <= {"the", "ct", "1", "c"}, (row, missing)


ROLES = {"human", "gpt", "user", "assistant", "text", "image", "answer"}


def words(value: Any) -> set[str]:
    """All words in the texts and numbers of a value, at any depth; names of fields do not count."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*map(words, value))
    if value is None or isinstance(value, bytes | bool):
        return set()
    return set(re.findall(r"[^\W_]+", str(value).casefold()))


# Values of any shape

TEXTS = st.sampled_from(
    [
        "", " ", "B", "<image>", "<image>Which?\nA. x\nB. y", "x\x00", "<answer>A</answer>",
        "A)x, B)y", '{"A": "x", "B": "y"}', '["x"]', "[", "{}", "<think>t</think>", "user", "human",
        "assistant", "gpt", "text", "image", "http://x/y.png", "a/../b", "\ud800", "A:x", "é",
    ]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(-1, 1), TEXTS, st.text(max_size=5),
    st.just(b""), st.just(b"x"), st.just(BadText(b"\xff", "byte 0: invalid start byte")),
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "type", "text", "bytes", "path", "image", "A", "B", "C",
     "ground_truth", "question", "answer", "claim"]
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.fixed_dictionaries({"role": TEXTS, "content": inner}),
        st.fixed_dictionaries({"from": TEXTS, "value": inner}),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.file)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_row_becomes_a_record_or_a_named_refusal(fixture: Fixture, data: st.DataObject) -> None:
    schema = bound(fixture, turns=data.draw(st.sampled_from(["refuse", "first"])))
    row = dict(data.draw(st.sampled_from(full(fixture))))
    for name in data.draw(st.lists(st.sampled_from(list(row)), min_size=1, max_size=3)):
        row[name] = data.draw(VALUES)
    if data.draw(st.booleans()):
        row.pop(data.draw(st.sampled_from(list(row))))
    item = schema.take(fixture.file, 3, row, Root(fixture.images))
    if isinstance(item, Refusal):
        assert item.reason in documented_reasons()
        assert len(item.detail) < 1000
        return
    assert item.question.strip()
    assert item.answer.strip()
    letters = [option.letter for option in item.options]
    assert letters == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)])
    assert len(letters) != 1
    assert not letters or item.answer in letters
    assert all(option.text for option in item.options)
    json.dumps(dict(item.extra), allow_nan=False)


def documented_reasons() -> set[str]:
    import omr_io.corpus.schemas

    text = omr_io.corpus.schemas.__doc__ or ""
    return set(re.findall(r"^    ([a-z]+(?:-[a-z0-9]+)+) ", text, re.MULTILINE)) | {
        "image-outside-root", "missing-image", "unreadable-image", "image-too-large",
    }  # fmt: skip


# Recognition


def table_error(columns: dict[str, str], **options: Any) -> str:
    kinds = {name: ColumnType(kind) for name, kind in columns.items()}  # type: ignore[arg-type]
    with pytest.raises(SourceError) as caught:
        bind(kinds, [], ReadOptions(**options), "some.csv")
    return str(caught.value)


def test_an_unknown_schema_names_columns_the_nearest_schema_and_a_map_to_try() -> None:
    text = table_error(
        {"querry": "text", "lable": "text", "img_path": "text", "score": "float", "choices": "text"}
    )
    assert "querry (text), lable (text), img_path (text), score (float), choices (text)" in text
    assert "nearest is " in text
    assert "missing column" in text
    assert "--map question=querry,answer=lable,image=img_path,options=choices" in text
    assert "some.csv" in text


@pytest.mark.parametrize(
    ("question", "answer", "image"),
    [
        ("querry", "lable", "img_path"),
        ("the question", "answer's", "$image"),
        ("question, in full", "answer;", "image (path)"),
        ("question, in full", "answers, all", "image, path"),
        ("question=", "answer", "image"),
    ],
)
def test_the_map_that_is_proposed_can_be_used(question: str, answer: str, image: str) -> None:
    """As it is printed, by a shell."""
    names = (question, answer, image)
    proposed = table_error(dict.fromkeys(names, "text")).rpartition("ry --map")[2]
    words = shlex.split("--map" + proposed.partition(", or name")[0])
    assert set(words[::2]) == {"--map"}
    kinds = {name: ColumnType("text") for name in names}
    options = ReadOptions(column_map=parse_map(words[1::2]))
    schema = bind(kinds, [], options, "some.csv")
    row = {question: "Q?\nA. x\nB. y", answer: "B", image: "1.jpg"}
    item = schema.take("some.csv", 0, row, Root({"1.jpg": b"x"}))
    assert isinstance(item, Record)
    assert (item.answer, item.images[0].name) == ("B", "1.jpg")


@pytest.mark.parametrize(
    ("names", "tries"),
    [
        (("Question", "label"), "Try --map question=Question,answer=label, or name"),
        (("Question", "zzz"), "Try --map question=Question,answer=COLUMN, or name"),
        (("yyy", "zzz"), "Name a schema by --schema"),
        ((), "the file has: no columns"),
    ],
)
def test_what_is_proposed_when_not_all_can_be_guessed(names: tuple[str, ...], tries: str) -> None:
    assert tries in table_error(dict.fromkeys(names, "text"))


def test_a_missing_trace_says_how_to_do_without() -> None:
    kinds = {name: ColumnType("text") for name in ("question", "answer")}
    data = ColumnType("bytes")
    kinds["image"] = ColumnType("struct", fields=(("bytes", data), ("path", kinds["answer"])))
    row = {"question": "Q?\nA. x\nB. y", "answer": "A", "image": {"bytes": None, "path": None}}
    with pytest.raises(SourceError, match=r"missing column reasoning.* Add --allow-no-reasoning"):
        bind(kinds, [row], ReadOptions(), "x")
    assert bind(kinds, [row], ReadOptions(need_reasoning=False), "x").name == "openmedreason"
    assert bind(kinds, [{**row, "question": "Where?"}], ReadOptions(), "x").name == "vqa"


def test_mapped_columns_may_be_open_ended_when_told() -> None:
    kinds = {name: ColumnType("text") for name in ("q", "a")}
    column_map = (("question", "q"), ("answer", "a"))
    row = {"q": "What is it?", "a": "a knee"}
    closed = bind(kinds, [], ReadOptions(column_map=column_map), "x.csv").take("x", 0, row, None)
    assert isinstance(closed, Refusal)
    assert closed.reason == "no-options"
    options = ReadOptions(column_map=column_map, open_ended=True)
    opened = bind(kinds, [], options, "x.csv").take("x", 0, row, None)
    assert isinstance(opened, Record)
    assert (opened.options, opened.answer, opened.images) == ((), "a knee", ())
    letter = bind(kinds, [], options, "x.csv").take("x", 0, {**row, "a": "C"}, None)
    assert isinstance(letter, Refusal)
    assert letter.reason == "no-options"


def test_maps_that_cannot_be_right() -> None:
    for column_map, says in (
        ((("questoin", "q"),), "questoin"),
        ((("question", "q"), ("question", "p")), "question is mapped twice"),
        ((("question", "q"), ("answer", "q")), "q is mapped twice"),
        ((("image", "q"), ("images", "p")), "image is mapped twice"),
    ):
        with pytest.raises(ConfigError, match=says):
            ReadOptions(column_map=column_map)
    with pytest.raises(ConfigError, match="columns are mapped"):
        ReadOptions(column_map=(("question", "q"),), schema="llava")
    kinds = {"q": ColumnType("text"), "question": ColumnType("text")}
    with pytest.raises(SourceError, match=r"no column a to map; the file has: q \(text\)"):
        bind(kinds, [], ReadOptions(column_map=(("answer", "a"),)), "x")
    with pytest.raises(SourceError, match="missing column question"):
        bind(kinds, [], ReadOptions(column_map=(("answer", "question"),)), "x")


def test_a_schema_by_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean medvlthinker"):
        bind({}, [], ReadOptions(schema="medvlthinkr"), "x")
    with pytest.raises(ConfigError, match="openmedreason, medvlthinker"):
        bind({}, [], ReadOptions(schema="zzz"), "x")


def test_a_forced_schema_says_what_the_file_lacks() -> None:
    text = table_error({"question": "text", "options": "integer"}, schema="medvlthinker")
    assert "not of the schema medvlthinker" in text
    assert "missing column answer_label" in text
    assert "column options has type integer, wanted" in text


def test_columns_that_json_cannot_carry_are_left_out_by_name() -> None:
    kinds = {name: ColumnType("text") for name in ("question", "answer")}
    kinds["thumb"] = ColumnType("list", ColumnType("bytes"))
    options = ReadOptions(schema="mapped")
    with pytest.raises(SourceError, match=r"column thumb has type list<bytes>.*--omit thumb"):
        bind(kinds, [], options, "x")
    schema = bind(kinds, [], dataclasses.replace(options, omit=("thumb",)), "x")
    assert schema.columns == ("question", "answer")
    with pytest.raises(SourceError, match="no column thump to omit; there are: question"):
        bind(kinds, [], dataclasses.replace(options, omit=("thump",)), "x")


def test_keys_that_only_later_rows_have_are_kept() -> None:
    kinds = {name: ColumnType("text") for name in ("question", "answer", "gone")}
    options = ReadOptions(schema="mapped", omit=("gone",))
    schema = bind(kinds, [], options, "x.jsonl")
    row = {"question": "Q?\nA. x\nB. y", "answer": "A", "gone": "1", "new": "2"}
    item = schema.take("x.jsonl", 0, row, None)
    assert isinstance(item, Record)
    assert item.extra == {"new": "2"}
    bad = schema.take("x.jsonl", 0, {**row, "new": [b"x"]}, None)
    assert isinstance(bad, Refusal)
    assert bad.reason == "bad-type"


def test_urls_in_rows_are_never_fetched() -> None:
    kinds = {name: ColumnType("text") for name in ("question", "answer", "image")}
    schema = bind(kinds, [], ReadOptions(schema="mapped"), "x")
    for name in ("https://example.org/1.jpg", "file:///etc/passwd", "data:image/png;base64,AA=="):
        row = {"question": "Q?\nA. x\nB. y", "answer": "A", "image": name}
        item = schema.take("x", 0, row, Root({name: b"secret"}))
        assert isinstance(item, Refusal)
        assert item.reason == "image-not-embedded"


def test_options_are_recorded_as_json() -> None:
    options = ReadOptions(column_map=(("question", "q"),), turns="first", question="What?")
    assert json.loads(json.dumps(dataclasses.asdict(options)))["column_map"] == [["question", "q"]]
    for wrong in ({"turns": "all"}, {"question": " "}):
        with pytest.raises(ConfigError):
            ReadOptions(**wrong)  # type: ignore[arg-type]
