"""Parquet to shards: omr_io against what labs run today, and against the limit of the machine.

    python -m benchmarks.bench_convert make FOLDER --rows 20000
    python -m benchmarks.bench_convert SIDE FOLDER

All sides see the same rows, on one core. omr_io's sides check every row and header, strip metadata,
index and hash all they write; of the others only `limit` hashes.

    limit         read the Parquet bytes, SHA-256, write: plain file copies
    omr_io        omr_io.conversion.convert, headers checked
    omr_io-start  the same in a process that must import everything first
    omr_io-decode the same with its default, a full decode of every image
    omr_io-cores  omr_io on all cores, a worker each; every other side has one core
    datasets      the plain loop: load_dataset, the image as its feature gives it (a decoded PIL
                  image) -> webdataset.TarWriter, which encodes it anew
    datasets-raw  the careful loop: streaming, Image(decode=False), the bytes as they are
    nemo          a JSON manifest and image files, read one by one -> webdataset.ShardWriter, as the
                  converters of NeMo and Megatron-Energon do it
    img2dataset   the same files by img2dataset as file:// URLs, no resizing, no re-encoding; in an
                  environment of its own (its pins clash with ours)
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROWS_A_FILE = 5000
ROWS_A_GROUP = 500
IMAGE_BYTES = 50_000
DISTINCT = 256


def make(folder: Path, rows: int) -> None:
    """Parquet of OpenMedReason's schema, and the same rows as files for those that want them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [_picture(seed) for seed in range(DISTINCT)]
    (folder / "parquet").mkdir(parents=True)
    (folder / "images").mkdir()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("question", "reasoning", "answer")]
    schema = pa.schema([("image", image), *texts])
    manifest = []
    for start in range(0, rows, ROWS_A_FILE):
        table = []
        for row in range(start, min(start + ROWS_A_FILE, rows)):
            name = f"{row:08d}.jpg"
            table.append(_row(row, pictures[row % DISTINCT], name))
            (folder / "images" / name).write_bytes(pictures[row % DISTINCT])
            manifest.append({k: v for k, v in table[-1].items() if k != "image"} | {"image": name})
        # No dictionary: the pictures repeat, which those of a real corpus do not.
        pq.write_table(
            pa.Table.from_pylist(table, schema=schema),
            folder / "parquet" / f"train-{start // ROWS_A_FILE:05d}.parquet",
            row_group_size=ROWS_A_GROUP,
            use_dictionary=False,
        )
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    urls = pa.table(
        {
            "url": [(folder / "images" / item["image"]).resolve().as_uri() for item in manifest],
            "caption": [item["question"] for item in manifest],
        }
    )
    pq.write_table(urls, folder / "urls.parquet")


def _picture(seed: int) -> bytes:
    """A JPEG of about 50 KB: smooth shapes and some noise, as a figure has."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (24, 32, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((640, 560), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    best = b""
    for quality in range(60, 96, 3):
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=quality)
        if not best or abs(out.tell() - IMAGE_BYTES) < abs(len(best) - IMAGE_BYTES):
            best = out.getvalue()
    return best


def _row(row: int, picture: bytes, name: str) -> dict[str, Any]:
    trace = " ".join(f"Finding {step} speaks for one and against the other." for step in range(30))
    return {
        "image": {"bytes": picture, "path": name},
        "question": f"Which finding is seen in case {row}?\nA. one\nB. two\nC. three\nD. four",
        "reasoning": f"<think>{trace}</think>\n<answer>{'ABCD'[row % 4]}</answer>",
        "answer": "ABCD"[row % 4],
    }


def limit(folder: Path, out: Path) -> None:
    """Read, hash, write."""
    for path in sorted((folder / "parquet").iterdir()):
        digest = hashlib.sha256()
        with path.open("rb") as source, (out / path.name).open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
        digest.hexdigest()


def ours(folder: Path, out: Path, check: str, workers: int | None = 1) -> None:
    """omr_io, with one worker in this process."""
    from omr_io.conversion import ConvertOptions, convert

    options = ConvertOptions(check=check, workers=workers, threads=1)  # type: ignore[arg-type]
    convert(folder / "parquet", out / "set", options)


def _tar(rows: Iterator[dict[str, Any]], out: Path) -> None:
    import webdataset

    sink = None
    for number, row in enumerate(rows):
        if number % ROWS_A_FILE == 0:
            if sink is not None:
                sink.close()
            sink = webdataset.TarWriter(str(out / f"{number // ROWS_A_FILE:06d}.tar"))
        texts = {name: row[name] for name in ("question", "reasoning", "answer")}
        assert sink is not None
        image = row["image"]
        data = image["bytes"] if isinstance(image, dict) else image
        sink.write({"__key__": f"{number:08d}", "jpg": data, "json": texts})
    if sink is not None:
        sink.close()


def by_datasets(folder: Path, out: Path, decode: bool) -> Callable[[], None]:
    """The loop that a dataset's page on the Hub leads to; loading is not timed."""
    from datasets import Image, load_dataset

    files = sorted(str(path) for path in (folder / "parquet").iterdir())
    loaded = load_dataset("parquet", data_files=files, split="train", streaming=True).cast_column(
        "image", Image(decode=decode)
    )
    return lambda: _tar(iter(loaded), out)


