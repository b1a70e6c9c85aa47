"""The same bytes whoever converts: workers, threads, parts in any order, and a slow oracle."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omr_io.conversion import ConvertOptions, ConvertProgress, convert
from omr_io.conversion.duplicates import find_taken
from omr_io.conversion.piece import Job, convert_piece
from omr_io.conversion.plan import plan_conversion
from omr_io.conversion.workers import Cores
from omr_io.corpus import ReadOptions
from omr_io.errors import ConfigError, DataError, OmrError
from omr_io.index import ShardSet
from omr_io.shards import verify
from omr_io.shards.layout import UNFINISHED_NAME
from tests.conversion.small_corpora import mixed_corpus, parquet, row, tree_digest
from tests.shard_sets import contents, encoded

SMALL = {"max_shard_bytes": 12_000, "max_shard_samples": 6}
ROOT = Path(__file__).parents[2]


def options(**changes) -> ConvertOptions:
    return ConvertOptions(**{**SMALL, "workers": 1, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return mixed_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "set"
    convert(corpus, out, options())
    return out


def test_there_is_something_to_tell_apart(corpus, one_process):
    manifest = ShardSet.open(one_process).manifest
    assert set(manifest.refusals) == {"answer-mismatch", "duplicate-id", "image-truncated"}
    assert len(manifest.shards) > 5
    assert verify(one_process, decode=True).ok
    assert {path.suffix for path in one_process.iterdir()} == {
        ".tar", ".idx", ".arrow", ".json", ".parquet",
    }  # fmt: skip


@pytest.mark.parametrize(
    "how", [{"workers": 2}, {"workers": 3}, {"threads": 3}, {"workers": 2, "threads": 2}]
)
def test_bytes_do_not_depend_on_workers(corpus, one_process, tmp_path, how):
    summary = convert(corpus, tmp_path / "set", options(**how))
    assert contents(tmp_path / "set") == contents(one_process)
    assert (summary.outcome, summary.kept) == ("converted", 0)
    assert summary.pieces > 3


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_in_any_order(corpus, one_process, tmp_path, parts):
    order = list(range(1, parts + 1))
    random.Random(parts).shuffle(order)
    counted = 0
    for which in order:
        summary = convert(corpus, tmp_path / "set", options(), part=(which, parts))
        assert summary.outcome == "part done"
        counted += summary.rows
        again = convert(corpus, tmp_path / "set", options(), part=(which, parts))
        assert (again.rows, again.kept) == (summary.rows, summary.pieces)
    assert counted == 40
    summary = convert(corpus, tmp_path / "set", options(), merge=True)
    assert summary.kept == summary.pieces
    assert contents(tmp_path / "set") == contents(one_process)
    for again in ({"merge": True}, {"part": (1, parts)}, {}):
        summary = convert(corpus, tmp_path / "set", options(), **again)
        assert (summary.outcome, summary.rows) == ("already complete", 40)


def test_parts_at_the_same_time(corpus, one_process, tmp_path):
    code = (
        "import sys; from omr_io.conversion import ConvertOptions, convert; "
        "convert(sys.argv[1], sys.argv[2], ConvertOptions(max_shard_bytes=12_000, "
        "max_shard_samples=6, workers=1), part=(int(sys.argv[3]), 2))"
    )
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path / "set")]
    # Part 1 twice: a requeued job whose first run still lives, and may lose what it was at.
    running = [subprocess.Popen([*command, which], cwd=ROOT) for which in ("1", "2", "1")]
    for process in running:
        process.wait()
    assert running[1].returncode == 0
    assert 0 in (running[0].returncode, running[2].returncode)
    convert(corpus, tmp_path / "set", options(), merge=True)
    assert contents(tmp_path / "set") == contents(one_process)


def test_merge_says_which_parts_are_missing(corpus, tmp_path):
    with pytest.raises(ConfigError, match="nothing to merge"):
        convert(corpus, tmp_path / "set", options(), merge=True)
    assert not (tmp_path / "set").exists()
    for which in (1, 3):
        convert(corpus, tmp_path / "set", options(), part=(which, 4))
    pieces = plan_conversion(*_corpus(corpus))[1]
    missing = [piece.number for piece in pieces if piece.number % 4 in (1, 3)]
    words = f"{len(missing)} of {len(pieces)} pieces are not there: {missing[0]}, {missing[1]}"
    with pytest.raises(ConfigError, match=rf"{words}.*Run --part 2/4, 4/4"):
        convert(corpus, tmp_path / "set", options(), merge=True)
    with pytest.raises(Exception, match="unfinished"):
        ShardSet.open(tmp_path / "set")


def _corpus(folder: Path):
    from omr_io.corpus import open_corpus

    return open_corpus(folder), options()


@pytest.mark.parametrize(
    ("part", "more", "words"),
    [
        ((0, 4), {}, "parts count from 1. Use 1/4 to 4/4"),
        ((5, 4), {}, "no part 5 of 4"),
        ((1, 4), {"merge": True}, "exclude each other"),
        ((1, 4), {"dry_run": True}, "exclude each other"),
    ],
)
def test_parts_that_cannot_be(corpus, tmp_path, part, more, words):
    with pytest.raises(ConfigError, match=words):
        convert(corpus, tmp_path / "set", options(), part=part, **more)
    with pytest.raises(ConfigError, match="throw away"):
        convert(corpus, tmp_path / "set", options(overwrite=True), part=(1, 2))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dry_run_says_what_the_run_will_do(corpus, one_process, tmp_path, workers):
    (tmp_path / "notes").mkdir()
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path / "notes")
    try:
        told = convert(corpus, tmp_path / "set", options(workers=workers), dry_run=True)
    finally:
        tempfile.tempdir = before
    assert contents(tmp_path) == {"notes/": b""}  # nothing is left, OUT is not even made
    done = convert(corpus, tmp_path / "set", options())
    for name in ("rows", "samples", "images", "refusals", "examples", "shards", "bytes", "pieces"):
        assert getattr(told, name) == getattr(done, name), name
    assert told.outcome == "dry run"


def test_a_dry_run_of_a_folder_that_is_taken(corpus, one_process, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        convert(corpus, tmp_path, options(), dry_run=True)
    before = contents(one_process)
    assert convert(corpus, one_process, options(), dry_run=True).outcome == "already complete"
    with pytest.raises(ConfigError, match="already holds"):
        convert(corpus, one_process, options(check="header"), dry_run=True)
    assert contents(one_process) == before


def test_what_differs_is_named(corpus, one_process, tmp_path):
    before = contents(one_process)
    with pytest.raises(ConfigError, match=r"complete shard set, of check was 'decode', now 'head"):
        convert(corpus, one_process, options(check="header"))
    with pytest.raises(ConfigError, match="complete shard set, of other sources"):
        convert(corpus / "train-0.parquet", one_process, options())
    assert contents(one_process) == before

    convert(corpus, tmp_path / "set", options(), part=(1, 3))
    left = contents(tmp_path / "set")
    other = options(max_shard_samples=5, read=ReadOptions(answer_mismatch="keep"))
    words = (
        r"unfinished conversion that differs: max_shard_samples was 6, now 5; "
        r"read.answer_mismatch was 'refuse', now 'keep'. Run it with the same.*--overwrite"
    )
    for how in ({}, {"part": (2, 3)}, {"merge": True}, {"dry_run": True}):
        with pytest.raises(ConfigError, match=words):
            convert(corpus, tmp_path / "set", other, **how)
    with pytest.raises(ConfigError, match=r"the sources were train-0.*, now train-0.parquet"):
        convert(corpus / "train-0.parquet", tmp_path / "set", options())
    assert contents(tmp_path / "set") == left
    convert(corpus, tmp_path / "set", options(overwrite=True, check="header"))
    convert(corpus, tmp_path / "set", options(overwrite=True))  # and over a complete one
    assert contents(tmp_path / "set") == before


def test_an_unfinished_run_is_gone_on_with(corpus, one_process, tmp_path, monkeypatch):
    convert(corpus, tmp_path / "set", options(), part=(2, 3))
    kept = len(list((tmp_path / "set" / UNFINISHED_NAME / "pieces").iterdir()))
    done = []
    monkeypatch.setattr("omr_io.conversion.workers.convert_piece", _counting(done))
    seen: list[ConvertProgress] = []
    summary = convert(corpus, tmp_path / "set", options(), seen.append)
    assert summary.kept == kept
    first = [number for number, taken in done if not taken]
    assert len(first) == len(set(first)) == summary.pieces - kept
    assert seen[0].kept_rows > 0
    assert contents(tmp_path / "set") == contents(one_process)


def test_what_another_version_was_about_to_publish_is_not_taken_for_this_set(
    corpus, one_process, tmp_path, monkeypatch
):
    other = parquet(tmp_path / "other.parquet", [row("other", encoded(9))])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("omr_io.conversion.merging.Publication.run", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(other, tmp_path / "set", options())
    plan = tmp_path / "set" / UNFINISHED_NAME / "plan.json"
    fields = json.loads(plan.read_text())
    plan.write_text(json.dumps({**fields, "version": fields["version"] - 1}))
    convert(corpus, tmp_path / "set", options())
    assert contents(tmp_path / "set") == contents(one_process)


def _counting(done: list):
    def count(job, task, *rest):
        done.append((task.piece.number, len(task.taken)))
        return convert_piece(job, task, *rest)

    return count


def test_pieces_that_were_damaged_are_made_again(corpus, one_process, tmp_path):
    for which in (1, 2):
        convert(corpus, tmp_path / "set", options(), part=(which, 2))
    pieces = tmp_path / "set" / UNFINISHED_NAME / "pieces"
    (pieces / "000000" / "record.json").write_text("{}")
    (pieces / "000001" / "index.arrow").unlink()
    tar = next((pieces / "000002").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    (pieces / "000003-0123.tmp").mkdir()
    with pytest.raises(ConfigError, match=r"3 of \d+ pieces are not there: 0, 1, 2"):
        convert(corpus, tmp_path / "set", options(), merge=True)
    convert(corpus, tmp_path / "set", options())
    assert contents(tmp_path / "set") == contents(one_process)


@pytest.mark.parametrize(("limit", "good"), [(11, True), (10, False), (0.275, True), (0.27, False)])
@pytest.mark.parametrize("workers", [1, 2])
def test_max_rejects_over_all_pieces(corpus, one_process, tmp_path, limit, good, workers):
    refused = ShardSet.open(one_process).manifest.counts["refused"]
    assert refused == 11
    if good:
        convert(corpus, tmp_path / "set", options(max_rejects=limit, workers=workers))
    else:
        for dry in (True, False):
            with pytest.raises(DataError, match=r"of the \d+ rows read so far .* max_rejects"):
                convert(
                    corpus, tmp_path / "set", options(max_rejects=limit, workers=workers),
                    dry_run=dry,
                )  # fmt: skip
        assert all(name.startswith(UNFINISHED_NAME) for name in contents(tmp_path / "set"))
        convert(corpus, tmp_path / "set", options())
    assert contents(tmp_path / "set") == contents(one_process)


def test_a_worker_that_is_killed_is_named(corpus, one_process, tmp_path):
    from omr_io.conversion.piece import Task
    from omr_io.corpus import open_corpus

    given = open_corpus(corpus)
    plan, pieces = plan_conversion(given, options())
    (tmp_path / "pieces").mkdir()
    job = Job(options(), tmp_path / "pieces", plan.digest, given)

    def tasks():
        for piece in pieces:
            if piece.number == 2:
                _kill_one_child()
            yield Task(piece)

    with pytest.raises(OmrError, match=r"a worker was killed by signal 9.*memory.*fewer workers"):
        Cores(2)(job, tasks(), len(pieces), lambda *_: None)
    assert not _children()


def _children() -> list[int]:
    """This process's workers, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid() and "omr_io.conversion.worker" in command:
            found.append(int(path.name))
    return found


