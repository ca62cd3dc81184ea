"""l2_attention by dot-product attention with a bias of each key: torch's fused forward, gradients in blocks of rows."""

from torch import Tensor

from ...reference import l2_attention as reference
from ...reference.precision import accumulate_dtype, widen
from .dot_product_attention import attend, gradients, second_gradients


def forward(qk: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    """As `lada_kernels.reference.l2_attention.forward`; 16-bit qk keeps its mean, as what that leaves would be rounded.

    The products of 16-bit numbers are exact in float32, where the fused kernels add them up, and the bias is as exact.
    """
    if return_weights:
        return reference.forward(qk, v, scale, True)
    x = reference.centred(qk) if accumulate_dtype(qk.dtype) == qk.dtype else qk
    (wide_x,) = widen(x.dtype, x)
    return attend(x, x, v, reference.bias_of(wide_x, scale), 2 * scale), None


def backward(grad: Tensor, qk: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """As the reference's."""
    return reference.backward(grad, qk, v, scale, gradients)


def double_backward(
    cot_qk: Tensor | None, cot_v: Tensor | None, grad: Tensor, qk: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """As the reference's."""
    return reference.double_backward(cot_qk, cot_v, grad, qk, v, scale, second_gradients)