def nemo(folder: Path, out: Path) -> None:
    """A manifest's entries, their image files read one by one."""
    import webdataset

    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=ROWS_A_FILE, verbose=0) as sink:
        for number, entry in enumerate(entries):
            data = (folder / "images" / entry["image"]).read_bytes()
            sink.write({"__key__": f"{number:08d}", "jpg": data, "json": entry})


_IMG2DATASET = """
import sys, time
from img2dataset import download
if __name__ == "__main__":
    start = time.perf_counter()
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet",
             url_col="url", caption_col="caption", output_format="webdataset", resize_mode="no",
             disable_all_reencoding=True, processes_count=1, thread_count=int(sys.argv[3]),
             number_sample_per_shard=5000, enable_wandb=False, compute_hash="sha256")
    print(time.perf_counter() - start)
"""


def img2dataset(folder: Path, out: Path, python: str, threads: int) -> float:
    """Its own seconds, without the start of Python and its imports."""
    script = out / "run.py"
    script.write_text(_IMG2DATASET, encoding="utf-8")
    done = subprocess.run(
        [python, str(script), str(folder / "urls.parquet"), str(out / "out"), str(threads)],
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    written = list((out / "out").glob("*.tar"))
    assert written, done.stderr
    return float(done.stdout.strip().splitlines()[-1])


def run(side: str, folder: Path, img2dataset_python: str) -> dict[str, Any]:
    """Run one side and time it."""
    out = folder / f"out-{side}-{os.getpid()}"
    out.mkdir()
    action: Callable[[], Any] = {
        "limit": lambda: limit(folder, out),
        "omr_io": lambda: ours(folder, out, "header"),
        "omr_io-start": lambda: ours(folder, out, "header"),
        "omr_io-decode": lambda: ours(folder, out, "decode"),
        "omr_io-cores": lambda: ours(folder, out, "header", None),
        "nemo": lambda: nemo(folder, out),
        "img2dataset": lambda: img2dataset(folder, out, img2dataset_python, 1),
    }.get(side) or by_datasets(folder, out, side == "datasets")
    _import_first(side)
    _touch_memory(folder, out)
    start = time.perf_counter()
    own = action()
    seconds = own if isinstance(own, float) else time.perf_counter() - start
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return {"side": side, "seconds": seconds, "bytes_written": written}


def _touch_memory(folder: Path, out: Path) -> None:
    """Write and remove as many bytes as a side will, so that each finds memory in the same state.

    A virtual machine hands memory that was freed back to its host, and pays when it takes it again:
    writing the same gigabyte took 0.5 s after another had just been removed, and 1.1 to 2.8 s else.
    """
    warm = out / "warm"
    warm.mkdir()
    limit(folder, warm)
    shutil.rmtree(warm)


def _import_first(side: str) -> None:
    """Imports are not timed, but for the side omr_io-start.

    Its modules have been compiled, as installed ones are: where Python is told not to keep what it
    compiles, it would compile them in every process.
    """
    if side == "omr_io-start":
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run([sys.executable, "-c", "import omr_io.conversion"], env=kept, check=True)
    elif side.startswith("omr_io"):
        import omr_io.conversion
        import omr_io.corpus.formats.parquet  # noqa: F401
    elif side != "limit":
        import webdataset  # noqa: F401


def main() -> None:
    """Make the corpus, or time one side and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    sides = ["limit", "omr_io", "omr_io-start", "omr_io-decode", "omr_io-cores"]
    sides += ["datasets", "datasets-raw", "nemo", "img2dataset"]
    parser.add_argument("side", choices=["make", *sides])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--img2dataset-python", default="python")
    arguments = parser.parse_args()
    if arguments.side == "make":
        make(arguments.folder, arguments.rows)
    else:
        print(json.dumps(run(arguments.side, arguments.folder, arguments.img2dataset_python)))


if __name__ == "__main__":
    main()
