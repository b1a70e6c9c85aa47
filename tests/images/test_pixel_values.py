"""Patches in memory: arrays that are tensors underneath, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omr_io.images.pixel_values import as_array, as_tensor, empty_values

DTYPES = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.float16}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_array_of_values_is_a_tensor_underneath(dtype: torch.dtype) -> None:
    values = empty_values(5, 4, dtype)
    assert values.shape == (5, 4)
    assert values.dtype == DTYPES[dtype]
    whole = as_tensor(values)
    assert whole.dtype == dtype
    whole.copy_(torch.arange(20).view(5, 4))
    part = np.lib.stride_tricks.as_strided(values[2:], (2, 4))
    for array, tensor in ((values[1:4, 1:3], whole[1:4, 1:3]), (part, whole[2:4])):
        again = as_tensor(array)
        assert again.dtype == dtype
        assert torch.equal(again, tensor)
        assert again.data_ptr() == tensor.data_ptr()
        # The same storage, not another one over the same memory: so pinned memory stays known.
        assert again.untyped_storage()._cdata == whole.untyped_storage()._cdata
    assert np.shares_memory(as_array(whole), values)


def test_an_array_that_is_no_tensor_underneath_is_shared_too() -> None:
    plain = np.array([[0x3F80, 0xC000]], np.uint16)
    assert as_tensor(plain).tolist() == [[1.0, -2.0]]
    assert as_tensor(plain).data_ptr() == plain.ctypes.data
    single = np.ones((2, 3), np.float32)[1:]
    assert as_tensor(single).data_ptr() == single.ctypes.data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_values_are_pinned_as_tensors() -> None:
    values = empty_values(5, 4, torch.bfloat16, pinned=True)
    tensor = as_tensor(values[1:])
    assert tensor.is_pinned()
    assert tensor.pin_memory() is tensor
