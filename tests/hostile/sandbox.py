"""A process in which whatever data makes Python do outside its folder is seen.

    python -m tests.hostile.sandbox JOBS.json

It runs omr_io on hostile files under an audit hook (sys.addaudithook: CPython tells of files that
are opened for writing, of folders, links and renames, of pickles and processes) and prints what it
saw. What C++ would do without Python shows in the tree, which the test compares.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of each event's arguments: (a path that changes, the descriptor it is relative to).
CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.truncate": ((0, None),),
    "shutil.rmtree": ((0, 1),),
}
RUNS = (
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.startfile",
    "socket.connect",
    "ctypes.dlopen",
)


class Watch:
    """Notes what is written outside `root`, and what is run."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.seen: list[str] = []
        self.on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")
            if writes:
                self._path(event, path)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._path(event, arguments[path], -1 if folder is None else arguments[folder])
        elif event in RUNS:
            self.seen.append(f"{event} {arguments[:2]!r}"[:300])

    def _path(self, event: str, path: Any, folder: int | None = -1) -> None:
        if isinstance(path, int) or path == os.devnull:
            return
        name = os.fsdecode(path)
        if folder is not None and folder >= 0:
            name = str(Path(f"/proc/self/fd/{folder}").readlink() / name)
        real = os.path.realpath(name)
        if os.path.commonpath([real, self.root]) != self.root:
            self.seen.append(f"{event} {real}")


def index_job(job: dict[str, Any]) -> dict[str, Any]:
    """`omr-io index`, then every sample read, loaded and verified."""
    from omr_io.foreign_shards.build import index_foreign
    from omr_io.index import ShardSet
    from omr_io.shards import verify

    summary = index_foreign([job["tar"]], job["out"])
    with ShardSet.open(job["out"]) as shards:
        keys = [shards.read_record(i).id for i in range(len(shards))]
    sound = verify(Path(job["out"]), decode=True).ok
    return {
        "samples": summary.samples,
        "refusals": dict(summary.refusals),
        "keys": keys,
        "sound": sound,
        "loaded": load(Path(job["out"])),
    }


def convert_job(job: dict[str, Any]) -> dict[str, Any]:
    """`omr-io convert`, then every sample loaded."""
    from omr_io.conversion import ConvertOptions, convert

    summary = convert(job["tar"], job["out"], ConvertOptions(workers=1))
    return {
        "samples": summary.samples,
        "refusals": dict(summary.refusals),
        "loaded": load(Path(job["out"])),
    }


def load(folder: Path) -> int:
    """Samples that one epoch of the loader gives, in a process without GPU."""
    from omr_io.config import VisionConfig
    from omr_io.loader import DataLoader
    from omr_io.tokenizer import train_bpe

    loader = DataLoader(
        folder,
        tokenizer=train_bpe(
            ["What is seen? A film of a patient, liver or spleen."], vocab_size=300
        ),
        vision=VisionConfig(min_pixels=32 * 32, max_pixels=64 * 64),
        seq_len=1024,
        packs_per_step=1,
        num_threads=0,
        cache=False,
    )
    loaded = sum(batch.num_samples for batch in loader)
    loader.close()
    return loaded


def main() -> None:
    """Run the jobs of a file."""
    from omr_io.errors import OmrError

    jobs = json.loads(Path(sys.argv[1]).read_text())
    watch = Watch(Path(jobs["root"]))
    kinds: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "index": index_job,
        "convert": convert_job,
    }
    warm = jobs["jobs"][0]
    kinds[warm["kind"]](warm)  # what is imported lazily is imported now, unwatched
    sys.addaudithook(watch)
    results = {}
    for job in jobs["jobs"][1:]:
        watch.seen, watch.on = [], True
        try:
            result = kinds[job["kind"]](job)
        except OmrError as error:
            result = {"error": type(error).__name__, "text": str(error)}
        watch.on = False
        results[job["name"]] = result | {"seen": watch.seen}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
