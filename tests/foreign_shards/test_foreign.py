"""`omr-io index`: foreign tars as shard sets. webdataset itself says what their samples are."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from omr_io.corpus.rows import ReadOptions
from omr_io.errors import ConfigError, DataError, IntegrityError, SourceError, TarError
from omr_io.foreign_shards.build import IndexOptions, index_foreign
from omr_io.foreign_shards.keys_seen import KeysSeen
from omr_io.foreign_shards.locate import expand_braces, locate
from omr_io.gallery import write_gallery
from omr_io.index import ShardSet
from omr_io.shards import describe, verify
from omr_io.shards.layout import read_manifest
from tests.shard_sets import contents, encoded, mixed_records, write

wds = pytest.importorskip("webdataset")

JPEG = encoded(1, size=(40, 40))


def text(number: int = 0, **changes) -> bytes:
    letter = "AB"[number % 2]
    fields = {
        "question": f"What is seen in {number}?\nA. liver\nB. spleen",
        "reasoning": f"<think>Low, {number}.</think>\n<answer>{letter}</answer>",
        "answer": letter,
    }
    return json.dumps(fields | changes).encode()


def make_tar(path: Path, members, format=tarfile.GNU_FORMAT) -> Path:
    """A tar by Python's tarfile: (name, data) each; data None is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.size = 1_700_000_000, len(data or b"")
            if data is None:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def sample(key: str, number: int = 0, **changes):
    jpeg = encoded(number, size=(40, 40))
    return [(f"{key}.jpg", jpeg), (f"{key}.json", text(number, **changes))]


def by_webdataset(*tars: Path) -> list[dict[str, bytes]]:
    data = wds.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)
    return [
        {name: value for name, value in one.items() if name == "__key__" or name[:2] != "__"}
        for one in data
    ]


def by_omr_io(folder: Path) -> list[dict[str, object]]:
    """Each sample as webdataset gives it, from the index and checked reads."""
    found = []
    with ShardSet.open(folder) as shards:
        for i in range(len(shards)):
            parts = shards.parts(i)
            names = [part.name.rpartition("/")[2].partition(".")[2].lower() for part in parts]
            data = shards._read(i, parts)
            found.append({"__key__": shards.key(i), **dict(zip(names, data, strict=True))})
    return found


def rejects(folder: Path) -> list[tuple[str, str, str]]:
    if not (folder / "rejects.parquet").exists():
        return []
    rows = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert all(f"offset {row['detail'].split(':')[0][7:]}:" in row["detail"] for row in rows)
    return [(row["source"], row["id"], row["reason"]) for row in rows]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_webdataset(tmp_path, format):
    long = "/".join(["a-folder-with-a-name"] * 6)  # 125 bytes: ustar's prefix, GNU's or PAX' header
    members = [
        ("folder", None),
        *sample("folder/one", 1),
        *sample("folder.with.dots/two", 2),
        *sample(f"{long}/three", 3),
        ("__index__", b"x"),
        ("__meta__/a.txt", b"x"),
        ("four.JPG", encoded(4, size=(40, 40))),
        ("four.json", text(4)),
        ("four.npy", b"12345"),
        ("four.seg.png", encoded(5, "PNG", size=(40, 40))),
        *sample("five", 5)[::-1],
        ("Ärzte 6.jpg", encoded(6, size=(40, 40))),
        ("Ärzte 6.json", text(6)),
    ]
    tar = make_tar(tmp_path / "a.tar", members, format)
    summary = index_foreign([tar])
    assert (summary.samples, summary.images, summary.groups) == (6, 6, 6)
    assert (summary.layout, summary.schema) == ("fields", "openmedreason")
    assert summary.refusals == {}
    assert summary.left_out == {"__meta__": 2, "npy": 1, "seg.png": 1}
    theirs = by_webdataset(tar)
    for one in theirs:
        one.pop("npy", None)
        one.pop("seg.png", None)
    assert by_omr_io(tmp_path) == [dict(sorted(one.items())) for one in theirs]
    assert verify(tmp_path, decode=True).ok
    with ShardSet.open(tmp_path) as shards:
        record = shards.read_record(2)
        assert (record.id, record.answer) == (f"{long}/three", "B")
        assert record.question == "What is seen in 3?\nA. liver\nB. spleen"
        assert record.images[0].data == encoded(3, size=(40, 40))
        assert record.source == "a.tar#2"
        without = shards.read_record(2, images=False)
        assert without.images == ()
        assert without.question == record.question
        assert shards.question_bytes[2] == len(record.question)


