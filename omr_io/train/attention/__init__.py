"""Attention over packs: one call a layer, and no token sees another sample.

transformers calls an attention function as ``f(module, query_BHTD, key_BKTD, value_BKTD,
attention_mask, dropout=, scaling=, **kwargs)`` and takes back ``(output_BTHD, None)``. Names it
does not know skip its mask building, so a pack costs no (T, T) mask; the boundaries arrive as
keyword arguments of the model's forward. The vision tower calls once a layer, instead of once an
image, when its implementation's name contains "flash".

`prefixes`: which keys a segment sees beside its own. `sdpa`: the plain form, on any device.
`varlen`: the registered function, and the kernels it chooses from. `setting`: put it on a model.
"""

from omr_io.train.attention.prefixes import SharedPrefixes, share_prefixes
from omr_io.train.attention.sdpa import plan_segments, segment_attention
from omr_io.train.attention.setting import (
    TEXT_ATTENTION,
    VISION_ATTENTION,
    register_varlen,
    require_varlen,
    text_attention,
    use_varlen,
)
from omr_io.train.attention.varlen import varlen_attention

__all__ = [
    "TEXT_ATTENTION",
    "VISION_ATTENTION",
    "SharedPrefixes",
    "plan_segments",
    "register_varlen",
    "require_varlen",
    "segment_attention",
    "share_prefixes",
    "text_attention",
    "use_varlen",
    "varlen_attention",
]
