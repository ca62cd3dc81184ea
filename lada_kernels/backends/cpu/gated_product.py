"""gated_product by csrc/cpu/gated_product.cpp."""

import torch
from torch import Tensor

from ...native import native
from ..arguments import dense_like, narrowed, readable, readable_or_none, wide, wide_like
from .arguments import address, shape, tokens


def forward(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    """As `lada_kernels.reference.gated_product.forward`."""
    g, (k, v) = wide(g, k), _readable_halves(k, v)
    out = dense_like(k)
    native.gated_product_forward(shape(k), address(g), tokens(k), tokens(v), tokens(out))
    return out


def backward(
    needs: list[bool], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.backward`."""
    gate_dtype, results = g.dtype, _Results(k, v, needs[1:])
    grad, g, (k, v) = readable(grad), wide(g, k), _readable_halves(k, v)
    grad_g = wide_like(g, k)
    native.gated_product_backward(
        shape(k), address(g), tokens(grad), tokens(k), tokens(v), address(grad_g), tokens(results.k), tokens(results.v)
    )
    return narrowed(grad_g, gate_dtype), *results.whole


def double_backward(
    needs: list[bool],
    cot_g: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    g: Tensor,
    k: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.double_backward`."""
    gate_dtype, results = g.dtype, _Results(k, v, needs[2:])
    cot_k, cot_v = (readable_or_none(cot_k), readable_or_none(cot_v)) if v is not None else _readable_halves(cot_k, None)
    grad, g, cot_g, (k, v) = readable(grad), wide(g, k), wide(cot_g, k), _readable_halves(k, v)
    out_grad, out_g = dense_like(grad, needs[0]), wide_like(g, k)
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
        tokens(results.k),
        tokens(results.v),
    )
    return out_grad, narrowed(out_g, gate_dtype), *results.whole


def _readable_halves(k: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """k and v as the kernels read them; without v, the two halves of k."""
    if k is None:
        return None, None
    return readable(k).chunk(2, -1) if v is None else (readable(k), readable(v))


class _Results:
    """Dense results like k and v, as `whole` tensors and as what the kernels write to: where v is None, halves of one."""

    def __init__(self, k: Tensor, v: Tensor | None, needs: list[bool]) -> None:
        self.k, self.v = dense_like(k, needs[0]), None if v is None else dense_like(v, needs[1])
        self.whole = (self.k, self.v)
        if v is None and self.k is not None:
            self.k, self.v = torch.chunk(self.k, 2, -1)
