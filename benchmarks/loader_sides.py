"""One side of the loader's benchmark: batches of a corpus, timed or kept for comparison; JSON out.

    python benchmarks/loader_sides.py SIDE FOLDER --samples 600 [--check FILE]

Run by bench_loader.py in a process of its own, in our environment or the peers'. FOLDER is of
loader_corpus.py, with about.json. All sides read the same samples from the page cache and give the
same tensors: ids, labels, four rows of positions and normalised patches of packs of at most
seq_len tokens.

    omr_io      the loader, in the consumer's thread
    usual-wds   webdataset, Pillow, transformers' processor and chat template, a padding-free
                collator, in a torch DataLoader with 2 workers
    usual-hf    the same from `datasets`, Parquet streamed
    plain       the parts of loader_peers.py in a loop
    spdl        SPDL's threads over the same parts
    dali        DALI's CPU pipeline decodes and resizes, the rest as in plain
    mosaic      MosaicML streaming's shards and dataset, the rest as in plain

A name may go on with -2 (two threads), -bfloat16 (pixels) and -ring (peers only: two pixel buffers
take turns, and batches that the consumer holds are written over).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # where only this file was named

from benchmarks import loader_peers as peers

WARM = 12
"""Batches before the clock runs."""

GROUP = 16
"""Samples that the peers encode together: calls cost less, and texts go in batches."""


def index(folder: Path, samples: int) -> list[tuple[str, str, list[tuple[int, int]]]]:
    """(tar, key, [(offset, size) of image and JSON]) by the DALI indices beside the tars."""
    found: list[tuple[str, str, list[tuple[int, int]]]] = []
    for path in sorted((folder / "shards").glob("*.idx")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            words = line.split(" ")
            parts = [(int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)]
            found.append((str(path.with_suffix(".tar")), Path(words[3]).stem, parts))
    return found[:samples]


class Reader:
    """Samples by pread."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def read(self, place: tuple[str, str, list[tuple[int, int]]]) -> peers.Raw:
        """One sample."""
        tar, key, parts = place
        if tar not in self._open:
            self._open[tar] = os.open(tar, os.O_RDONLY)
        image, data = (os.pread(self._open[tar], size, offset) for offset, size in parts)
        return peers.of_json(key, image, data)


class Side:
    """The parts that most sides share, and what its name asks for."""

    def __init__(self, name: str, folder: Path, samples: int) -> None:
        words = name.split("-")
        self.dtype = "bfloat16" if "bfloat16" in words else "float32"
        self.threads = 2 if "2" in words else 1
        self.folder, self.samples = folder, samples
        self.name = "-".join(w for w in words if w not in ("2", "bfloat16", "ring"))
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text("utf-8"))
        self._ring = 2 if "ring" in words else 0

    def packer(self) -> peers.Packer:
        """A new packer."""
        return peers.Packer(self.about, self.dtype, self._ring)

    def vision(self) -> Any:
        """Our configuration."""
        from omr_io.config import VisionConfig

        names = ("family", "patch_size", "merge_size", "temporal_patch_size", "min_pixels")
        values: dict[str, Any] = {name: self.about[name] for name in (*names, "max_pixels")}
        values |= {name: tuple(self.about[name]) for name in ("image_mean", "image_std")}
        return VisionConfig(**values)


def own_loader(side: Side) -> Any:
    """Our loader over the side's samples, in the consumer's thread unless it has two."""
    import numpy as np
    import torch

    from omr_io.loader import DataLoader

    return DataLoader(
        side.folder / "shards",
        tokenizer=side.folder / "tokenizer",
        vision=side.vision(),
        seq_len=side.about["seq_len"],
        packs_per_step=1,
        num_threads=0 if side.threads == 1 else side.threads,
        samples=np.arange(side.samples),
        pixel_dtype=getattr(torch, side.dtype),
    )


def omr_io(side: Side) -> Iterator[peers.Batch]:
    """Our loader; its Batch is taken apart by `fields`.

    A whole epoch comes first, so that the clock sees every sample once.
    """
    with own_loader(side) as loader:
        for _ in loader:
            pass
        yield {}  # all is ready
        for batch in loader:
            yield {"batch": batch, "keys": [key for keys in batch.keys for key in keys]}


