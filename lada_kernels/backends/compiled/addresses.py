"""Tensors as the native module takes them: addresses and strides."""

from collections.abc import Callable

import torch
from torch import Tensor

# Run a kernel of csrc/lada.h by name, for tensors like the given one, with the fields of its argument struct by name.
Run = Callable[..., None]

# In the order of DType in csrc/lada.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

ABSENT = (0, 0, 0)

Address = int
Tokens = tuple[Address, int, int]


def shape(x: Tensor, heads: int = 1) -> dict[str, int]:
    """`Shape` of csrc/lada.h."""
    batch, tokens, channels = x.shape
    return {
        "batch": batch,
        "tokens": tokens,
        "channels": channels,
        "heads": heads,
        "dtype": DTYPES[x.dtype],
        "threads": torch.get_num_threads(),
    }


def tokens(x: Tensor | None) -> Tokens:
    """`Tokens` of csrc/lada.h, of a readable [B,N,D]: address, batch stride, token stride."""
    return ABSENT if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> Address:
    """Where a dense tensor starts; 0 for none."""
    return 0 if x is None else x.data_ptr()
