"""Real vocabularies for tests and benchmarks: fetched once, checked by SHA-256, kept in a cache.

They come out of wheels on the package registry: `pip download` into tests/.vocabularies (ignored by
git; $OMR_VOCABULARIES names another folder), so a machine without a registry can be given the
folder of one that has it. $OMR_QWEN_TIKTOKEN names a qwen.tiktoken of your own instead.

    qwen.tiktoken               dashscope 2.0.2       Qwen, Qwen2, Qwen2.5, Qwen3 (2 MB to fetch)
    llama3.tiktoken             llama-models 0.3.0    Llama 3 to 3.3 (7 MB)
    cl100k, o200k, p50k         litellm 1.109.1       OpenAI's, as tiktoken ranks (41 MB)
    anthropic.json, deepseek.json    the same         tokenizer.json files of other pipelines

`python -m tests.vocabularies` fetches all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("OMR_VOCABULARIES", Path(__file__).parent / ".vocabularies"))
SECONDS = {"dashscope==2.0.2": 600, "llama-models==0.3.0": 600, "litellm==1.109.1": 900}


@dataclass(frozen=True)
class Source:
    """Where a file is, and what it must be."""

    wheel: str
    member: str
    sha256: str


_LITELLM = ("litellm==1.109.1", "litellm/litellm_core_utils/tokenizers/")
SOURCES = {
    "qwen.tiktoken": Source(
        "dashscope==2.0.2",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "llama3.tiktoken": Source(
        "llama-models==0.3.0",
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "cl100k.tiktoken": Source(
        _LITELLM[0],
        _LITELLM[1] + "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k.tiktoken": Source(
        _LITELLM[0],
        _LITELLM[1] + "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "p50k.tiktoken": Source(
        _LITELLM[0],
        _LITELLM[1] + "ec7223a39ce59f226a68acc30dc1af2788490e15",
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    ),
    "anthropic.json": Source(
        _LITELLM[0],
        _LITELLM[1] + "anthropic_tokenizer.json",
        "c241737df24b4e7f7c9af4fdcee29a0ca903dcb288a8b753bc346a3092911767",
    ),
    "deepseek.json": Source(
        _LITELLM[0],
        _LITELLM[1] + "deepseek_tokenizer.json",
        "4607b3d1929c5ca263a81d7153c6d6ecdbc71c9e933c0fb2df2abf181bf6df61",
    ),
}


class MissingVocabularyError(Exception):
    """A vocabulary that could not be fetched, and why."""


def fetch(name: str) -> Path:
    """The path of a file of SOURCES, fetched when it is not there yet.

    Raises:
        MissingVocabularyError: no registry, or the wheel is not what it was.
    """
    if name == "qwen.tiktoken" and "OMR_QWEN_TIKTOKEN" in os.environ:
        return Path(os.environ["OMR_QWEN_TIKTOKEN"])
    path = FOLDER / name
    if not path.exists():
        with _lock():
            if not path.exists():  # another process may have fetched it meanwhile
                _fetch_wheel(SOURCES[name].wheel)
    return path


def vocabulary(name: str) -> Path:
    """`fetch` for a test: skips it where the file cannot be had, fails where CI is true."""
    import pytest  # the benchmarks use this module without it

    try:
        return fetch(name)
    except MissingVocabularyError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must have the real vocabularies: {error}")
        pytest.skip(f"needs {name}: {error}")


@functools.cache
def _refused(wheel: str) -> str:
    """Why a wheel cannot be had, or ""; asked once a process. Its files are then in FOLDER."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
        command += ["--retries", "3", "--timeout", "60", "--dest", folder, wheel]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS[wheel])
        except subprocess.TimeoutExpired:
            return f"`pip download {wheel}` took more than {SECONDS[wheel]} s"
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return f"`pip download {wheel}` failed: {last}"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            for name, source in SOURCES.items():
                if source.wheel == wheel:
                    data = archive.read(source.member)
                    if hashlib.sha256(data).hexdigest() != source.sha256:
                        return f"{source.member} of {wheel} is not the file it was"
                    write_atomically(FOLDER / name, data)
    return ""


