"""Completions on disk: one JSON object a line, written as they are made, gone on with later.

    completions-MODEL-SET.json    what made them: model, weights, set, seed, temperature, ...
    completions-MODEL-SET.jsonl   one line an item, run and variant

A killed evaluation leaves at most one torn line, which is cut off; lines that are there are not
made again. If what made them differs, nothing is mixed: the evaluation is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from omr_io.errors import ConfigError, IntegrityError, ResumeError, Where
from omr_io.storage import lock, write_atomically, writing
from omr_io.text import printable
from omr_io.train.evaluation.options import Variant, stem
from omr_io.types import Option

FORMAT = 1
_MEND = "Remove the line to have that completion made again, or start again with --overwrite"


@dataclass(frozen=True, slots=True)
class Line:
    """One completion, read by the parser: a line of completions-MODEL-SET.jsonl.

    Attributes:
        key, set, model: what was asked of whom.
        run: counted from 0.
        variant: "plain", "blind" or "shuffled".
        completion: the model's text, without control tokens.
        finished: False if it was cut at max_new_tokens.
        letter: what it answers, as a letter of the record (in "shuffled" mapped back); None if
            unparsed.
        how: the parser's rule that found it, or "unparsed".
        answer: the right letter of the record.
        options: of the record, in its own order: {"letter", "text"}.
        correct: letter == answer; unparsed is wrong.
        reasoning: the trace as `trace_of` cuts it from the completion.
        order: letters of the record in the order in which the options were shown: "ABC" where they
            stood as they are.
        failure: why an image of the prompt was blank though it should not have been; None.
    """

    key: str
    set: str
    model: str
    run: int
    variant: Variant
    completion: str
    finished: bool
    letter: str | None
    how: str
    answer: str
    options: tuple[Option, ...]
    correct: bool
    reasoning: str
    order: str
    failure: str | None = None

    @property
    def place(self) -> tuple[Variant, str, int]:
        """What tells a line from all others of its file."""
        return self.variant, self.key, self.run


class CompletionsLog:
    """The two files of one model on one set; use as a context manager.

    Args:
        folder: of the evaluation.
        made_by: what the completions depend on; a file with another is refused.
        about: what they do not depend on, kept for the reader.
        overwrite: throw away what is there, if it was made by something else.

    Raises:
        ResumeError: what is there was made by something else; it names what differs.
        IntegrityError: a line is not one of ours, or there twice.
        ConfigError: another process is writing these files.
        DiskError: they cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        made_by: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        name = stem(str(made_by["model"]), str(made_by["set"]))
        self.path = folder / f"{name}.jsonl"
        self.sidecar = folder / f"{name}.json"
        self._file = self._opened(folder)
        try:
            self._check(json.loads(json.dumps(dict(made_by))), overwrite)
            write_atomically(self.sidecar, _sidecar(made_by, about))
            self.lines = self._read()
        except BaseException:
            self._file.close()
            raise

    def add(self, lines: Iterable[Line]) -> None:
        """Append lines and flush them, so that a killed process loses none.

        Raises:
            DiskError: no space, or another input/output error.
        """
        made = list(lines)
        with writing(self.path):
            self._file.write(b"".join(_encoded(line) for line in made))
            self._file.flush()
        self.lines += made

    def replace(self, lines: Sequence[Line]) -> None:
        """Put other lines in the place of all, atomically; the file stays locked."""
        with writing(self.path):
            write_atomically(self.path, b"".join(_encoded(line) for line in lines))
            self._file.close()
        self._file = self._opened(self.path.parent)
        self._file.seek(0, os.SEEK_END)
        self.lines = list(lines)

    def close(self) -> None:
        """Force all lines to the disk, and close; a second call does nothing.

        Raises:
            DiskError: no space, or another input/output error.
        """
        if not self._file.closed:
            with writing(self.path):
                try:
                    os.fsync(self._file.fileno())
                finally:
                    self._file.close()  # writes what `add` could not, or fails as it did

    def __enter__(self) -> CompletionsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self, folder: Path) -> IO[bytes]:
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
        try:
            if not lock(file.fileno(), self.path):
                raise ConfigError(
                    f"another process is writing {self.path}",
                    mend="Wait for it, or give this evaluation another --out",
                )
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, made_by: dict[str, Any], overwrite: bool) -> None:
        size = self.path.stat().st_size
        if not size:
            return
        saved = _made_by(self.sidecar)
        differing = [
            f"{name} (there {saved.get(name)!r}, here {made_by.get(name)!r})"
            for name in sorted({*saved, *made_by})
            if saved.get(name) != made_by.get(name)
        ]
        if not differing:
            return
        if not overwrite:
            raise ResumeError(
                f"{self.path} was made by something else: {', '.join(differing)}",
                mend="Give another --out, or make it again with --overwrite",
            )
        with writing(self.path):
            self._file.truncate(0)

    def _read(self) -> list[Line]:
        self._file.seek(0)
        lines: list[Line] = []
        seen: set[object] = set()
        end = 0
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n"):
                break  # torn: the process was killed within the write
            line = _decoded(text)
            if line is None or line.place in seen:
                raise IntegrityError(
                    f"{self.path} line {number} is "
                    f"{'not a completion' if line is None else 'there twice'}",
                    where=Where(offset=end),
                    mend=_MEND,
                )
            seen.add(line.place)
            lines.append(line)
            end += len(text)
        with writing(self.path):
            self._file.truncate(end)
            self._file.seek(0, os.SEEK_END)
        return lines


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the same folder.

    For results that processes with models of their own write to one folder. Without effect on a
    file system without locks.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_completions(path: str | Path) -> list[Line]:
    """The lines of a file that an evaluation wrote; a torn last line is left out.

    Raises:
        IntegrityError: it cannot be read, or a line before the last is not a completion.
    """
    found = []
    try:
        texts = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from error
    for number, text in enumerate(texts, 1):
        if text.endswith(b"\n"):
            line = _decoded(text)
            if line is None:
                raise IntegrityError(f"{path} line {number} is not a completion", mend=_MEND)
            found.append(line)
    return found


def _sidecar(made_by: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    content = {"format": FORMAT, "made_by": dict(made_by), "about": dict(about)}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _made_by(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        made_by = content["made_by"]
        if content["format"] != FORMAT or not isinstance(made_by, dict):
            raise ValueError(f"format {content['format']!r}")
        return made_by
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{printable(str(path))} does not say what made the completions beside it: {error}",
            mend="Put it back, or start again with another --out",
        ) from error


def _encoded(line: Line) -> bytes:
    return json.dumps(asdict(line), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


_TYPES: dict[str, tuple[type, ...]] = {
    "key": (str,), "set": (str,), "model": (str,), "run": (int,), "variant": (str,),
    "completion": (str,), "finished": (bool,), "letter": (str, type(None)), "how": (str,),
    "answer": (str,), "options": (list,), "correct": (bool,), "reasoning": (str,), "order": (str,),
    "failure": (str, type(None)),
}  # fmt: skip


def _decoded(text: bytes) -> Line | None:
    try:
        row = json.loads(text)
        if row.keys() != {one.name for one in fields(Line)}:
            return None
        if not all(isinstance(row[name], types) for name, types in _TYPES.items()):
            return None
        options = tuple(Option(**option) for option in row.pop("options"))
        return Line(options=options, **row)
    except (ValueError, TypeError, AttributeError):
        return None
