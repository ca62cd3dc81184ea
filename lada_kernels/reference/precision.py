"""The precision in which sums, softmax and statistics are kept."""

import torch
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in the precision that sums over tensors of `dtype` are kept in."""
    wide = accumulate_dtype(dtype)
    return [tensor.to(wide) for tensor in tensors]
