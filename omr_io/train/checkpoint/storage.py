"""How torch.distributed.checkpoint's plans are written and read here: safetensors and JSON.

Its own writers keep the plan as a pickle. Ours writes each rank's tensors as one safetensors file
and the plan as JSON. A file is hashed as it is written, so that its SHA-256 is that of the bytes in
memory, not of what a disk made of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from omr_io.errors import ConfigError
from omr_io.storage import AtomicFile, write_atomically
from omr_io.train.checkpoint import folder

_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.uint16: "U16", torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64",
    torch.uint64: "U64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}


def check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be stored before anything is written.

    Raises:
        ConfigError: names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise ConfigError(f"cannot store {name}: {tensor.dtype}, {tensor.layout}")


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a chunk is, and what the manifest will say of that file."""

    file: str
    key: str
    entry: folder.Entry


class Writer(StorageWriter):
    """Writes one checkpoint.

    Args:
        root: the folder of all checkpoints.
        claim: to it; the first rank takes it before it writes.
        tree: what goes into state.json beside the tensors' places; that of the first rank counts.
        keep: how many checkpoints are left in the end.
        invalid: names of checkpoints that do not count.
    """

    def __init__(
        self,
        root: Path,
        claim: folder.Claim,
        tree: Any,
        *,
        keep: int,
        invalid: frozenset[str],
    ) -> None:
        self._root = root
        self._claim = claim
        self._tree = tree
        self._keep = keep
        self._invalid = invalid
        self._work = root

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer is made for each checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the plan says which rank this is."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank, before any writes: make the folder and tell all its name."""
        self._claim.take()
        self._work = folder.begin(self._root)
        return [
            replace(plan, storage_data=(self._work.name, f"rank-{rank:05d}.safetensors"))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file and force it to the disk."""
        work, name = plan.storage_data
        results: list[WriteResult] = []
        if plan.items:
            tensors = {}
            for item in plan.items:
                offset = item.index.offset or ()
                # A shard has its place in its name; brackets, since commas alone may be a name's.
                place = f"[{','.join(map(str, offset))}]" if any(offset) else ""
                tensors[item.index.fqn + place] = planner.resolve_data(item)
            written = write_tensors(self._root / work / name, tensors)  # type: ignore[arg-type]
            results = [
                WriteResult(item.index, 0, _Stored(name, key, written))
                for item, key in zip(plan.items, tensors, strict=True)
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, when all have written: the places, the manifest, the name."""
        stored: dict[tuple[str, tuple[int, ...]], _Stored] = {}
        entries: dict[str, folder.Entry] = {}
        for result in (result for one_rank in results for result in one_rank):
            place: _Stored = result.storage_data
            stored[result.index.fqn, tuple(result.index.offset or ())] = place
            entries[place.file] = place.entry
        tensors = {
            name: _describe(name, what, stored)
            for name, what in metadata.state_dict_metadata.items()
            if isinstance(what, TensorStorageMetadata)
        }
        text = json.dumps({"state": self._tree, "tensors": tensors}).encode()
        written = write_atomically(self._work / folder.STATE, text, in_new_folder=True)
        entries[folder.STATE] = folder.Entry(written.num_bytes, written.sha256())
        folder.publish(self._work, entries)
        folder.keep_newest(self._root, self._keep, self._invalid)

    def discard(self) -> None:
        """After a failure, when no rank writes any more: make room. The first rank's to do."""
        if self._work != self._root:
            with suppress(OSError):  # the next save tries again, and says so
                folder.remove(self._work)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """False: this writer is never chosen by a name."""
        return False


def _describe(
    name: str, what: TensorStorageMetadata, stored: Mapping[tuple[str, tuple[int, ...]], _Stored]
) -> dict[str, Any]:
    chunks = []
    for chunk in what.chunks:
        if 0 in chunk.sizes and 0 not in what.size:
            continue  # a rank with nothing of a small tensor
        place = stored[name, tuple(chunk.offsets)]
        chunks.append([list(chunk.offsets), list(chunk.sizes), place.file, place.key])
    dtype = str(what.properties.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(what.size), "chunks": chunks}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> folder.Entry:
    """Write a safetensors file, tensor by tensor, without a second copy in memory.

    Raises:
        DiskError: writing failed.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        dtype, shape = _DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with AtomicFile(path, in_new_folder=True) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write_now(flat.numpy().data)
        file.commit()
        return folder.Entry(file.num_bytes, file.sha256())


class Reader(StorageReader):
    """Reads a checkpoint that has been verified.

    Args:
        path: its folder.
        tensors: what state.json says of the tensors.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Any]) -> None:
        self._path = path
        self._tensors = tensors

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader is made for each checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The shapes, dtypes and chunks of all tensors."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=dtype_of(what)),
                    torch.Size(what["shape"]),
                    [
                        ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                        for offsets, sizes, _, _ in what["chunks"]
                    ],
                )
                for name, what in self._tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: every rank reads for itself."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan names into the tensors that the planner has for it."""
        from safetensors import safe_open

        by_file: defaultdict[str, list[tuple[str, ReadItem]]] = defaultdict(list)
        for item in plan.items:
            file, key = self._find(item)
            by_file[file].append((key, item))
        for file, items in by_file.items():
            with safe_open(self._path / file, framework="pt", device="cpu") as opened:
                for key, item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_part(opened, key, item))
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _find(self, item: ReadItem) -> tuple[str, str]:
        wanted = list(item.storage_index.offset or ())
        for offsets, _, file, key in self._tensors[item.storage_index.fqn]["chunks"]:
            if offsets == wanted:
                return file, key
        raise KeyError(f"{item.storage_index.fqn} at {wanted}")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """False: this reader is never chosen by a name."""
        return False


def _part(opened: Any, key: str, item: ReadItem) -> Tensor:
    """The block of a stored chunk that an item asks for; no more of it is read."""
    if not item.lengths:
        whole: Tensor = opened.get_tensor(key)
        return whole
    begins_and_lengths: Sequence[tuple[int, int]] = list(
        zip(item.storage_offsets, item.lengths, strict=True)
    )
    part: Tensor = opened.get_slice(key)[tuple(slice(b, b + n) for b, n in begins_and_lengths)]
    return part


def dtype_of(what: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a tensor as state.json has it."""
    return _NAMES[what["dtype"]]


# torch.distributed.checkpoint's own `save` and `load` warn where there is no process group. What
# follows are their steps for one process.


def save_tensors(tensors: dict[str, Any], writer: Writer, group: dist.ProcessGroup | None) -> None:
    """`dcp.save`; without a group, for this process alone."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if group is not None:
        save(tensors, storage_writer=writer, planner=planner, process_group=group)
        return
    planner.set_up_planner(tensors, is_coordinator=True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


def load_tensors(tensors: dict[str, Any], reader: Reader, group: dist.ProcessGroup | None) -> None:
    """`dcp.load` into these tensors; without a group, for this process alone."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if group is not None:
        load(tensors, storage_reader=reader, planner=planner, process_group=group)
        return
    planner.set_up_planner(tensors, reader.read_metadata(), is_coordinator=True)
    plans = planner.create_global_plan([planner.create_local_plan()])
    reader.read_data(planner.finish_plan(plans[0]), planner).wait()
