"""additive_pool by csrc/cpu/additive_pool.cpp or csrc/cuda/additive_pool.cu."""

from typing import Any

from torch import Tensor

from ...reference.precision import accumulate_dtype
from ..arguments import dense_like, narrowed, readable, readable_or_none, wide, wide_like
from .addresses import Run, address, shape, tokens


def forward(
    run: Run, x: Tensor, weight: Tensor, mask: Tensor | None, scale: float, per_head: bool, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.forward`."""
    x, weight, mask = operands(x, weight, mask)
    (batch, count, channels), heads, dtype = x.shape, weight.shape[0], accumulate_dtype(x.dtype)
    pooled = x.new_empty((batch, heads, channels // heads if per_head else channels), dtype=dtype)
    normaliser = x.new_empty((batch, heads, 2), dtype=dtype)
    alpha = x.new_empty((batch, heads, count), dtype=dtype) if return_weights else None
    run(
        "additive_pool_forward",
        x,
        shape=shape(x, heads),
        pool=pool(x, weight, mask, pooled, normaliser, scale, per_head),
        alpha=address(alpha),
    )
    return pooled, normaliser, alpha


def backward(
    run: Run,
    needs: list[bool],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.backward`."""
    weight_dtype = weight.dtype
    x, weight, mask = operands(x, weight, mask)
    grad = wide(grad, x)
    grad_x, grad_weight = dense_like(x, needs[0]), wide_like(weight, x, needs[1])
    run(
        "additive_pool_backward",
        x,
        shape=shape(x, weight.shape[0]),
        pool=pool(x, weight, mask, pooled, normaliser, scale, per_head),
        grad=address(grad),
        grad_x=tokens(grad_x),
        grad_weight=address(grad_weight),
    )
    return grad_x, narrowed(grad_weight, weight_dtype)


def double_backward(
    run: Run,
    needs: list[bool],
    cot_x: Tensor | None,
    cot_weight: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.double_backward`."""
    grad_dtype, weight_dtype = grad.dtype, weight.dtype
    x, weight, mask = operands(x, weight, mask)
    grad, cot_x, cot_weight = wide(grad, x), readable_or_none(cot_x), wide(cot_weight, x)
    out_grad, out_x, out_weight = wide_like(grad, x), dense_like(x, needs[1]), wide_like(weight, x, needs[2])
    run(
        "additive_pool_double_backward",
        x,
        shape=shape(x, weight.shape[0]),
        pool=pool(x, weight, mask, pooled, normaliser, scale, per_head),
        grad=address(grad),
        cot_x=tokens(cot_x),
        cot_weight=address(cot_weight),
        out_grad=address(out_grad),
        out_x=tokens(out_x),
        out_weight=address(out_weight),
    )
    return narrowed(out_grad, grad_dtype), out_x, narrowed(out_weight, weight_dtype)


def operands(x: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and mask in the layouts that the kernels read."""
    return readable(x), wide(weight, x), None if mask is None else mask.contiguous()


def pool(
    x: Tensor, weight: Tensor, mask: Tensor | None, pooled: Tensor, normaliser: Tensor, scale: float, per_head: bool
) -> dict[str, Any]:
    """`Pool` of csrc/lada.h."""
    return {
        "x": tokens(x),
        "weight": address(weight),
        "mask": address(mask),
        "pooled": address(pooled),
        "normaliser": address(normaliser),
        "scale": scale,
        "per_head": per_head,
    }
