"""Tensors to a device in one copy: they lie side by side in one block of host memory.

A copy to a GPU costs some microseconds whatever its size, and each is a call of the driver that
other threads wait for. So the loader lays the pixels, the integers and the grids of a batch into
one page-locked block, sends that, and takes the tensors as views of what arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

ALIGNMENT = 64
"""Bytes at whose multiples tensors begin in a block: a cache line, and four of the widest loads."""


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Block:
    """Host memory that tensors are laid into, one after the other, to be sent in one copy.

    Tensors of it, here and on the device, are views of one allocation: it lives as long as any of
    them. Not safe to lay into from several threads at once.

    Args:
        memory: (L,) uint8 on the host, contiguous, from an address that suits any dtype. Where a
            GPU shall copy from it without the host's waiting, page-locked: torch's allocator then
            keeps it until the copy is over.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self._bytes = memory.numpy()
        self._start = memory.data_ptr()
        self._whole: dict[torch.dtype, Tensor] = {}  # the memory as elements of a dtype
        self._used = 0
        self._there: Tensor | None = None
        self._is_here = False

    @classmethod
    def of_size(cls, size: int, device: torch.device) -> Block:
        """A new one of `size` bytes, page-locked if the device is a GPU."""
        pinned = device.type == "cuda"
        return cls(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))

    @property
    def used(self) -> int:
        """Bytes that are laid out."""
        return self._used

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor in the block, not initialised.

        Raises:
            ValueError: there is no room for it, or the block is sent: it would not arrive.
        """
        return self._at(self._take(shape, dtype.itemsize), shape, dtype)

    def put(self, values: NDArray[Any] | Tensor) -> Tensor:
        """A copy of an array or a host tensor in the block; errors as of `empty`."""
        if isinstance(values, Tensor):
            return self.empty(values.shape, values.dtype).copy_(values)
        self.array(values.shape, values.dtype)[...] = values
        return self._at(self._used - values.nbytes, values.shape, _dtype(values))

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """As `empty`, as an array: what `numpy.empty` is for memory of its own."""
        kind = np.dtype(dtype)
        start = self._take(shape, kind.itemsize)
        return np.ndarray(tuple(shape), kind, self._bytes, start)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """The tensor of an array of the block (contiguous), or of a copy that is put there."""
        start = array.__array_interface__["data"][0] - self._start
        inside = start >= 0 and start + array.nbytes <= self._used
        if not array.nbytes or not inside or not array.flags.c_contiguous:
            return self.put(array)
        return self._at(start, array.shape, _dtype(array))

    def _take(self, shape: Sequence[int], itemsize: int) -> int:
        """Where the next tensor begins, in bytes."""
        if self._there is not None:
            raise ValueError("the block is sent already")
        start = aligned(self._used)
        end = start + math.prod(shape) * itemsize
        if end > len(self._bytes):
            raise ValueError(f"no room for {end - start} bytes at {start} of {len(self._bytes)}")
        self._used = end
        return start

    def _at(self, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        # Two calls of torch: at a dozen tensors a batch, each is some microseconds.
        whole = self._whole.get(dtype)
        if whole is None:
            size = len(self._bytes) // dtype.itemsize * dtype.itemsize
            whole = self._whole[dtype] = self._memory[:size].view(dtype)
        strides = [1] * len(shape)
        for axis in range(len(shape) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * max(shape[axis], 1)
        first = int(whole.storage_offset()) + start // dtype.itemsize
        return _apart(whole.as_strided(tuple(shape), strides, first))

    def send(self, device: torch.device) -> None:
        """Copy all that is laid out to the device; on the CPU nothing is copied.

        To a GPU it goes on the current stream, and the host does not wait.
        """
        if self._there is None:
            run = self._memory[: self._used]
            self._there = copied(run, device)
            self._is_here = self._there is run

    def sent(self, tensor: Tensor) -> Tensor:
        """What a tensor of the block (see `empty`) is on the device that the block was sent to."""
        assert self._there is not None, "send comes first"
        if self._is_here:
            return tensor
        return _seen(self._there, int(self._memory.storage_offset()), tensor)


def copied(run: Tensor, device: torch.device) -> Tensor:
    """The one copy: a run of bytes on another device; itself if it is there.

    Only CUDA's allocator of page-locked memory waits for copies before it lends memory again.
    """
    return run.to(device, non_blocking=device.type == "cuda")


def send(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on a device: on the CPU they share memory, elsewhere they are copied.

    They go joined, by one copy on the current stream that the host does not wait for; the tensors
    are views of one allocation there.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return _send_joined(arrays, device)


def move(
    tensors: Mapping[str, Tensor], device: torch.device, *, non_blocking: bool
) -> dict[str, Tensor]:
    """The tensors on a device; those that share a block go in one copy and share one there.

    To a GPU, and non-blocking, nothing waits: what is not page-locked is joined in page-locked
    memory first, all of it, and goes in one copy as well.
    """
    if all(tensor.device == device for tensor in tensors.values()):
        return dict(tensors)
    pageable: dict[str, Tensor] = {}
    if device.type == "cuda" and non_blocking:
        pageable = {
            name: tensor
            for name, tensor in tensors.items()
            if tensor.is_cpu and not tensor.is_pinned() and not tensor.requires_grad
        }
    rest = {name: tensor for name, tensor in tensors.items() if name not in pageable}
    moved = by_block(rest, lambda run: run.to(device, non_blocking=non_blocking))
    return moved | (_send_joined(pageable, device) if pageable else {})


def by_block(
    tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Each tensor changed by what keeps bytes as they are; those that share a block in one call.

    Args:
        change: such as `Tensor.pin_memory`: gives its argument, or a copy of it.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    changed: dict[str, Tensor] = {}
    for names in groups.values():
        group = {name: tensors[name] for name in names}
        run = _run(list(group.values()))
        if run is None:
            changed |= {name: change(tensor) for name, tensor in group.items()}
            continue
        there = change(run)
        changed |= (
            group
            if there is run
            else {n: _seen(there, int(run.storage_offset()), tensor) for n, tensor in group.items()}
        )
    return {name: changed[name] for name in tensors}


def _send_joined(
    values: Mapping[str, NDArray[Any]] | Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    size = sum(aligned(value.nbytes) for value in values.values())
    block = Block.of_size(size, device)
    laid = {name: block.put(value) for name, value in values.items()}
    block.send(device)
    return {name: block.sent(tensor) for name, tensor in laid.items()}


def _run(tensors: Sequence[Tensor]) -> Tensor | None:
    """The bytes from the first of some tensors of one storage to the last, as (L,) uint8.

    None where a tensor stands alone, where autograd follows one, or where much lies between them
    that would be sent for nothing: over a quarter of what they hold, and what aligns them.
    """
    if len(tensors) == 1 or any(tensor.requires_grad for tensor in tensors):
        return None
    starts = [tensor.storage_offset() * tensor.itemsize for tensor in tensors if tensor.numel()]
    ends = [_end(tensor) for tensor in tensors if tensor.numel()]
    if not starts:
        return None
    size = max(ends) - min(starts)
    if size > 1.25 * sum(tensor.nbytes for tensor in tensors) + ALIGNMENT * len(tensors):
        return None
    flat = torch.empty(0, dtype=torch.uint8, device=tensors[0].device)
    return flat.set_(tensors[0].untyped_storage(), min(starts), (size,), (1,))


def _end(tensor: Tensor) -> int:
    """Where a tensor of one element or more ends in its storage, in bytes."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((count - 1) * stride for count, stride in pairs)
    return (int(tensor.storage_offset()) + last + 1) * tensor.itemsize


def _seen(there: Tensor, first: int, tensor: Tensor) -> Tensor:
    """In a copy of a run of bytes that began at `first` of its storage: what `tensor` is there."""
    if not tensor.numel():
        return _apart(there[:0].view(tensor.dtype).view(tensor.shape))
    start = int(tensor.storage_offset()) * tensor.itemsize - first
    end = _end(tensor) - first
    flat = there[start:end].view(tensor.dtype)
    return _apart(flat.as_strided(tensor.shape, tensor.stride(), flat.storage_offset()))


def _apart(view: Tensor) -> Tensor:
    """The same memory, of which autograd does not know that others look into its neighbourhood.

    Views of one tensor share a count of changes: labels that are masked in place between forward
    and backward would make pixels, which were saved, look changed.
    """
    return view.data


@cache
def _dtype_of(kind: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind)).dtype


def _dtype(array: NDArray[Any]) -> torch.dtype:
    return _dtype_of(array.dtype)
