"""gated_product by csrc/cpu/gated_product.cpp or csrc/cuda/gated_product.cu."""

from torch import Tensor

from ..arguments import LikeHalves, dense_like, narrowed, readable, readable_halves, readable_or_none, wide, wide_like
from .addresses import address, shape, tokens
from .runner import Run


def forward(run: Run, g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    """As `lada_kernels.reference.gated_product.forward`."""
    g, (k, v) = wide(g, k), readable_halves(k, v)
    out = dense_like(k)
    run("gated_product_forward", k, shape(k), address(g), tokens(k), tokens(v), tokens(out))
    return out


def backward(run: Run, needs: list[bool], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.gated_product.backward`."""
    gate_dtype, results = g.dtype, LikeHalves(k, v, needs[1:])
    grad, g, (k, v) = readable(grad), wide(g, k), readable_halves(k, v)
    grad_g = wide_like(g, k, needs[0])
    run(
        "gated_product_backward",
        k,
        shape(k),
        address(g),
        tokens(grad),
        tokens(k),
        tokens(v),
        address(grad_g),
        tokens(results.k),
        tokens(results.v),
    )
    return narrowed(grad_g, gate_dtype), *results.whole


def double_backward(
    run: Run,
    needs: list[bool],
    cot_g: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    g: Tensor,
    k: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.gated_product.double_backward`."""
    gate_dtype, results = g.dtype, LikeHalves(k, v, needs[2:])
    cot_k, cot_v = (readable_or_none(cot_k), readable_or_none(cot_v)) if v is not None else readable_halves(cot_k, None)
    grad, g, cot_g, (k, v) = readable(grad), wide(g, k), wide(cot_g, k), readable_halves(k, v)
    out_grad, out_g = dense_like(grad, needs[0]), wide_like(g, k, needs[1])
    run(
        "gated_product_double_backward",
        k,
        shape(k),
        address(g),
        tokens(grad),
        tokens(k),
        tokens(v),
        address(cot_g),
        tokens(cot_k),
        tokens(cot_v),
        address(out_g),
        tokens(out_grad),
        tokens(results.k),
        tokens(results.v),
    )
    return out_grad, narrowed(out_g, gate_dtype), *results.whole
