"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from rich.console import Console

from omr_io import __version__, cli
from omr_io.cli.stopping import stoppable
from omr_io.terminal import Reporter
from omr_io.text import human_bytes, printable
from tests.shard_sets import contents, encoded, record, single_records, write

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("image", IMAGE), *((name, pa.string()) for name in ("question", "reasoning", "answer"))]
)


def corpus(path: Path, images: list[bytes | None], **options) -> Path:
    rows = [
        {
            "image": {"bytes": data, "path": f"{number}.jpg"},
            "question": f"Which, {number}?\nA. one\nB. two",
            "reasoning": "<think>So.</think>\n<answer>A</answer>",
            "answer": "A",
        }
        for number, data in enumerate(images)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, **options)
    return path


@pytest.fixture
def omr_io(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omr-io", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_convert_prints_counts_and_names_what_it_refused(omr_io, tmp_path):
    jpeg = encoded(1, size=(64, 64))
    source = corpus(tmp_path / "train.parquet", [jpeg, None, jpeg[:900], jpeg])
    code, out, err = omr_io("convert", source, tmp_path / "set")
    assert code == 0  # refused rows are reported, not an error
    lines = [line.split() for line in out.splitlines()]
    assert ["rows", "4"] in lines
    assert ["samples", "2"] in lines
    assert ["refused", "2"] in lines
    assert "2 rows were refused" in out
    assert "train.parquet row 1: " in out
    assert "train.parquet row 2: image-truncated: " in out
    assert str(tmp_path / "set" / "rejects.parquet") in out.replace("\n", "")
    assert err == ""
    code, out, _ = omr_io("verify", tmp_path / "set", "--decode")
    assert code == 0
    assert ["problems", "none"] in [line.split() for line in out.splitlines()]


def test_convert_options_of_reading(omr_io, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(encoded(7))
    rows = pq.read_table(corpus(tmp_path / "train.parquet", [encoded(1), None])).to_pylist()
    rows[0]["answer"] = "B"  # the trace says A
    for row in rows:
        row["thumbnail"] = b"jpeg"
    schema = SCHEMA.append(pa.field("thumbnail", pa.binary()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "train.parquet")

    code, _, err = omr_io("convert", tmp_path / "train.parquet", tmp_path / "set")
    assert code == 3
    assert "thumbnail" in err
    asked = ("--json", tmp_path / "train.parquet", "--omit", "thumbnail")
    _, out, _ = omr_io("convert", *asked, "--image-root", tmp_path / "images", tmp_path / "a")
    assert json.loads(out)["refusals"] == {"answer-mismatch": 1}
    _, out, _ = omr_io("convert", *asked, "--answer-mismatch", "keep", tmp_path / "b")
    assert sum(json.loads(out)["refusals"].values()) == 1  # the image that is not there
    code, out, err = omr_io("convert", *asked, "--answer-mismatch", "maybe", tmp_path / "c")
    assert code == 2
    assert "refuse" in err


@pytest.mark.parametrize(
    ("limit", "code"), [("2", 0), ("1", 1), ("0", 1), ("50%", 0), ("49%", 1), ("x", 2), ("101%", 2)]
)
def test_max_rejects(omr_io, tmp_path, limit, code):
    source = corpus(tmp_path / "train.parquet", [encoded(1), None, None, encoded(2)])
    target = tmp_path / "set"
    found, _, err = omr_io("convert", source, target, "--max-rejects", limit)
    assert found == code, err
    if code == 1:
        assert "image-not-embedded" in err
        assert "row 1" in err
        assert not (target / "manifest.json").exists()
        assert not list(target.glob("*.tar"))
        found, _, err = omr_io("convert", source, target)  # the leftovers are in nobody's way
        assert found == 0, err


@pytest.mark.parametrize(
    ("limit", "refused", "rows"),
    [("29%", 29, 100), ("57%", 57, 100), ("0.7%", 7, 1000), ("100%", 99, 100)],
)
def test_a_share_of_rejects_is_met_exactly(omr_io, tmp_path, limit, refused, rows):
    """As floats 0.29 * 100 is a little less than 29, and 0.7 / 100 than 0.007."""
    source = corpus(tmp_path / "train.parquet", [None] * refused + [encoded(1)] * (rows - refused))
    code, _, err = omr_io("convert", source, tmp_path / "set", "--max-rejects", limit)
    assert code == 0, err


def test_parts_merge_and_dry_run(omr_io, tmp_path):
    jpeg = encoded(1, size=(64, 64))
    images = [jpeg, None, encoded(2), jpeg[:900], encoded(3)]
    source = corpus(tmp_path / "train.parquet", images, row_group_size=1)
    asked = ("convert", source, "--workers", 2, "--max-shard-samples", 1)
    code, out, err = omr_io(*asked, tmp_path / "set", "--dry-run", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["outcome"], told["rows"], told["samples"]) == ("dry run", 5, 3)
    assert not (tmp_path / "set").exists()

    assert omr_io(*asked, tmp_path / "whole")[0] == 0
    for which, pieces in ((2, 2), (1, 3)):
        code, out, err = omr_io(*asked, tmp_path / "set", "--part", f"{which}/2")
        assert (code, err) == (0, "")
        lines = [line.split() for line in out.splitlines()]
        assert ["outcome", "part", "done"] in lines
        assert ["pieces", str(pieces)] in lines
        assert "--merge" in out
        if which == 2:
            code, _, err = omr_io(*asked, tmp_path / "set", "--merge")
            assert code == 2
            assert "3 of 5 pieces are not there: 0, 2, 4. Run --part 1/2" in err
    code, out, err = omr_io(*asked, tmp_path / "set", "--merge", "--json")
    assert (code, err) == (0, "")
    done = json.loads(out)
    same = ("rows", "samples", "images", "refusals", "examples", "shards", "bytes", "pieces")
    assert {name: done[name] for name in same} == {name: told[name] for name in same}
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    code, out, _ = omr_io(*asked, tmp_path / "set")
    assert code == 0
    assert ["outcome", "already", "complete"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("part", "words"),
    [("0/4", "count from 1"), ("5/4", "no part 5"), ("1", "Use I/N"), ("-1/2", "Use I/N")],
)
def test_parts_that_cannot_be(omr_io, tmp_path, part, words):
    source = corpus(tmp_path / "train.parquet", [encoded(1)])
    code, out, err = omr_io("convert", source, tmp_path / "set", f"--part={part}")
    assert (code, out) == (2, "")
    assert words in err
    assert not (tmp_path / "set").exists()


def test_what_a_conversion_shows(monkeypatch):
    from omr_io.cli.convert_report import ConvertReport
    from omr_io.conversion import ConvertProgress

    clock = iter((0.0, 0.0, 20.0, 20.0))
    for module in ("omr_io.cli.convert_report", "omr_io.terminal"):  # for no other thread
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: next(clock)))
    console = Console(file=io.StringIO(), width=40)
    report = ConvertReport(Reporter(console))
    report(ConvertProgress(3000, 2990, 10, 80_000_000, 100_000, "convert", 1000, 40_000_000))
    assert console.file.getvalue() == (
        "convert: 3000 of 100000 rows, 100 rows/s, 2.0 MB/s, 10 refused, 16:10 left\n"
    )


def test_where_images_lie_is_no_part_of_the_bytes(omr_io, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(encoded(7))
        source = corpus(tmp_path / "train.parquet", [None])
        folder = tmp_path / f"set-{name}"
        code, _, err = omr_io("convert", "--image-root", tmp_path / name, source, folder)
        assert code == 0, err
    assert contents(tmp_path / "set-here") == contents(tmp_path / "set-there")


def test_convert_options_of_images(omr_io, tmp_path):
    images = [encoded(1, size=(64, 64), comment=b"Jane Doe"), encoded(2, "PNG", size=(64, 300))]
    deep = io.BytesIO()
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(deep, "PNG")
    source = corpus(tmp_path / "train.parquet", [*images, deep.getvalue()])

    def run(name: str, *options: str) -> tuple[dict, bytes]:
        folder = tmp_path / name
        code, out, err = omr_io("convert", "--json", source, folder, *options)
        assert code == 0, err
        return json.loads(out), (folder / "train-000000.tar").read_bytes()

    done, tar = run("a")
    assert (done["samples"], done["refusals"]) == (2, {"image-16-bit": 1})
    assert b"Jane Doe" not in tar
    done, tar = run("b", "--take", "16-bit", "--keep-metadata")
    assert (done["samples"], done["refusals"]) == (3, {})
    assert b"Jane Doe" in tar
    done, _ = run("c", "--max-bytes", str(len(images[1]) - 1), "--refuse", "alpha")
    assert done["refusals"] == {"image-too-large": 1, "image-16-bit": 1}
    run("d", "--transcode", "100:80", "--keep-icc")
    _, out, _ = omr_io("info", tmp_path / "d", "--json")
    assert json.loads(out)["formats"] == {"jpeg": 2}
    for options, message in (
        (("--take", "sepia"), "'sepia' is no kind"),
        (("--take", "alpha", "--refuse", "alpha"), "both taken and refused"),
        (("--transcode", "small"), "1024:90"),
        (("--keep-metadata", "--keep-icc"), "Leave --keep-icc out"),
    ):
        code, _, err = omr_io("convert", source, tmp_path / "e", *options)
        assert (code, message in err) == (2, True), err


def test_json(omr_io, tmp_path):
    source = corpus(tmp_path / "train.parquet", [encoded(1), encoded(2)])
    code, out, err = omr_io("convert", "--json", source, tmp_path / "set")
    assert (code, err) == (0, "")
    assert json.loads(out)["samples"] == 2
    _, out, _ = omr_io("info", tmp_path / "set", "--json")
    about = json.loads(out)
    assert about["formats"] == {"jpeg": 2}
    assert about["answers"] == {"A": 2}
    assert about["folder"] == str(tmp_path / "set")
    assert about["pixels"] == dict.fromkeys(("low", "p5", "median", "p95", "high"), 768)
    _, out, _ = omr_io("info", tmp_path / "set", tmp_path / "set", "--json")
    assert json.loads(out) == {"sets": [about, about]}
    code, out, _ = omr_io("verify", tmp_path / "set", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])


def test_info_counts_what_is_there(omr_io, tmp_path):
    rows = [*single_records(4), record(9, [encoded(1), encoded(8, "PNG")]), record(10, [b"x"])]
    write(tmp_path / "set", [*rows, record(11, options=(), answer="free text")])
    code, out, _ = omr_io("info", tmp_path / "set")
    assert code == 0
    lines = [line.strip() for line in out.splitlines() if "   " in line]
    text = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert text["samples"] == "6"
    assert text["images"] == "6"
    assert text["formats"] == "jpeg: 5 (83.3%), png: 1 (16.7%)"
    assert text["images a sample"] == "0: 1 (16.7%), 1: 4 (66.7%), 2: 1 (16.7%)"
    assert text["repeated images"] == "1"
    assert text["open-ended"] == "1 (16.7%)"
    assert text["answers"] == "A: 2 (40.0%), B: 3 (60.0%)"
    assert text["answers of 2"] == text["answers"]
    assert text["rows refused"] == "image-format: 1"
    assert text["megapixels"].startswith("0.000768 / 0.000768 /")
    assert text["made with check"] == "decode"


def test_info_shows_sets_side_by_side(omr_io, tmp_path):
    write(tmp_path / "one", single_records(4))
    write(tmp_path / "two", [record(n, [encoded(n, "PNG")]) for n in range(12)])
    code, out, _ = omr_io("info", tmp_path / "one", tmp_path / "two")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["one", "two"]
    begin = lines[0].index("two")
    [samples] = [line for line in lines if line.strip().startswith("samples  ")]
    assert samples.split() == ["samples", "4", "12"]
    assert samples.index("12") == begin  # under its name
    [formats] = [line for line in lines if line.strip().startswith("formats")]
    assert formats[begin:] == "png: 12 (100.0%)"
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["convert", "{tmp}/none.parquet", "{tmp}/out"], 3, "none.parquet"),
        (["convert", "{tmp}/columns.parquet", "{tmp}/out"], 3, "no known schema"),
        (["convert", "{tmp}/good.parquet", "{tmp}/set"], 2, "already holds a complete shard set"),
        (["convert", "{tmp}/good.parquet", "{tmp}/good.parquet/set"], 4, "Not a directory"),
        (["convert", "{tmp}/bad.parquet", "{tmp}/out"], 1, "not one of 1 rows became a sample"),
        (["convert", "--check", "maybe", "{tmp}/good.parquet", "{tmp}/out"], 2, "check 'maybe'"),
        (["info", "{tmp}"], 3, "no shard set"),
        (["info", "{tmp}/cut"], 5, "train-000000.tar"),
        (["verify", "{tmp}/none"], 3, "does not exist"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(omr_io, tmp_path, arguments, code, words):
    corpus(tmp_path / "good.parquet", [encoded(1)])
    corpus(tmp_path / "bad.parquet", [b"no image"])
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "columns.parquet")
    write(tmp_path / "set", single_records(2))
    write(tmp_path / "cut", single_records(2))
    cut = tmp_path / "cut" / "train-000000.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    got, out, err = omr_io(*(str(part).format(tmp=tmp_path) for part in arguments))
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["convert"], ["info", "--nonsense", "x"]])
def test_usage(omr_io, arguments):
    code, out, err = omr_io(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: omr-io" in err


def test_verify_names_problems(omr_io, tmp_path):
    write(tmp_path / "set", single_records(3))
    path = tmp_path / "set" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)
    code, out, err = omr_io("verify", tmp_path / "set")
    assert (code, err) == (5, "")
    assert "CRC-32C (shard train-000000.tar, key case%2E0000, part case%2E0000.jpg" in out
    code, out, _ = omr_io("verify", tmp_path / "set", "--json")
    assert code == 5
    assert json.loads(out)["problems"][0]["where"]["shard"] == "train-000000.tar"


