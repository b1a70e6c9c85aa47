# ruff: noqa: N999
"""The C++ core (csrc/bindings*.cpp)."""

from collections.abc import Sequence
from typing import Any

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

def split_pieces(
    pattern: str, text: bytes, instructions: str = "best", capacity: int = 512
) -> NDArray[np.uint32]:
    """Cut UTF-8 into the pieces that byte-pair encoding works within, as Hugging Face's Split does.

    Args:
        pattern: "qwen2" or "llama3"; see csrc/tokenizer/split.hpp.
        text: valid UTF-8 of less than 4 GiB.
        instructions: "best", "scalar", "avx2" or "avx512".
        capacity: how many ends one call in C++ writes, at least 64; the result is the same.

    Returns:
        (N,) uint32: where each piece ends, in bytes from the start.

    Raises:
        ValueError: text is not UTF-8, an argument is none of the above, or the processor lacks
            the instructions.
    """

def best_instructions() -> str:
    """Name the best of "scalar", "avx2" and "avx512" that this processor has."""

def normalize_nfc(text: bytes) -> bytes:
    """Bring UTF-8 into NFC, as Hugging Face `tokenizers` does.

    Raises ValueError if it is not UTF-8.
    """

def may_need_nfc(text: bytes) -> bool:
    """Say whether UTF-8 may change in `normalize_nfc`; False proves that it does not.

    Raises ValueError if it is not UTF-8.
    """

def char_class(code_points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Classes of (N,) code points: 0 other, 1 letter, 2 number, 3 space, 4 line break.

    Raises ValueError if one is above 0x10FFFF.
    """

class TextError(ValueError):
    """A text that cannot be encoded; args are (reason, text's index, character's position, value).

    Reasons: "type" (no str), "surrogate" (value: the code point), "too-long" (value: its size),
    "control-text" (it spells a control token, value: its id), "control-id" (the vocabulary makes
    one of it).
    """

class Encoder:
    """Texts to ids and back: csrc/tokenizer/encoder.hpp, decode.hpp. May be shared by threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        pattern: str,
        nfc: bool,
        added: list[tuple[str, int, bool, bool, bool, bool, bool]],
        extra: list[tuple[int, bytes, bool]],
        refuse_special: bool,
    ) -> None:
        """Make one.

        Args:
            vocabulary: the tables.
            pattern: "qwen2" or "llama3".
            nfc: whether texts are normalised.
            added: (content, id, special, normalized, lstrip, rstrip, single_word), in order.
            extra: (id, bytes that it decodes to, special) of tokens that are not in `vocabulary`.
            refuse_special: a control token spelt in a text is an error.
        """

    def encode(self, text: str) -> NDArray[np.int32]:
        """(T,) ids. Raises TextError."""

    def encode_batch(
        self, texts: tuple[str, ...], out: NDArray[np.int32] | None, threads: int
    ) -> tuple[NDArray[np.int32] | None, NDArray[np.int64], int]:
        """Ids (None if `out` is too small), offsets (n + 1,), how many ids. Raises TextError."""

    def count_batch(self, texts: tuple[str, ...], threads: int) -> NDArray[np.int64]:
        """(n,) numbers of ids. Raises TextError."""

    def decode(self, ids: NDArray[np.int64], skip_special: bool) -> str:
        """The text of ids. Raises KeyError(id)."""

    def knows(self, id: int) -> bool:
        """Whether a token has this id."""

def last_pairs(tokens: list[bytes]) -> list[tuple[int, int] | None]:
    """For each token, by rank, the ids of its merge: csrc/tokenizer/ranks.hpp.

    Raises:
        ValueError: two tokens are equal, or one is empty.
    """

class ChatTextError(ValueError):
    """A text of a conversation cannot be encoded; args are (what: str, row: int, turn: int)."""

    args: tuple[str, int, int]

class ChatLengthError(ValueError):
    """A conversation is too long; args are (row, tokens, tokens that cannot be cut)."""

    args: tuple[int, int, int]

