"""additive_attention in Triton: the kernels of its two parts in turn; no sum of two [B,N,D] results is ever formed."""

from torch import Tensor

from . import additive_pool, gated_product
from .additive_pool_double_backward import DoubleBackward


def forward(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `lada_kernels.reference.additive_attention.forward`."""
    pooled, normaliser, alpha = additive_pool.forward(q, weight, mask, scale, True, return_weights)
    return gated_product.forward(pooled.flatten(1), k, v), pooled, normaliser, alpha


def backward(
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
    grad_pooled, grad_k, grad_v = gated_product.backward([True, *needs[1:3]], grad, pooled.flatten(1), k, v)
    assert grad_pooled is not None  # it was asked for
    grad_pooled = grad_pooled.view_as(pooled)
    needs_of_pool = [needs[0], needs[3]]
    grad_q, grad_weight = additive_pool.backward(needs_of_pool, grad_pooled, q, weight, mask, pooled, normaliser, scale, True)
    return grad_q, grad_k, grad_v, grad_weight, grad_pooled


def double_backward(
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
    needs_grad, needs_q, needs_k, needs_v, needs_weight = needs
    needs_gate = needs_q or needs_weight
    stages = DoubleBackward(
        [needs_q, needs_weight], cot_q, cot_weight, grad_pooled, q, weight, mask, pooled, normaliser, scale, True
    )
    # The pool's ∂ḡ is the cotangent of the gate's ḡ, and the gate's ∂g flows back through the pool that made g.
    cot_gate = stages.gather().flatten(1)
    out_grad, out_gate, out_k, out_v = gated_product.double_backward(
        [needs_grad, needs_gate, needs_k, needs_v], cot_gate, cot_k, cot_v, grad, pooled.flatten(1), k, v
    )
    out_q, out_weight = (None, None) if out_gate is None else stages.scatter(out_gate.view_as(pooled))
    return out_grad, out_q, out_k, out_v, out_weight
