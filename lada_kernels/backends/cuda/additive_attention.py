"""additive_attention by the kernels of its two parts; no sum of two [B,N,D] results is ever formed."""

from torch import Tensor

from ..arguments import dense_like, narrowed, readable_or_none, wide, wide_like
from ..compiled import additive_pool, gated_product
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
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.additive_attention.backward`."""
    grad_pooled, grad_k, grad_v = gated_product.backward(run, [True, *needs[1:3]], grad, pooled.flatten(1), k, v)
    assert grad_pooled is not None  # it was asked for
    grad_pooled = grad_pooled.view_as(pooled)
    needs_of_pool, saved = [needs[0], needs[3]], (q, weight, mask, pooled, normaliser, scale)
    grad_q, grad_weight = additive_pool.backward(run, needs_of_pool, grad_pooled, *saved, True)
    return grad_q, grad_k, grad_v, grad_weight, grad_pooled


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
    needs_grad, needs_q, needs_k, needs_v, needs_weight = needs
    needs_gate, weight_dtype, gate = needs_q or needs_weight, weight.dtype, pooled.flatten(1)
    q, weight, mask = operands(q, weight, mask)
    (batch, count, _), heads = q.shape, weight.shape[0]
    cot_q, cot_weight = readable_or_none(cot_q), wide(cot_weight, q)
    cot_gate, out_q, out_weight = dense_like(pooled), dense_like(q, needs_q), wide_like(weight, q, needs_weight)
    scalars, means = weight.new_empty((batch, count, 4, heads)), weight.new_empty((batch, heads, 3))
    weight_sum = dense_like(weight, needs_weight)

    def half(kernel: str, extra: Tensor | None) -> None:
        run(
            kernel,
            q,
            shape=shape(q, heads),
            pool=pool(q, weight, mask, pooled, normaliser, scale, True),
            grad=address(grad_pooled),
            cot_x=tokens(cot_q),
            cot_weight=address(cot_weight),
            out_grad=address(cot_gate),
            out_x=tokens(out_q),
            out_weight=address(out_weight),
            extra=address(extra),
            scalars=address(scalars),
            means=address(means),
            weight_sum=address(weight_sum),
        )

    # The pool's ∂ḡ is the cotangent of the gate's ḡ, and the gate's ∂g flows back through the pool that made g.
    half("additive_pool_gather", None)
    needs_of_gate = [needs_grad, needs_gate, needs_k, needs_v]
    out_grad, out_gate, out_k, out_v = gated_product.double_backward(
        run, needs_of_gate, cot_gate.flatten(1), cot_k, cot_v, grad, gate, k, v
    )
    if needs_gate:
        half("additive_pool_scatter", out_gate)
    return out_grad, out_q, out_k, out_v, narrowed(out_weight, weight_dtype)
