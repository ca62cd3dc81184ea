r"""LadaGAN's additive attention (arXiv 2401.09596) in plain torch, to second order: r = gated_product(additive_pool(q), k, v).

Forward and backward are those of its two parts in turn. In the double backward the parts meet twice: the pool's ∂ḡ is the
cotangent G of the gate's ḡ, and the gate's ∂g flows back through the pool that made g:

    ∂q = pool.double_backward(Q, W).∂x + pool.backward(∂g).x̄      ∂w likewise
"""

from torch import Tensor

from . import additive_pool, gated_product
from .precision import widen


def forward(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v [B,N,D], weight [H,D], mask [B,N] -> out [B,N,D]; pooled [B,H,D/H], normaliser [B,H,2] and α [B,H,N] wide."""
    pooled, normaliser, alpha = additive_pool.forward(q, weight, mask, scale, True, return_weights)
    return gated_product.forward(pooled.flatten(1), k, v), pooled, normaliser, alpha


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """grad [B,N,D] -> gradients of q, k, v, weight, and the inner gradient of the pooled query [B,H,D/H]."""
    grad_pooled, grad_k, grad_v = gated_product.backward(grad, pooled.flatten(1), k, v)
    grad_pooled = grad_pooled.view_as(pooled)
    grad_q, grad_weight = additive_pool.backward(grad_pooled, q, weight, mask, pooled, normaliser, scale, True)
    return grad_q, grad_k, grad_v, grad_weight, grad_pooled


def double_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of backward's first four results (None = zero) -> total gradients of (grad, q, k, v, weight)."""
    wide_q, wide_weight = widen(q.dtype, q, weight)  # so that the sums below are rounded once
    pool = wide_q, wide_weight, mask, pooled, normaliser, scale, True
    cot_pooled, pool_q, pool_weight = additive_pool.double_backward(cot_q, cot_weight, grad_pooled, *pool)
    out_grad, out_g, out_k, out_v = gated_product.double_backward(
        cot_pooled.flatten(1), cot_k, cot_v, grad, pooled.flatten(1), k, v
    )
    gate_q, gate_weight = additive_pool.backward(out_g.view_as(pooled), *pool)
    return out_grad, (pool_q + gate_q).to(q.dtype), out_k, out_v, (pool_weight + gate_weight).to(weight.dtype)
