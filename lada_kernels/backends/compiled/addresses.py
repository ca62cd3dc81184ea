"""Tensors as the native module takes them: addresses and strides."""

import torch
from torch import Tensor

# In the order of DType in csrc/lada.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

ABSENT = (0, 0, 0)

Address = int
Tokens = tuple[Address, int, int]


def shape(x: Tensor, heads: int = 1) -> tuple[int, int, int, int, int, int]:
    """(B, N, D, H, dtype, threads)."""
    batch, tokens, channels = x.shape
    return batch, tokens, channels, heads, DTYPES[x.dtype], torch.get_num_threads()


def tokens(x: Tensor | None) -> Tokens:
    """(address, batch stride, token stride) of a readable [B,N,D]."""
    return ABSENT if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> Address:
    """Where a dense tensor starts; 0 for none."""
    return 0 if x is None else x.data_ptr()
