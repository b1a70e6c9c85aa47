"""Batches on a GPU: what they hold, and that nothing on the way there waits for it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from omr_io.batches import Batch
from omr_io.batches.transfer import send
from omr_io.errors import ConfigError
from omr_io.images.decode import CpuDecoder
from omr_io.loader.options import check_decoder_device
from tests.loader.loaders import assert_equal

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def arrays():
    return {
        "a": np.arange(7, dtype=np.int64).reshape(7, 1),
        "b": np.arange(5, dtype=np.int32),
        "empty": np.empty((0, 2), np.float32),
        "c": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3).T,
    }


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=gpu)])
def test_arrays_sent_together_arrive_as_they_were(device):
    sent = send(arrays(), torch.device(device))
    assert list(sent) == list(arrays())
    for name, array in arrays().items():
        assert sent[name].shape == array.shape
        assert sent[name].dtype == torch.from_numpy(array).dtype
        assert sent[name].device.type == device
        if device != "meta":
            np.testing.assert_array_equal(sent[name].cpu().numpy(), array)
    if device != "cpu":  # one allocation, so one copy
        assert len({tensor.untyped_storage()._cdata for tensor in sent.values()}) == 1
    else:
        kept = arrays()
        assert send(kept, torch.device("cpu"))["b"].data_ptr() == kept["b"].ctypes.data


def test_pixels_on_a_gpu_are_for_batches_there():
    check_decoder_device("cpu", torch.device("cuda"))
    check_decoder_device("cuda:0", torch.device("cuda", 0))
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        with pytest.raises(ConfigError, match=f"pixels are on cuda:0, the batches on {device}"):
            check_decoder_device("cuda:0", device)


class GpuDecoder(CpuDecoder):
    """The CPU's pixels, every second image moved to the GPU."""

    name = "gpu test"
    device = "cuda:0"

    def decode(self, images, infos):
        made = super().decode(images, infos)
        return [
            torch.from_numpy(one).to(self.device) if i % 2 and isinstance(one, np.ndarray) else one
            for i, one in enumerate(made)
        ]


class TestOnAGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("implementation", ["auto", "cpu"])
    @pytest.mark.parametrize("threads", [0, 3])
    def test_batches_are_the_same(self, make_loader, implementation, threads):
        with make_loader(
            device="cuda", implementation=implementation, num_threads=threads, window=9
        ) as loader:
            for left, right in itertools.zip_longest(make_loader(window=9), loader):
                for field in dataclasses.fields(Batch):
                    value = getattr(right, field.name)
                    assert not isinstance(value, torch.Tensor) or value.is_cuda
                assert_equal(left, right.to("cpu", non_blocking=False))

    def test_pixels_of_a_gpu_decoder_are_the_same(self, make_loader):
        with make_loader(device="cuda", decoder=GpuDecoder(), num_threads=2) as loader:
            for left, right in itertools.zip_longest(make_loader(), loader):
                assert_equal(left, right.to("cpu", non_blocking=False))

    def test_memory_is_not_written_while_the_consumer_s_kernels_read_it(self, make_loader):
        """The consumer frees a batch while work on it is still queued."""
        expected = [batch.input_ids.sum().item() for batch in make_loader()]
        found = []
        with make_loader(device="cuda", num_threads=3, prefetch=4) as loader:
            for batch in loader:
                torch.cuda._sleep(20_000_000)
                found.append(batch.input_ids.sum())
                del batch
        assert [one.item() for one in found] == expected

    def test_a_consumer_on_another_stream(self, make_loader):
        expected = [batch.pixel_values.double().sum().item() for batch in make_loader()]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), make_loader(device="cuda", num_threads=2) as loader:
            found = [batch.pixel_values.double().sum() for batch in loader]
        stream.synchronize()
        assert [one.item() for one in found] == pytest.approx(expected)

    @pytest.mark.parametrize("threads", [0, 2])
    def test_nothing_waits_for_the_gpu(self, make_loader, threads):
        with make_loader(device="cuda", num_threads=threads) as loader:
            list(loader)  # compiled, and pinned memory is there
            torch.cuda.set_sync_debug_mode("error")
            try:
                for batch in loader:
                    batch.model_inputs()
                    batch.vision_inputs(num_position_embeddings=2304)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("pinned", [False, True])
    def test_a_batch_is_sent_without_waiting(self, make_loader, pinned):
        batch = next(iter(make_loader(pin_memory=pinned)))
        assert batch.pixel_values.is_pinned() == pinned
        torch.cuda.set_sync_debug_mode("error")
        try:
            there = batch.to("cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_equal(batch, there.to("cpu", non_blocking=False))
