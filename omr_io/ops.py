"""The only place that chooses an implementation of an operation, by name.

Every implementation of an operation takes the same arguments, returns equal arrays, and goes
through the same tests; "reference" is the definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from omr_io.errors import ConfigError
from omr_io.reference.pack import pack as _reference_pack
from omr_io.types import EncodedSample, PackedArrays


class Pack(Protocol):
    """Assembles packs; see `omr_io.reference.pack.pack` for arguments, result and errors."""

    def __call__(
        self,
        packs: Sequence[Sequence[EncodedSample]],
        *,
        seq_len: int,
        pad_id: int,
        image_token_id: int,
        merge_size: int,
    ) -> PackedArrays:
        """Lay each pack's samples into one row of seq_len tokens."""
        ...


PACK: Mapping[str, Pack] = MappingProxyType({"reference": _reference_pack})
"""Implementations of `pack` by name."""


def pack_implementation(name: str = "reference") -> Pack:
    """The implementation of `pack` of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PACK:
        raise ConfigError(
            f"there is no implementation {name!r} of pack", mend=f"Use one of {', '.join(PACK)}"
        )
    return PACK[name]
