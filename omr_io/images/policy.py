"""What becomes of images that are not 8-bit grey, RGB or CMYK: taken or refused, by kind.

"Taken" means that the file is stored and decoded as transformers' Qwen image processor (Pillow)
decodes it. The third column says what that is, as tried with Pillow 13 and transformers 5.23; where
it is no picture that anybody meant, the default is to refuse.

| kind | default | taken, it is | reason of the default |
|---|---|---|---|
| 16-bit | refuse | grey, cut off at 255: all above is white | an X-ray turns white: window it |
| 16-bit-colour | take | the upper 8 bits of each sample | that is what 16-bit colour means |
| 32-bit | refuse | integers or floats (and signed 16 bits) cut off at 0 and 255 | as for 16-bit |
| palette | take | the colours of the palette | exact |
| 1-bit | take | black and white | exact |
| alpha | take | laid over white | what transformers does, and viewers mostly do |
| animated | refuse | the first frame (GIF, WebP, APNG) | a cine loop is not its first frame |
| multi-page | refuse | the first page (TIFF) | a stack of slices is not its first slice |
| mpo | take | the first picture (JPEG) | it is a whole picture; the others are previews or eyes |
| lab | refuse | converted by LittleCMS (TIFF) | depends on a white point that is assumed |
| ycbcr | take | converted by JPEG's formula (TIFF) | exact |

Of an animation, a file of several pages or an MPO that is taken, only the first frame is stored,
without re-encoding, unless all metadata is kept; then the file is stored as it is.

An image may be of several kinds; it is refused if one of them is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from omr_io.errors import ConfigError, ImageError
from omr_io.images import headers
from omr_io.images.metadata import gif, jpeg, tiff, webp
from omr_io.types import ImageFormat, ImageInfo

Kind = Literal[
    "16-bit", "16-bit-colour", "32-bit", "palette", "1-bit", "alpha",
    "animated", "multi-page", "mpo", "lab", "ycbcr",
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Choice = Literal["take", "refuse"]
DEFAULT_REFUSED: Final[tuple[Kind, ...]] = ("16-bit", "32-bit", "animated", "multi-page", "lab")

_OF_MODE: Final[Mapping[str, tuple[Kind, ...]]] = {
    "1": ("1-bit",),
    "P": ("palette",),
    "PA": ("palette", "alpha"),
    "LA": ("alpha",),
    "La": ("alpha",),
    "RGBA": ("alpha",),
    "RGBa": ("alpha",),
    "I;16": ("16-bit",),
    "I;16B": ("16-bit",),
    "I;16L": ("16-bit",),
    "I;16N": ("16-bit",),
    "I": ("32-bit",),
    "F": ("32-bit",),
    "LAB": ("lab",),
    "YCbCr": ("ycbcr",),
}
_PLAIN_MODES: Final = ("RGB", "L", "CMYK")
# The kinds that a file of a plain mode may still be of, by how it is built: see `_is_built_as`.
_POSSIBLE: Final[Mapping[ImageFormat, tuple[Kind, ...]]] = {
    "jpeg": ("mpo",),
    "jpeg-progressive": ("mpo",),
    "png": ("16-bit-colour", "alpha", "animated"),
    "webp": ("animated",),
    "tiff": ("16-bit-colour", "multi-page"),
    "bmp": (),
    "gif": ("alpha", "animated"),
}
_WHAT: Final[Mapping[Kind, tuple[str, str]]] = {
    "16-bit": ("16-bit grey", "Window it to 8 bits"),
    "16-bit-colour": ("16-bit colour", "Reduce it to 8 bits"),
    "32-bit": ("of integers or floats of more than 16 bits", "Window it to 8 bits"),
    "palette": ("of a palette", "Convert it to RGB"),
    "1-bit": ("of 1 bit a pixel", "Convert it to grey"),
    "alpha": ("partly transparent", "Lay it over a background"),
    "animated": ("an animation", "Choose a frame"),
    "multi-page": ("the first of several pages", "Choose a page"),
    "mpo": ("the first of several pictures (MPO)", "Choose a picture"),
    "lab": ("in CIE Lab colours", "Convert it to RGB"),
    "ycbcr": ("a TIFF in YCbCr colours", "Convert it to RGB"),
}


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """Which kinds of unusual images are refused; the rest is taken. See the module for the kinds.

    Args:
        refused: in the order of `KINDS`.
    """

    refused: tuple[Kind, ...] = DEFAULT_REFUSED

    def __post_init__(self) -> None:
        for kind in self.refused:
            _check_kind(kind)
        object.__setattr__(self, "refused", tuple(k for k in KINDS if k in self.refused))

    @classmethod
    def of(cls, unusual: Mapping[str, Choice]) -> Self:
        """The defaults, changed for the kinds given.

        Raises:
            ConfigError: a kind that does not exist, or a choice other than take and refuse.
        """
        for kind, choice in unusual.items():
            _check_kind(kind)
            if choice not in get_args(Choice):
                raise ConfigError(
                    f"{kind} images: {choice!r} is no choice", mend="Use take, refuse"
                )
        chosen: dict[str, str] = dict.fromkeys(DEFAULT_REFUSED, "refuse")
        chosen.update(unusual)
        return cls(tuple(kind for kind in KINDS if chosen.get(kind) == "refuse"))

    def check(self, data: bytes, info: ImageInfo) -> None:
        """Refuse an image of a refused kind.

        Args:
            info: what `probe` said of `data`.

        Raises:
            ImageError: "image-" and the kind: "image-16-bit", "image-animated", ...
        """
        for kind in self.refused:
            if kind not in _POSSIBLE[info.format] and info.mode in _PLAIN_MODES:
                continue  # most images, most kinds: nothing to look for
            if is_kind(data, info, kind):
                what, mend = _WHAT[kind]
                raise ImageError(
                    f"the {info.format} image is {what}, which is refused",
                    reason=f"image-{kind}",
                    mend=f"{mend}, or take it as it decodes (--take {kind})",
                )


def unusual_kinds(data: bytes, info: ImageInfo) -> tuple[Kind, ...]:
    """The kinds that an image is of; () for 8-bit grey, RGB and CMYK."""
    return tuple(kind for kind in KINDS if is_kind(data, info, kind))


def is_kind(data: bytes, info: ImageInfo, kind: Kind) -> bool:
    """True if an image is of that kind, by its headers alone. `info` is `probe`'s.

    Raises:
        ImageError: "image-corrupt" when the file ends within what tells.
    """
    if kind in _OF_MODE.get(info.mode, ()):
        return True
    try:
        return _is_built_as(data, info, kind)
    except (IndexError, struct.error) as error:
        raise ImageError(f"the {info.format} image ends within its own structure") from error


def _is_built_as(data: bytes, info: ImageInfo, kind: Kind) -> bool:
    """`is_kind` for what the mode does not tell."""
    match kind, info.format:
        case "16-bit-colour", "png":
            return data[24] == 16 and data[25] != 0
        case "16-bit-colour", "tiff":
            several = info.mode in ("RGB", "RGBA", "RGBX", "CMYK", "LA")
            return several and tiff.bits_per_sample(data) > 8
        case "alpha", "png":
            return any(chunk == b"tRNS" for chunk, _, _ in headers.png_chunks(data))
        case "alpha", "gif":
            return gif.is_transparent(data)
        case "animated", "gif":
            return gif.count_frames(data, 2) > 1
        case "animated", "webp":
            return webp.count_frames(data) > 1
        case "animated", "png":
            return any(chunk == b"fdAT" for chunk, _, _ in headers.png_chunks(data))
        case "multi-page", "tiff":
            return tiff.count_pages(data) > 1
        case "mpo", "jpeg" | "jpeg-progressive":
            return jpeg.mpf_offset(data) >= 0
    return False


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"{kind!r} is no kind of image that has a policy", mend=f"Use one of {', '.join(KINDS)}"
        )
