"""What cannot be packed, in the same words whatever packs."""

from __future__ import annotations

import numpy as np

from omr_io.errors import ConfigError, DataError, SampleTooLongError, Where
from omr_io.types import MAX_PACKED_TOKENS, EncodedSample


def check_options(
    num_packs: int, seq_len: int, pad_id: int, image_token_id: int, merge_size: int, dtype: str
) -> None:
    """Refuse options that no batch can have; see `pack`.

    Raises:
        ConfigError: names the option.
    """
    if dtype not in ("int64", "int32"):
        raise ConfigError(f"dtype {dtype!r} of ids and positions", mend='Use "int64" or "int32"')
    if seq_len < 1 or merge_size < 1:
        raise ConfigError(f"seq_len {seq_len} and merge_size {merge_size} must be at least 1")
    if num_packs * seq_len > MAX_PACKED_TOKENS:
        raise ConfigError(
            f"{num_packs} packs of {seq_len} tokens are more than {MAX_PACKED_TOKENS}: offsets are "
            "int32",
            mend="Use fewer packs per batch (packs_per_batch)",
        )
    for name, token in (("pad_id", pad_id), ("image_token_id", image_token_id)):
        if not 0 <= token < 2**31:
            raise ConfigError(
                f"{name} {token} is no token id", mend="It must be from 0 to 2**31 - 1"
            )


def check_sample(sample: EncodedSample) -> None:
    """Refuse a sample whose arrays are not what `EncodedSample` says.

    Raises:
        DataError: names the array and the key.
    """
    for name, dtype, dimensions in (
        ("input_ids", np.int32, 1),
        ("trained", np.bool_, 1),
        ("image_grid_thw", np.int64, 2),
    ):
        array = getattr(sample, name)
        if not isinstance(array, np.ndarray) or (array.dtype, array.ndim) != (dtype, dimensions):
            raise wrong(sample, f"{name} is no {dimensions}-dimensional {dtype.__name__} array")
    if len(sample.trained) != len(sample.input_ids):
        raise wrong(sample, "trained has not the length of input_ids")
    if sample.image_grid_thw.shape[1] != 3:
        raise wrong(sample, "image_grid_thw has not 3 columns")
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(sample.loss_weight)):
            raise wrong(sample, "loss_weight is not finite in float32")


def check_ids(sample: EncodedSample) -> None:
    """Refuse a sample with negative ids: a model would read outside its table of embeddings.

    Raises:
        DataError: names the key.
    """
    if sample.input_ids.min(initial=0) < 0:
        raise wrong(sample, "input_ids has a negative id")


def wrong(sample: EncodedSample, what: str) -> DataError:
    """The error for a sample that is not as `EncodedSample` says."""
    return DataError(what, where=Where(key=sample.key), mend="See omr_io.types.EncodedSample")


def too_long(sample: EncodedSample, seq_len: int) -> SampleTooLongError:
    """The error for the sample with which a pack is over its length."""
    return SampleTooLongError(
        f"a pack holds more than {seq_len} tokens", where=Where(key=sample.key)
    )


def mismatch(sample: EncodedSample) -> DataError:
    """The error for a sample whose placeholders and grids differ."""
    return DataError(
        "the image placeholders in input_ids are not those that image_grid_thw asks for",
        where=Where(key=sample.key),
        mend="The image sizes in the index differ from the chat format's placeholders: run verify",
    )
