"""The second pass of a resize, the table of values and the cut into patches, for a whole batch.

With `omr_io.kernels.resize` this is `omr_io.ops.Patches` on a GPU, in two launches whatever the
number and the sizes of the images, with one transfer from the host and no synchronisation.

Values are moved as bits: the table holds them in the output's own dtype, rounded on the host, so
there is no floating-point instruction here either, nothing that a compiler could fuse and nothing
that Triton's interpreter would round otherwise than a GPU. Values by arithmetic (scale * byte +
offset) would save the look-up only where that is proved for all 768; by the estimate below the
look-up is not what limits.

What limits it, an ESTIMATE for an H100 that no measurement backs: in bfloat16 with two frames,
shrinking by 1.5, a byte of the resized image costs 1.5 bytes read and 4 written, so 3 TB/s allow
5.5e11 a second. It takes 7 taps of 3 instructions (the compiled loop has 96 for 32 bytes: extract,
multiply-add, and a share of loads) and some 12 more; 132 multiprocessors issue 29e12 a second, so
8.7e11. Multiply-adds alone (64 a clock and multiprocessor) allow 2e12, a look-up without conflicts
7e12. So it should be bound by memory, at two thirds of what can be issued. Weights are loaded once
a row and tap for all planes of a thread; the intermediate is laid out so that a thread's taps are
wide loads, aligned whatever a patch's sides are, and a warp's lie in few lines.

Legend: N images, F fields, G programs, L planes, Y rows and X columns of a tile (see
`omr_io.images.gpu_plan.Tile`), P patches, D patch width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from omr_io.errors import ConfigError
from omr_io.images import gpu_plan
from omr_io.images.gpu_plan import IMAGE_FIELDS, Plan
from omr_io.images.patch_arguments import checked_output
from omr_io.kernels.resize import resize
from omr_io.types import Float32Array, PatchTarget, UInt8Array

NUM_WARPS = 4

_FIELDS = tl.constexpr(len(IMAGE_FIELDS))
_VERTICAL_FIRST = tl.constexpr(IMAGE_FIELDS.index("vertical_first"))
_ROWS = tl.constexpr(IMAGE_FIELDS.index("rows"))
_COLUMNS = tl.constexpr(IMAGE_FIELDS.index("columns"))
_ROW_BYTES = tl.constexpr(IMAGE_FIELDS.index("row_bytes"))
_BETWEEN = tl.constexpr(IMAGE_FIELDS.index("between"))
_START = tl.constexpr(IMAGE_FIELDS.index("second_start"))
_WEIGHTS = tl.constexpr(IMAGE_FIELDS.index("second_weights"))
_TAPS = tl.constexpr(IMAGE_FIELDS.index("second_taps"))
_PROGRAM = tl.constexpr(IMAGE_FIELDS.index("second_program"))
_HEIGHT = tl.constexpr(IMAGE_FIELDS.index("height"))
_WIDTH = tl.constexpr(IMAGE_FIELDS.index("width"))
_OUT = tl.constexpr(IMAGE_FIELDS.index("out"))

_BITS = tl.constexpr(22)
_HALF = tl.constexpr(1 << 21)


@triton.jit
def _resample(
    from_LYX,
    step,
    weights,
    weight_step,
    used,
    taps,
    read_LYX,
    L: tl.constexpr,
    Y: tl.constexpr,
    X: tl.constexpr,
):
    """Bytes of a tile: sums of `taps` inputs `step` bytes apart, rounded and clamped."""
    sums_LYX = tl.full((L, Y, X), _HALF, tl.int32)
    for tap in range(taps):
        weight = tl.load(weights + tap * weight_step, mask=used, other=0)
        byte_LYX = tl.load(from_LYX + tap * step, mask=read_LYX, other=0)
        sums_LYX += weight * byte_LYX.to(tl.int32)
    return tl.minimum(tl.maximum(sums_LYX >> _BITS, 0), 255).to(tl.uint8)


@triton.jit
def patches_kernel(
    images_NF,
    second_G,
    weights,
    between,
    table,
    out,
    patch_height,
    row_units,
    merge_size,
    FRAMES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VERTICAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    READ_ALIGNED: tl.constexpr,
    L: tl.constexpr,
    Y: tl.constexpr,
    X: tl.constexpr,
):
    """A tile of one image's patches. row_units: values in a row of a plane / ALIGNED.

    VERTICAL: whether any image's first pass is, so that its second one is horizontal.
    """
    CHANNELS: tl.constexpr = 3 if CHANNELS_LAST else 1  # of a plane
    PLANES: tl.constexpr = 1 if CHANNELS_LAST else 3  # of a patch
    program = tl.program_id(0)
    image = images_NF + tl.load(second_G + program) * _FIELDS
    rows = tl.load(image + _ROWS).to(tl.int32)
    columns = tl.load(image + _COLUMNS).to(tl.int32)
    height = tl.load(image + _HEIGHT).to(tl.int32)
    width = tl.load(image + _WIDTH).to(tl.int32)
    start = weights + tl.load(image + _START)
    weight = weights + tl.load(image + _WEIGHTS)
    taps = tl.load(image + _TAPS).to(tl.int32)
    source = between + tl.load(image + _BETWEEN) * 16

    row_values = row_units * ALIGNED
    patch_width = row_values // CHANNELS
    patch_columns = width // patch_width
    lines = patch_columns * PLANES

    # Which tile: patch rows, tiles of rows in a patch, tiles of planes, tiles of columns.
    tile = program - tl.load(image + _PROGRAM).to(tl.int32)
    across = tl.cdiv(row_values, X)
    left, tile = tile % across * X, tile // across
    along = tl.cdiv(lines, L)
    line, tile = tile % along * L, tile // along
    down = tl.cdiv(patch_height, Y)
    top, patch_row = tile % down * Y, tile // down

    line_L = line + tl.arange(0, L)[:, None, None]
    y_Y = top + tl.arange(0, Y)[None, :, None]
    x_X = left + tl.arange(0, X)[None, None, :]
    column_L = line_L // PLANES
    row_Y = patch_row * patch_height + y_Y
    inside_Y = y_Y < patch_height
    inside_LX = (line_L < lines) & (x_X < row_values)
    inside_LYX = inside_LX & inside_Y

    # The division hides from the compiler that rows are aligned to more than READ_ALIGNED.
    row_bytes = tl.load(image + _ROW_BYTES).to(tl.int32) // READ_ALIGNED * READ_ALIGNED
    # What pads a row is read and never written: a mask at its end would make loads narrow.
    vertical = False
    if VERTICAL:
        vertical = tl.load(image + _VERTICAL_FIRST) != 0
    if vertical:  # then horizontal, from planes that are turned: rows as long as a patch is high
        x_X1 = left + tl.arange(0, X)[None, :, None]
        y_1Y = top + tl.arange(0, Y)[None, None, :]
        used_LX = (line_L < lines) & (x_X1 < row_values)
        column_LX = column_L * patch_width + x_X1 // CHANNELS
        first_LX = tl.load(start + column_LX, mask=used_LX, other=0)
        plane_LX = patch_row * 3 + (x_X1 % 3 if CHANNELS_LAST else line_L % 3)
        from_LXY = (plane_LX * columns + first_LX) * row_bytes + y_1Y
        byte_LXY = _resample(
            source + from_LXY,
            row_bytes,
            weight + column_LX,
            width,
            used_LX,
            taps,
            used_LX & (y_1Y < row_bytes),
            L,
            X,
            Y,
        )
        byte_LYX = tl.permute(byte_LXY, (0, 2, 1))
    else:  # vertical, from planes as wide as a patch
        first_Y = tl.load(start + row_Y, mask=inside_Y, other=0)
        from_LYX = line_L * (rows * row_bytes) + first_Y * row_bytes + x_X
        byte_LYX = _resample(
            source + from_LYX,
            row_bytes,
            weight + row_Y,
            height,
            inside_Y,
            taps,
            (line_L < lines) & inside_Y & (x_X < row_bytes),
            L,
            Y,
            X,
        )

    channel_LX = x_X % 3 if CHANNELS_LAST else line_L % 3
    value_LYX = tl.load(
        table + (channel_LX * 256 + byte_LYX.to(tl.int32)), mask=inside_LYX, other=0
    )

    group_L = patch_row // merge_size * (patch_columns // merge_size) + column_L // merge_size
    within_L = patch_row % merge_size * merge_size + column_L % merge_size
    patch_L = group_L * (merge_size * merge_size) + within_L
    plane = patch_height * row_values
    plane_L = patch_L * PLANES + (0 if CHANNELS_LAST else line_L % 3)
    to_LYX = plane_L * (FRAMES * plane) + y_Y * row_values + x_X
    to_LYX = out + tl.load(image + _OUT) * ALIGNED + to_LYX
    for frame in tl.static_range(FRAMES):
        tl.store(to_LYX + frame * plane, value_LYX, mask=inside_LYX)


def read_aligned(aligned: int, value_bytes: int) -> int:
    """Bytes of a load: as many as values fit a store of 16 bytes, so that threads keep them.

    Where a patch's rows do not allow such stores, bytes change threads between the two anyway.
    """
    wide = 16 // value_bytes
    return wide if aligned >= wide else 16


def launch(
    plan: Plan,
    images_NF: Tensor,
    second_G: Tensor,
    weights: Tensor,
    between: Tensor,
    table: Tensor,
    out: Tensor,
) -> None:
    """Launch the second pass of a batch on the current stream.

    Args:
        plan: of the batch.
        images_NF: (N, F) int64.
        second_G: (G,) int32.
        weights: int32.
        between: (plan.between_bytes,) uint8, as the first pass made it.
        table: (3, 256) int16 or int32, the bits of values.
        out: (P, D) of the same dtype, written to.
    """
    layout, tile = plan.layout, plan.tile
    row_values = layout.width * (3 if layout.channels_last else 1)
    patches_kernel[(second_G.numel(),)](
        images_NF,
        second_G,
        weights,
        between,
        table,
        out,
        layout.height,
        row_values // plan.aligned,
        layout.merge_size,
        FRAMES=layout.frames,
        CHANNELS_LAST=layout.channels_last,
        VERTICAL=plan.any_vertical_first,
        ALIGNED=plan.aligned,
        READ_ALIGNED=read_aligned(plan.aligned, out.element_size()),
        L=tile.lines,
        Y=tile.rows,
        X=tile.columns,
        num_warps=NUM_WARPS,
    )


def patches(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """`omr_io.ops.Patches` on the GPU of `out`, else of the images, else the current one.

    Work is queued on the current stream of that GPU and nothing waits for it; images that another
    stream makes must be ready there (`torch.cuda.Stream.wait_stream`). Images on the GPU are read
    where they are. Images of the host travel in the call's one transfer. `threads` is not used.

    Under Triton's interpreter (TRITON_INTERPRET=1) everything is on the host.

    Raises:
        ConfigError: as every implementation; also no GPU, images on another one, an image too large
            for 32-bit offsets (see `omr_io.images.gpu_plan.plan`).
    """
    device = _device(images, out)
    out_PD = checked_output(images, targets, table_3x256, dtype=dtype, out=out, device=device)
    if images:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            batch = prepare(images, targets, table_3x256, dtype, device)
            batch.first_pass()
            batch.second_pass(out_PD)
            _keep_until_read(images, device)
    return out_PD


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A batch whose plan is on its way to the GPU; see `gpu_plan.Plan` and the two launches."""

    plan: Plan
    images: Tensor
    first_programs: Tensor
    second_programs: Tensor
    weights: Tensor
    table: Tensor
    between: Tensor

    def first_pass(self) -> None:
        """The first launch: writes `between`."""
        resize(self.plan, self.images, self.first_programs, self.weights, self.between)

    def second_pass(self, out_PD: Tensor) -> None:
        """The second launch, from `between` to (P, D) of the table's dtype."""
        bits_PD = out_PD.view(self.table.dtype)
        launch(
            self.plan,
            self.images,
            self.second_programs,
            self.weights,
            self.between,
            self.table,
            bits_PD,
        )


