"""Trying again: what may pass by itself is tried again, later each time, and not for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from omr_io.errors import ConfigError, OmrError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long apart.

    Attributes:
        tries: in a row that bring nothing; a try that brought bytes starts the count anew.
        first_wait: seconds before the second try; doubled each time, half of it at random.
        max_wait: seconds; a server's Retry-After counts up to this too.
        timeout: seconds that a connection may be silent.
    """

    tries: int = 7
    first_wait: float = 0.5
    max_wait: float = 30.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.tries < 1 or self.first_wait < 0 or self.max_wait < 0 or self.timeout <= 0:
            raise ConfigError(f"a retry policy that cannot be: {self}")

    def wait(self, failures: int, asked: float | None = None) -> None:
        """Sleep after the `failures`-th failure in a row, `asked` seconds if the server said so."""
        if asked is not None:
            time.sleep(min(max(asked, 0.0), self.max_wait))
            return
        longest = min(self.first_wait * 2 ** (failures - 1), self.max_wait)
        # So that a thousand workers do not come back at once; nothing secret hangs on it.
        time.sleep(longest * (0.5 + 0.5 * random.random()))  # noqa: S311


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


def call(
    action: Callable[[], T],
    explain: Callable[[Exception], OmrError | TransientError],
    give_up: Callable[[str], OmrError],
    policy: RetryPolicy,
) -> T:
    """Call `action`, again if its failure may pass.

    What is raised has neither cause nor context: messages of other libraries may quote URLs with
    secrets.

    Args:
        explain: what a failure is.
        give_up: the error when the tries are used up, given what went wrong.
    """
    failures = 0
    while True:
        try:
            return action()
        except OmrError:
            raise
        except Exception as error:  # whatever a library raises; `explain` decides
            problem = error if isinstance(error, TransientError) else explain(error)
        # Raised outside of `except`, so that it carries no context.
        if not isinstance(problem, TransientError):
            raise problem
        failures += 1
        if failures >= policy.tries:
            raise give_up(problem.what)
        policy.wait(failures, problem.retry_after)