def test_our_own_shards_get_the_index_that_convert_wrote(tmp_path):
    folder = tmp_path / "set"
    write(folder, mixed_records(30), max_shard_samples=8)
    before, records = contents(folder), None
    with ShardSet.open(folder) as shards:
        records = [shards.read_record(i) for i in range(len(shards))]
    for name in ("manifest.json", "index.arrow"):
        (folder / name).unlink()
    summary = index_foreign([folder])
    assert (summary.layout, summary.samples) == ("omr_io", 30)
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} <= {
        "manifest.json",
        "index.arrow",
    }
    with ShardSet.open(folder) as shards:
        assert [shards.read_record(i) for i in range(len(shards))] == records
    assert verify(folder, decode=True).ok


def test_bad_samples_are_told_and_never_merged(tmp_path):
    members = [
        *sample("good", 0),
        ("1.2.840.1.jpg", JPEG), ("1.2.840.1.json", text()),  # webdataset merges these two
        ("1.2.840.2.jpg", JPEG), ("1.2.840.2.json", text()),
        ("a.jpg", JPEG), ("b.jpg", JPEG), ("a.json", text()), ("b.json", text()),  # interleaved
        ("c.json", text(1)), *sample("d", 1), ("c.jpg", JPEG),  # would be a sample without image
        ("README", b"x"),
        ("e.jpg", JPEG), ("e.JPG", JPEG), ("e.json", text()),
        ("f.jpg", JPEG),
        ("g.jpg", JPEG[:500]), ("g.json", text()),
        ("h.jpg", b""), ("h.json", text()),
        ("i.jpg", JPEG), ("i.json", b"{"),
        ("j.jpg", JPEG), ("j.json", text(answer="Z")),
        *sample("last", 2),
    ]  # fmt: skip
    tar = make_tar(tmp_path / "a.tar", members)
    summary = index_foreign([tar])
    assert [one["__key__"] for one in by_omr_io(tmp_path)] == ["good", "d", "last"]
    told = rejects(tmp_path)
    assert [(key, reason) for _, key, reason in told] == [
        ("1", "dotted-key"),
        ("a", "interleaved-key"), ("b", "interleaved-key"), ("a", "interleaved-key"),
        ("b", "interleaved-key"), ("c", "interleaved-key"), ("c", "interleaved-key"),
        ("README", "unnamed-member"), ("e", "duplicate-member"), ("f", "missing-text"),
        ("g", "image-truncated"), ("h", "image-empty"), ("i", "bad-json"),
        ("j", "answer-not-an-option"),
    ]  # fmt: skip
    assert summary.groups == summary.samples + len(told) == 17
    assert summary.refusals == dict(Counter(reason for *_, reason in told))
    assert {item.reason for item in summary.examples} == set(summary.refusals)
    with tarfile.open(tar) as opened:
        offset = opened.getmember("f.jpg").offset_data
    detail = next(item.detail for item in summary.examples if item.reason == "interleaved-key")
    assert "stands at 2 places" in detail
    rows = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert next(row for row in rows if row["id"] == "f")["detail"].startswith(f"offset {offset}:")
    assert verify(tmp_path).ok


