"""A stream beside the consumer's: copies and launches of the loader run there, ahead of it.

The consumer's stream waits for a batch by an event, on the GPU; the host waits for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class SideStream:
    """The loader's own stream on a GPU, made when it is first used. Thread-safe.

    Args:
        device: a CUDA device; without an index the current one at first use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream."""
        with self._lock:
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            return self._stream

    def current(self) -> AbstractContextManager[Any]:
        """Makes it (and its device) the calling thread's current stream."""
        return torch.cuda.stream(self.stream)

    def record(self) -> torch.cuda.Event:
        """An event after all that was queued so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def hand_over(self, ready: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """Let the caller's current stream use tensors that are made here, once they are ready.

        The allocator knows them as this stream's. It is told who else uses them, so that what is
        freed by the consumer while its kernels are still queued is not written by the next batch.
        """
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(ready)
        for tensor in tensors:
            tensor.record_stream(current)
