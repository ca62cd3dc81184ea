"""Where a kernel finds its tile of tokens in memory."""

import math

import triton
import triton.language as tl
from torch import Tensor


def alignment(*tensors: Tensor | None) -> int:
    """The largest power of two, up to 16, that divides the batch and token strides of all [B,N,D] given."""
    return math.gcd(16, *(stride for x in tensors if x is not None for stride in x.stride()[:2]))


def strides(x: Tensor | None) -> tuple[int, int]:
    """The batch and token strides of a [B,N,D]; of none, zeros."""
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


@triton.jit
def rows(x, b, n, batch_stride, token_stride, ALIGN: tl.constexpr):
    """Addresses [...] of the first channel of tokens n [...] of batch element b; both strides divide by ALIGN."""
    # Multiplied last, where the compiler sees it: Triton looks for divisors of 16 alone, and wide accesses need fewer.
    return x + (b * (batch_stride // ALIGN) + n.to(tl.int64) * (token_stride // ALIGN)) * ALIGN
