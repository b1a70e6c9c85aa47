# ruff: noqa: N999
"""The C++ core (csrc/bindings.cpp)."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class TarFormatError(ValueError):
    """A malformed tar; args are (reason: str, offset: int)."""

def scan_tar(
    tar: Buffer, *, max_name: int = 4096, max_extended: int = 1048576
) -> tuple[list[bytes], NDArray[np.int64]]:
    """List the regular files of a tar held in a contiguous buffer of bytes.

    Returns:
        The names as they stand in the tar, and an (N, 3) int64 table of header offset, data offset
        and size, all in bytes.

    Raises:
        TarFormatError: the tar is malformed; see csrc/tar_scanner.hpp.
    """

class JpegFormatError(ValueError):
    """A JPEG that is not laid out as one; args are (reason: str,)."""

def jpeg_segments(data: bytes, *, tables: bool = False) -> list[tuple[int, int, int]]:
    """List the segments of a JPEG after SOI, without a gap, to EOI and with it.

    Returns:
        (start, stop, marker) of each, in bytes; a scan's entropy-coded data belongs to its SOS.

    Raises:
        JpegFormatError: see csrc/jpeg_segments.hpp.
    """

class PieceCache:
    """What one thread remembers of the pieces it met; for tests."""

class Vocabulary:
    """A byte-level BPE vocabulary: pieces to ids. Immutable, shared by threads."""

    @staticmethod
    def build(
        tokens: list[bytes], merges: NDArray[np.uint32], *, ignore_merges: bool = False
    ) -> Vocabulary:
        """From tokens by id (b"" where there is none) and an (n, 3) array of left, right, merged.

        Raises:
            ValueError: a byte has no token, two ids have the same bytes, or a merge is wrong.
            TypeError: a token is no bytes.
        """

    @staticmethod
    def map(path: str) -> Vocabulary:
        """From a file with the compiled form, which stays mapped.

        Raises:
            RuntimeError: it cannot be read, is no compiled form, or is damaged.
        """

    def compiled(self) -> bytes:
        """The compiled form, to be written to a file."""

    @property
    def size(self) -> int:
        """Ids are below this."""

    def bytes_of(self, id: int) -> bytes:
        """The token's bytes; b"" if there is none."""

    def find(self, token: bytes) -> int:
        """The token's id, or -1."""

    def encode_pieces(
        self, text: Buffer, ends: NDArray[np.uint32], cache: PieceCache | None = None
    ) -> NDArray[np.int32]:
        """Ids of the pieces of `text` that end at the byte offsets `ends`; for tests.

        Raises:
            ValueError: `ends` do not ascend or pass the text's end.
        """

    def encode_long(self, piece: bytes, window: int = 4096) -> NDArray[np.int32]:
        """Ids of one piece, merged in windows of so many bytes; for tests."""