def usual(side: Side) -> Iterator[peers.Batch]:
    """What most people have: each worker reads, encodes and packs its part."""
    import torch

    encoder = peers.Usual(side.folder, side.about)
    samples = side.samples

    def from_tars() -> Iterator[peers.Sample]:
        import webdataset

        paths = sorted(str(path) for path in (side.folder / "shards").glob("*.tar"))
        for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
            yield encoder.encode(peers.of_json(sample["__key__"], sample["jpg"], sample["json"]))

    def from_parquet() -> Iterator[peers.Sample]:
        for row in loaded:
            image = row["image"]
            key = Path(image["path"]).stem
            raw = peers.Raw(key, image["bytes"], row["question"], row["reasoning"])
            yield encoder.encode(raw)

    if side.name == "usual-hf":
        import datasets

        files = sorted(str(path) for path in (side.folder / "parquet").iterdir())
        loaded: Any = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True
        ).cast_column("image", datasets.Image(decode=False))
    source = from_parquet if side.name == "usual-hf" else from_tars

    class Packs(torch.utils.data.IterableDataset[peers.Batch]):
        def __iter__(self) -> Iterator[peers.Batch]:
            yield from peers.packed(source(), side.packer())

    workers: Any = torch.utils.data.DataLoader(Packs(), batch_size=None, num_workers=2)
    yield {}
    done = 0
    for batch in workers:
        yield batch
        done += len(batch["keys"])
        if done >= samples:
            return


def spdl(side: Side) -> Iterator[peers.Batch]:
    """SPDL: a source of places, a stage on threads that reads and encodes.

    Its own decoder (FFmpeg) took 2.8 ms an image where simplejpeg takes 1.4, and its scaler with it
    3.1 ms, up to 12 levels from Pillow: the parts used here are faster and nearer.
    """
    PipelineBuilder: Any = import_module("spdl.pipeline").PipelineBuilder

    reader, encoder = Reader(), peers.Fast(side.folder, side.about)

    def encode(places: Any) -> list[peers.Sample]:
        return encoder.encode([reader.read(place) for place in places])

    places = list(peers.groups(index(side.folder, side.samples), GROUP))
    builder = PipelineBuilder().add_source(places).pipe(encode, concurrency=side.threads)
    pipeline = builder.add_sink(2).build(num_threads=side.threads)
    yield {}
    with pipeline.auto_stop():
        yield from peers.packed((s for group in pipeline for s in group), side.packer())


def plain(side: Side) -> Iterator[peers.Batch]:
    """The peers' parts in a loop."""
    reader, encoder = Reader(), peers.Fast(side.folder, side.about)
    places = peers.groups(index(side.folder, side.samples), GROUP)
    yield {}
    samples = (s for group in places for s in encoder.encode([reader.read(p) for p in group]))
    yield from peers.packed(samples, side.packer())


