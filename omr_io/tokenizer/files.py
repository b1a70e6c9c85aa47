"""Reading the files that a tokenizer is made of."""

from __future__ import annotations

from pathlib import Path

from omr_io.errors import TokenizerError


def read_bytes(file: Path) -> bytes | None:
    """The bytes of a file, or None where there is none.

    Raises:
        TokenizerError: it is there and cannot be read.
    """
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error


def read_text(file: Path) -> str | None:
    """The text of a file, or None where there is none.

    Raises:
        TokenizerError: it is there and cannot be read, or is not UTF-8.
    """
    data = read_bytes(file)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot read {file}: {error}") from error
