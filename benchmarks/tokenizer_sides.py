"""One measurement of one tokenizer, in this process: run by bench_tokenizer.py, a line of JSON out.

It needs nothing but the standard library, NumPy and the side's own package, so that the peers can
live in an environment of their own. Each side uses the fastest way from a batch of documents to ids
that its documentation knows, on one thread, and gives arrays where it can:

    omr_io           Tokenizer.encode_batch: int32 ids and offsets
    gigatoken        Tokenizer.encode_batch of str: an awkward array (flat uint32 and offsets)
    gigatoken-bytes  the same of bytes: encoding the str is not timed
    gigatoken-buffer the same of one buffer (BytesSource): joining and encoding is not timed
    fastokens        Tokenizer.encode_batch_flat: bytes of uint32 ids and of offsets
    tiktoken         Encoding.encode_ordinary of each document: lists (encode_ordinary_batch with
                     one thread and encode_to_numpy are slower)
    tokenizers       Tokenizer.encode_batch_fast, then the ids of each Encoding: lists
    transformers     only in "chat"
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Peers choose their threads by these; "2 threads" sets them, too.
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
PACKAGES = {"gigatoken-bytes": "gigatoken", "gigatoken-buffer": "gigatoken"}
SEPARATOR = b"\x00\x01\x00"  # in no document: bench_tokenizer checks

Encode = Callable[[Any], Any]


class Side:
    """A peer: how to load it, how to give it documents, and what its result says."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.package = importlib.import_module(PACKAGES.get(name, name))
        # What a first call would import or start is not the text's cost.
        if name == "omr_io":
            importlib.import_module("omr_io.tokenizer")
        if name.startswith("gigatoken"):
            importlib.import_module("awkward")

    def load(self) -> Encode:
        """The tokenizer's encoding of a batch."""
        package, file, one = self.package, self.folder / "tokenizer.json", self.threads == 1
        if self.name == "omr_io":
            own = package.tokenizer.Tokenizer.from_pretrained(self.folder)
            return lambda batch: own.encode_batch(batch, threads=self.threads)
        if self.name.startswith("gigatoken"):
            giga = package.Tokenizer(file)
            return lambda batch: giga.encode_batch(batch, parallel=not one)
        if self.name == "fastokens":
            fast = package.Tokenizer.from_file(str(file))
            return lambda batch: fast.encode_batch_flat(batch)
        if self.name == "tiktoken":
            encoding = self._tiktoken()
            if one:
                return lambda batch: [encoding.encode_ordinary(text) for text in batch]
            return lambda batch: encoding.encode_ordinary_batch(batch, num_threads=self.threads)
        hugging_face = package.Tokenizer.from_file(str(file))
        return lambda batch: [
            e.ids for e in hugging_face.encode_batch_fast(batch, add_special_tokens=False)
        ]

    def _tiktoken(self) -> Any:
        tree = json.loads((self.folder / "tokenizer.json").read_bytes())
        pattern = tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        lines = (self.folder / "ranks.tiktoken").read_bytes().split(b"\n")
        ranks = {b64decode(a): int(b) for a, b in (line.split() for line in lines if line)}
        return self.package.Encoding(
            "bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def prepare(self, texts: list[str]) -> Any:
        """Documents in the form that `load`'s function takes; not timed."""
        if self.name == "gigatoken-bytes":
            return [text.encode() for text in texts]
        if self.name == "gigatoken-buffer":
            joined = SEPARATOR.join(text.encode() for text in texts)
            return self.package.BytesSource(joined, separator=SEPARATOR)
        return texts

    def ids(self, result: Any) -> list[list[int]]:
        """The ids of each document, from what the function gave."""
        import numpy as np

        if self.name == "omr_io":
            ids, offsets = result
        elif self.name == "fastokens":
            ids, offsets = np.frombuffer(result[0], np.uint32), np.frombuffer(result[1], np.uint64)
        elif self.name.startswith("gigatoken"):
            return [list(row) for row in result.to_list()]
        else:
            return [list(row) for row in result]
        return [ids[int(a) : int(b)].tolist() for a, b in itertools.pairwise(offsets)]


def memory() -> dict[str, int]:
    """RSS and PSS of this process, and what of it no other process has, in bytes."""
    gc.collect()
    wanted = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in wanted:
            wanted[name] = int(value.split()[0]) * 1024
    return {name.lower(): value for name, value in wanted.items()}


def timed(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result, and its seconds by the wall and by the processor (all threads)."""
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    gc.enable()
    return result, seconds


def speed(side: Side, texts: list[str]) -> dict[str, Any]:
    """Load, the first half cold, the second half steady; memory before and after each."""
    half = halves(texts)
    before = memory()
    encode, load = timed(side.load)
    encode(side.prepare(["One short text."]))  # starts threads, imports what is imported lazily
    loaded = memory()
    out: dict[str, Any] = {"load": load}
    for name, part in zip(("cold", "steady"), half, strict=True):
        given = side.prepare(part)
        size = sum(len(text.encode()) for text in part)
        ready = memory()
        result, seconds = timed(lambda given=given: encode(given))  # type: ignore[misc]
        out[name] = seconds | {"bytes": size}
        del result, given
        # What preparing took is the texts', not the tokenizer's.
        grown = {name: after - ready[name] for name, after in memory().items()}
        out[f"memory_{name}"] = grown
    out["memory_load"] = {name: loaded[name] - before[name] for name in before}
    out["memory_added"] = {
        name: sum(out[f"memory_{part}"][name] for part in ("load", "cold", "steady"))
        for name in before
    }
    return out


def halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """Documents up to half of the bytes, and the rest."""
    left = sum(map(len, texts)) / 2
    for at, text in enumerate(texts):
        left -= len(text)
        if left <= 0:
            return texts[: at + 1], texts[at + 1 :]
    return texts, []


def all_ids(side: Side, texts: list[str]) -> dict[str, Any]:
    """Every document's ids, to be compared."""
    return {"ids": side.ids(side.load()(side.prepare(texts)))}


# --- a chat, its mask and its image placeholders ------------------------------------------------


def chat(name: str, folder: Path, samples: list[dict[str, str]], pads: int) -> dict[str, Any]:
    """Conversations of one image each to ids and a mask of what is trained.

    What each gives for the first sample comes with it: the sides must agree.
    """
    make = {
        "omr_io": _chat_omr_io,
        "gigatoken": _chat_gigatoken,
        "transformers": _chat_transformers,
    }
    prepare, action = make[name](folder, pads)
    warm, *parts = [prepare(samples[i : i + 100]) for i in range(0, len(samples), 100)]
    action(warm)
    best: dict[str, float] = {}
    for part in parts:
        _, seconds = timed(lambda part=part: action(part))  # type: ignore[misc]
        rates = {clock: value / len(part) for clock, value in seconds.items()}
        best = {clock: min(value, best.get(clock, value)) for clock, value in rates.items()}
    first = action(prepare(samples[:1]))[0]
    ids, mask = (first.input_ids, first.trained) if name == "omr_io" else first
    return {"seconds_a_sample": best, "ids": list(map(int, ids)), "mask": list(map(int, mask))}


# What is made of samples before the clock starts, and what is timed.
Chat = tuple[Callable[[list[dict[str, str]]], Any], Callable[[Any], Any]]


def _chat_omr_io(folder: Path, pads: int) -> Chat:
    from omr_io.chat import ChatFormat
    from omr_io.tokenizer import Tokenizer
    from omr_io.types import Option, Record

    form = ChatFormat(Tokenizer.from_pretrained(folder))
    options = (Option("A", "yes"), Option("B", "no"))

    def prepare(samples: list[dict[str, str]]) -> list[Record]:
        return [
            Record(str(i), s["question"], options, "A", s["reasoning"], source="bench")
            for i, s in enumerate(samples)
        ]

    def run(records: list[Record]) -> Any:
        return form.encode_batch(records, [(pads,)] * len(records))

    return prepare, run


def _masked(ids: Any, start: Any) -> Any:
    """The ids, and a mask of what follows the last `start`, but for the closing line break."""
    import numpy as np

    mask = np.zeros(len(ids), bool)
    mask[np.flatnonzero(ids == start[0])[-1] + len(start) : -1] = True
    return ids, mask


def _chat_gigatoken(folder: Path, pads: int) -> Chat:
    """Jinja renders the template, placeholders are repeated, all of it is encoded."""
    jinja2 = importlib.import_module("jinja2")
    tokenizer = importlib.import_module("gigatoken").Tokenizer(folder / "tokenizer.json")
    source = (folder / "chat_template.jinja").read_text()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    start = tokenizer.encode("<|im_start|>assistant\n")

    def run(conversations: list[list[dict[str, Any]]]) -> Any:
        out = []
        for conversation in conversations:
            text = template.render(messages=conversation, add_generation_prompt=False)
            ids = tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * pads))
            out.append(_masked(ids, start))
        return out

    return lambda samples: list(map(messages, samples)), run


