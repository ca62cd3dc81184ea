"""additive_attention by csrc/cpu/additive_attention.cpp."""

from torch import Tensor

from ..arguments import dense_like, narrowed, readable, readable_or_none, wide, wide_like
from ..compiled.additive_attention import forward
from ..compiled.additive_pool import operands, pool
from ..compiled.addresses import Run, address, shape, tokens

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
        shape=shape(q, weight.shape[0]),
        pool=pool(q, weight, mask, pooled, normaliser, scale, True),
        grad=tokens(grad),
        k=tokens(k),
        v=tokens(v),
        grad_q=tokens(grad_q),
        grad_k=tokens(grad_k),
        grad_v=tokens(grad_v),
        grad_pooled=address(grad_pooled),
        grad_weight=address(grad_weight),
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
        shape=shape(q, weight.shape[0]),
        pool=pool(q, weight, mask, pooled, normaliser, scale, True),
        grad=tokens(grad),
        k=tokens(k),
        v=tokens(v),
        grad_pooled=address(grad_pooled),
        cot_q=tokens(cot_q),
        cot_k=tokens(cot_k),
        cot_v=tokens(cot_v),
        cot_weight=address(cot_weight),
        out_grad=tokens(out_grad),
        out_q=tokens(out_q),
        out_k=tokens(out_k),
        out_v=tokens(out_v),
        out_weight=address(out_weight),
    )
    return out_grad, out_q, out_k, out_v, narrowed(out_weight, weight_dtype)
