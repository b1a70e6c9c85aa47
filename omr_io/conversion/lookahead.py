"""Rows prepared ahead on threads, a bounded number of rows and of bytes, given in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from omr_io.conversion.prepare import ImageChecks, Prepared, prepare
from omr_io.types import Record, Refusal

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_BYTES = 64 << 20
"""Of images in rows that are read and not yet written; one row may be larger."""

_ROWS = 4  # in flight a thread


def prepare_rows(
    rows: Iterable[tuple[int, Record | Refusal]],
    checks: ImageChecks,
    threads: int,
    max_bytes: int = MAX_BYTES,
) -> Iterator[tuple[int, Prepared | Refusal]]:
    """Prepare rows on threads and give them in their order.

    Args:
        rows: (row number, record or refusal).
        checks: what each image must pass.
        threads: 1 prepares each row when it is asked for, without a thread.
        max_bytes: of images in rows that are read ahead.
    """
    if threads == 1:
        for row, item in rows:
            yield row, item if isinstance(item, Refusal) else _noted(row, item, checks)
        return
    from concurrent.futures import ThreadPoolExecutor  # 4 ms to import, and one thread needs none

    waiting: deque[tuple[int, int, Future[Prepared | Refusal] | Refusal]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="omr-io-check") as pool:
        try:
            for row, item in rows:
                if isinstance(item, Refusal):
                    waiting.append((row, 0, item))
                else:
                    size = sum(len(image.data) for image in item.images)
                    num_bytes += size
                    waiting.append((row, size, pool.submit(_noted, row, item, checks)))
                while waiting and (len(waiting) > threads * _ROWS or num_bytes > max_bytes):
                    done, size, first = waiting.popleft()
                    yield done, first if isinstance(first, Refusal) else first.result()
                    num_bytes -= size
            while waiting:
                done, _, first = waiting.popleft()
                yield done, first if isinstance(first, Refusal) else first.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _noted(row: int, item: Record, checks: ImageChecks) -> Prepared | Refusal:
    try:
        return prepare(row, item, checks)
    except Exception as error:
        error.add_note(f"while preparing row {row}")
        raise
