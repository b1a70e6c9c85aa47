"""Batches on a GPU: what they hold, and that nothing on the way there waits for it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from omr_io.batches import Batch
from omr_io.batches import transfer as transfer_module
from omr_io.batches.transfer import send
from omr_io.errors import ConfigError
from omr_io.images.decode import CpuDecoder
from omr_io.loader.options import check_decoder_device
from tests.batches.test_transfer import Copies, storages
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


@pytest.fixture(scope="module")
def texts_alone(opened_shards):
    """Numbers of samples without images."""
    return np.flatnonzero(np.diff(opened_shards.image_offsets) == 0)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("images", [True, False])
def test_a_batch_goes_to_its_device_in_one_copy(make_loader, texts_alone, implementation, images):
    """On the meta device, which has no bytes: whatever left the host is counted."""
    options = {} if images else {"samples": texts_alone}
    loader = make_loader(device="meta", implementation=implementation, **options)
    assert len(loader) > 1 or not images
    batches = iter(loader)
    for plain in make_loader(**options):
        with Copies() as copies:
            batch = next(batches)
        assert len(copies.sizes) == 1
        total = sum(tensor.nbytes for tensor in batch.tensors())
        assert total <= copies.sizes[0] <= total + 64 * len(batch.tensors())
        assert len(storages(batch.tensors())) == 1
        for mine, theirs in zip(batch.tensors(), plain.tensors(), strict=True):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            assert mine.device.type == "meta"
    assert next(batches, None) is None


# Triton's interpreter serves one thread.
@pytest.mark.parametrize(
    ("implementation", "threads"),
    [("cpu", 0), ("cpu", 2), ("reference", 2), ("triton", 0)],
)
def test_what_arrives_is_what_was_made(make_loader, monkeypatch, implementation, threads):
    """The one copy is a stand-in's, whose bytes can be read."""
    if implementation == "triton":
        pack = pytest.importorskip("omr_io.kernels.pack")
        if isinstance(pack.pack_kernel, pytest.importorskip("triton").JITFunction):
            pytest.skip("needs TRITON_INTERPRET=1")
    sent = []

    def copied(run, device):
        assert device.type == "cpu" if implementation == "triton" else device.type == "meta"
        sent.append(run)
        arrived = run.clone()
        run.fill_(0xA5)  # whoever still looks at the host sees nonsense
        return arrived

    wanted = list(make_loader())
    # The interpreter runs on the host.
    device = "cpu" if implementation == "triton" else "meta"
    monkeypatch.setattr(transfer_module, "copied", copied)
    options = {"device": device, "implementation": implementation, "num_threads": threads}
    with make_loader(**options) as loader:
        found = list(loader)
    assert len(sent) == len(found) == len(wanted)
    for left, right in zip(wanted, found, strict=True):
        assert_equal(left, right)
        # What the kernel writes is made on the device; all else comes by the copy.
        assert len(storages(right.tensors())) == (2 if implementation == "triton" else 1)


def test_a_batch_on_the_host_is_one_block_that_goes_in_one_copy(make_loader):
    for batch in make_loader():
        assert len(storages(batch.tensors())) == 1
        with Copies() as copies:
            there = batch.to("meta")
        assert len(copies.sizes) == 1
        assert len(storages(there.tensors())) == 1


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


def host_to_device(work):
    """Copies from host to device while `work` runs."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        kept = work()
        torch.cuda.synchronize()
    del kept
    return sum("Memcpy HtoD" in event.name for event in profile.events())


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

    @pytest.mark.parametrize("implementation", ["auto", "cpu"])
    @pytest.mark.parametrize("pinned", [False, True])
    def test_one_copy_a_batch(self, make_loader, implementation, pinned):
        """What the driver was asked for, by torch's profiler: loader, and `Batch.to`."""
        with make_loader(device="cuda", implementation=implementation) as loader:
            count = len(list(loader))  # compiled, and pinned memory is there
            assert host_to_device(lambda: list(loader)) == count
        with make_loader(pin_memory=pinned) as loader:
            batches = list(loader)
        assert host_to_device(lambda: [batch.to("cuda") for batch in batches]) == count

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
