"""The compiled form that is kept between runs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from omr_io.errors import OmrWarning
from omr_io.tokenizer import Tokenizer, compiled
from tests.text_fixtures import corpus, hugging_face, small


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that keeps small sources as well."""
    monkeypatch.setenv("OMR_IO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_LEAST_BYTES", 0)
    small().save(tmp_path / "model")
    return tmp_path / "cache" / "tokenizers"


def never(*_: object) -> None:
    raise AssertionError("the source was parsed")


def check(tokenizer: Tokenizer) -> None:
    for text in (*corpus(10), "<think><|im_end|>"):
        assert tokenizer.encode(text).tolist() == small().encode(text).tolist()
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.fingerprint == small().fingerprint
    assert tokenizer._source == small()._source
    assert tokenizer.special_ids == small().special_ids
    assert tokenizer.vocab_size == small().vocab_size


def test_the_second_load_parses_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Tokenizer.from_pretrained(tmp_path / "model"))
    assert sorted(f.suffix for f in cache.iterdir()) == [".pipeline", ".vocabulary"]
    monkeypatch.setattr(compiled, "parse", never)
    monkeypatch.setattr("omr_io.tokenizer.canonical.fingerprint", never)
    again = Tokenizer.from_pretrained(tmp_path / "model")
    check(again)
    assert again._companions == small()._companions
    # A pickle finds the compiled form as well, and the policy is no part of the key.
    check(pickle.loads(pickle.dumps(again)))
    refusing = Tokenizer.from_pretrained(tmp_path / "model", on_special_text="error")
    assert refusing.fingerprint != again.fingerprint


def test_another_source_is_another_entry(cache: Path, tmp_path: Path) -> None:
    Tokenizer.from_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"added_tokens": tree["added_tokens"][:-1]}))
    changed = Tokenizer.from_pretrained(file)
    assert changed.vocab_size == small().vocab_size - 1
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("suffix", [".pipeline", ".vocabulary"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "foreign", "folder"])
def test_damaged_entries_are_made_anew(
    cache: Path, tmp_path: Path, suffix: str, damage: str
) -> None:
    Tokenizer.from_pretrained(tmp_path / "model")
    (file,) = (f for f in cache.iterdir() if f.suffix == suffix)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    if damage in ("gone", "folder"):
        file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        made = {"cut": data[: len(data) // 2], "flip": data, "empty": b"", "foreign": b"x" * 999}
        file.unlink()  # a process that has it mapped keeps what it mapped
        file.write_bytes(bytes(made[damage]))
    if damage == "folder":
        with pytest.warns(OmrWarning) if suffix == ".pipeline" else nullcontext():
            check(Tokenizer.from_pretrained(tmp_path / "model"))
        return
    check(Tokenizer.from_pretrained(tmp_path / "model"))
    assert file.stat().st_size > 1000
    check(Tokenizer.from_pretrained(tmp_path / "model"))


def test_an_entry_of_another_kind_is_no_entry(cache: Path, tmp_path: Path) -> None:
    """The checksum is right, the content is not."""
    from omr_io.cache import Cache

    Tokenizer.from_pretrained(tmp_path / "model")
    (file,) = (f for f in cache.iterdir() if f.suffix == ".pipeline")
    for body in (b"", b"\x05" + bytes(7) + b"[1,2]", b"\x02" + bytes(7) + b"{}"):
        Cache(cache).store(file.name, body)
        check(Tokenizer.from_pretrained(tmp_path / "model"))


def test_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMR_IO_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(compiled, "_LEAST_BYTES", 0)
    small().save(tmp_path / "model")
    check(Tokenizer.from_pretrained(tmp_path / "model"))
    assert not (tmp_path / "xdg").exists()


def test_small_sources_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMR_IO_CACHE_DIR", str(tmp_path / "cache"))
    small().save(tmp_path / "model")
    check(Tokenizer.from_pretrained(tmp_path / "model"))
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_no_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OMR_IO_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.warns(OmrWarning, match="OMR_IO_CACHE_DIR"):
        check(Tokenizer.from_pretrained(tmp_path / "model"))


def test_the_cache_is_bounded(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST_KEPT", 3)
    tree = json.loads(small()._source)
    for i in range(6):
        Tokenizer(json.dumps(tree | {"version": str(i)}))
        for file in cache.iterdir():  # each in its own second
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))
    assert len(list(cache.iterdir())) == 6
    monkeypatch.setattr(compiled, "parse", never)
    Tokenizer(json.dumps(tree | {"version": "5"}))
    with pytest.raises(AssertionError, match="parsed"):
        Tokenizer(json.dumps(tree | {"version": "0"}))


def test_writers_at_once(cache: Path, tmp_path: Path) -> None:
    code = (
        "from omr_io.tokenizer import Tokenizer, compiled; import sys; compiled._LEAST_BYTES = 0;"
        "t = Tokenizer.from_pretrained(sys.argv[1]);"
        "print(t.fingerprint, t.encode('naïve <think>').tolist())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    results = {one.communicate() for one in running}
    want = f"{small().fingerprint} {small().encode('naïve <think>').tolist()}\n"
    assert results == {(want, "")}
    assert sorted(f.suffix for f in cache.iterdir()) == [".pipeline", ".vocabulary"]


def test_hugging_face_is_not_imported_for_the_native_backend(tmp_path: Path) -> None:
    small().save(tmp_path)
    code = (
        "import sys; from omr_io.tokenizer import Tokenizer, Segment;"
        "t = Tokenizer.from_pretrained(sys.argv[1]); t.encode('a'); t.fingerprint;"
        "print(sorted({'tokenizers', 'transformers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_pickle_works_where_there_is_no_cache_and_no_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(Tokenizer.from_pretrained(tmp_path / "model"))
    monkeypatch.setenv("OMR_IO_CACHE_DIR", "")
    again = pickle.loads(data)
    check(again)
    again.save(tmp_path / "other")
    oracle = hugging_face((tmp_path / "other" / "tokenizer.json").read_text(), control=False)
    assert again.encode("naïve").tolist() == oracle.encode("naïve").ids
