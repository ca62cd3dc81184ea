"""StyleGAN2's residual discriminator (Karras et al. 2020), which ViTGAN's generator is best trained against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.modules import checks
from lada_kernels.modules.equalized import EqualizedConv2d, EqualizedLinear
from lada_kernels.modules.resample import Blur, BlurDownsample

LEAKY_SLOPE = 0.2
_GAIN = math.sqrt(2)  # of the activation, which keeps the variance
_EPS = 1e-8


class Discriminator(nn.Module):
    """Images to logits: residual blocks down to 4x4, the batch's deviation as one more channel, a dense head.

    Differentiable twice, as R1 needs. Nothing is random, in either mode, but an image's logit depends on the others of its
    group (`minibatch_deviation`), so real and generated images belong into separate calls. With the defaults, the 13,918,849
    parameters of ViTGAN's CIFAR-10 experiments.

    Args:
        img_size: side of the image, a power of two, at least 8.
        widths: channels at full size and after every halving down to 4x4, log2(img_size) - 1 of them. Default: 128, doubling up
            to 512.
        group: how many images are compared with each other at most; default 4.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: an argument does not fit, named in the message; the images have another size or channel count.
    """

    def __init__(
        self,
        img_size: int = 32,
        widths: Sequence[int] | None = None,
        *,
        group: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        if img_size < 8 or img_size & (img_size - 1):
            raise ValueError(f"img_size: got {img_size}, expected a power of two, 8 or more")
        checks.positive(group=group)
        count = img_size.bit_length() - 2
        if widths is None:
            widths = [min(128 << i, 512) for i in range(count)]
        if len(widths) != count:
            raise ValueError(f"widths: got {list(widths)}, expected {count} widths for img_size = {img_size}")
        for width in widths:
            checks.positive(widths=width)
        self.img_size, self.group = img_size, group
        last = widths[-1]
        self.from_rgb = EqualizedConv2d(3, widths[0], 1, gain=_GAIN, **factory_kwargs)
        self.blocks = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1], **factory_kwargs) for i in range(count - 1))
        self.conv = EqualizedConv2d(last + 1, last, 3, padding=1, gain=_GAIN, **factory_kwargs)
        self.dense = EqualizedLinear(16 * last, last, **factory_kwargs)
        self.logit = EqualizedLinear(last, 1, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Judge x [B, 3, S, S], values in [-1, 1]: one logit each, [B, 1]."""
        if x.dim() != 4 or x.shape[1:] != (3, self.img_size, self.img_size):
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, 3, {self.img_size}, {self.img_size}]")
        x = _activate(self.from_rgb(x))
        for block in self.blocks:
            x = block(x)
        deviation = minibatch_deviation(x, self.group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        x = _activate(self.conv(torch.cat((x, deviation), dim=1)))
        return self.logit(_GAIN * _activate(self.dense(x.flatten(1))))


class ResidualBlock(nn.Module):
    """Halves a map's sides: two activated convolutions, the second behind a blur, and a blurred linear path, over sqrt(2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3, padding=1, gain=_GAIN, **factory_kwargs)
        self.blur = Blur(padding=2, **factory_kwargs)
        # The sum's 1/sqrt(2) stands in the gains of its two terms, and cancels the activation's sqrt(2) in the first.
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3, stride=2, **factory_kwargs)
        self.downsample = BlurDownsample(**factory_kwargs)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, gain=1 / _GAIN, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H/2, W/2]; H and W even."""
        main = _activate(self.conv2(self.blur(_activate(self.conv1(x)))))
        return main + self.skip(self.downsample(x))


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """How much the items of a group differ: the standard deviation over the group, averaged (Karras et al. 2018).

    Groups are runs of neighbours: as few as hold at most ``group`` items each, their sizes differing by one at most, larger
    ones first. A batch of 8 makes 4 + 4, of 7 makes 4 + 3, of 5 makes 3 + 2. Alone in its group, an item has (1e-8)^1/2.

    Args:
        x: [B, ...], any float dtype; computed in float32 at least.
        group: items per group at most.

    Returns:
        [B], in x's dtype: one value per group, repeated for its items.
    """
    precise = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    groups = max(1, -(-len(x) // group))
    size, larger = divmod(len(x), groups)
    values = []
    for part, count in zip(precise.tensor_split([larger * (size + 1)]), (larger, groups - larger), strict=True):
        if len(part):
            members = part.unflatten(0, (count, -1))  # [groups, items, values]
            variance = members.var(1, correction=0)
            values.append((variance + _EPS).sqrt().mean(1).repeat_interleave(len(part) // count))
    return torch.cat(values).to(x.dtype) if values else x.new_empty(0)


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAKY_SLOPE)
