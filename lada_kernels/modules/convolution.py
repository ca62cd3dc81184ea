"""Conv2d whose double backward is worth having: what R1 pays for in LadaGAN's discriminator, beside its batch norm."""

import torch
from torch import Tensor, nn

from lada_kernels.ops.convolution import convolution


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, parameters included, with a lean double backward; as `lada_kernels.ops.convolution`.

    Differentiable twice; a third derivative raises ``NotImplementedError``. There are no groups, no dilation, and no padding
    but zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory_kwargs = {"device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return convolution(x, self.weight, self.bias, self.stride, self.padding)
