"""Several shard sets as one corpus: which of their samples an epoch holds, and how often."""

from omr_io.blend.columns import IndexColumns
from omr_io.blend.drawing import Drawing, Drawn
from omr_io.blend.files import read_blend
from omr_io.blend.joined import JoinedSets
from omr_io.blend.opening import OpenBlend, open_blend
from omr_io.blend.sources import Blend, Source

__all__ = [
    "Blend",
    "Drawing",
    "Drawn",
    "IndexColumns",
    "JoinedSets",
    "OpenBlend",
    "Source",
    "open_blend",
    "read_blend",
]
