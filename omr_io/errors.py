"""The one tree of errors: what went wrong, where, and how to mend it.

Every error that omr_io raises on purpose is an `OmrError`. Its class says what kind of thing failed
(and carries the exit code of the command line); its message says what, where and how to mend it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the data; every field is optional and only what is known is printed.

    `row` counts from 0 in its source file, `offset` is in bytes from the start of the shard.
    """

    source: str | None = None
    row: int | None = None
    shard: str | None = None
    key: str | None = None
    part: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        names = ("source", "row", "shard", "key", "part", "offset")
        known = ((name, getattr(self, name)) for name in names)
        return ", ".join(f"{name} {value}" for name, value in known if value is not None)


class OmrError(Exception):
    """Base of all errors raised by omr_io.

    Args:
        what: what is wrong, one sentence without its full stop.
        where: the place in the data, if there is one.
        mend: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: Where | None = None, mend: str | None = None) -> None:
        self.what = what
        self.where = where
        self.mend = mend
        place = f" ({where})" if where is not None and str(where) else ""
        advice = f". {mend}" if mend else ""
        super().__init__(f"{what}{place}{advice}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.mend)


def _rebuild(kind: type[OmrError], what: str, where: Where | None, mend: str | None) -> OmrError:
    return kind(what, where=where, mend=mend)


class ConfigError(OmrError, ValueError):
    """An option that cannot be right: caught before any work is done."""

    exit_code = 2


class SourceError(OmrError):
    """An input that cannot be read at all: missing, not Parquet, a column short, no access."""

    exit_code = 3


class DiskError(OmrError):
    """Writing failed: no space, read-only, an input/output error."""

    exit_code = 4


class DataError(OmrError, ValueError):
    """A row or sample whose content is wrong."""


class RecordError(DataError):
    """A Parquet row that cannot become a record; `convert` counts and names it."""


class ImageError(DataError):
    """An image that cannot be had or decoded, or that is over a cap.

    Args:
        reason: a short stable slug for counting: "image-empty", "image-format" (unknown or not
            supported), "image-truncated", "image-corrupt", "image-too-large", "image-too-narrow"
            or "image-changed" (the bytes are not the image that was planned); from an image root
            "missing-image", "image-outside-root" or "unreadable-image"; on the way into a shard
            "image-metadata" (cannot be stripped with certainty) and, by the policy for unusual
            images, "image-16-bit", "image-animated", ... (see `omr_io.images.policy`).
    """

    def __init__(
        self,
        what: str,
        *,
        where: Where | None = None,
        mend: str | None = None,
        reason: str = "image-corrupt",
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        # The third item is the state: pickle and copy put it into the rebuilt error's __dict__.
        return (*super().__reduce__(), {"reason": self.reason})


class SampleTooLongError(DataError):
    """A sample with more tokens than seq_len."""


class TokenizerError(OmrError):
    """A tokenizer that is missing, broken, or lacks a token the chat format needs."""

    exit_code = 2


class IntegrityError(OmrError):
    """Bytes on disk that are not what was written: a cut shard, a flipped bit, a stale index."""

    exit_code = 5


class TarError(IntegrityError):
    """A tar that is malformed at a byte offset (`where.offset`)."""


class ResumeError(OmrError, ValueError):
    """A saved state that does not belong to this loader or model."""

    exit_code = 2


class FailureBudgetError(DataError):
    """More samples failed to decode than the failure budget allows."""


class TrainingError(OmrError):
    """Training cannot go on: a loss or gradient is not finite, a checkpoint is corrupt."""


class StoppedError(OmrError):
    """A run that was asked to stop, and has saved all: the same command with --resume goes on.

    The exit code is EX_TEMPFAIL of sysexits.h: "try again later".
    """

    exit_code = 75


class OmrWarning(UserWarning):
    """Base of the few warnings of omr_io; each says what to do."""
