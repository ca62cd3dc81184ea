r"""The convolution of maps, whose second derivatives cost what its first do; on the CPU with fewer multiplications.

A convolution y = w * x, its input's gradient x̄(ȳ, w) and its kernel's w̄(ȳ, x) are three faces of one trilinear form,
⟨ȳ, w * x⟩ = ⟨x̄, x⟩ = ⟨w̄, w⟩, so the derivatives of each are the other two, to any order. torch takes the second ones from
convolutions whose kernels are as large as maps.

Winograd's form, in `lada_kernels.backends.cpu.convolution`, has the same three faces over the kernel's spectrum, which is
linear in w and formed once for all orders.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from ..backends import chosen
from ..backends.cpu import convolution as winograd
from ..reference.precision import autocast_dtype
from . import library

# Channels, on either side, from which Winograd's tiles are worth their transformation; measured on a CPU.
_WORTH_TILES = 64

_to_weights = True


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """`torch.nn.functional.conv2d` to any order: x [B, C, H, W], weight [C', C, h, w] -> [B, C', H', W'].

    On the CPU the result is channels-last in memory. In float32, 3x3 kernels of stride 1 between 64 and more channels, on maps
    of even sides, are applied in Winograd's form, which rounds about as much as the sum does. Compiled, or under autocast,
    which second derivatives do not survive, it is torch's own.
    """
    if torch.compiler.is_compiling() or autocast_dtype(x.device.type) is not None:
        return functional.conv2d(x, weight, bias, stride, padding)
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    if _worth_tiles(x, weight, stride, padding):
        y = _Convolve.apply(_Winograd, x, winograd.spectrum(weight))
    else:
        y = _Convolve.apply(_Direct(x, weight, stride, padding), x, weight)
    return y if bias is None else y + bias[:, None, None]


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Inside, in the whole process, gradients pass through `convolve` to its input alone: for R1, which asks for no others.

    torch does not tell a function in Python which gradients the caller of `torch.autograd.grad` wants. Those left out are None;
    second derivatives, taken outside, are complete.
    """
    global _to_weights
    before, _to_weights = _to_weights, False
    try:
        yield
    finally:
        _to_weights = before


def _worth_tiles(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and stride == padding == (1, 1)
        and min(weight.shape[:2]) >= _WORTH_TILES
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.numel() > 0
        and chosen("gated_product", x) == "cpu"  # which is built, and is not told to stay away
    )


class _Direct:
    """The three faces as torch computes them."""

    def __init__(self, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> None:
        self.x_shape, self.weight_shape, self.stride, self.padding = x.shape, weight.shape, stride, padding

    def output(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, self.stride, self.padding)

    def input(self, grad: Tensor, weight: Tensor) -> Tensor:
        return self._gradient(0, grad, _unread(self.x_shape, grad), weight)

    def kernel(self, grad: Tensor, x: Tensor) -> Tensor:
        return self._gradient(1, grad, x, _unread(self.weight_shape, grad))

    def _gradient(self, wanted: int, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        mask = [i == wanted for i in range(3)]
        options = (None, self.stride, self.padding, (1, 1), False, (0, 0), 1)
        return torch.ops.aten.convolution_backward(grad, x, weight, *options, mask)[wanted]


def _unread(shape: torch.Size, like: Tensor) -> Tensor:
    """In place of a tensor of which torch looks at the shape alone, in a layout that makes it copy nothing."""
    layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _maps(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class _Winograd:
    """The three faces over tiles, for the spectrum of a kernel; opaque calls to torch."""

    output = staticmethod(
        library.register(
            "winograd_output",
            "(Tensor x, Tensor spectrum) -> Tensor",
            winograd.output,
            lambda x, spectrum: _maps(x, spectrum.shape[1]),
        )
    )
    input = staticmethod(
        library.register(
            "winograd_input",
            "(Tensor grad, Tensor spectrum) -> Tensor",
            winograd.input,
            lambda grad, spectrum: _maps(grad, spectrum.shape[2]),
        )
    )
    kernel = staticmethod(
        library.register(
            "winograd_kernel",
            "(Tensor grad, Tensor x) -> Tensor",
            winograd.kernel,
            lambda grad, x: x.new_empty((16, grad.shape[1], x.shape[1])),
        )
    )


class _Convolve(Function):
    @library.positional
    def forward(form: Any, x: Tensor, weight: Tensor) -> Tensor:
        return form.output(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.form, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        return None, *_faces(ctx, (_Input, grad, weight), (_Kernel, grad, x) if _to_weights else None)


class _Input(Function):
    @library.positional
    def forward(form: Any, grad: Tensor, weight: Tensor) -> Tensor:
        return form.input(grad, weight)

    setup_context = _Convolve.setup_context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple:
        grad, weight = ctx.saved_tensors
        return None, *_faces(ctx, (_Convolve, cotangent, weight), (_Kernel, grad, cotangent))


class _Kernel(Function):
    @library.positional
    def forward(form: Any, grad: Tensor, x: Tensor) -> Tensor:
        return form.kernel(grad, x)

    setup_context = _Convolve.setup_context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple:
        grad, x = ctx.saved_tensors
        return None, *_faces(ctx, (_Convolve, x, cotangent), (_Input, grad, cotangent))


def _faces(ctx: Any, *wanted: tuple[type[Function], Tensor, Tensor] | None) -> list[Tensor | None]:
    """What is needed of two gradients, each a function of two tensors."""
    pairs = zip(ctx.needs_input_grad[1:], wanted, strict=True)
    return [face[0].apply(ctx.form, *face[1:]) if needed and face else None for needed, face in pairs]