def _kill_one_child() -> None:
    deadline = time.monotonic() + 200
    while not (found := _children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)


def test_an_error_in_a_worker_is_the_callers(tmp_path):
    source = mixed_corpus(tmp_path / "corpus", rows=24, files=1)
    data = bytearray((source / "train-0.parquet").read_bytes())
    data[3000:3200] = bytes(200)
    (source / "train-0.parquet").write_bytes(data)
    for workers in (1, 2):
        with pytest.raises(OmrError, match="row group") as caught:
            convert(source, tmp_path / f"set-{workers}", options(workers=workers))
        assert caught.value.exit_code == 3


def test_a_script_needs_no_main_guard(corpus, one_process, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\nfrom omr_io.conversion import ConvertOptions, convert\n"
        f"convert({str(corpus)!r}, {str(tmp_path / 'set')!r}, "
        "ConvertOptions(max_shard_bytes=12_000, max_shard_samples=6, workers=2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert (done.stdout, done.stderr) == ("once\n", "")
    assert tree_digest(tmp_path / "set") == tree_digest(one_process)


def test_a_worker_imports_little():
    code = (
        "import sys; import omr_io.conversion.worker, omr_io.conversion.piece; "
        "print(*sorted({'torch', 'transformers', 'typer', 'rich', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "\n")


IMAGE = encoded(1, size=(16, 16))
ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefABC"), st.sampled_from(["good", "good", "cut", "mismatch"])),
    min_size=1,
    max_size=24,
)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, group=st.integers(1, 5), per_shard=st.integers(1, 6), cut=st.integers(0, 24))
def test_first_wins_over_the_whole_corpus(rows, group, per_shard, cut):
    """Against a loop over all rows; ids that differ in case share a key here."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("omr_io.conversion.prepare.key_for", str.lower)
        made = [
            row(one, IMAGE[:300] if kind == "cut" else IMAGE, "B" if kind == "mismatch" else "A")
            for one, kind in rows
        ]
        source, out = Path(folder, "in"), Path(folder, "set")
        parquet(source / "train-0.parquet", made[:cut], group)
        parquet(source / "train-1.parquet", made[cut:], group)
        samples, refused = first_wins(rows, cut)
        how = ConvertOptions(max_shard_samples=per_shard, workers=1)
        if not samples:
            with pytest.raises(DataError, match="not one of"):
                convert(source, out, how)
            return
        told = convert(source, out, how, dry_run=True)
        summary = convert(source, out, how)
        shards = ShardSet.open(out)
        assert [shards.read_record(i).id for i in range(len(shards))] == samples
        path = out / "rejects.parquet"
        table = pq.read_table(path).to_pylist() if path.exists() else []
        names = ("source", "row", "reason", "detail")
        found = [tuple(item[name] for name in names) for item in table]
        assert [item[:3] for item in found] == [item[:3] for item in refused]
        assert all(item[3] in (detail[3], item[3] if detail[3] is None else None)
                   for item, detail in zip(found, refused, strict=True))  # fmt: skip
        for name in ("rows", "samples", "refusals", "examples", "shards", "bytes"):
            assert getattr(told, name) == getattr(summary, name), name
        convert(source, Path(folder, "two"), how, part=(2, 2))
        convert(source, Path(folder, "two"), how)
        assert contents(Path(folder, "two")) == contents(out)


def first_wins(rows, cut):
    """(ids of samples, (source, row, reason, detail) of refusals); detail None: any."""
    samples, refused, known = [], [], {}
    for at, (one, kind) in enumerate(rows):
        source, number = ("train-0.parquet", at) if at < cut else ("train-1.parquet", at - cut)
        if kind == "mismatch":
            refused.append((source, number, "answer-mismatch", None))
        elif kind == "cut":
            refused.append((source, number, "image-truncated", None))
        elif one.lower() in known:
            first_id, first = known[one.lower()]
            if first_id == one:
                refused.append((source, number, "duplicate-id", f"the id is that of {first}"))
            else:
                detail = f"the key {one.lower()} is that of {first} with id {first_id!r}"
                refused.append((source, number, "duplicate-key", detail))
        else:
            known[one.lower()] = (one, f"{source}#{number}")
            samples.append(one)
    return samples, refused


@pytest.mark.parametrize("digests", [1, 3, None])
@pytest.mark.parametrize("keys_a_pass", [1, 7, 1000])
def test_digests_that_are_equal_by_chance(corpus, tmp_path, monkeypatch, digests, keys_a_pass):
    if digests is not None:
        monkeypatch.setattr(
            "omr_io.conversion.piece_writer.key_digest", lambda key: len(key) % digests
        )
    plan, pieces = plan_conversion(*_corpus(corpus))
    from omr_io.conversion.piece import Task

    job = Job(options(), tmp_path, plan.digest, _corpus(corpus)[0])
    records = [convert_piece(job, Task(piece)) for piece in pieces]
    expected: dict[int, set[str]] = {}
    seen: dict[str, str] = {}
    for piece in pieces:
        table = pq_keys(job.folder(piece.number))
        for key, _ in table:
            if key in seen:
                expected.setdefault(piece.number, set()).add((key, seen[key]))
        for key, source in table:
            seen.setdefault(key, source)
    found = {
        number: {(key, holder.source) for key, holder in taken.items()}
        for number, taken in find_taken(job.folder, records, keys_a_pass)
    }
    assert found == expected
    assert sum(map(len, found.values())) > 3


def pq_keys(folder: Path) -> list[tuple[str, str]]:
    import pyarrow as pa

    with pa.memory_map(str(folder / "keys.arrow")) as mapped:
        table = pa.ipc.open_file(mapped).read_all().to_pydict()
    return list(zip(table["key"], table["source"], strict=True))


def test_look_ahead_is_bounded_by_bytes():
    from omr_io.conversion.lookahead import prepare_rows
    from tests.shard_sets import record

    for size, threads, most in ((1000, 4, 17), (40_000, 4, 3), (200_000, 4, 2), (1000, 1, 1)):
        read = itertools.count()
        rows = ((next(read), record(n, [np.bytes_(b"x") * size])) for n in range(40))
        ahead = []
        for place, _ in enumerate(
            prepare_rows(rows, options().image_checks(), threads, max_bytes=100_000)
        ):
            at = next(read)
            ahead.append(at - place)
            read = itertools.count(at)
        assert max(ahead) <= most, (size, threads)
        assert max(ahead) >= min(most, 2) - 1