def prepare(
    images: Sequence[UInt8Array | Tensor],
    targets: Sequence[PatchTarget],
    table_3x256: Float32Array,
    dtype: torch.dtype,
    device: torch.device,
) -> Prepared:
    """Plan a batch of at least one image, checked before, and queue its transfer to the device.

    Raises:
        ConfigError: an image is on another GPU, or too large.
    """
    plan = gpu_plan.plan([(image.shape[0], image.shape[1]) for image in images], targets)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    table = torch.from_numpy(table_3x256).to(dtype).view(bits).numpy()
    on_host = [
        (number, image.shape[0] * image.shape[1] * 3)
        for number, image in enumerate(images)
        if not _is_on(image, device, number)
    ]
    at = gpu_plan.upload(plan, table.nbytes, on_host)
    # torch keeps pinned memory until the copy from it is done.
    pinned = torch.empty(at.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    buffer = torch.empty(at.size, dtype=torch.uint8, device=device)
    for number, part in at.pixels:
        pixels = np.asarray(images[number])
        pinned.numpy()[part].reshape(pixels.shape)[...] = pixels
    where = dict(at.pixels)
    sources = [
        _source(image, number, buffer.data_ptr(), where.get(number))
        for number, image in enumerate(images)
    ]
    gpu_plan.fill(pinned.numpy(), at, plan, table, sources)
    buffer.copy_(pinned, non_blocking=True)
    return Prepared(
        plan=plan,
        images=buffer[at.images].view(torch.int64),
        first_programs=buffer[at.first_programs].view(torch.int32),
        second_programs=buffer[at.second_programs].view(torch.int32),
        weights=buffer[at.weights].view(torch.int32),
        table=buffer[at.table].view(bits),
        between=torch.empty(plan.between_bytes, dtype=torch.uint8, device=device),
    )


def _device(images: Sequence[UInt8Array | Tensor], out: Tensor | None) -> torch.device:
    """Where the work is done.

    Raises:
        ConfigError: there is no GPU.
    """
    if not isinstance(patches_kernel, triton.JITFunction):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "the implementation 'triton' of patches needs a CUDA GPU, and there is none",
            mend="Use 'cpu', or set TRITON_INTERPRET=1 to test without one",
        )
    tensors = [out, *(image for image in images if isinstance(image, Tensor))]
    for tensor in tensors:
        if tensor is not None and tensor.is_cuda:
            return tensor.device
    return torch.device("cuda", torch.cuda.current_device())