def test_a_key_in_two_shards_is_refused_or_qualified(tmp_path):
    first = make_tar(tmp_path / "t" / "a.tar", [*sample("x", 0), *sample("y", 1)])
    second = make_tar(tmp_path / "t" / "b.tar", [*sample("y", 2), *sample("z", 3)])
    summary = index_foreign([first, second])
    assert [one["__key__"] for one in by_omr_io(tmp_path / "t")] == ["x", "y", "z"]
    assert rejects(tmp_path / "t") == [("b.tar", "y", "duplicate-key")]
    assert "a.tar too; --qualify-keys" in summary.examples[0].detail
    out = tmp_path / "out"
    summary = index_foreign([tmp_path / "t"], out, IndexOptions(qualify_keys=True))
    assert (summary.samples, summary.refusals) == (4, {})
    assert [one["__key__"] for one in by_omr_io(out)] == ["a/x", "a/y", "b/y", "b/z"]
    assert verify(out).ok
    with ShardSet.open(out) as shards:
        assert shards.read_record(3).question.startswith("What is seen in 3?")
    assert {path.name for path in out.iterdir()} == {
        "a.idx", "b.idx", "index.arrow", "manifest.json",
    }  # fmt: skip


def test_the_set_is_the_same_wherever_its_index_is(tmp_path):
    make_tar(tmp_path / "t" / "x" / "a.tar", sample("a", 0))
    make_tar(tmp_path / "t" / "y" / "a.tar", sample("b", 1))
    sources = [str(tmp_path / "t" / "{x,y}" / "*.tar")]
    index_foreign(sources, tmp_path / "one")
    index_foreign(sources)  # in the folder that they have in common
    one, beside = ShardSet.open(tmp_path / "one"), ShardSet.open(tmp_path / "t")
    assert one.fingerprint == beside.fingerprint
    assert one.shard_names == ("x/a.tar", "y/a.tar")
    assert read_manifest(tmp_path / "t").foreign.root == ""
    assert read_manifest(tmp_path / "one").foreign.root == str(tmp_path / "t")
    assert contents(tmp_path / "one")["x%2Fa.idx"] == (tmp_path / "t" / "x%2Fa.idx").read_bytes()
    again = pickle.loads(pickle.dumps(one))
    assert again.read_record(1) == beside.read_record(1)
    # Beside its tars a set may be moved as a whole.
    (tmp_path / "t").rename(tmp_path / "moved")
    assert verify(tmp_path / "moved").ok
    with pytest.raises(IntegrityError, match="missing"):
        ShardSet.open(tmp_path / "one")
    for opened in (one, beside, again):
        opened.close()


def test_captions_and_forced_maps(tmp_path):
    captions = [("a.jpg", JPEG), ("a.txt", b"An X-ray of the chest."), ("a.json", b'{"n": 1}')]
    tar = make_tar(tmp_path / "c" / "c.tar", captions)
    read = ReadOptions(
        column_map=(("question", "prompt"), ("answer", "txt")),
        open_ended=True,
        need_reasoning=False,
    )
    asked = make_tar(
        tmp_path / "d" / "d.tar", [*captions[:2], ("a.json", b'{"prompt": "What is this?"}')]
    )
    summary = index_foreign([asked], options=IndexOptions(read=read))
    assert summary.schema == "mapped"
    with ShardSet.open(tmp_path / "d") as shards:
        record = shards.read_record(0)
        assert (record.question, record.answer) == ("What is this?", "An X-ray of the chest.")
        assert (record.id, record.options, shards.answer(0)) == ("a", (), "")
    assert verify(tmp_path / "d").ok
    summary = index_foreign([tar])
    assert (summary.layout, summary.schema) == ("parts", "biomedica")
    with ShardSet.open(tmp_path / "c") as shards:
        assert (
            "An X-ray of the chest."
            in shards.read_record(0).reasoning + shards.read_record(0).answer
        )


