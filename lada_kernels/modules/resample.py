"""Resampling behind a [1, 3, 3, 1] blur, which keeps aliases out (Karras et al. 2019, 2020; Zhang 2019)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input

_TAPS = (1.0, 3.0, 3.0, 1.0)


class Blur(nn.Module):
    """Every channel convolved with the outer product of [1, 3, 3, 1] with itself, whose sum is ``gain``; zeros around the map.

    Differentiable any number of times: the blur is linear, and its gradient is its own adjoint. float32, float64, bfloat16 or
    float16, any number of channels. The kernel is a buffer that is not saved.

    Args:
        padding: zeros on every side, not negative.
        stride: from one value kept to the next.
        gain: what a constant map is multiplied by, away from its border.
        device, dtype: of the kernel, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``padding`` is negative or ``stride`` not positive; the input is not [B, C, H, W], or too small.
    """

    def __init__(
        self,
        padding: int = 1,
        stride: int = 1,
        gain: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if padding < 0 or stride < 1:
            raise ValueError(f"padding, stride: got {padding}, {stride}, expected 0 or more, 1 or more")
        self.padding, self.stride, self.gain = padding, stride, gain
        self.register_buffer("kernel", _kernel(gain, device, dtype), persistent=False)
        # `torch.nn.utils.skip_init` leaves it undefined, and no checkpoint holds it.
        self.register_load_state_dict_post_hook(_fill_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W'], H' = floor((H + 2 padding - 4) / stride) + 1 and W' likewise."""
        _check_map(x, max(1, len(_TAPS) - 2 * self.padding))
        return _applied(_Correlate, x, self.kernel, self.padding, self.stride)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, stride={self.stride}, gain={self.gain}"


class BlurDownsample(Blur):
    """Halves a map's sides: the blur, centred between the pixels of each 2x2 square, at every second of them."""

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(padding=1, stride=2, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, floor(H/2), floor(W/2)]; H and W at least 2."""
        return super().forward(x)


class BlurUpsample(Blur):
    """Doubles a map's sides: zeros put between the pixels, then the blur with gain 4, which makes up for them.

    Four times the adjoint of `BlurDownsample`; away from the border, bilinear interpolation.
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(padding=1, stride=2, gain=4.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        _check_map(x, 1)
        return _applied(_Adjoint, x, self.kernel, self.padding, self.stride, (2 * x.shape[2], 2 * x.shape[3]))


class MeanPool(nn.Module):
    """Halves a map's sides by the mean of each 2x2 square: `torch.nn.AvgPool2d(2)`, whose gradient copies channels-last maps.

    Differentiable any number of times.

    Raises:
        ValueError: the input is not [B, C, H, W] of even sides.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, C, H, W] with H and W even")
        return _applied(_Mean, x)


def _kernel(gain: float, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    taps = torch.tensor(_TAPS, device=device, dtype=dtype) / sum(_TAPS)
    return gain * torch.outer(taps, taps)


def _fill_kernel(blur: Blur, _: Any) -> None:
    blur.kernel.copy_(_kernel(blur.gain, blur.kernel.device, blur.kernel.dtype))


def _check_map(x: Tensor, least: int) -> None:
    if x.dim() != 4 or min(x.shape[2:]) < least:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, C, H, W] with H and W at least {least}")


def _applied(function: type[Function], *args: Any) -> Tensor:
    """The function with its lean derivatives; compiled, with those of the operations inside, as R1 there needs them."""
    return function.forward(*args) if torch.compiler.is_compiling() else function.apply(*args)


def _depthwise(kernel: Tensor, x: Tensor) -> Tensor:
    return kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


# A pair of functions, each the other's gradient: torch's own second derivative of a depthwise convolution walks over channels.
class _Correlate(Function):
    @staticmethod
    def forward(x: Tensor, kernel: Tensor, padding: int, stride: int) -> Tensor:
        return functional.conv2d(x, _depthwise(kernel, x), padding=padding, stride=stride, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, kernel, ctx.padding, ctx.stride = inputs
        ctx.size = tuple(x.shape[2:])
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Adjoint.apply(grad, *ctx.saved_tensors, ctx.padding, ctx.stride, ctx.size), None, None, None


class _Adjoint(Function):
    @staticmethod
    def forward(y: Tensor, kernel: Tensor, padding: int, stride: int, size: tuple[int, int]) -> Tensor:
        shape = (*y.shape[:2], *size)
        return conv2d_input(shape, _depthwise(kernel, y), y, stride, padding, groups=y.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, kernel, ctx.padding, ctx.stride, _ = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Correlate.apply(grad, *ctx.saved_tensors, ctx.padding, ctx.stride), None, None, None, None


# A pair of functions like those above.
class _Mean(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Spread.apply(grad)


class _Spread(Function):
    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return functional.interpolate(y / 4, scale_factor=2, mode="nearest")

    setup_context = _Mean.setup_context

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Mean.apply(grad)