def _fetch_wheel(wheel: str) -> None:
    if reason := _refused(wheel):
        raise MissingVocabularyError(reason)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One process at a time (pytest-xdist); the lock goes with the process that held it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Another process sees the whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


# --- tokenizer.json files out of rank files ---------------------------------------------------

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN2_5_ADDED = (  # noqa: SIM905
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> "
    "<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
QWEN3_ADDED = [*QWEN2_5_ADDED, "<tool_response>", "</tool_response>", "<think>", "</think>"]
_LLAMA3_NAMED = (  # noqa: SIM905
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id reserved_special_token_2 start_header_id end_header_id eom_id "
    "eot_id python_tag"
).split()
LLAMA3_ADDED = [
    f"<|{name}|>"
    for name in (*_LLAMA3_NAMED, *(f"reserved_special_token_{i}" for i in range(3, 248)))
]


def qwen_json(family: str, ranks_file: Path) -> str:
    """The tokenizer.json of "qwen2_5" or "qwen3", of a qwen.tiktoken; kept once built."""
    return _built(f"{family}.json", ranks_file, functools.partial(_qwen, family))


def llama3_json(ranks_file: Path) -> str:
    """The tokenizer.json of Llama 3.1 to 3.3 from its ranks, with ignore_merges."""
    return _built("llama3.json", ranks_file, _llama3)


def openai_json(ranks_file: Path) -> str:
    """Ranks of OpenAI within Llama 3's pieces: another vocabulary for the same pipeline."""
    return _built(f"{ranks_file.stem}.json", ranks_file, _openai)


def _qwen(family: str, ranks: dict[bytes, int]) -> dict[str, Any]:
    contents = QWEN3_ADDED if family == "qwen3" else QWEN2_5_ADDED
    added = [_added(151643 + i, content, special=i < 14) for i, content in enumerate(contents)]
    return _tree(ranks, last_merges(ranks), QWEN_PATTERN, added, nfc=True)


def _llama3(ranks: dict[bytes, int]) -> dict[str, Any]:
    added = [_added(128000 + i, content, special=True) for i, content in enumerate(LLAMA3_ADDED)]
    tree = _tree(ranks, all_merges(ranks), LLAMA3_PATTERN, added, nfc=False)
    tree["model"]["ignore_merges"] = True
    return tree


def _openai(ranks: dict[bytes, int]) -> dict[str, Any]:
    return _tree(ranks, last_merges(ranks), LLAMA3_PATTERN, [], nfc=False)


def _built(name: str, ranks_file: Path, build: Callable[[dict[bytes, int]], dict[str, Any]]) -> str:
    """What `build` makes of ranks; kept in FOLDER under a name that follows from both."""
    data = ranks_file.read_bytes()
    key = hashlib.sha256(data + Path(__file__).read_bytes()).hexdigest()[:12]
    path = FOLDER / f"{key}-{name}"
    if not path.exists():
        with _lock():
            if not path.exists():
                lines = (line.split() for line in data.splitlines() if line)
                ranks = {b64decode(token): int(rank) for token, rank in lines}
                write_atomically(path, json.dumps(build(ranks)).encode())
    return path.read_text(encoding="utf-8")


def _added(number: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": special}


def _tree(
    ranks: dict[bytes, int],
    merges: list[tuple[bytes, bytes]],
    pattern: str,
    added: list[dict[str, Any]],
    *,
    nfc: bool,
) -> dict[str, Any]:
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": False}, byte_level | {"use_regex": False}],
        },
        "post_processor": None,
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [[spell(left), spell(right)] for left, right in merges],
        },
    }


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter of each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(rest)}


def last_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each token the pair that is left when it is encoded with lower ranks only."""
    found = ((rank, last_pair(token, rank, ranks)) for token, rank in ranks.items())
    return [pair for _, pair in sorted((rank, pair) for rank, pair in found if pair)]


def last_pair(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts left when `token` is encoded with lower ranks only: its merge."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= rank:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def all_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every split of a token into two tokens, by its rank: as transformers converts Llama 3's."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


if __name__ == "__main__":
    for each in SOURCES:
        print(fetch(each))
