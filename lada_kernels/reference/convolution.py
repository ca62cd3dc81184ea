r"""The convolution of maps to second order, in convolutions whose kernels are no larger than its own.

y = w * x, its input's gradient x̄(ȳ, w) and its kernel's w̄(ȳ, x) are one trilinear form, ⟨ȳ, w * x⟩ = ⟨x̄, x⟩ = ⟨w̄, w⟩, so the
derivatives of each are the other two. Double backward, given cotangents X of x̄ and W of w̄:

    ∂ȳ = w * X + W * x      ∂x = x̄(ȳ, W)      ∂w = w̄(ȳ, X)

torch takes these from convolutions whose kernels are as large as maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .types import MaybeTensor


def forward(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """x [B,C,H,W], weight [C',C,h,w] -> [B,C',H',W']."""
    return functional.conv2d(_maps(x), weight, None, stride, padding)


def backward(
    needs: Sequence[bool], grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    """grad like y -> gradients of x and weight; one that is not needed is None."""
    options = (None, stride, padding, (1, 1), False, (0, 0), 1)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(_maps(grad), _maps(x), weight, *options, [*needs, False])
    return laid_out(grad_x, x), laid_out(grad_weight, weight)


def double_backward(
    needs: Sequence[bool],
    cot_x: Tensor | None,
    cot_weight: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Cotangents of backward's results (None = zero) -> gradients of (grad, x, weight); one that is not needed is None."""
    needs_grad, needs_x, needs_weight = needs
    out_grad = out_x = out_weight = None
    if needs_grad:
        terms = [] if cot_x is None else [forward(cot_x, weight, stride, padding)]
        terms += [] if cot_weight is None else [forward(x, cot_weight, stride, padding)]
        out_grad = sum(terms[1:], terms[0])
    if needs_x:
        out_x = torch.zeros_like(x)
        if cot_weight is not None:
            out_x, _ = backward((True, False), grad, x, cot_weight, stride, padding)
    if needs_weight:
        out_weight = torch.zeros_like(weight)
        if cot_x is not None:
            _, out_weight = backward((False, True), grad, cot_x, weight, stride, padding)
    return laid_out(out_grad, grad), out_x, out_weight


def _maps(x: Tensor) -> Tensor:
    """x in the layout that torch convolves fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def laid_out(result: MaybeTensor, like: Tensor) -> MaybeTensor:
    """The result in the strides that `torch.empty_like` gives it."""
    if result is None:
        return None
    wanted = torch.empty_like(like)
    return result if result.stride() == wanted.stride() else wanted.copy_(result)
