"""The letters that stand for bytes in the tokens of a byte-level BPE (GPT-2's)."""

from __future__ import annotations

from functools import cache


class _Bytes(dict[int, int]):
    """Code point of a letter → the byte; of anything else → what Latin-1 cannot encode."""

    def __missing__(self, code_point: int) -> int:
        return 0xFFFF


@cache
def byte_letters() -> str:
    """256 letters: byte b is written byte_letters()[b].

    Printable bytes of Latin-1 stand for themselves, the others are U+0100, U+0101, ... in order.
    """
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = iter(range(0x100, 0x200))
    return "".join(chr(b if b in kept else next(rest)) for b in range(256))


@cache
def _table() -> _Bytes:
    return _Bytes({ord(letter): byte for byte, letter in enumerate(byte_letters())})


def to_bytes(token: str) -> bytes | None:
    """The bytes that a token's letters stand for; None if one of them stands for none."""
    try:
        return token.translate(_table()).encode("latin-1")
    except UnicodeEncodeError:
        return None


def to_letters(data: bytes) -> str:
    """Bytes as a tokenizer.json writes them."""
    return data.decode("latin-1").translate(byte_letters())


def decoded(token: str) -> bytes:
    """What Hugging Face's ByteLevel decoder makes of a token: letters if all of it are such."""
    found = to_bytes(token)
    return token.encode("utf-8") if found is None else found
