"""What conversion makes of images on their way into shards, end to end."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from PIL import Image

from omr_io.conversion import ConvertOptions
from omr_io.conversion.prepare import ImageChecks, prepare
from omr_io.images import probe
from omr_io.images.pixels import decode_rgb
from omr_io.images.policy import ImagePolicy
from omr_io.images.transcode import Transcode
from omr_io.index import ShardSet
from omr_io.shards import verify
from omr_io.types import Refusal
from tests.images.planted import all_planted, clear_gif, encode, jpeg_with, picture
from tests.shard_sets import contents, encoded, record, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO file"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),
]


def stored(folder: Path) -> dict[str, bytes]:
    """Members of a set's tars by name, without the JSON."""
    members = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    return {name: data for name, data in members.items() if not name.endswith(".json")}


def test_no_planted_string_reaches_a_set(tmp_path: Path) -> None:
    planted = list(all_planted())
    rows = [record(number, [data]) for number, (_, data, _) in enumerate(planted)]
    summary = write(tmp_path / "set", rows, unusual=ImagePolicy(()), max_shard_samples=9)
    assert (summary.samples, summary.refusals) == (len(planted), {})
    files = contents(tmp_path / "set")
    assert not any(b"Jane Doe" in data for data in files.values())
    assert not any("Jane Doe".encode("utf-16-le") in data for data in files.values())
    assert not any("Jane Doe".encode("utf-16-be") in data for data in files.values())
    assert verify(tmp_path / "set", decode=True).problems == ()
    # Index and tar are of the stored bytes, and the pixels are those that came.
    images = list(stored(tmp_path / "set").values())
    with ShardSet.open(tmp_path / "set") as shards:
        for number, (_, data, _) in enumerate(planted):
            (image,) = shards.read_images(number)
            assert image == images[number]
            (info,) = shards.images(number)
            assert dataclasses.replace(probe(data), mode=info.mode) == info
            before = decode_rgb(data, probe(data))
            np.testing.assert_array_equal(decode_rgb(image, probe(image)), before)
    write(tmp_path / "again", rows, unusual=ImagePolicy(()), max_shard_samples=9, threads=5)
    assert contents(tmp_path / "again") == files


def test_metadata_is_kept_on_request(tmp_path: Path) -> None:
    planted = [data for _, data, _ in all_planted()]
    rows = [record(number, [data]) for number, data in enumerate(planted)]
    write(tmp_path, rows, keep_metadata=True, unusual=ImagePolicy(()))
    assert list(stored(tmp_path).values()) == planted
    assert verify(tmp_path, decode=True).problems == ()


def test_hashes_are_of_what_is_stored() -> None:
    data = encode(picture(), "JPEG")
    tagged = jpeg_with(data, [(0xFE, b"Jane Doe")])
    checks = ConvertOptions().image_checks()
    clean, same = (prepare(0, record(0, [image]), checks) for image in (data, tagged))
    assert not isinstance(clean, Refusal)
    assert not isinstance(same, Refusal)
    assert clean.members == same.members
    assert clean.hashes == same.hashes == (xxhash.xxh3_128_digest(data),)


def test_unusual_images_are_refused_by_name(tmp_path: Path) -> None:
    frames = {"save_all": True, "append_images": [picture(seed=1)]}
    images = [
        encode(picture("I;16"), "PNG"),
        encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        encode(picture(), "PNG", **frames),
        encode(picture(), "WEBP", **frames),
        encode(picture(), "TIFF", **frames),
        encode(Image.new("LAB", (9, 9)), "TIFF"),
        encode(picture("RGBA"), "PNG"),
        encode(picture("P"), "PNG"),
        encode(picture("1"), "PNG"),
        clear_gif(),
    ]
    rows = [record(number, [image]) for number, image in enumerate(images)]
    refused = {"image-16-bit": 1, "image-32-bit": 1, "image-animated": 2}
    refused |= {"image-lab": 1, "image-multi-page": 1}
    summary = write(tmp_path / "a", rows)
    assert (summary.samples, summary.refusals) == (4, refused)
    assert "16-bit grey" in summary.examples[0].detail
    policy = ImagePolicy.of({"16-bit": "take", "alpha": "refuse", "1-bit": "refuse"})
    refused = {**refused, "image-alpha": 2, "image-1-bit": 1}
    del refused["image-16-bit"]
    assert write(tmp_path / "b", rows, unusual=policy).refusals == refused
    summary = write(tmp_path / "c", rows, unusual=ImagePolicy(()))
    assert summary.refusals == {}
    for data in stored(tmp_path / "c").values():
        with Image.open(io.BytesIO(data)) as image:
            assert getattr(image, "n_frames", 1) == 1


