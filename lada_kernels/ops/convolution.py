"""The convolution of maps, differentiable twice at the cost of convolutions alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from ..reference import convolution as reference
from ..reference.precision import autocast_dtype
from .define import Op

_weight_gradients = True


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """`torch.nn.functional.conv2d` whose second derivatives are convolutions with kernels no larger than `weight`.

    Under autocast it is torch's own.

    Args:
        x: [B, C, H, W]; on the CPU channels-last saves a copy, and the result is so.
        weight: [C', C, h, w] in x's dtype.
        bias: [C'], or None.
        stride, padding: of both directions.

    Returns:
        [B, C', H', W'].

    Raises:
        NotImplementedError: in a third derivative.
    """
    if autocast_dtype(x.device.type) is not None:
        return functional.conv2d(x, weight, bias, stride, padding)
    y = _convolution(x, weight, list(stride), list(padding))
    return y if bias is None else y + bias[:, None, None]


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside, in the whole process, gradients pass through `convolution` to its input alone: for R1, which asks for no others.

    torch does not tell a function which gradients the caller of `torch.autograd.grad` wants. Those left out are None; second
    derivatives, taken outside, are complete. As StyleGAN3's function of this name.
    """
    global _weight_gradients
    before, _weight_gradients = _weight_gradients, False
    try:
        yield
    finally:
        _weight_gradients = before


def _wanted(needs: list[bool]) -> list[bool]:
    needs_x, needs_weight = needs
    return [needs_x, needs_weight and _weight_gradients]


_convolution = Op[Tensor](
    "convolution",
    reference.forward,
    inputs=("x", "weight"),
    settings=("int[] stride", "int[] padding"),
    results=("out",),
    gradients=("x", "weight"),
    saved=("x", "weight"),
    primary="x",
    empty=torch.empty_like,
    wanted=_wanted,
)
