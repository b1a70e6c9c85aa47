"""A blend from a file is the blend that the same values make."""

import dataclasses
import json
import sys
from fractions import Fraction

import pytest

from omr_io.blend import Blend, Source, read_blend
from omr_io.errors import ConfigError

YAML = """
samples_per_epoch: 200000
sources:
  - shards: shards/openmedreason
    weight: 70
    balance_answers: upsample
  - {shards: "s3://bucket/rare", weight: 1/3, name: rare}
"""


def fields(source):
    return dataclasses.asdict(source)


def test_yaml_and_json_are_the_blend(tmp_path):
    file = tmp_path / "blend.yaml"
    file.write_text(YAML)
    wanted = Blend(
        [
            Source("shards/openmedreason", weight=70, balance_answers="upsample"),
            Source("s3://bucket/rare", weight=Fraction(1, 3), name="rare"),
        ],
        samples_per_epoch=200_000,
    )
    made = read_blend(file)
    assert made.samples_per_epoch == wanted.samples_per_epoch
    assert list(map(fields, made.sources)) == list(map(fields, wanted.sources))
    known = {"sources": [{"shards": "a", "repeat": 2.5}, {"shards": "b"}]}
    (tmp_path / "blend.json").write_text(json.dumps(known))
    made = read_blend(tmp_path / "blend.json")
    assert list(map(fields, made.sources)) == [fields(Source("a", repeat=2.5)), fields(Source("b"))]
    assert made.samples_per_epoch is None


def test_every_option_of_a_source_but_its_filter_can_be_written(tmp_path):
    names = {field.name for field in dataclasses.fields(Source)}
    written = {"shards": "a", "repeat": 2, "weight": None, "balance_answers": None, "name": "x"}
    assert names == set(written) | {"where"}
    (tmp_path / "b.json").write_text(json.dumps({"sources": [written]}))
    assert fields(read_blend(tmp_path / "b.json").sources[0]) == fields(
        Source("a", repeat=2, name="x")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "the blend is no mapping"),
        ("", "the blend is no mapping"),
        ("source: []", "unknown key 'source'.*Did you mean sources"),
        ("samples_per_epoch: 5", "lacks sources"),
        ("sources: shards/", "no list of shard sets"),
        ("sources: []", "no list of shard sets"),
        ("sources: [shards/]", "source 1 is no mapping"),
        ("sources: [{shards: a}, {repeat: 2}]", "source 2 lacks shards"),
        ("sources: [{shards: 3}]", "source 1: shards is 3"),
        ("sources: [{shards: a, wheight: 3}]", "unknown key 'wheight'.*mean weight"),
        ("sources: [{shards: a, where: 'lambda c: c'}]", "source 1 has a filter"),
        ("sources: [{shards: a, repeat: -1}]", r"source 1 \(a\): repeat is -1"),
        ("sources: [{shards: a, repeat: often}]", r"source 1 \(a\): repeat is 'often'"),
        ("sources: [{shards: a, repeat: 1/0}]", "repeat is '1/0'"),
        ("sources: [{shards: a, repeat: true}]", "repeat is True"),
        ("sources: [{shards: a, balance_answers: all}]", "balance_answers 'all'"),
        ("sources: [{shards: a, weight: 1}]", "no samples_per_epoch"),
        ("samples_per_epoch: 2.5\nsources: [{shards: a, weight: 1}]", "2.5 is no whole number"),
        ("sources: [", "no YAML"),
    ],
)
def test_what_cannot_be_right_says_where(tmp_path, text, words):
    file = tmp_path / "blend.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){words}") as error:
        read_blend(file)
    assert str(file) in str(error.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_blend(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_blend(tmp_path / "b.yaml")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        read_blend(tmp_path / "b.json")
    (tmp_path / "b.yaml").write_text("sources: []")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"PyYAML is missing.*write the blend as JSON"):
        read_blend(tmp_path / "b.yaml")
