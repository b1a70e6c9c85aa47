"""Trying again: what may pass by itself is tried again, later each time, and not for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from omr_io.errors import ConfigError, OmrError, SourceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long apart.

    Attributes:
        tries: in a row that bring nothing; a try that brought bytes starts the count anew, unless
            it stalled.
        first_wait: seconds before the second try; doubled each time, half of it at random.
        max_wait: seconds; a server's Retry-After counts up to this too.
        timeout: seconds that a connection may be silent.
        stall_rate, stall_seconds: a transfer that brings less than so many bytes a second over so
            many seconds counts as dead, and is tried again from where it stood.
    """

    tries: int = 7
    first_wait: float = 0.5
    max_wait: float = 30.0
    timeout: float = 60.0
    stall_rate: float = 10_000.0
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        waits = (self.first_wait, self.max_wait, self.stall_rate)
        if self.tries < 1 or min(waits) < 0 or min(self.timeout, self.stall_seconds) <= 0:
            raise ConfigError(f"a retry policy that cannot be: {self}")

    @property
    def silence(self) -> float:
        """Seconds without a byte after which a transfer counts as dead."""
        return min(self.timeout, self.stall_seconds)

    def pause(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after the `failures`-th failure in a row.

        Args:
            asked: what the server asked for, if it did.
        """
        if asked is not None:
            return min(max(asked, 0.0), self.max_wait)
        longest = min(self.first_wait * 2.0 ** (failures - 1), self.max_wait)
        # So that a thousand workers do not come back at once; nothing secret hangs on it.
        return longest * (0.5 + 0.5 * random.random())  # noqa: S311


class Traffic:
    """What goes over the network: counted, and ended from another thread. Thread-safe."""

    def __init__(self) -> None:
        self.requests = self.retries = self.received_bytes = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more shall be asked for."""
        return self._ended.is_set()

    def end(self) -> None:
        """Let nothing more be asked for; waits between tries end now."""
        self._ended.set()

    def request(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            SourceError: the traffic was ended.
        """
        if self._ended.is_set():
            raise SourceError("the storage was closed while it was read")
        with self._lock:
            self.requests += 1

    def received(self, num_bytes: int) -> None:
        """Count bytes of files that came."""
        with self._lock:
            self.received_bytes += num_bytes

    def retry(self, seconds: float) -> None:
        """Count a request that is tried again, and wait before it; not once ended."""
        with self._lock:
            self.retries += 1
        self._ended.wait(seconds)


class StallMeter:
    """Finds out that a transfer is dead though bytes still trickle in."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._since = time.monotonic()
        self._bytes = 0

    def received(self, num_bytes: int) -> None:
        """Bytes came, and there are more to come.

        Raises:
            StalledError: fewer came in the last `stall_seconds` than the policy wants.
        """
        self._bytes += num_bytes
        passed = time.monotonic() - self._since
        if passed < self._policy.stall_seconds:
            return
        if self._bytes < self._policy.stall_rate * passed:
            raise StalledError(f"the transfer stalled: {self._bytes} bytes came in {passed:.1f} s")
        self._since += passed
        self._bytes = 0


class TransientError(Exception):
    """A failure that may pass; never leaves this package, and holds no secrets.

    Args:
        what: as it would stand in a message.
        retry_after: seconds that the server asks to wait.
    """

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after = retry_after


def retry_after(header: str) -> float | None:
    """Seconds that a Retry-After header asks for, by number or date; None: it says nothing."""
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)


class StalledError(TransientError):
    """A transfer that is as good as dead; what it brought is no reason to go on for ever."""


def call(
    action: Callable[[], T],
    explain: Callable[[Exception], OmrError | TransientError],
    give_up: Callable[[str], OmrError],
    policy: RetryPolicy,
    traffic: Traffic | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Call `action`, again if its failure may pass.

    What is raised has neither cause nor context: messages of other libraries may quote URLs with
    secrets.

    Args:
        explain: what a failure is.
        give_up: the error when the tries are used up, given what went wrong.
        progress: bytes that came so far; `action` goes on from there, and more of them start the
            count of failures anew.
    """
    traffic = traffic or Traffic()
    failures, had = 0, progress()
    while True:
        try:
            return action()
        except OmrError:
            raise
        except Exception as error:  # whatever a library raises; `explain` decides
            failure = error
        # Explained and raised outside of `except`, so that nothing raised carries a context.
        problem = failure if isinstance(failure, TransientError) else explain(failure)
        if not isinstance(problem, TransientError):
            raise problem
        failures += 1
        if progress() > had and not isinstance(problem, StalledError):
            failures = 1
        had = progress()
        if failures >= policy.tries:
            raise give_up(problem.what)
        traffic.retry(policy.pause(failures, problem.retry_after))
