"""Imports flow one way: what a stage may know of others, and what only the command line loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "omr_io").rglob("*.py")
}
# From the ground up: a stage may import those on lower floors alone, even within a function.
FLOORS = (
    ("errors", "markup", "text"),
    ("config", "sample_set", "storage", "terminal", "types"),
    ("cache", "random_words"),
    ("demo_corpus", "images", "packing", "remote", "tar", "tokenizer"),
    ("batches", "chat", "corpus", "reference"),
    ("ops", "shards", "telemetry"),
    ("remote_storage",),
    ("conversion", "foreign_shards"),
    ("index",),
    ("blend", "checks of shards"),
    ("doctor", "energon", "gallery", "lint", "loader", "publish"),
    ("integrations", "stages", "train"),
    ("judge",),
    ("cli",),
)
FLOOR = {stage: floor for floor, stages in enumerate(FLOORS) for stage in stages}
CHECKS = {"omr_io.shards.description", "omr_io.shards.shard_check", "omr_io.shards.verification"}
DRAWING = {"typer", "rich"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere but for its types, with a package for each name."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield full if full in MODULES else node.module
        pending += ast.iter_child_nodes(node)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {module: set(imported(path)) for module, path in MODULES.items()}


def stage(module: str) -> str:
    if module in CHECKS:
        return "checks of shards"
    return module.split(".")[1]


def test_no_module_imports_itself_by_a_detour(graph):
    ours = {module: {one for one in of if one in MODULES} for module, of in graph.items()}
    assert sum(map(len, ours.values())) > 400
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_stage_knows_nothing_of_later_ones(graph):
    ours = [module for module in graph if module.startswith("omr_io.") and module != "omr_io._C"]
    assert {stage(module) for module in ours} == set(FLOOR)  # a new one needs its floor
    up = [
        f"{module} -> {other}"
        for module in ours
        for other in graph[module]
        if other in ours
        and stage(other) != stage(module)
        and FLOOR[stage(other)] >= FLOOR[stage(module)]
    ]
    assert up == []


def test_only_the_command_line_and_the_terminal_draw(graph):
    drawing = {
        module for module, of in graph.items() if {one.split(".")[0] for one in of} & DRAWING
    }
    below = {module for module in drawing if stage(module) != "cli"}
    pages = {"omr_io.train.report.page", "omr_io.train.report.comparison_text"}
    assert below == {"omr_io.terminal", *pages}


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (
            "import omr_io.cli.app",
            {"numpy", "torch", "pyarrow", "PIL", "transformers", "tokenizers", "huggingface_hub"},
        ),
        ("import omr_io.remote, omr_io.corpus.formats", {"obstore", "huggingface_hub", "pyarrow"}),
        ("import omr_io.publish", {"huggingface_hub", "rich", "torch"}),
        ("import omr_io.gallery", {"rich", "torch"}),
        ("import omr_io.conversion", {"rich", "typer", "torch"}),
        ("import omr_io.judge.preference", {"rich", "torch", "PIL"}),
    ],
)
def test_what_is_heavy_is_loaded_when_it_is_used(command, heavy):
    code = f"import sys; {command}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("\n", "")
