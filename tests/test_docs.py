"""The code in docs/ runs as it stands, or says why it cannot.

A Python block runs after those above it, in the same namespace, in a folder that holds what the
guides name. A comment before it may say otherwise:

    <!-- not run: REASON -->         what no test machine has
    <!-- needs: MODULE -->           before a heading: its blocks run where there is such a module
    <!-- from: FILE -->              an excerpt, word for word, of a file that tests run
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from omr_io import stages
from omr_io.conversion import ConvertOptions, write_shard_set
from omr_io.index import ShardSet
from tests.examples.conftest import model_folder  # noqa: F401 (a fixture)
from tests.shard_sets import encoded
from tests.stages.streams import samples

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
_COMMENT = re.compile(r"<!-- (not run|needs|from): (.*?) -->")
_LINK = re.compile(r"\]\(([\w.-]+\.md)\)")


@dataclass(frozen=True)
class Block:
    guide: str
    line: int
    code: str
    mark: str = ""
    of: str = ""


def blocks_of(path: Path) -> list[Block]:
    found, mark, needs = [], ("", ""), ("", "")
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    previous = ""
    for number, line in lines:
        if match := _COMMENT.fullmatch(line):
            if match[1] == "needs":
                needs = ("needs", match[2])
            else:
                mark = (match[1], match[2])
        elif line.startswith("#") and not previous.startswith("<!-- needs"):
            needs = ("", "")
        elif line == "```python":
            code = []
            for _, inner in lines:
                if inner == "```":
                    break
                code.append(inner)
            found.append(
                Block(path.name, number, "\n".join(code) + "\n", *(mark if mark[0] else needs))
            )
            mark = ("", "")
        previous = line
    return found


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def folder(tmp_path, make_records, model_folder, monkeypatch):  # noqa: F811
    """What the guides name: shard sets, a model's folder."""
    options = ConvertOptions(check="header", keep_metadata=True, max_shard_samples=20)
    for name in ("shards", "more-shards"):
        write_shard_set(enumerate(make_records(40)), tmp_path / name, options)
    shutil.copytree(model_folder, tmp_path / "Qwen3-VL-2B-Instruct")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mds_rows():
    """What a StreamingDataset gives."""
    for number in range(40):
        yield {
            "id": f"row-{number}",
            "question": "Which side?\nA. left\nB. right",
            "options": {"A": "left", "B": "right"},
            "answer": "A",
            "reasoning": "<think>It is.</think>\n<answer>A</answer>",
            "image": encoded(number),
        }


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_the_code_of_a_guide_runs(path, folder):
    namespace = {"__name__": path.stem, "rows": mds_rows()}
    ran, count = 0, 0
    for block in blocks_of(path):
        count += 1
        if block.mark in ("not run", "from") or (block.mark == "needs" and not is_there(block.of)):
            continue
        ran += 1
        # Padded, so that a traceback names the guide's own lines.
        code = "\n" * block.line + block.code
        exec(compile(code, str(path), "exec"), namespace)
    for value in namespace.values():
        if hasattr(value, "close") and hasattr(value, "state_dict"):
            with contextlib.closing(value):
                pass
    assert ran or all(block.mark == "from" for block in blocks_of(path))
    assert count
    if path.name == "from-webdataset.md":
        check_the_record_function(namespace)
    if path.name == "from-mosaicml-streaming.md":
        with ShardSet.open(folder / "shards/mds") as made:
            assert [made.read_record(i).id for i in range(2)] == ["row-0", "row-1"]


def check_the_record_function(namespace):
    import json

    row = next(mds_rows())
    sample = {"__key__": "k", "jpg": row.pop("image"), "json": json.dumps(row).encode()}
    (found,) = namespace["encode"]([sample])
    assert found.failure is None
    (batch,) = stages.pack(seq_len=512)(namespace["encode"]([sample]))
    assert batch.keys == (("k",),)
    assert namespace["encode"].failures == []
    assert next(samples(Path("shards")))["__key__"] == "study-0"


def test_excerpts_are_what_the_examples_hold():
    excerpts = [block for path in GUIDES for block in blocks_of(path) if block.mark == "from"]
    assert len(excerpts) > 4
    for block in excerpts:
        whole = (ROOT / block.of).read_text(encoding="utf-8")
        # White space aside: with less indentation, ruff breaks lines elsewhere.
        held = "".join(block.code.split()) in "".join(whole.split())
        assert held, f"{block.guide}:{block.line} is not in {block.of}"


def test_every_mark_says_something_and_links_lead_somewhere():
    for path in GUIDES:
        text = path.read_text(encoding="utf-8")
        assert text.count("<!--") == len(_COMMENT.findall(text)), path.name
        for target in _LINK.findall(text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
        assert not re.search(r"^```py\b|^```Python", text, re.MULTILINE)
