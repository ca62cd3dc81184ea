"""gated_product by csrc/cpu/gated_product.cpp."""

from torch import Tensor

from ...native import native
from .arguments import address, dense_like, narrowed, readable, readable_or_none, shape, tokens, wide, wide_like


def forward(g: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `lada_kernels.reference.gated_product.forward`."""
    g, k, v = wide(g, k), readable(k), readable(v)
    out = dense_like(k)
    native.gated_product_forward(shape(k), address(g), tokens(k), tokens(v), tokens(out))
    return out


def backward(needs: list[bool], grad: Tensor, g: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.backward`."""
    gate_dtype = g.dtype
    grad, g, k, v = readable(grad), wide(g, k), readable(k), readable(v)
    grad_g, grad_k, grad_v = wide_like(g, k), dense_like(k, needs[1]), dense_like(v, needs[2])
    native.gated_product_backward(
        shape(k), address(g), tokens(grad), tokens(k), tokens(v), address(grad_g), tokens(grad_k), tokens(grad_v)
    )
    return narrowed(grad_g, gate_dtype), grad_k, grad_v


def double_backward(
    needs: list[bool],
    cot_g: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    g: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.double_backward`."""
    gate_dtype = g.dtype
    grad, g, k, v = readable(grad), wide(g, k), readable(k), readable(v)
    cot_g, cot_k, cot_v = wide(cot_g, k), readable_or_none(cot_k), readable_or_none(cot_v)
    out_grad, out_g = dense_like(grad, needs[0]), wide_like(g, k)
    out_k, out_v = dense_like(k, needs[2]), dense_like(v, needs[3])
    native.gated_product_double_backward(
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
        tokens(out_k),
        tokens(out_v),
    )
    return out_grad, narrowed(out_g, gate_dtype), out_k, out_v
