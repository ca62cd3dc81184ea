"""Tensors as the native module takes them: addresses and strides."""

import torch
from torch import Tensor

from ...reference.precision import accumulate_dtype

# In the order of DType in csrc/lada.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

ABSENT = (0, 0, 0)

Address = int
Tokens = tuple[Address, int, int]


def shape(x: Tensor, heads: int = 1) -> tuple[int, int, int, int, int, int]:
    """(B, N, D, H, dtype, threads)."""
    batch, tokens, channels = x.shape
    return batch, tokens, channels, heads, DTYPES[x.dtype], torch.get_num_threads()


def readable(x: Tensor) -> Tensor:
    """x [B,N,D] itself where its last dimension is dense, else a dense copy."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def readable_or_none(x: Tensor | None) -> Tensor | None:
    """`readable` of an optional tensor."""
    return None if x is None else readable(x)


def tokens(x: Tensor | None) -> Tokens:
    """(address, batch stride, token stride) of a readable [B,N,D]."""
    return ABSENT if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def wide(x: Tensor | None, like: Tensor) -> Tensor | None:
    """A small tensor dense and in the accumulation type of `like`: itself if it is so already."""
    if x is None:
        return None
    dtype = accumulate_dtype(like.dtype)
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def address(x: Tensor | None) -> Address:
    """Where a dense tensor starts; 0 for none."""
    return 0 if x is None else x.data_ptr()


def dense_like(x: Tensor, needed: bool = True) -> Tensor | None:
    """A dense result shaped and typed like x, or None when it is not needed."""
    return torch.empty(x.shape, dtype=x.dtype) if needed else None


def wide_like(x: Tensor, like: Tensor, needed: bool = True) -> Tensor | None:
    """A dense result shaped like x in the accumulation type of `like`, or None when it is not needed."""
    return torch.empty(x.shape, dtype=accumulate_dtype(like.dtype)) if needed else None


def narrowed(result: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A wide result in the dtype of the tensor that it is the gradient of."""
    return result if result is None or result.dtype == dtype else result.to(dtype)
