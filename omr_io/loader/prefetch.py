"""Work done ahead on threads, in order and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield function(item) for each item, in order, computed on threads ahead of the consumer.

    An exception of `function` reaches the consumer where its result would have stood. Closing the
    generator (or dropping it, as a `break` does) cancels what has not begun, waits for what has,
    and ends the threads.

    Args:
        threads: how many; 0 computes in the consumer's thread, one item at a time.
        ahead: results that may wait for the consumer, beside the one in work on each thread.
    """
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="omr-io-loader")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= threads + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