def _is_on(image: UInt8Array | Tensor, device: torch.device, number: int) -> bool:
    """Whether a kernel on that device can read the image where it is.

    Raises:
        ConfigError: it is on another GPU.
    """
    if not isinstance(image, Tensor):
        return False
    if image.device != device and image.device.type != "cpu":
        raise ConfigError(
            f"image {number} is on {image.device}, the patches on {device}",
            mend="Bring images and out to one device",
        )
    return image.device == device


def _source(
    image: UInt8Array | Tensor, number: int, buffer: int, part: slice | None
) -> tuple[int, int]:
    """Address and bytes from row to row, where the kernel reads the image.

    Raises:
        ConfigError: its rows lie too far apart for 32-bit offsets: a crop of a huge image.
    """
    height, width, _ = image.shape
    if part is not None:
        return buffer + part.start, 3 * width
    assert isinstance(image, Tensor)
    pitch = image.stride(0) if height > 1 else 3 * width
    if height * pitch > gpu_plan.LIMIT:
        raise ConfigError(
            f"image {number} has {height} rows {pitch} bytes apart, more than 32-bit offsets reach",
            mend="Copy the crop: image.contiguous()",
        )
    return image.data_ptr(), pitch


def _keep_until_read(images: Sequence[UInt8Array | Tensor], device: torch.device) -> None:
    """Memory that another stream allocated is not given away before this stream has read it."""
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        for image in images:
            if isinstance(image, Tensor) and image.is_cuda:
                image.record_stream(stream)
