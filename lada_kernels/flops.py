"""Formulas for `torch.utils.flop_counter.FlopCounterMode`, which count our convolutions once this module is imported.

Torch's counter imports Triton: the package does not.
"""

from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from . import ops  # noqa: F401 - which registers the operators

Shape = list[int]


@register_flop_formula(torch.ops.lada_kernels.convolution)
def _forward(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return int(conv_flop_count(x, weight, out_shape))


@register_flop_formula(torch.ops.lada_kernels.convolution_backward)
def _backward(needs: list[bool], grad: Shape, x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return int(sum(needs) * conv_flop_count(x, weight, grad))


@register_flop_formula(torch.ops.lada_kernels.convolution_double_backward)
def _double_backward(
    needs: list[bool], cot_x: Shape | None, cot_weight: Shape | None, grad: Shape, x: Shape, weight: Shape, *_: Any, **__: Any
) -> int:
    needs_grad, needs_x, needs_weight = needs
    by_x, by_weight = cot_x is not None, cot_weight is not None
    count = needs_grad * (by_x + by_weight) + needs_x * by_weight + needs_weight * by_x
    return int(count * conv_flop_count(x, weight, grad))