def test_version_and_help(omr_io):
    assert omr_io("--version") == (0, f"omr-io {__version__}\n", "")
    code, out, _ = omr_io("convert", "--help")
    assert code == 0
    assert "Exit codes" in out
    assert "--overwrite" in out


def test_text_from_the_data_cannot_drive_the_terminal(omr_io, tmp_path):
    assert printable("a\x1b[31m\nb\udc80é") == "a\\x1b[31m\\nb\\udc80é"
    image = pa.array([{"bytes": b"", "path": "x"}], IMAGE)
    nasty = "\x1b]0;owned\x07[bold]"
    columns = {"image": image, "question": [nasty], "reasoning": [nasty], "answer": [nasty]}
    pq.write_table(
        pa.table({**columns, "id": [nasty]}, schema=SCHEMA.append(pa.field("id", pa.string()))),
        tmp_path / "a.parquet",
    )
    code, out, err = omr_io("convert", tmp_path / "a.parquet", tmp_path / "set")
    assert code == 1
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2)],
)
def test_a_stopped_run_can_be_run_again(tmp_path, number, code, workers):
    images = [encoded(i, size=(700, 700)) for i in range(120)]
    source = corpus(tmp_path / "train.parquet", images, row_group_size=30)
    command = [sys.executable, "-c", "from omr_io.cli import main; main()"]
    for attempt in range(5):  # a run may be over before it is stopped
        folder = tmp_path / f"set-{attempt}"
        arguments = ["convert", str(source), str(folder), "--max-shard-samples", "1"]
        arguments += ["--workers", str(workers)]
        process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        # Not glob: a folder that goes while it is looked into would be an error.
        while not any(name.endswith(".tar") for _, _, names in os.walk(folder) for name in names):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        if process.returncode:
            break
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("run the same command again to go on")
    assert all(name.startswith(".omr-io-unfinished/") for name in contents(folder))
    assert not [name for name in contents(folder) if ".tmp" in name]
    done = subprocess.run([*command, *arguments], capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_library_turns_into_an_error_is_a_stop(capsys, number):
    def work():
        try:
            signal.raise_signal(number)
        except BaseException:
            signal.raise_signal(number)  # tidying up goes on
            raise ImportError("a module that was being imported") from None

    with pytest.raises(typer.Exit) as stopped, stoppable("run again"):
        work()
    assert stopped.value.exit_code == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}: run again\n"


