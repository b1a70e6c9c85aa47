"""Whether a decoder keeps the order of the stream it is given.

`stream_order` looks for the race that was reported for the hardware JPEG decoder of the H100
(pytorch/vision#9606, meta-pytorch/torchcodec#1634): the decoder writes its output before what the
caller's stream has queued is done, so memory that queued work still reads is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu_decoders import jpeg, nvimagecodec_parameters, pillow
from benchmarks.gpu_pixels import require_gpu
from omr_io.errors import ConfigError


def stream_order(decoder: Any, *, progressive: bool) -> dict[str, Any]:
    """Decode and consume on streams, 4,096 images a way; look for pixels that are not the image's.

    Four ways to order the same work on the GPU, 16 images at a time:

    - "consumer unordered": decode on one stream, copy on another that does not wait. Wrong pixels
      are allowed here; they show that the test can see an order that is missing.
    - "consumer after event": the same, but the copying stream waits for an event of the decoding
      stream. Wrong pixels break the contract of streams.
    - "reuse on the stream": work that takes some milliseconds is queued on a stream, then a copy of
      decoded images; then other images are decoded on the same stream into the same memory. Wrong
      pixels in the copy break the contract: the decoder wrote before its turn. This is the race
      that was reported.
    - "reuse after waiting": the same with a wait of the host before the second decode: the cure.

    What is right are the decoder's own pixels of the same bytes after the host waited, and those
    are compared with the CPU's beforehand (at most 4 apart on average: another image would be far).

    Returns:
        For each way `images`, `wrong` ones, and of the reuse how many were decoded into the same
        memory (`reused`; without any, that way has shown nothing); how often the first decode
        `returned_early`, before its stream was done; and "verdict", in words.
    """
    torch = require_gpu()
    sets = list(_sets(progressive=progressive))
    wanted = [_settled(torch, decoder, data) for data in sets]
    result: dict[str, Any] = {"farthest_mean_difference_from_cpu": _check_with_cpu(sets, wanted)}
    for event, way in ((False, "consumer unordered"), (True, "consumer after event")):
        result[way] = _consume(torch, decoder, sets, wanted, event=event)
    for waits, way in ((False, "reuse on the stream"), (True, "reuse after waiting")):
        result[way] = _reuse(torch, decoder, sets, wanted, waits=waits)
    return result | {"verdict": verdict(result)}


def verdict(result: dict[str, Any]) -> str:
    """What the counts of `stream_order` say."""
    ordered = ("consumer after event", "reuse on the stream")
    wrong = [way for way in ordered if result[way]["wrong"]]
    if result["reuse after waiting"]["wrong"]:
        return "not decided: pixels are wrong even when the host waits"
    if wrong:
        return (
            f"reproduced ({' and '.join(wrong)}): let the host wait before memory is decoded into"
        )
    if not result["reuse on the stream"]["reused"]:
        return "not decided: no image was decoded into memory that was still to be read"
    seen = sum(result[way]["images"] for way in ordered)
    return f"ruled out in {seen} images on this GPU, driver and version"


ROUNDS = 32
"""How often each of the batches is decoded in each way: 32 x 8 x 16 images."""


def _sets(*, progressive: bool) -> Iterator[list[bytes]]:
    """8 batches of 16 JPEGs; two neighbours are of one size, so one's memory fits the other."""
    for batch in range(8):
        side = (512, 640, 768, 896)[batch // 2]
        yield [
            jpeg(1000 * batch + n, side, side, "4:2:0", progressive=progressive) for n in range(16)
        ]


def _tensor(torch: Any, image: Any) -> Any:
    """A view of nvImageCodec's memory, without any waiting."""
    return torch.utils.dlpack.from_dlpack(image.to_dlpack())


def _settled(torch: Any, decoder: Any, data: list[bytes]) -> list[Any]:
    """A batch decoded while nothing else runs, as tensors of torch's own."""
    torch.cuda.synchronize()
    decoded = decoder.decode(data, params=nvimagecodec_parameters())
    torch.cuda.synchronize()
    if any(one is None for one in decoded):
        raise ConfigError(
            "this backend of nvImageCodec does not decode these JPEGs on this machine",
            mend="Use another backend: not every GPU has a hardware decoder",
        )
    copies = [_tensor(torch, one).clone() for one in decoded]
    torch.cuda.synchronize()
    return copies


def _check_with_cpu(sets: list[list[bytes]], wanted: list[list[Any]]) -> float:
    """The farthest image's mean difference from Pillow's."""
    farthest = 0.0
    for data, tensors in zip(sets, wanted, strict=True):
        for theirs, ours in zip(pillow(data), tensors, strict=True):
            assert theirs is not None
            distance = np.abs(ours.cpu().numpy().astype(np.int16) - theirs.astype(np.int16))
            farthest = max(farthest, float(distance.mean()))
    if farthest > 4:
        raise ConfigError(f"decoded alone, an image is {farthest:.1f} from the CPU's on average")
    return farthest


def _consume(
    torch: Any, decoder: Any, sets: list[list[bytes]], wanted: list[list[Any]], *, event: bool
) -> dict[str, int]:
    producer, consumer = torch.cuda.Stream(), torch.cuda.Stream()
    parameters, on = nvimagecodec_parameters(), producer.cuda_stream
    images = wrong = early = 0
    for _ in range(ROUNDS):
        for data, right in zip(sets, wanted, strict=True):
            decoded = decoder.decode(data, params=parameters, cuda_stream=on)
            early += not producer.query()
            if event:
                consumer.wait_event(producer.record_event())
            with torch.cuda.stream(consumer):
                copies = [_tensor(torch, one).clone() for one in decoded]
            torch.cuda.synchronize()
            wrong += sum(not torch.equal(a, b) for a, b in zip(copies, right, strict=True))
            images += len(data)
    return {"images": images, "wrong": wrong, "returned_early": early}


def _reuse(
    torch: Any, decoder: Any, sets: list[list[bytes]], wanted: list[list[Any]], *, waits: bool
) -> dict[str, int]:
    stream = torch.cuda.Stream()
    parameters, on = nvimagecodec_parameters(), stream.cuda_stream
    images = wrong = reused = 0
    for number in range(ROUNDS * len(sets)):
        here = number % len(sets)
        decoded = decoder.decode(sets[here], params=parameters, cuda_stream=on)
        torch.cuda.synchronize()
        views = [_tensor(torch, one) for one in decoded]
        copies = [torch.empty_like(view) for view in views]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # clock cycles: some 10 ms
            for copy, view in zip(copies, views, strict=True):
                copy.copy_(view, non_blocking=True)
        if waits:
            stream.synchronize()
        # here ^ 1: the neighbour, of the same size.
        again = decoder.decode(sets[here ^ 1], images=decoded, params=parameters, cuda_stream=on)
        torch.cuda.synchronize()
        reused += sum(
            _tensor(torch, one).data_ptr() == view.data_ptr()
            for one, view in zip(again, views, strict=True)
        )
        wrong += sum(not torch.equal(a, b) for a, b in zip(copies, wanted[here], strict=True))
        images += len(copies)
    return {"images": images, "wrong": wrong, "reused": reused}