def _chat_transformers(folder: Path, pads: int) -> Chat:
    """What a Qwen processor does with text: the template, placeholders repeated, the tokenizer."""
    tokenizer: Any = importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder)
    start = tokenizer("<|im_start|>assistant\n")["input_ids"]

    def run(conversations: list[list[dict[str, Any]]]) -> Any:
        out = []
        for conversation in conversations:
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
            text = text.replace("<|image_pad|>", "<|image_pad|>" * pads)
            out.append(_masked(tokenizer(text, return_tensors="np")["input_ids"][0], start))
        return out

    return lambda samples: list(map(messages, samples)), run


def messages(sample: dict[str, str]) -> list[dict[str, Any]]:
    """The conversation that omr_io's default format makes of the same sample."""
    parts = [{"type": "image"}, {"type": "text", "text": sample["question"]}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": sample["reasoning"]},
    ]


def main() -> None:
    """Run one measurement; the last line is its JSON, or the ids go to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side")
    parser.add_argument("task", choices=["speed", "ids", "chat"])
    parser.add_argument("texts", type=Path, help="a JSON list of texts, or of chat samples")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder: tokenizer.json, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pads", type=int, default=1024)
    arguments = parser.parse_args()
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if arguments.threads > 1 else "false"
    texts = json.loads(arguments.texts.read_bytes())
    if arguments.task == "chat":
        result = chat(arguments.side, arguments.tokenizer, texts, arguments.pads)
    else:
        side = Side(arguments.side, arguments.tokenizer, arguments.threads)
        result = speed(side, texts) if arguments.task == "speed" else all_ids(side, texts)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