def test_a_stop_that_was_swallowed_can_be_repeated(monkeypatch):
    def work():
        with suppress(BaseException):  # as in a finalizer
            signal.raise_signal(signal.SIGINT)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 60)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the signal did nothing")

    with pytest.raises(typer.Exit), stoppable("run again"):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_output_that_takes_no_more_is_no_traceback(tmp_path):
    source = corpus(tmp_path / "train.parquet", [encoded(1)])
    command = [sys.executable, "-c", "from omr_io.cli import main; main()", "convert", str(source)]
    for name in ("--json", "--workers=1"):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*command, str(tmp_path / "set"), name], stdout=full, stderr=-1, text=True
            )
        assert done.returncode == 4
        assert re.match(r"error: the work is done, but .* No space left", done.stderr)
        assert "Traceback" not in done.stderr


def test_names_that_the_output_cannot_write_are_escaped(tmp_path):
    source = corpus(tmp_path / "träin.parquet", [b"", encoded(1)])
    command = [sys.executable, "-c", "from omr_io.cli import main; main()", "convert", str(source)]
    done = subprocess.run(
        [*command, str(tmp_path / "set")], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "tr\\xe4in.parquet row 0: empty-image" in done.stdout


def test_demo_corpus_passes_its_options_on(omr_io, tmp_path, monkeypatch):
    import omr_io.demo_corpus as package

    real, calls = package.build, {}

    def build(out, **options):
        calls.update(options)
        return real(out, **options)

    monkeypatch.setattr(package, "build", build)
    code, out, _ = omr_io(
        "demo-corpus", tmp_path / "d.parquet", "--train-rows", 12, "--test-rows", 6, "--seed", 3,
        "--answer-bias", 0.7,
    )  # fmt: skip
    assert code == 0
    assert "12 rows from" in out
    assert (calls["seed"], calls["answer_bias"], calls["extra"]) == (3, 0.7, ())
    code, out, _ = omr_io("convert", tmp_path / "d.parquet", tmp_path / "set", "--json")
    assert (code, json.loads(out)["samples"]) == (0, 12)


def test_progress_is_a_bar_on_a_terminal_and_few_lines_elsewhere(monkeypatch):
    clock = iter(float(second) for second in range(1000))
    ticking = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("omr_io.terminal.time", ticking)
    plain = Console(file=io.StringIO(), width=40)
    with Reporter(plain) as reporter:
        for row in range(30):
            reporter.update("convert", row, 100, f"{row} of 100 rows [x]")
    lines = plain.file.getvalue().splitlines()
    assert lines == [f"convert: {row} of 100 rows [x]" for row in (9, 19, 29)]
    monkeypatch.undo()
    bar = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Reporter(bar) as reporter:
        reporter.update("convert", 50, 100, "50 of 100 rows")
        reporter.update("convert", 100, 100, "100 of 100 rows")
    assert "100 of 100 rows" in bar.file.getvalue()


def test_human_bytes():
    assert [human_bytes(n) for n in (0, 1023, 1024, 1536 * 1024, 1 << 30, 1 << 42)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB", "4.0 TiB",
    ]  # fmt: skip


def test_energon_metadata_follows_the_set_that_replaces_another(omr_io, tmp_path):
    out = tmp_path / "set"
    corpus(tmp_path / "two.parquet", [encoded(1), encoded(2)])
    corpus(tmp_path / "three.parquet", [encoded(3), encoded(4), encoded(5)])
    assert omr_io("convert", str(tmp_path / "two.parquet"), str(out), "--energon")[0] == 0
    counts = out / ".nv-meta" / ".info.json"
    assert "2" in counts.read_text(encoding="utf-8")
    # Without --energon none of the old set's offsets may stay beside the new shards.
    assert omr_io("convert", str(tmp_path / "three.parquet"), str(out), "--overwrite")[0] == 0
    assert not (out / ".nv-meta").exists()
    assert not list(out.glob("*.tar.idx"))
    again = ("convert", str(tmp_path / "three.parquet"), str(out), "--energon")
    assert omr_io(*again)[0] == 0
    assert "3" in counts.read_text(encoding="utf-8")
    code, _, error = omr_io(*again, "--dry-run")
    assert code == 2
    assert "--energon" in error


def test_what_is_no_file_of_energon_stays(omr_io, tmp_path):
    out = tmp_path / "set"
    corpus(tmp_path / "two.parquet", [encoded(1), encoded(2)])
    corpus(tmp_path / "three.parquet", [encoded(3), encoded(4), encoded(5)])
    assert omr_io("convert", tmp_path / "two.parquet", out, "--energon")[0] == 0
    (out / ".nv-meta/own").mkdir()
    assert omr_io("convert", tmp_path / "three.parquet", out, "--overwrite")[0] == 0
    assert [path.name for path in (out / ".nv-meta").iterdir()] == ["own"]


def test_images_that_came_later_are_asked_for(omr_io, tmp_path):
    source = corpus(tmp_path / "train.parquet", [encoded(1), None])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(encoded(7))
    later = ("convert", source, tmp_path / "set", "--image-root", tmp_path / "images")
    code, out, _ = omr_io("convert", source, tmp_path / "set")
    assert (code, "--overwrite" in out) == (0, False)
    code, out, _ = omr_io(*later)
    assert code == 0
    assert "already complete" in out
    assert "1 rows were refused for want of their image" in out
    assert "--overwrite" in out
    code, out, _ = omr_io(*later, "--overwrite")
    assert code == 0
    assert "for want of" not in out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_under_the_output_is_told(tmp_path, flags):
    write(tmp_path / "set", single_records(2))
    with Path("/dev/full").open("w") as full:  # every write fails with ENOSPC
        done = subprocess.run(
            [sys.executable, "-c", "from omr_io.cli import main; main()",
             "info", str(tmp_path / "set"), *flags],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == "error: writing the result failed: No space left on device\n"