def test_several_images_and_paths_in_the_json(tmp_path):
    images = [encoded(n, size=(40, 40)) for n in range(12)]
    members = [(f"k.img{n}.jpg", image) for n, image in enumerate(images)]
    tar = make_tar(tmp_path / "a.tar", [*members, ("k.json", text(images=["x.jpg"] * 12))])
    summary = index_foreign([tar])
    assert (summary.samples, summary.images) == (1, 12)
    with ShardSet.open(tmp_path) as shards:
        record = shards.read_record(0)
        assert [image.data for image in record.images] == images
        assert record.images[0].name == "x.jpg"
        assert [part.name for part in shards.parts(0)][:2] == ["k.img0.jpg", "k.img1.jpg"]


def test_an_image_that_only_its_json_names_is_refused(tmp_path):
    tar = make_tar(
        tmp_path / "a.tar", [*sample("a", 0), ("b.json", text(1, image="figures/b.jpg"))]
    )
    index_foreign([tar])
    assert rejects(tmp_path) == [("a.tar", "b", "image-not-embedded")]


def test_what_cannot_be_indexed(tmp_path):
    good = make_tar(tmp_path / "good.tar", [*sample("a"), *sample("b", 1)])
    whole = good.read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()

    def refused(data: bytes, error, match: str) -> None:
        (bad / "bad.tar").write_bytes(data)
        with pytest.raises(error, match=match):
            index_foreign([bad])
        assert {path.name for path in bad.iterdir()} == {"bad.tar"}  # nothing is left behind

    refused(b"", TarError, r"empty \(shard bad.tar, offset 0\)")
    refused(whole[:2000], TarError, r"past the end of the tar \(shard bad.tar, offset")
    refused(whole[:512] + b"x" + whole[513:2048], TarError, "shard bad.tar")
    refused(b"\x1f\x8b" + whole, SourceError, r"compressed.*shard bad.tar.*gunzip")
    nothing = make_tar(tmp_path / "n.tar", [("a.jpg", JPEG)]).read_bytes()
    refused(nothing, SourceError, "no sample here has a text")
    unknown = make_tar(tmp_path / "u.tar", [("a.json", b'{"x": 1}')]).read_bytes()
    refused(unknown, SourceError, r"\.json.*fit no known schema.*x \(integer\)")
    broken = make_tar(tmp_path / "b.tar", [("a.jpg", b"x"), ("a.json", text())]).read_bytes()
    refused(broken, DataError, "not one of 1 groups.*image-format")
    for source, match in (("missing.tar", "does not exist"), ("*.zip", "does not exist")):
        with pytest.raises(SourceError, match=match):
            index_foreign([tmp_path / source])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no \.tar"):
        index_foreign([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="local, others remote"):
        locate([good, "https://host/a.tar"])
    with pytest.raises(ConfigError, match=r"\*\*\* holds a secret"):
        locate(["https://host/a.tar?token=abc"])


def test_nothing_of_another_origin_is_replaced(tmp_path):
    make_tar(tmp_path / "a.tar", sample("a"))
    for name, match in (
        ("manifest.json", "already holds a manifest"),
        ("index.arrow", "no index of omr_io"),
        ("a.idx", "other content"),
    ):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=match):
            index_foreign([tmp_path])
        assert (tmp_path / name).read_text() == "mine"
        if name == "manifest.json":
            with pytest.raises(ConfigError, match="not written by `omr-io index`"):
                index_foreign([tmp_path], options=IndexOptions(overwrite=True))
        (tmp_path / name).unlink()
    index_foreign([tmp_path])
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="--overwrite"):
        index_foreign([tmp_path])
    index_foreign([tmp_path], options=IndexOptions(overwrite=True))
    assert contents(tmp_path) == before
    (tmp_path / "manifest.json").unlink()  # as after a kill
    index_foreign([tmp_path], options=IndexOptions(threads=3))
    assert contents(tmp_path) == before


