"""Tars that nobody should write: links, devices, paths that climb, sizes that lie, bombs.

Each is a sound sample, then what is hostile, then another sound sample, so that a reader that gives
up early, or goes on where it must not, shows.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Literal

from tests.shard_sets import encoded

BLOCK = 512


class Payload:
    """Unpickled, it writes a file: the one thing that must never happen."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.canary, "w"))


Form = Literal["json", "txt"]
"""How a sample's text is stored: as JSON for `omr-io index`, as a caption for `omr-io convert`."""


def text(number: int, form: Form = "json") -> bytes:
    if form == "txt":
        return f"A film of patient {number}, without any finding.".encode()
    letter = "AB"[number % 2]
    fields = {
        "question": f"What is seen in {number}?\nA. liver\nB. spleen",
        "reasoning": f"<think>Low, {number}.</think>\n<answer>{letter}</answer>",
        "answer": letter,
    }
    return json.dumps(fields).encode()


def member(name: str, data: bytes = b"", **fields: object) -> bytes:
    """Header and data of a member as tarfile writes it; `fields` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    form = int(str(fields.pop("format", tarfile.GNU_FORMAT)))
    for field, value in fields.items():
        setattr(info, field, value)
    padding = b"\0" * (-len(data) % BLOCK)
    return info.tobuf(form, "utf-8", "surrogateescape") + data + padding


def sample(key: str, number: int = 0, form: Form = "json") -> bytes:
    jpeg = encoded(number, size=(40, 40))
    return member(f"{key}.jpg", jpeg) + member(f"{key}.{form}", text(number, form))


def forged(header: bytes, at: int, value: bytes) -> bytes:
    """A header with bytes replaced and its checksum made right again."""
    raw = bytearray(header[:BLOCK])
    raw[at : at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw) + header[BLOCK:]


def whole(middle: bytes, form: Form = "json") -> bytes:
    return sample("first", 1, form) + middle + sample("last", 2, form) + b"\0" * 2 * BLOCK


def pax(records: dict[str, bytes]) -> bytes:
    """An extended header for the next member."""
    data = b""
    for key, value in records.items():
        body = b" " + key.encode() + b"=" + value + b"\n"
        length = len(body)
        while length != len(str(length)) + len(body):
            length = len(str(length)) + len(body)
        data += str(length).encode() + body
    return member("pax", data, type=b"x", format=tarfile.USTAR_FORMAT)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(str(canary)))


def malformed(outside: Path, form: Form) -> dict[str, tuple[bytes, str]]:
    """Tars that are refused as a whole: name → (bytes, words of the error)."""

    def mid(middle: bytes) -> bytes:
        return whole(middle, form)

    link = str(outside / "target")
    huge = b"\x80" + (1 << 80).to_bytes(11, "big")
    negative = b"\xff" * 12
    return {
        "symbolic link": (
            mid(member("evil.jpg", type=tarfile.SYMTYPE, linkname=link)),
            "a symbolic link",
        ),
        "hard link": (
            mid(member("evil.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
            "a hard link",
        ),
        "character device": (
            mid(member("evil.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
            "a character device",
        ),
        "block device": (
            mid(member("evil.jpg", type=tarfile.BLKTYPE, devmajor=8)),
            "a block device",
        ),
        "FIFO": (mid(member("evil.json", type=tarfile.FIFOTYPE)), "a named pipe"),
        "contiguous file": (mid(member("a.jpg", b"x", type=b"7")), "a contiguous file"),
        "GNU sparse": (mid(member("a.jpg", b"x" * 512, type=b"S")), "a GNU sparse file"),
        "PAX sparse": (
            mid(pax({"GNU.sparse.major": b"1"}) + member("a.jpg", b"x")),
            "sparse file",
        ),
        "multi-volume": (mid(member("a.jpg", b"x", type=b"M")), "continuation"),
        "unknown type": (mid(member("a.jpg", b"x", type=b"Q")), "unknown type"),
        "size of 2**80": (mid(forged(member("a.jpg"), 124, huge)), "out of range"),
        "negative size": (mid(forged(member("a.jpg"), 124, negative)), "out of range"),
        "size of 8 GiB - 1": (
            mid(forged(member("a.jpg"), 124, b"77777777777\0")),
            "past the end of the tar",
        ),
        "size of 2**62": (
            mid(forged(member("a.jpg"), 124, b"\x80" + (1 << 62).to_bytes(11, "big"))),
            "past the end of the tar",
        ),
        "size in words": (mid(forged(member("a.jpg"), 124, b"a lot\0\0\0\0\0\0\0")), "octal"),
        "PAX size of 10**18": (
            mid(pax({"size": b"1" + b"0" * 18}) + member("a.jpg", b"x")),
            "past the end of the tar",
        ),
        "PAX size of 10**30": (
            mid(pax({"size": b"1" + b"0" * 30}) + member("a.jpg", b"x")),
            "PAX size",
        ),
        "PAX value of 8 MiB": (
            mid(pax({"path": b"a" * (8 << 20)}) + member("a.jpg", b"x")),
            "over",
        ),
        "PAX comment of 8 MiB": (
            mid(pax({"comment": b"a" * (8 << 20)}) + member("a.jpg", b"x")),
            "over",
        ),
        "PAX length that lies": (
            mid(member("pax", b"999999 path=x\n", type=b"x") + member("a.jpg", b"x")),
            "length is wrong",
        ),
        "NUL in a name": (
            mid(pax({"path": b"a.jpg\0/../../etc"}) + member("a.jpg", b"x")),
            "NUL",
        ),
        "GNU name of 8 MiB": (
            mid(
                member("././@LongLink", b"a" * (8 << 20) + b"\0", type=b"L") + member("a.jpg", b"x")
            ),
            "over",
        ),
        "header that is noise": (mid(os.urandom(BLOCK)), "header"),
        "no trailer": (sample("first", 1, form), "trailer"),
        "a second tar behind the first": (mid(b"") + mid(b""), "trailer is followed"),
    }


IMAGE = {"image-format": 1}


def taken_apart(outside: Path, form: Form) -> dict[str, tuple[bytes, dict[str, int]]]:
    """Tars whose other samples are taken: name → (bytes, refusals by reason).

    Names are keys and nothing more, so climbing paths are no refusal: nothing is ever written to
    them.
    """
    canary = outside / "canary"
    climbing = "../" * 12 + str(outside).lstrip("/") + "/climbed"
    absolute = str(outside / "absolute")
    jpeg = encoded(3, size=(40, 40))
    words = text(3, form)

    def named(key: str) -> bytes:
        return member(f"{key}.{form}", words)

    middles: dict[str, tuple[bytes, dict[str, int]]] = {
        "climbing path": (sample(climbing, 3, form), {}),
        "absolute path": (sample(absolute, 3, form), {}),
        "climbing PAX path": (
            pax({"path": f"{climbing}.jpg".encode()})
            + member("a.jpg", jpeg)
            + pax({"path": f"{climbing}.{form}".encode()})
            + named("a"),
            {},
        ),
        "PAX headers of 1 MB": (
            (pax({"comment": b"c" * 1_000_000}) + member("long.jpg", jpeg)) + named("long"),
            {},
        ),
        "10,000 parts of one name": (
            named("same") + member("same.jpg", jpeg) * 10_000,
            {"duplicate-member": 1},
        ),
        "pickles": (
            member("evil.jpg", jpeg)
            + named("evil")
            + member("evil.pyd", pickled(canary))
            + member("evil.pkl", pickled(canary))
            + member("evil.pickle", pickled(canary))
            + member("evil.npy", _npy(canary))
            + member("evil.pth", pickled(canary)),
            {},
        ),
        "a pickle as the image": (member("evil.jpg", pickled(canary)) + named("evil"), IMAGE),
        "duplicate names": (
            sample("twice", 3, form) + member("twice.jpg", jpeg),
            {"duplicate-member": 1},
        ),
        "the same key again": (
            sample("other", 3, form) + sample("first", 4, form),
            {"interleaved-key": 2},
        ),
    }
    if form == "json":
        many = b"".join(member(f"many.img{n}.jpg", b"x") for n in range(10_000))
        parts = b"".join(member(f"parts.x{n}", b"x") for n in range(10_000))
        number = words[:-1] + b', "n": ' + b"9" * 1_000_000 + b"}"
        start = member("bad.jpg", jpeg)
        middles |= {
            "10,000 images in a sample": (many + named("many"), {"too-many-images": 1}),
            "10,000 unknown parts": (parts, {"missing-text": 1}),
            "a pickle as the text": (
                start + member("bad.json", pickled(canary)),
                {"invalid-utf8": 1},
            ),
            "JSON of great depth": (start + member("bad.json", b"[" * 200_000), {"bad-json": 1}),
            "a number of a million digits": (start + member("bad.json", number), {"bad-json": 1}),
        }
    return {name: (whole(middle, form), why) for name, (middle, why) in middles.items()}


def _npy(canary: Path) -> bytes:
    """An array of objects: NumPy reads it by unpickling."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([Payload(str(canary))], dtype=object), allow_pickle=True)
    return file.getvalue()
