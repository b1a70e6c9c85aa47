"""How rows become shards: the options of a conversion."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from omr_io.conversion.prepare import ImageChecks
from omr_io.corpus.rows import ReadOptions
from omr_io.errors import ConfigError
from omr_io.images import MAX_BYTES, MAX_PIXELS
from omr_io.images.policy import ImagePolicy
from omr_io.images.transcode import Transcode, library_versions

_ABOUT_THE_RUN = ("overwrite", "workers", "threads", "max_rejects")  # the content is the same


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How rows become shards.

    Args:
        split: names the shards; letters, digits, "-" and "_".
        max_shard_bytes: a tar is cut before it grows beyond this.
        max_shard_samples: and before it holds more samples than this.
        check: "decode" decodes every image in full, "header" reads only headers: faster, and a
            damaged image is found in training.
        max_image_pixels, max_image_bytes: an image above is refused.
        keep_metadata: store image files as they came; by default their metadata is stripped.
        keep_icc: keep ICC profiles when the rest is stripped.
        unusual: which images that are not 8-bit grey, RGB or CMYK are refused.
        transcode: re-encode images as smaller JPEGs; None: never.
        read: how rows of the source become records.
        max_rejects: refused rows that are tolerated: a number of rows (int), or a share of all rows
            (float, 0 to 1); None tolerates any. Beyond it the conversion stops.
        overwrite: replace a complete set, or throw away an unfinished one of other sources or
            options.
        workers: cores to use, a process each; None takes all that this process may run on.
        threads: that prepare rows within a worker; None gives cores that have no piece of their own
            to the workers that have one. The result depends on neither.
    """

    split: str = "train"
    max_shard_bytes: int = 256 << 20
    max_shard_samples: int = 10_000
    check: Literal["decode", "header"] = "decode"
    max_image_pixels: int = MAX_PIXELS
    max_image_bytes: int = MAX_BYTES
    keep_metadata: bool = False
    keep_icc: bool = False
    unusual: ImagePolicy = field(default_factory=ImagePolicy)
    transcode: Transcode | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    max_rejects: int | float | None = None
    overwrite: bool = False
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.split):
            raise ConfigError(
                f"split {self.split!r} is no name", mend="Use letters, digits, '-' and '_'"
            )
        if self.check not in ("decode", "header"):
            raise ConfigError(f"check {self.check!r} is unknown", mend="Use decode or header")
        for name in ("max_shard_bytes", "max_shard_samples", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        for name in ("workers", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if not 1 <= self.max_image_bytes <= 1 << 32:
            raise ConfigError("max_image_bytes must lie between 1 and 4 GiB")

        limit = self.max_rejects
        if limit is not None and (limit < 0 or (isinstance(limit, float) and not limit <= 1)):
            raise ConfigError(
                f"max_rejects {limit} is neither a count nor a share",
                mend="Use a whole number of rows from 0, or a share from 0.0 to 1.0",
            )

    def image_checks(self) -> ImageChecks:
        """What each image must pass."""
        return ImageChecks(
            self.max_image_pixels,
            self.max_image_bytes,
            decode=self.check == "decode",
            keep_metadata=self.keep_metadata,
            keep_icc=self.keep_icc,
            policy=self.unusual,
            transcode=self.transcode,
        )

    def recorded(self) -> dict[str, Any]:
        """Those that change the content, as JSON values: what the manifest says."""
        fields = dataclasses.asdict(self)
        for name in _ABOUT_THE_RUN:
            del fields[name]
        for name in ("image_root", "unpack_to"):  # places on one machine, not what the set is
            del fields["read"][name]
        if self.transcode is not None:
            fields["transcode"]["libraries"] = library_versions()
        return dict(json.loads(json.dumps(fields)))