def test_a_run_that_fails_leaves_the_old_set_as_it_was(tmp_path):
    """Its manifest went at once: a set that was sound could not be opened any more."""
    make_tar(tmp_path / "a.tar", [*sample("a"), ("odd", b"x")])
    index_foreign([tmp_path])
    before = contents(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(TarError):
        index_foreign([tmp_path], options=IndexOptions(overwrite=True))
    (tmp_path / "b.tar").unlink()
    assert contents(tmp_path) == before
    with ShardSet.open(tmp_path) as shards:
        assert shards.key(0) == "a"


def test_one_process_writes_a_folder_at_a_time(tmp_path):
    """Of ranks that all began it each removed what the others had, and none got to its end."""
    make_tar(tmp_path / "a.tar", sample("a"))
    seen = []

    def meanwhile(done, shards, samples):
        with pytest.raises(ConfigError, match="another `omr-io index` is writing") as info:
            index_foreign([tmp_path])
        assert info.value.mend
        seen.append(samples)

    index_foreign([tmp_path], progress=meanwhile)
    assert seen == [1]
    with ShardSet.open(tmp_path) as shards:
        assert len(shards) == 1
    index_foreign([tmp_path], options=IndexOptions(overwrite=True))  # it is free again


def test_damage_in_a_foreign_tar_is_found(tmp_path):
    tar = make_tar(tmp_path / "a.tar", [*sample("a"), *sample("b", 1)])
    index_foreign([tar])
    with ShardSet.open(tmp_path) as shards:
        part = shards.parts(1)[0]
    damaged = bytearray(tar.read_bytes())
    damaged[part.offset + 40] ^= 1
    tar.write_bytes(damaged)
    place = f"shard a.tar, key b, part b.jpg, offset {part.offset}"
    assert any(place in str(problem) for problem in verify(tmp_path).problems)
    with ShardSet.open(tmp_path) as shards, pytest.raises(IntegrityError, match=r"CRC-32C.*key b"):
        shards.read_record(1)
    damaged[part.offset + 40] ^= 1
    damaged[part.offset - 512] ^= 1
    tar.write_bytes(damaged)
    text = "\n".join(map(str, verify(tmp_path).problems))
    assert "checksum" in text
    assert f"key b, part b.jpg, offset {part.offset - 512}" in text


def test_dali_reads_foreign_shards_by_our_index(tmp_path):
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn

    members = [*sample("a b/c d", 0), *sample("plain", 1)]
    for name in ("blank", "plain"):
        tar = make_tar(tmp_path / name / "x.tar", members if name == "blank" else members[2:])
        index_foreign([tar])
        version = (tmp_path / name / "x.idx").read_text().split()[0]
        assert version == ("v1.1" if name == "blank" else "v1.2")
        pipe = dali.Pipeline(batch_size=2, num_threads=1, device_id=None)
        with pipe:
            pipe.set_outputs(
                *fn.readers.webdataset(
                    paths=[str(tar)], index_paths=[str(tar.with_suffix(".idx"))],
                    ext=["jpg", "json"], pad_last_batch=True,
                )
            )  # fmt: skip
        images, texts = pipe.run()
        theirs = by_webdataset(tar)
        for place, one in enumerate(theirs):
            assert bytes(images.at(place)) == one["jpg"]
            assert bytes(texts.at(place)) == one["json"]


def test_the_loader_takes_a_foreign_set(tmp_path, tokenizer, vision):
    from omr_io import DataLoader

    members = [item for n in range(6) for item in sample(f"s{n}", n)]
    index_foreign([make_tar(tmp_path / "a.tar", members)])
    loader = DataLoader(
        tmp_path, tokenizer=tokenizer, vision=vision, seq_len=512, packs_per_step=1, seed=0
    )
    keys = [key for batch in loader for pack in batch.keys for key in pack]
    assert sorted(keys) == [f"s{n}" for n in range(6)]


def test_braces():
    assert list(expand_braces("a-{08..11}.tar")) == [f"a-{n:02d}.tar" for n in (8, 9, 10, 11)]
    assert list(expand_braces("{2..0}")) == ["2", "1", "0"]
    assert list(expand_braces("{a,b}{1..2}")) == ["a1", "a2", "b1", "b2"]
    assert list(expand_braces("{x,{0..1}}")) == ["x", "0", "1"]
    assert list(expand_braces("a{b}c{}")) == ["a{b}c{}"]
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in ("s-{000..012}.tar", "{000..3}", "{0..10}", "x{a,b{1..3}}y", "{9..011}", "{,a}"):
        assert list(expand_braces(pattern)) == list(braceexpand(pattern)), pattern
    with pytest.raises(ConfigError, match="more than 1000000"):
        list(expand_braces("{0..9999999}"))


def test_keys_seen_against_a_dictionary():
    import random

    rng = random.Random(5)
    seen, first = KeysSeen(), {}
    for shard in range(60):
        keys = rng.sample([f"k{n}" for n in range(2000)], rng.randrange(80))
        expected = [first.get(key, -1) for key in keys]
        assert seen.add(keys, shard).tolist() == expected
        for key in keys:
            first.setdefault(key, shard)
    assert len(seen._runs) < 12


def test_the_command(tmp_path, monkeypatch, capsys):
    import sys

    from omr_io import cli

    make_tar(tmp_path / "a.tar", [*sample("a"), ("README", b"x"), ("b.npy", b"x")])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omr-io", "index", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        return code, *capsys.readouterr()

    code, out, _ = run(tmp_path, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["refusals"] == {"missing-text": 1, "unnamed-member": 1}
    code, out, _ = run(tmp_path, "-o", tmp_path / "out", "--overwrite", "--check", "header")
    assert code == 0
    assert "a.tar, key README: unnamed-member: offset" in out
    code, _, err = run(tmp_path / "nothing.tar")
    assert (code, "does not exist" in err) == (3, True)
    assert run(tmp_path, "-o", tmp_path / "x", "--map", "question")[0] == 2
    assert run(tmp_path, "-o", tmp_path / "x", "--check", "all")[0] == 2


def test_the_gallery_shows_samples_of_several_texts(tmp_path):
    members = []
    for name in "abc":
        members += [*sample(name), (f"{name}.cls", b"3"), (f"{name}.txt", b"a word")]
    make_tar(tmp_path / "a.tar", members)
    index_foreign([tmp_path])
    summary = write_gallery(tmp_path, tmp_path / "page.html")
    assert (summary.shown, summary.images) == (3, 3)
    page = (tmp_path / "page.html").read_text()
    assert "a.jpg" in page
    assert "in the source" not in page  # the part's own name is not told twice


def test_keys_with_dots_throughout_are_told_as_such(tmp_path):
    make_tar(tmp_path / "a.tar", [*sample("1.case"), *sample("2.case", 1)])
    with pytest.raises(SourceError, match=r"a\.tar, key 1: dotted-key.*no dot in KEY"):
        index_foreign([tmp_path])


def test_a_folder_of_compressed_tars_is_told_as_such(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match=r"such as a\.tar\.gz.*omr-io convert"):
        index_foreign([tmp_path])


def test_no_sample_left_names_the_schema(tmp_path):
    make_tar(tmp_path / "a.tar", [("a.jpg", JPEG), ("a.json", text(question="What?"))])
    with pytest.raises(DataError, match=r"no-options.*schema openmedreason.*--map"):
        index_foreign([tmp_path])


def test_the_schema_is_told(tmp_path):
    make_tar(tmp_path / "a.tar", sample("a"))
    index_foreign([tmp_path])
    with ShardSet.open(tmp_path) as shards:
        assert describe(shards).options["schema"] == "openmedreason"