class ChatTemplate:
    """A compiled chat template: see csrc/tokenizer/chat.hpp and omr_io.chat.template."""

    def __init__(
        self,
        encoder: object,
        roles: list[tuple[list[_ChatPart], list[_ChatPart]]],
        *,
        before: list[int],
        pad: int,
        after: list[int],
    ) -> None: ...
    def encode(
        self,
        rows: Sequence[tuple[tuple[int, str, tuple[int, ...]], ...]],
        *,
        max_tokens: int = 0,
        cut: bool = False,
        threads: int = 1,
    ) -> tuple[
        NDArray[np.int32],
        NDArray[np.bool_],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.int64],
    ]:
        """Encode conversations: (ids, trained, offsets, prompt tokens, cut tokens).

        Raises:
            ChatTextError, ChatLengthError: of the first conversation that is to blame.
            TypeError: rows are not tuples of tuples.
            ValueError: a role or a count of placeholders that does not exist.
        """

    def count(
        self, rows: Sequence[tuple[tuple[int, str, tuple[int, ...]], ...]], *, threads: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of conversations but for image placeholders, and trained ones. Errors: encode."""

_ChatPart = tuple[str, bool, list[int], str, str]

def plain_jpeg(data: bytes) -> tuple[int, int, int, bool] | None:
    """Recognise a JPEG of which nothing needs to be taken out; the GIL is released meanwhile.

    Returns:
        (width, height, components, whether it is progressive), or None for any other file; see
        csrc/jpeg_segments.hpp.
    """

def is_printable(text: str) -> bool:
    """False if a text holds U+0000 to U+001F but tab, LF and CR, U+007F, or half a surrogate."""

def json_of_texts(value: object) -> bytes | None:
    """What `json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))` makes of texts, as UTF-8.

    Returns:
        None if there is anything but str, list, tuple and dict (no subclasses), half a surrogate
        pair, or more than 16 levels.
    """

def tar_header(name: str, size: int) -> bytes:
    """The ustar header, 512 bytes, of a regular file: mode 644, owner 0, time 0.

    Raises:
        ValueError: `name` is not 1 to 100 bytes of ASCII without NUL, or `size` not below 8 GiB.
    """

def resize(
    pixels: NDArray[np.uint8],
    height: int,
    width: int,
    *,
    filter: str = ...,
    vertical_first: bool = ...,
    instructions: str = ...,
) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (height, width, 3) as Pillow does; see csrc/pixels/resize.hpp.

    Raises:
        ValueError: an argument has another shape, or names nothing.
    """

def to_patches(
    images: list[NDArray[np.uint8]],
    targets: list[tuple[int, int, str, bool]],
    table: NDArray[Any],
    out: NDArray[Any],
    *,
    patch_height: int,
    patch_width: int,
    merge_size: int,
    frames: int,
    channels_last: bool,
    threads: int = ...,
    instructions: str = ...,
    whole_bytes: int = ...,
) -> None:
    """Resize, look each byte up in `table` (3, 256) and write patches; see csrc/pixels/patches.hpp.

    A target is height, width, filter, vertical first. `whole_bytes` is the size of what `out` is a
    part of, if that is filled call by call. `table` and `out` have the same dtype, of 2
    or 4 bytes. Rows of an image may be any distance apart.

    Raises:
        ValueError: an argument has another shape, or names nothing.
    """

class PackError(ValueError):
    """A sample that cannot be packed; args are (kind, what, number of the sample among all).

    Kinds: "wrong" (an array is not what `EncodedSample` says), "too-long" (its pack is full),
    "mismatch" (placeholders and grids differ).
    """

def span_table(
    packs: Sequence[Sequence[Any]], *, seq_len: int, image_token_id: int, merge_size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int, int, int]:
    """Plan where each run of tokens of the samples goes; see csrc/pack/spans.hpp.

    Returns:
        tokens (V,), spans (K, 10), cu_seqlens (S + 1,), max_seqlen, num_tokens, num_label_tokens.

    Raises:
        PackError: a sample cannot be packed.
        ValueError: an option is out of range.
    """

def pack_spans(
    tokens: NDArray[np.int32],
    spans: NDArray[np.int32],
    *,
    pad_id: int,
    ids: NDArray[Any],
    segment_ids: NDArray[np.int32],
    loss_weights: NDArray[np.float32],
) -> None:
    """Write a batch's integers from its span table; see csrc/pack/pack.hpp.

    Args:
        ids: (7, N) int32 or int64: input_ids, labels, position_ids (4), mm_token_type_ids.
        segment_ids, loss_weights: (N,).

    Raises:
        ValueError: an array has another dtype or size, or the spans are unsound.
    """

def axis_weights(
    size_in: int, size_out: int, filter: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(first (size_out,), weights (taps, size_out)); see csrc/pixels/axis_weights.hpp.

    Raises:
        ValueError: a size is not 1 to 2**20, or the filter is none.
    """

class PlainBatch:
    """Rows of a batch that are plain: see csrc/plain_rows.hpp.

    As a buffer: their samples as they stand in a tar, one after the other.
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each row's sample begins in the buffer, and the end.

        One that is not plain has no bytes.
        """

    def runs(self) -> list[tuple[int, int, bool]]:
        """(first, last, whether they are plain) of each run of rows."""

    def names(self, first: int, last: int) -> tuple[list[str], list[str], list[str]]:
        """The keys, ids and sources of rows."""

    def columns(self, first: int, last: int) -> dict[str, Any]:
        """What is known of rows, as `omr_io.conversion.columns.Columns.extend` takes it.

        "keys", "ids", "sources", "names" (two a row, as all of parts), "formats", "modes" and
        "answers" are texts: (lengths, UTF-8 of all). "widths", "heights", "question_bytes" and
        "reasoning_bytes" are int32, "num_options" int16. Of parts: "places" in the buffer and
        "sizes" are int64, "crcs" uint32.
        """

    def place(self, first: int, last: int, offset: int) -> tuple[list[slice], str]:
        """Rows that stand in a tar from `offset` on.

        Returns:
            The places of their images in the buffer, and their lines of DALI's index.

        Raises:
            ValueError: a row is not plain.
            IndexError: there are no such rows.
        """

def plain_rows(
    image: tuple[Any, ...],
    path: tuple[Any, ...],
    question: tuple[Any, ...],
    answer: tuple[Any, ...],
    reasoning: tuple[Any, ...] | None,
    id: tuple[Any, ...] | None,
    *,
    count: int,
    file_name: str,
    id_prefix: str,
    first_row: int,
    max_image_bytes: int,
    max_pixels: int,
    max_aspect: int,
    check_trace: bool,
) -> PlainBatch:
    """Find the plain rows of a batch.

    Args:
        image, path, question, answer, reasoning, id: columns as Arrow has them: (validity or None,
            offsets, data or None, number of the first row in these, bytes of an offset: 4 or 8).
        count: rows.

    Raises:
        ValueError: a column is of another form.
    """

def crc32c(data: bytes, *, by_table: bool = False) -> int:
    """CRC-32C; `by_table` takes the form for processors without an instruction for it."""
