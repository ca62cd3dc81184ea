r"""Convolutions whose weights a style modulates (Karras et al. 2020, StyleGAN2), and the layers made of them.

With weights W [out, in, k, k], scaled by c = 1 / sqrt(in k^2), and a style s [B, in] of every item,

    w'_bois = s_bi c W_ois        w''_bois = w'_bois / (Σ_is w'_bois^2 + ε)^1/2

and item b is convolved with w''_b. Since s depends on input channels alone and the divisor d on output channels alone, the
same comes of scaling the input by s, one convolution with c W for the whole batch, and scaling its output by 1 / d, where
d_bo^2 = Σ_i s_bi^2 Σ_s (c W_ois)^2 + ε is a product of two matrices: no batch of weights is ever formed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.modules.equalized import EqualizedLinear
from lada_kernels.modules.resample import Blur

_EPS = 1e-8


class ModulatedConv2d(nn.Module):
    """A convolution whose weights are modulated by a style, and demodulated, so that outputs have unit variance again.

    Parameters: ``weight`` [out, in, k, k], standard normal at first, with an equalised learning rate; ``style``, an
    `EqualizedLinear` from what modulates to one factor per input channel, its bias 1 at first. Any float dtype; the divisor is
    computed in float32 at least. Differentiable twice.

    Args:
        in_channels, out_channels: of the map.
        kernel_size: side of the kernel, odd.
        style_dim: values per item that modulate.
        demodulate: divide by the norm of the modulated weights.
        upsample: double the sides: a transposed convolution of stride 2, then the blur of `BlurUpsample`; only with a
            ``kernel_size`` of 1, 3 or 5.
        gain: a factor on the result.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``kernel_size`` does not fit; the input is not [B, in_channels, H, W], or the style not [B, style_dim].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        demodulate: bool = True,
        upsample: bool = False,
        *,
        gain: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        if kernel_size < 1 or kernel_size % 2 == 0 or (upsample and kernel_size > 5):
            expected = "1, 3 or 5 to upsample" if upsample else "an odd number above 0"
            raise ValueError(f"kernel_size: got {kernel_size}, expected {expected}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.style_dim, self.demodulate, self.gain = style_dim, demodulate, gain
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size, **factory_kwargs))
        self.style = EqualizedLinear(style_dim, in_channels, **factory_kwargs)
        nn.init.ones_(self.style.bias)
        # The padding that centres the blur between the pixels whose zeros it fills.
        self.blur = Blur(padding=(5 - kernel_size) // 2, gain=4.0, **factory_kwargs) if upsample else None

    def forward(self, x: Tensor, style: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve every item with its own weights.

        Args:
            x: [B, in_channels, H, W].
            style: [B, style_dim].
            bias: [out_channels], added to the result.

        Returns:
            [B, out_channels, H, W], or [B, out_channels, 2H, 2W] if it upsamples.
        """
        self._check(x, style)
        factors = self.style(style)  # [B, in]
        weight = self.weight * (self.scale if self.demodulate else self.scale * self.gain)
        norms = self._norms(factors, weight) if self.demodulate else None
        # A 1x1 convolution to few channels has fewer weights than pixels, even one set per item.
        if self.kernel_size == 1 and self.blur is None and self.out_channels <= x.shape[2] * x.shape[3]:
            return self._modulate_weight(x, weight, factors, norms, bias)
        return self._modulate_maps(x, weight, factors, norms, bias)

    def _norms(self, factors: Tensor, weight: Tensor) -> Tensor:
        precise = torch.promote_types(factors.dtype, torch.float32)
        energy = weight.to(precise).square().sum((2, 3))  # [out, in]
        squares = functional.linear(factors.to(precise).square(), energy) + _EPS
        return (self.gain * squares.rsqrt()).to(factors.dtype)  # [B, out]

    def _modulate_maps(self, x: Tensor, weight: Tensor, factors: Tensor, norms: Tensor | None, bias: Tensor | None) -> Tensor:
        x = x * factors[:, :, None, None]
        if self.blur is None:
            x = functional.conv2d(x, weight, padding=self.kernel_size // 2)
        else:
            x = self.blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        if bias is not None:
            bias = bias[:, None, None].to(x.dtype)
        if norms is None:
            return x if bias is None else x + bias
        norms = norms[:, :, None, None].to(x.dtype)
        return x * norms if bias is None else torch.addcmul(bias, x, norms)

    def _modulate_weight(self, x: Tensor, weight: Tensor, factors: Tensor, norms: Tensor | None, bias: Tensor | None) -> Tensor:
        weight = weight.flatten(1) * factors[:, None]  # [B, out, in]
        if norms is not None:
            weight = weight * norms[:, :, None]
        pixels = x.flatten(2)  # [B, in, H * W]
        if bias is None:
            return torch.bmm(weight, pixels).unflatten(2, x.shape[2:])
        return torch.baddbmm(bias[:, None].to(x.dtype), weight, pixels).unflatten(2, x.shape[2:])

    def _check(self, x: Tensor, style: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x: got shape {list(x.shape)}, expected [B, in_channels, H, W] with in_channels = {self.in_channels}"
            )
        if style.shape != (x.shape[0], self.style_dim):
            raise ValueError(f"style: got shape {list(style.shape)}, expected [B, style_dim] = [{len(x)}, {self.style_dim}]")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, demodulate={self.demodulate}, "
            f"upsample={self.blur is not None}, gain={self.gain}"
        )


class StyledConv2d(nn.Module):
    """StyleGAN2's layer: `ModulatedConv2d`, noise, a bias, and sqrt(2) LeakyReLU(0.2), which keeps the variance.

    The noise is one standard normal value per item and pixel, the same for all channels, times ``strength``, which is learned
    and 0 at first. It is added in training mode only: in evaluation mode a style always gives the same map.

    Args:
        in_channels, out_channels, kernel_size, style_dim, upsample: see `ModulatedConv2d`.
        noise: add noise in training mode; without it there is no ``strength``.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        upsample: bool = False,
        noise: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        # The slope of a LeakyReLU does not depend on scale: sqrt(2) may as well go before it, into what is multiplied anyway.
        options = {"upsample": upsample, "gain": math.sqrt(2)}
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel_size, style_dim, **options, **factory_kwargs)
        self.bias = nn.Parameter(torch.zeros(out_channels, **factory_kwargs))
        self.strength = nn.Parameter(torch.zeros((), **factory_kwargs)) if noise else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x [B, in_channels, H, W], style [B, style_dim] -> [B, out_channels, H, W], or twice the sides if it upsamples."""
        x = self.conv(x, style, self.bias * self.conv.gain)
        if self.training and self.strength is not None:
            x = x + (self.strength * self.conv.gain).to(x.dtype) * torch.randn_like(x[:, :1])
        return functional.leaky_relu(x, 0.2)


class ToRGB(nn.Module):
    """Maps to images: a `ModulatedConv2d` of ``kernel_size`` 1 without demodulation, and a bias, zeros at first.

    Args:
        in_channels: of the map.
        style_dim: values per item that modulate.
        channels: of the image.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        style_dim: int,
        channels: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.conv = ModulatedConv2d(in_channels, channels, 1, style_dim, demodulate=False, **factory_kwargs)
        self.bias = nn.Parameter(torch.zeros(channels, **factory_kwargs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x [B, in_channels, H, W], style [B, style_dim] -> [B, channels, H, W]."""
        return self.conv(x, style, self.bias)
