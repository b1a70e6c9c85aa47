"""Options of commands that read sources about their images, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from omr_io.errors import ConfigError

_KINDS = (
    "16-bit, 16-bit-colour, 32-bit, palette, 1-bit, alpha, animated, multi-page, mpo, lab, ycbcr"
)

Check = Annotated[
    str, typer.Option(help="decode: decode every image in full; header: read headers only.")
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Refuse images of more pixels.")]
MaxBytes = Annotated[
    int | None, typer.Option(min=1, help="Refuse image files of more bytes; default: 64 MiB.")
]
KeepMetadata = Annotated[
    bool,
    typer.Option(
        "--keep-metadata",
        help="Store image files as they came. By default EXIF (but for the orientation), XMP, "
        "comments, thumbnails and so on are stripped, without re-encoding.",
    ),
]
KeepIcc = Annotated[
    bool, typer.Option("--keep-icc", help="Keep ICC profiles when the rest is stripped.")
]
TranscodeTo = Annotated[
    str | None,
    typer.Option(
        metavar="SIDE[:QUALITY]",
        help="Re-encode images as JPEG, lossily, shrunk to this longer side in pixels: 1024:90. "
        "One that is smaller as it is stays so.",
    ),
]
Take = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="Take unusual images of a kind as they decode; repeatable. Kinds: "
        f"{_KINDS}. Refused by default: 16-bit, 32-bit, animated, multi-page, lab.",
    ),
]
Refuse = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="Refuse unusual images of a kind; repeatable. See --take."),
]


def image_options(
    max_bytes: int | None,
    keep_metadata: bool,
    keep_icc: bool,
    transcode: str | None,
    take: Sequence[str] | None,
    refuse: Sequence[str] | None,
) -> dict[str, Any]:
    """The options as keyword arguments of `ConvertOptions`.

    Raises:
        ConfigError: one that makes no sense, or a kind both taken and refused.
    """
    from omr_io.images import MAX_BYTES
    from omr_io.images.policy import Choice, ImagePolicy
    from omr_io.images.transcode import Transcode

    unusual: dict[str, Choice] = dict.fromkeys(take or (), "take")
    for kind in refuse or ():
        if kind in unusual:
            raise ConfigError(f"{kind} images are both taken and refused", mend="Choose one")
        unusual[kind] = "refuse"
    if keep_icc and keep_metadata:
        raise ConfigError("--keep-metadata keeps ICC profiles too", mend="Leave --keep-icc out")
    return {
        "max_image_bytes": max_bytes or MAX_BYTES,
        "keep_metadata": keep_metadata,
        "keep_icc": keep_icc,
        "unusual": ImagePolicy.of(unusual),
        "transcode": Transcode.parse(transcode) if transcode is not None else None,
    }
