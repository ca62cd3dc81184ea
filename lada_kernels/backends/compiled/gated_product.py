"""gated_product by csrc/cpu/gated_product.cpp or csrc/cuda/gated_product.cu."""

from torch import Tensor

from ..arguments import LikeHalves, dense_like, narrowed, readable, readable_halves, readable_or_none, wide, wide_like
from .addresses import Run, address, shape, tokens


def forward(run: Run, g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    """As `lada_kernels.reference.gated_product.forward`."""
    g, (k, v) = wide(g, k), readable_halves(k, v)
    out = dense_like(k)
    run("gated_product_forward", k, shape=shape(k), gate=address(g), k=tokens(k), v=tokens(v), out=tokens(out))
    return out


def backward(run: Run, needs: list[bool], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.gated_product.backward`."""
    gate_dtype, results = g.dtype, LikeHalves(k, v, needs[1:])
    grad, g, (k, v) = readable(grad), wide(g, k), readable_halves(k, v)
    grad_g = wide_like(g, k, needs[0])
    run(
        "gated_product_backward",
        k,
        shape=shape(k),
        gate=address(g),
        grad=tokens(grad),
        k=tokens(k),
        v=tokens(v),
        grad_gate=address(grad_g),
        grad_k=tokens(results.k),
        grad_v=tokens(results.v),
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
        shape=shape(k),
        gate=address(g),
        grad=tokens(grad),
        k=tokens(k),
        v=tokens(v),
        cot_gate=address(cot_g),
        cot_k=tokens(cot_k),
        cot_v=tokens(cot_v),
        out_gate=address(out_g),
        out_grad=tokens(out_grad),
        out_k=tokens(results.k),
        out_v=tokens(results.v),
    )
    return out_grad, narrowed(out_g, gate_dtype), *results.whole
