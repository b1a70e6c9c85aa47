"""Pixels and their plan for families of models beside Qwen's, equal to transformers' to the bit.

| class | image processors | values of one image |
|---|---|---|
| `Siglip2Vision` | Siglip2ImageProcessor (NaFlex) | (patches, patch width) |
| `Idefics3Vision` | Idefics3ImageProcessor, SmolVLMImageProcessor | (tiles, 3, s, s) |
| `Gemma3Vision` | Gemma3ImageProcessor | (1 + crops, 3, height, width) |
| `PixtralVision` | PixtralImageProcessor | (3, height, width) |

Qwen2-VL, 2.5-VL and 3-VL have `omr_io.VisionConfig`. **The loader, the chat formats and the
training recipe know Qwen's families only**; what is here is for your own code: planning on
integers, values, and batches as the model takes them.

    vision = from_pretrained(folder)
    plan = vision.plan(height, width)           # integers: tokens are known before any pixel
    values = vision.to_pixels(pixels)           # (H, W, 3) uint8 to plan.pixel_shape, unpadded
    inputs = vision.batch([values], [plan])     # padded, named as the model's forward names them

For example, with the defaults of Gemma 3's image processor:

>>> import numpy as np
>>> from omr_io.images.families import Gemma3Vision
>>> vision = Gemma3Vision(do_pan_and_scan=True)
>>> plan = vision.plan(height=600, width=1000)
>>> plan.num_crops, plan.num_image_tokens, plan.pixel_shape
(2, 768, (3, 3, 224, 224))
>>> values = vision.to_pixels(np.zeros((600, 1000, 3), dtype=np.uint8))
>>> inputs = vision.batch([values], [plan])
>>> {name: tuple(value.shape) for name, value in inputs.items()}
{'pixel_values': (3, 3, 224, 224), 'num_crops': (1,)}

**Equal to what.** To the PIL image processors of transformers 5.23 (`...ImageProcessorPil`), called
by themselves with the folder's options: in float32 to the bit; bfloat16 and float16 are those
values rounded. Their torchvision forms differ from both. Colour and orientation are as for
`VisionConfig`: RGB over white, and `exif` says which way up. A decoder of `omr_io.images.decode`
with that `exif` gives such pixels, and `vision.plan_image(probe(data))` their plan.

**Many images in one call**, on several threads or a GPU: `vision.parts(pixels)` is what the
operation `omr_io.ops.Patches` takes.

**Text.** `plan.runs` is what the family's Processor writes for an image. Its "text" runs (line
breaks, Gemma's words around crops) are tokenized by Hugging Face together with the prompt around
them, so only "image" and "special" runs are known numbers of tokens. `<row_7_col_1>` and beyond
are no tokens of Idefics3's vocabulary.

**Not here:** videos, crops of a mask, other filters than bilinear, bicubic and Lanczos, image
processors with a step switched off; they are refused by name.
"""

from omr_io.images.families.base import Family, ImagePlan, Run
from omr_io.images.families.folder import from_pretrained
from omr_io.images.families.gemma3 import Box, Gemma3Plan, Gemma3Vision
from omr_io.images.families.idefics3 import Idefics3Plan, Idefics3Vision
from omr_io.images.families.pixtral import PixtralPlan, PixtralVision
from omr_io.images.families.siglip2 import Siglip2Plan, Siglip2Vision

__all__ = [
    "Box",
    "Family",
    "Gemma3Plan",
    "Gemma3Vision",
    "Idefics3Plan",
    "Idefics3Vision",
    "ImagePlan",
    "PixtralPlan",
    "PixtralVision",
    "Run",
    "Siglip2Plan",
    "Siglip2Vision",
    "from_pretrained",
]
