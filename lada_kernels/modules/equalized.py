"""Layers with an equalised learning rate, and the mapping network made of them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.ops.convolution import convolution


class EqualizedLinear(nn.Module):
    """`torch.nn.Linear` whose weights all begin as standard normals, and are scaled when used (Karras et al. 2018).

    ``y = x (c W)^T + m b`` with c = m / sqrt(in_features): an optimiser that normalises its steps, as Adam does, then learns at
    the same speed in every layer, ``lr_multiplier`` m times as fast as elsewhere.

    Args:
        in_features, out_features: channels before and after.
        bias: learn b, zeros at first.
        lr_multiplier: m; the weights begin as standard normals divided by it.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        lr_multiplier: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.lr_multiplier = in_features, out_features, lr_multiplier
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features, **factory_kwargs) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_features, **factory_kwargs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        bias = None if self.bias is None else self.bias * self.lr_multiplier
        return functional.linear(x, self.weight * self.scale, bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"lr_multiplier={self.lr_multiplier}"
        )


def linear_kind(equalized: bool) -> type[nn.Linear] | type[EqualizedLinear]:
    """Which layer a module projects with that offers both."""
    return EqualizedLinear if equalized else nn.Linear


class EqualizedConv2d(nn.Module):
    """`torch.nn.Conv2d` with an equalised learning rate, as in `EqualizedLinear` (Karras et al. 2018).

    ``y = gain (c W * x + b)`` with c = (in_channels kernel_size^2)^-1/2. A LeakyReLU commutes with a positive factor:
    StyleGAN's sqrt(2) behind it may be given here as ``gain``, where it costs nothing.

    Args:
        in_channels, out_channels: before and after.
        kernel_size: side of the kernel.
        stride, padding: as in `torch.nn.Conv2d`.
        bias: learn b, zeros at first.
        gain: a factor on the result.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        gain: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.stride, self.padding, self.gain = stride, padding, gain
        self.scale = gain / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size, **factory_kwargs))
        self.bias = nn.Parameter(torch.zeros(out_channels, **factory_kwargs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W'], H' and W' as in `torch.nn.Conv2d`."""
        bias = None if self.bias is None else self.bias * self.gain
        return convolution(x, self.weight * self.scale, bias, (self.stride, self.stride), (self.padding, self.padding))

    def extra_repr(self) -> str:
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return (
            f"{in_channels}, {out_channels}, kernel_size={kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"bias={self.bias is not None}, gain={self.gain}"
        )


class MappingNetwork(nn.Module):
    """Latents to what modulates a generator (Karras et al. 2019): normalised to length sqrt(dim), then dense layers.

    Each layer is an `EqualizedLinear` followed by sqrt(2) LeakyReLU(0.2), which keeps the variance of its input.

    Args:
        dim: values of a latent, and of what comes out.
        layers: how many.
        lr_multiplier: see `EqualizedLinear`.
        eps: added to the mean square that a latent is divided by the root of.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        dim: int,
        layers: int = 8,
        lr_multiplier: float = 0.01,
        eps: float = 1e-8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.eps = eps
        self.layers = nn.ModuleList(
            EqualizedLinear(dim, dim, lr_multiplier=lr_multiplier, **factory_kwargs) for _ in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """[B, dim] -> [B, dim]."""
        w = z * (z.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        for layer in self.layers:
            w = math.sqrt(2) * functional.leaky_relu(layer(w), 0.2)
        return w
