r"""Conv2d whose double backward is three plain convolutions: the largest share of R1 in LadaGAN's discriminator.

A convolution y = x ∗ w is bilinear, and so are the two maps of its backward, x̄ = adj_w(ȳ) and w̄ = corr(x, ȳ). Given
cotangents X, W, Β of x̄, w̄ and b̄ = Σ ȳ:

    ∂ȳ = X ∗ w + x ∗ W + Β        ∂x = adj_W(ȳ)        ∂w = corr(X, ȳ)

all of which torch has as fused kernels. Its own double backward reaches ∂w through a convolution of transposed copies,
with batch and channels exchanged.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from lada_kernels.ops import library


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, parameters included, with a lean double backward.

    Differentiable twice; a third derivative raises ``NotImplementedError``. Under autocast, where no R1 is taken, and
    with groups, dilation or padding other than zeros, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, H', W']."""
        plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros" and x.dim() == 4
        if not plain or isinstance(self.padding, str) or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return _Conv.apply(x, self.weight, self.bias, self.stride, self.padding)


class _Conv(Function):
    @library.positional
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return (None,) * 5
        return *_ConvBackward.apply(ctx.needs_input_grad[:3], grad, *ctx.saved_tensors, ctx.geometry), None, None


class _ConvBackward(Function):
    @library.positional
    def forward(
        needs: tuple[bool, ...], grad: Tensor, x: Tensor, weight: Tensor, geometry: list
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return _fused_backward(grad, x, weight, geometry, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *tensors, ctx.geometry = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 5
        args = (ctx.needs_input_grad[1:4], *cotangents, *ctx.saved_tensors, ctx.geometry)
        return None, *library.LastOrder.apply("Conv2d", _double_backward, *args), None


def _fused_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: list, needs: tuple[bool, ...]) -> tuple:
    stride, padding = geometry
    backward = torch.ops.aten.convolution_backward
    return backward(grad, x, weight, [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], 1, list(needs))


def _double_backward(
    needs: tuple[bool, ...],
    cot_x: Tensor | None,
    cot_weight: Tensor | None,
    cot_bias: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: list,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    out_grad = out_x = out_weight = None
    if needs[0]:
        out_grad = None if cot_x is None else functional.conv2d(cot_x, weight, cot_bias, *geometry)
        if cot_weight is not None:
            through_weight = functional.conv2d(x, cot_weight, cot_bias if out_grad is None else None, *geometry)
            out_grad = through_weight if out_grad is None else out_grad + through_weight
        elif out_grad is None:
            out_grad = cot_bias[:, None, None].expand_as(grad)
    if needs[1] and cot_weight is not None:
        out_x = _fused_backward(grad, x, cot_weight, geometry, (True, False, False))[0]
    if needs[2] and cot_x is not None:
        out_weight = _fused_backward(grad, cot_x, weight, geometry, (False, True, False))[1]
    return out_grad, out_x, out_weight
