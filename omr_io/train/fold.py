"""One frame a patch instead of an image repeated: half the bytes of pixel_values, equal features.

A Qwen vision tower takes patches of `temporal_patch_size` frames, for video; an image is repeated
to fill them. The first layer is linear, so the same comes of one frame and the sum of the weights
over the frames. `VisionConfig(temporal_patch_size=1)` gives such patches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omr_io.errors import ConfigError


def fold_weight(weight: Tensor) -> Tensor:
    """(O, C, T, h, w), a patch embedding's, to (O, C, 1, h, w): the sum over T.

    Summed in float32 and rounded once to the weight's dtype. In float32, features are those of T
    equal frames but for float32 rounding; a bfloat16 weight is off by up to half its last bit.

    Raises:
        ConfigError: the weight has not five dimensions.
    """
    if weight.ndim != 5:
        raise ConfigError(
            f"a patch embedding's weight has shape (O, C, T, h, w), not {tuple(weight.shape)}"
        )
    return weight.float().sum(dim=2, keepdim=True).to(weight.dtype)


def fold_frames(model: Any) -> None:
    """Make a Qwen2-VL, Qwen2.5-VL or Qwen3-VL take patches of one frame, in place.

    Its configuration then says temporal_patch_size 1, and so does what is saved of it. Do it before
    an optimizer or a sharding holds the parameters. A model so changed no longer takes videos.
    Training differs: the one weight gets the gradient that each of the T weights got, so for steps
    of the same size its learning rate must be T times theirs. One that has one frame is left alone.

    Args:
        model: with `model.model.visual.patch_embed.proj`, a convolution over frames, rows, columns.

    Raises:
        ConfigError: there is no such convolution.
    """
    embed = getattr(getattr(getattr(model, "model", None), "visual", None), "patch_embed", None)
    old = getattr(embed, "proj", None)
    if not isinstance(old, nn.Conv3d):
        raise ConfigError(
            f"{type(model).__name__} has no patch embedding over frames",
            mend="Give a Qwen2-VL, Qwen2.5-VL or Qwen3-VL for conditional generation",
        )
    assert embed is not None
    _, height, width = old.kernel_size
    size = (1, height, width)
    new = nn.Conv3d(
        old.in_channels,
        old.out_channels,
        size,
        stride=size,
        bias=old.bias is not None,
        device="meta",
    )
    new.weight = nn.Parameter(fold_weight(old.weight.detach()), old.weight.requires_grad)
    new.bias = old.bias
    embed.proj = new
    embed.temporal_patch_size = 1
    model.config.vision_config.temporal_patch_size = 1
    model.model.visual.config.temporal_patch_size = 1
