"""The dataset card, against the Hub's own parser, `datasets` and webdataset."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
import yaml

from omr_io.errors import ConfigError, IntegrityError, SourceError
from omr_io.foreign_shards.build import IndexOptions, index_foreign
from omr_io.publish import CardOptions, write_card
from omr_io.publish import card as card_module
from omr_io.publish.card_text import dataset_card
from omr_io.publish.markdown import code, plain, quoted
from omr_io.shards.layout import MANIFEST_NAME, read_manifest
from tests.shard_sets import encoded, record, single_records, write

HOSTILE = [
    "---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "a | b |\n| --- | --- |",
    "`code` ```\nfence",
    "# heading",
    "- item\n\n    indented",
    "<!-- omr-io card -->",
    "\x1b[31mred\x00\u202egnp",
    "\" } : & * ! % @ \\ '",
    "é 日本 😀",
    "https://evil.example and www.evil.example",
    "&lt;b&gt;",
    "$$x$$ :smile: @someone ~~gone~~ ==mark==",
]


@pytest.fixture
def sets(tmp_path):
    write(tmp_path / "train", single_records(25), split="train", max_shard_samples=10)
    write(tmp_path / "test", single_records(5), split="test")
    return tmp_path


def doctored(folder, **changes):
    """The set with other words in its manifest, sound as a manifest."""
    manifest = dataclasses.replace(read_manifest(folder), **changes)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def text_of(folders, **options):
    return write_card(folders, options=CardOptions(**options)).path.read_text()


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_default_places(sets):
    assert write_card([sets / "train"]).path == sets / "train" / "README.md"
    summary = write_card([sets / "train", sets / "test"])
    assert summary.path == sets / "README.md"
    assert summary.splits == {"train": 25, "test": 5}
    assert summary.bytes == summary.path.stat().st_size


def test_the_hub_parses_it(sets):
    hub = pytest.importorskip("huggingface_hub")
    text_of([sets / "train", sets / "test"], license="cc-by-4.0", title="A: title")
    card = hub.DatasetCard.load(sets / "README.md")
    assert isinstance(card.data, hub.DatasetCardData)
    assert card.data.license == "cc-by-4.0"
    assert card.data.pretty_name == "A: title"
    assert card.data.task_categories == ["visual-question-answering"]
    assert card.data.size_categories == ["n<1K"]
    assert hub.metadata_load(sets / "README.md") == card.data.to_dict()
    assert card.data.to_dict()["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": ["train/train-*.tar"]},
                {"split": "test", "path": ["test/test-*.tar"]},
            ],
        }
    ]
    text_of([sets / "train"])
    assert hub.DatasetCard.load(sets / "train" / "README.md").data.license is None


@pytest.mark.parametrize(
    ("samples", "size"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"),
     (450_000, "100K<n<1M"), (24_000_000, "10M<n<100M"), (10**12, "100M<n<1B")],
)  # fmt: skip
def test_size_categories(sets, samples, size):
    split = card_module._read((sets / "train").resolve(), sets.resolve())
    split = dataclasses.replace(split, about=dataclasses.replace(split.about, samples=samples))
    assert front_matter(dataset_card([split], None, None))["size_categories"] == [size]


def test_datasets_loads_the_folder_by_its_card(sets, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (sets / "more").mkdir()
    write(sets / "more" / "dev [x]-1", single_records(3), split="dev-1")
    text_of([sets / "train", sets / "test", sets / "more" / "dev [x]-1"])
    loaded = datasets.load_dataset(str(sets), cache_dir=str(sets / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {
        "train": 25, "test": 5, "dev_1": 3,
    }  # fmt: skip
    assert {row["json"]["id"] for row in loaded["test"]} == {f"case.{n:04d}" for n in range(5)}


def test_its_code_runs(sets):
    pytest.importorskip("webdataset")
    pytest.importorskip("datasets")
    text = text_of([sets / "train", sets / "test"])
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    checks = (
        "assert {k: len(v) for k, v in dataset.items()} == {'train': 25, 'test': 5}\n"
        "assert len(list(samples)) == 25\n"
        "assert record.id == 'case.0000' and len(shards) == 25\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(sets / "home")}
    environment["PYTHONPATH"] = str(card_module.Path(card_module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*blocks, checks])],
        cwd=sets, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = re.search(r"omr-io (verify .*)", text)[1].split()
    done = subprocess.run(
        [sys.executable, "-c", "from omr_io.cli import main; main()", *command],
        cwd=sets, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_its_numbers_are_those_of_the_sets(tmp_path):
    records = [
        *single_records(8),
        record(8, [], answer="", options=(), reasoning="<think>t</think><answer>x</answer>"),
    ]
    write(tmp_path / "set", records)
    text = text_of([tmp_path / "set"])
    assert "| samples | 9 |" in text
    assert "| images | 8 |" in text
    assert "| A | 4 (44.4%) |" in text
    assert "| B | 4 (44.4%) |" in text
    assert "| open-ended | 1 (11.1%) |" in text
    assert "| with 0 options | 1 (11.1%) |" in text
    assert read_manifest(tmp_path / "set").fingerprint in text
    assert "not de-identification" in text


def test_it_is_a_pure_function(sets):
    first = text_of([sets / "train", sets / "test"])
    assert text_of([sets / "train", sets / "test"]) == first
    (sets / "train" / "manifest.json").touch()
    assert text_of([sets / "train", sets / "test"]) == first


def test_what_someone_else_wrote_stays(sets):
    path = sets / "train" / "README.md"
    path.write_text("my own words")
    with pytest.raises(SourceError, match=r"is not from .*--overwrite"):
        write_card([sets / "train"])
    assert path.read_text() == "my own words"
    write_card([sets / "train"], options=CardOptions(overwrite=True))
    write_card([sets / "train"])  # ours is replaced
    path.write_text(path.read_text().replace("# license: fill in", "license: mit # "))
    with pytest.raises(SourceError, match="was changed since"):
        write_card([sets / "train"])
    assert "license: mit" in path.read_text()
    assert [item.name for item in path.parent.iterdir() if ".tmp" in item.name] == []


def test_bad_input(sets, tmp_path):
    with pytest.raises(ConfigError, match="license identifier"):
        CardOptions(license="my: license\n")
    with pytest.raises(ConfigError, match="same split"):
        write_card([sets / "train", sets / "train"])
    with pytest.raises(ConfigError, match="does not lie below"):
        write_card([sets / "train"], sets / "test" / "README.md")
    with pytest.raises(ConfigError, match="no shard set"):
        write_card([])
    with pytest.raises(SourceError, match="is no shard set"):
        write_card([sets])
    (sets / "train" / "train-000001.tar").write_bytes(b"short")
    with pytest.raises(IntegrityError):
        write_card([sets / "train"])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_stay_words(sets, hostile):
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    markdown = pytest.importorskip("markdown_it")
    folder = sets / "train"
    options = json.loads(json.dumps(read_manifest(folder).options)) | {"x": hostile, hostile: 1}
    doctored(folder, sources=(hostile,), refusals={hostile: 2}, options=options)
    text = text_of([folder], title=hostile)
    data = front_matter(text)
    assert data["pretty_name"] == hostile
    assert "license" not in data
    configs = datasets.utils.metadata.MetadataConfigs.from_dataset_card_data(
        huggingface_hub.DatasetCardData(**data)
    )
    assert list(configs) == ["default"]
    html = markdown.MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(
        text.split("---\n", 2)[2]
    )
    for tag in re.findall(r"<\s*/?\s*([a-z!]+[0-9-]*)", html, re.IGNORECASE):
        assert tag.lower() in {
            "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "ul",
            "li", "strong", "!--",
        }, tag  # fmt: skip
    assert html.count("<h1>") == 1
    assert html.count("<!--") == 1  # our own last line
    assert html.count("<table>") == 4
    assert "\x1b" not in text
    assert "\u202e" not in text


ODD = ["", "no", "null", "1", "~", "\ud800", "\u2028\x85\ufeff"]


@pytest.mark.parametrize("text", [*HOSTILE, *ODD])
def test_yaml_scalars_say_what_they_were_given(text):
    assert yaml.safe_load(f"- a: {quoted(text)}\n- b") == [{"a": text}, "b"]


def test_plain_text_is_shown_as_it_is():
    markdown = pytest.importorskip("markdown_it")
    from html import unescape

    for text in HOSTILE:
        html = markdown.MarkdownIt("gfm-like", {"linkify": False}).render("x " + plain(text))
        shown = re.sub(r"</?p>", "", html).strip()
        expected = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
        )
        assert unescape(shown) == "x " + expected
    assert "```" not in code("a```b")


def test_a_foreign_set_is_told_as_one(sets, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with tarfile.open(foreign / "x.tar", "w") as tar:
        for name, data in (("a.jpg", encoded(1)), ("a.txt", b"a caption")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_foreign([foreign], options=IndexOptions(split="dev"))
    text = text_of([foreign])
    assert "then a JSON" not in text
    assert "by `omr-io convert`" not in text
    assert "pure function" not in text
    assert "by the schema biomedica" in text
    assert "index and manifest by `omr-io index`" in text
    both = text_of([sets / "train", foreign])
    assert "Each sample of train has its images, then a JSON" in both
    assert "The shards of dev are as another program wrote them" in both
    assert "train: by `omr-io convert`" in both
    index_foreign([foreign], tmp_path / "apart")
    with pytest.raises(SourceError, match=r"not in its folder.*Copy them there"):
        write_card([tmp_path / "apart"])


def test_one_shard_is_named_without_braces(sets):
    text = text_of([sets / "test"])
    assert "WebDataset('test-000000.tar'" in text


def test_a_set_without_images_has_no_sizes(tmp_path):
    write(tmp_path / "s", [record(0)])
    assert "| pixels an image | none |" in text_of([tmp_path / "s"])
