"""additive_attention by csrc/cpu/additive_attention.cpp."""

from torch import Tensor

from ..arguments import dense_like, narrowed, readable, readable_or_none, wide, wide_like
from ..compiled.additive_attention import forward
from ..compiled.additive_pool import operands, pool
from ..compiled.addresses import address, shape, tokens
from ..compiled.runner import Run

__all__ = ["backward", "double_backward", "forward"]


def backward(
    run: Run,
    needs: list[bool],
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """As `lada_kernels.reference.additive_attention.backward`."""
    weight_dtype = weight.dtype
    q, weight, mask = operands(q, weight, mask)
    grad, k, v = readable(grad), readable(k), readable(v)
    grad_q, grad_k, grad_v = dense_like(q, needs[0]), dense_like(k, needs[1]), dense_like(v, needs[2])
    grad_weight, grad_pooled = wide_like(weight, q, needs[3]), dense_like(pooled)
    run(
        "additive_attention_backward",
        q,
        shape(q, weight.shape[0]),
        pool(q, weight, mask, pooled, normaliser, scale, True),
        tokens(grad),
        tokens(k),
        tokens(v),
        tokens(grad_q),
        tokens(grad_k),
        tokens(grad_v),
        address(grad_pooled),
        address(grad_weight),
    )
    return grad_q, grad_k, grad_v, narrowed(grad_weight, weight_dtype), grad_pooled


def double_backward(
    run: Run,
    needs: list[bool],
    cot_q: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    cot_weight: Tensor | None,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    grad_pooled: Tensor,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.additive_attention.double_backward`."""
    weight_dtype = weight.dtype
    q, weight, mask = operands(q, weight, mask)
    grad, k, v = readable(grad), readable(k), readable(v)
    cot_q, cot_k, cot_v = readable_or_none(cot_q), readable_or_none(cot_k), readable_or_none(cot_v)
    cot_weight = wide(cot_weight, q)
    out_grad, out_q = dense_like(grad, needs[0]), dense_like(q, needs[1])
    out_k, out_v = dense_like(k, needs[2]), dense_like(v, needs[3])
    out_weight = wide_like(weight, q, needs[4])
    run(
        "additive_attention_double_backward",
        q,
        shape(q, weight.shape[0]),
        pool(q, weight, mask, pooled, normaliser, scale, True),
        tokens(grad),
        tokens(k),
        tokens(v),
        address(grad_pooled),
        tokens(cot_q),
        tokens(cot_k),
        tokens(cot_v),
        address(cot_weight),
        tokens(out_grad),
        tokens(out_q),
        tokens(out_k),
        tokens(out_v),
        address(out_weight),
    )
    return out_grad, out_q, out_k, out_v, narrowed(out_weight, weight_dtype)
