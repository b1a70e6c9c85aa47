"""Decoders: encoded images in, upright RGB pixels out, one failure at a time.

| decoder | on the CPU | on a GPU |
|---|---|---|
| "cpu" | simplejpeg (libjpeg-turbo) for JPEG, Pillow for the rest | the same: it gives arrays |
| "nvimgcodec" | JPEG by nvImageCodec, the rest as "cpu" | JPEG on it, the rest on CPU threads |
| "dali" | JPEG by a DALI pipeline, the rest as "cpu" | JPEG on it, the rest on CPU threads |
| "auto" | "cpu" | "nvimgcodec" where installed, else "dali" where installed, else "cpu" |

**On the CPU every decoder gives the same pixels, bit for bit**, for any image that decodes cleanly:
see `omr_io.images.pixels` for colour and strictness. They differ only in speed.

**On a GPU nobody promises that**: nvJPEG has an inverse DCT and a chroma interpolation of its own,
so pixels are to be taken as near those and not equal. How far they are apart is what
`python -m benchmarks.gpu_decode` measures on your GPU. Which one is at work is told by `describe`.
"""

from omr_io.images.decode.base import Decoded, Decoder, DecoderName, check_planned, turn
from omr_io.images.decode.batched import BatchDecoder, DecodeCounts
from omr_io.images.decode.choose import choose_decoder, describe, make_decoder
from omr_io.images.decode.cpu import CpuDecoder
from omr_io.images.decode.dali import DaliDecoder
from omr_io.images.decode.nvimgcodec import NvimgcodecDecoder

__all__ = [
    "BatchDecoder",
    "CpuDecoder",
    "DaliDecoder",
    "DecodeCounts",
    "Decoded",
    "Decoder",
    "DecoderName",
    "NvimgcodecDecoder",
    "check_planned",
    "choose_decoder",
    "describe",
    "make_decoder",
    "turn",
]