def test_caps_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many bytes are refused before anything is parsed, too many pixels before a decode."""
    module = "omr_io.conversion.prepare."

    def never(*_: object, **__: object) -> None:
        raise AssertionError("called too early")

    data = encode(Image.new("RGB", (3000, 3000)), "PNG")
    for name in ("check_decodes", "strip_metadata"):
        monkeypatch.setattr(module + name, never)
    transcode = Transcode(max_side=10)
    for pixels, size, reason in ((8_999_999, len(data), "8999999"), (9_000_000, len(data) - 1, "")):
        if not reason:
            monkeypatch.setattr(module + "probe", never)
        checks = ImageChecks(pixels, size, decode=True, transcode=transcode)
        refusal = prepare(0, record(0, [data]), checks)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "image-too-large"
        assert reason in refusal.detail


def test_what_cannot_be_stripped_is_refused_and_a_cut_file_called_cut(tmp_path: Path) -> None:
    data = encode(picture(), "PNG")
    odd = data[:33] + b"\0\0\0\x03JaNEDoe" + b"\xbe\xee\xee\xef" + data[33:]
    rows = [record(0, [data]), record(1, [data[:-20]]), record(2, [odd])]
    jpeg = encode(picture(), "JPEG")
    rows.append(record(3, [jpeg[:-20]]))
    counts = {"image-truncated": 2, "image-corrupt": 1}
    assert write(tmp_path / "a", rows).refusals == counts
    rows[2] = record(2, [jpeg_with(jpeg, [(0xF3, b"Doe")])])
    assert write(tmp_path / "b", rows, check="header").refusals == {
        "image-truncated": 1,
        "image-metadata": 2,
    }


def test_transcoding(tmp_path: Path) -> None:
    block = Image.Exif()
    block[0x0112] = 6
    large = encode(picture(height=300, width=400), "PNG", exif=block)
    small = encode(picture(), "JPEG", quality=20, exif=block, comment=b"Jane Doe")
    rows = [record(0, [large, small]), record(1, [encoded(1)])]
    options = {"transcode": Transcode(max_side=128, quality=80), "check": "header"}
    write(tmp_path / "a", rows, **options)
    write(tmp_path / "b", rows, **options, threads=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    images = list(stored(tmp_path / "a").items())
    assert [name.split(".", 1)[1] for name, _ in images] == ["img0.jpg", "img1.jpg", "jpg"]
    first, second = (probe(data) for _, data in images[:2])
    assert (first.width, first.height, first.orientation) == (96, 128, 1)
    assert (second.width, second.height, second.orientation) == (50, 37, 6)  # small as it is
    assert not any(b"Jane Doe" in data for _, data in images)
    assert verify(tmp_path / "a", decode=True).problems == ()
    options = json.loads((tmp_path / "a" / "manifest.json").read_text())["options"]
    assert options["transcode"]["max_side"] == 128
    assert options["transcode"]["libraries"]["pillow"] == Image.__version__
    assert options["unusual"]["refused"][0] == "16-bit"


def test_a_model_sees_the_same_after_transcoding_at_full_size(tmp_path: Path) -> None:
    """Upright either way: what EXIF said has been applied to the pixels."""
    block = Image.Exif()
    block[0x0112] = 5
    image = Image.new("RGB", (64, 32))
    image.paste((250, 0, 0), (0, 0, 32, 16))
    data = encode(image, "JPEG", quality=100, subsampling=0, exif=block)
    checks = ImageChecks(10**6, 10**6, decode=True, transcode=Transcode(quality=95))
    made, info = checks.accept(data)
    assert (info.width, info.height, info.orientation) == (32, 64, 1)
    pixels = decode_rgb(made, info).astype(int)
    assert abs(pixels[4, 4] - (250, 0, 0)).max() < 8
    assert pixels[60, 28].max() < 8