def dali(side: Side) -> Iterator[peers.Batch]:
    """DALI on the CPU: bytes in, resized uint8 out; sizes follow from the headers."""
    import numpy as np
    import simplejpeg
    from nvidia.dali import Pipeline, fn, types

    reader, encoder = Reader(), peers.Fast(side.folder, side.about)
    places = list(peers.groups(index(side.folder, side.samples), GROUP))
    read: list[list[peers.Raw]] = []

    def feed() -> Iterator[Any]:
        for group in places:
            raws = [reader.read(place) for place in group]
            read.append(raws)
            headers = [simplejpeg.decode_jpeg_header(raw.image) for raw in raws]
            sizes = [peers.smart_resize(h[0], h[1], side.about) for h in headers]
            yield (
                [np.frombuffer(raw.image, np.uint8) for raw in raws],
                [np.array(size, np.float32) for size in sizes],
            )

    pipeline = Pipeline(batch_size=GROUP, num_threads=side.threads, device_id=None)
    with pipeline:
        encoded, sizes = fn.external_source(source=feed(), num_outputs=2, batch=True)
        rgb = fn.decoders.image(
            encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        pipeline.set_outputs(
            fn.resize(rgb, size=sizes, interp_type=types.INTERP_CUBIC, antialias=True)
        )
    pipeline.build()
    yield {}

    def samples() -> Iterator[peers.Sample]:
        for _ in places:
            (pixels,) = pipeline.run()
            raws = read.pop(0)
            yield from encoder.encode(raws, [np.asarray(pixels[i]) for i in range(len(raws))])

    yield from peers.packed(samples(), side.packer())


def mosaic(side: Side) -> Iterator[peers.Batch]:
    """MosaicML streaming from its own shards, read in their order in this process.

    It imports torchvision for datasets that are not used here; where none fits the installed torch,
    an empty stand-in takes its place.
    """
    _torchvision_or_nothing()
    streaming: Any = import_module("streaming")

    encoder = peers.Fast(side.folder, side.about)
    dataset = streaming.StreamingDataset(
        local=str(side.folder / "mds"), shuffle=False, batch_size=GROUP, num_canonical_nodes=1
    )
    yield {}

    def samples() -> Iterator[peers.Sample]:
        raws = []
        for number, row in enumerate(dataset):
            if number == side.samples:
                break
            raws.append(peers.Raw(row["key"], row["image"], row["question"], row["reasoning"]))
            if len(raws) == GROUP:
                yield from encoder.encode(raws)
                raws = []
        if raws:
            yield from encoder.encode(raws)

    yield from peers.packed(samples(), side.packer())


def _torchvision_or_nothing() -> None:
    import types
    from importlib.machinery import ModuleSpec

    try:
        import_module("torchvision.datasets")
    except Exception:  # an ImportError, or a RuntimeError of operators that are not there
        members = {"datasets": "VisionDataset", "transforms.functional": "to_tensor"}
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = types.ModuleType(f"torchvision{name}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            if member := members.get(name[1:]):
                setattr(module, member, type(member, (), {}))
            sys.modules[module.__name__] = module


def write_mds(folder: Path) -> None:
    """The corpus as MosaicML's shards."""
    _torchvision_or_nothing()
    streaming: Any = import_module("streaming")

    reader = Reader()
    columns = {"key": "str", "image": "bytes", "question": "str", "reasoning": "str"}
    with streaming.MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for place in index(folder, sys.maxsize):
            writer.write(reader.read(place)._asdict())


SIDES = {
    "omr_io": omr_io, "usual-wds": usual, "usual-hf": usual, "plain": plain, "spdl": spdl,
    "dali": dali, "mosaic": mosaic,
}  # fmt: skip


def fields(batch: peers.Batch) -> peers.Batch:
    """A batch of any side as tensors by name."""
    if "batch" not in batch:
        return batch
    made = batch["batch"]
    names = ("input_ids", "labels", "position_ids", "cu_seqlens", "pixel_values", "image_grid_thw")
    return {"keys": batch["keys"]} | {name: getattr(made, name) for name in names}


def by_sample(batch: peers.Batch) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each sample's arrays, by key, from a batch of one pack."""
    batch = fields(batch)
    bounds = batch["cu_seqlens"].tolist()
    patches = batch["image_grid_thw"].prod(dim=1).tolist()
    row = 0
    for place, key in enumerate(batch["keys"]):
        inside = slice(bounds[place], bounds[place + 1])
        yield (
            key,
            {
                "input_ids": batch["input_ids"][0, inside].numpy(),
                "labels": batch["labels"][0, inside].numpy(),
                "position_ids": batch["position_ids"][:, 0, inside].numpy(),
                "pixel_values": batch["pixel_values"][row : row + patches[place]].float().numpy(),
                "image_grid_thw": batch["image_grid_thw"][place].numpy(),
            },
        )
        row += patches[place]


def timed(side: Side, warm: int = WARM) -> dict[str, Any]:
    """Samples, tokens, wall and CPU seconds of all processes, once `warm` batches have come.

    So what is paid once a run (memory, first calls) does not count, for any side: ours has had an
    epoch by then. Where workers do the work all counts: their CPU seconds are known when they end.
    """
    running = SIDES[side.name](side)
    next(running)
    samples = tokens = total = 0
    warm = 0 if side.name.startswith(("usual", "omr_io")) else warm
    before, started = _cpu(), time.perf_counter()
    for number, batch in enumerate(running):
        total += len(batch["keys"])
        if number < warm:
            before, started = _cpu(), time.perf_counter()
            continue
        samples += len(batch["keys"])
        tokens += batch["batch"].num_tokens if "batch" in batch else batch["input_ids"].numel()
    seconds = time.perf_counter() - started
    del running
    if total < side.samples or not samples:
        raise RuntimeError(f"{side.name} gave {total} of {side.samples} samples")
    return {
        "samples": samples,
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": _cpu() - before,
        "samples_per_second": samples / seconds,
        "samples_per_cpu_second": samples / (_cpu() - before),
    }


def kept(side: Side) -> dict[str, dict[str, Any]]:
    """All samples' arrays, to be compared with another side's."""
    running = SIDES[side.name](side)
    next(running)
    return {
        key: {name: array.copy() for name, array in arrays.items()}
        for batch in running
        for key, arrays in by_sample(batch)
    }


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Time one side and print one line of JSON, or keep its samples."""
    import numpy as np
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", help="a side's name, or write-mds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--check", type=Path, help="keep the samples' arrays here instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.side == "write-mds":
        write_mds(given.folder)
        return
    side = Side(given.side, given.folder, given.samples)
    if given.check:
        arrays = kept(side)
        np.savez(
            given.check, **{f"{k}|{n}": a for k, one in arrays.items() for n, a in one.items()}
        )
        print(json.dumps({"side": given.side, "samples": len(arrays)}))
    else:
        print(json.dumps({"side": given.side} | timed(side)))


if __name__ == "__main__":
    main()
