"""Tensors as fused kernels want them: what they read in place, and fresh results to write to."""

from typing import overload

import torch
from torch import Tensor

from ..reference.precision import accumulate_dtype
from ..reference.types import MaybeTensor


def readable(x: Tensor) -> Tensor:
    """x itself where its last dimension is dense, else a dense copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def readable_or_none(x: Tensor | None) -> Tensor | None:
    """`readable` of an optional tensor."""
    return None if x is None else readable(x)


def readable_halves(k: MaybeTensor, v: Tensor | None) -> tuple[MaybeTensor, MaybeTensor]:
    """k and v as the kernels read them; without v, the two halves of k."""
    if k is None:
        return None, None
    first, second = readable(k).chunk(2, -1) if v is None else (readable(k), readable(v))
    return first, second


def wide(x: MaybeTensor, like: Tensor) -> MaybeTensor:
    """A small tensor dense and in the accumulation type of `like`: itself if it is so already."""
    if x is None:
        return None
    dtype = accumulate_dtype(like.dtype)
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


@overload
def dense_like(x: Tensor) -> Tensor: ...
@overload
def dense_like(x: Tensor, needed: bool) -> Tensor | None: ...
def dense_like(x: Tensor, needed: bool = True) -> Tensor | None:
    """A dense result shaped and typed like x, or None when it is not needed."""
    return x.new_empty(x.shape) if needed else None


@overload
def wide_like(x: Tensor, like: Tensor) -> Tensor: ...
@overload
def wide_like(x: Tensor, like: Tensor, needed: bool) -> Tensor | None: ...
def wide_like(x: Tensor, like: Tensor, needed: bool = True) -> Tensor | None:
    """A dense result shaped like x in the accumulation type of `like`, or None when it is not needed."""
    return x.new_empty(x.shape, dtype=accumulate_dtype(like.dtype)) if needed else None


def narrowed(result: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    """A wide result in the dtype of the tensor that it is the gradient of."""
    return result if result is None or result.dtype == dtype else result.to(dtype)


class LikeHalves:
    """Dense results like k and v, as `whole` tensors and as what the kernels write to: where v is None, halves of one."""

    def __init__(self, k: Tensor, v: Tensor | None, needs: list[bool]) -> None:
        self.k, self.v = dense_like(k, needs[0]), None if v is None else dense_like(v, needs[1])
        self.whole = (self.k, self.v)
        if v is None and self.k is not None:
            self.k, self.v = torch.chunk(self.k, 2, -1)
