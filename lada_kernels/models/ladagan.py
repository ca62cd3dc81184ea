"""LadaGAN: generator and discriminator on linear additive attention (arXiv 2401.09596).

Positional arguments, parameter names, shapes and order are those of the official PyTorch code, so its
checkpoints load with ``strict=True``. The keyword arguments add what the official TensorFlow code has
beyond it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.models.flavor import Flavor, init_weights, resolve_flavor
from lada_kernels.modules import BatchNorm2d, Ladaformer, SMLadaformer
from lada_kernels.modules.convolution import Conv2d
from lada_kernels.modules.feature_map import to_feature_map, to_tokens
from lada_kernels.modules.resample import MeanPool

LEAKY_SLOPE = 0.2


class Generator(nn.Module):
    """Latents to images: three self-modulated Ladaformers at 8x8, 16x16 and 32x32, then patches or a decoder.

    Between the blocks a pixel shuffle doubles the side, quarters the channels, and a 3x3 convolution takes
    them to the next width. After the last block either a pixel shuffle unfolds every token into a patch of
    (img_size/32)^2 pixels (the default), or ``decoder_dim`` upsamples by convolutions. Image values are
    unbounded, trained towards [-1, 1].

    Args:
        img_size: side of the image: 32, 64, 128 or 256.
        dim: widths at 8x8, 16x16 and 32x32. The official PyTorch code knows
            dim[i+1] = dim[i]/4 only; here widths may expand.
        noise_dim: values per latent, standard normal.
        heads: attention heads per block; each must divide its width.
        mlp_dim: hidden MLP width per block.
        decoder_dim: one width per doubling from 32 to ``img_size``, each stage nearest x2, 3x3 convolution,
            BatchNorm, LeakyReLU; None: patches. The paper's FFHQ-128 model has dim (1024, 512, 256) and
            decoder_dim (128, 64).
        flavor: ``"torch"``, ``"tf"`` or a ``Flavor``: initialisation and numerical conventions.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: an argument does not fit, named in the message; z is not [B, noise_dim].
    """

    def __init__(
        self,
        img_size: int = 64,
        dim: Sequence[int] = (1024, 256, 64),
        noise_dim: int = 128,
        heads: Sequence[int] = (4, 4, 4),
        mlp_dim: Sequence[int] = (512, 512, 512),
        *,
        decoder_dim: Sequence[int] | None = None,
        flavor: Flavor | str = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        flavor = resolve_flavor(flavor)
        self.noise_dim = noise_dim
        self.patch_size = _check_generator(img_size, dim, heads, mlp_dim, decoder_dim)

        def block(i: int) -> SMLadaformer:
            return SMLadaformer(dim[i], noise_dim, heads[i], mlp_dim[i], **factory_kwargs)

        self.init = nn.Sequential(nn.Linear(noise_dim, 64 * dim[0], bias=False, **factory_kwargs))
        self.block_64 = block(0)
        self.pos_64 = nn.Parameter(torch.empty(1, 64, dim[0], **factory_kwargs))
        self.conv_256 = Conv2d(dim[0] // 4, dim[1], 3, padding=1, **factory_kwargs)
        self.block_256 = block(1)
        self.pos_256 = nn.Parameter(torch.empty(1, 256, dim[1], **factory_kwargs))
        self.conv_1024 = Conv2d(dim[1] // 4, dim[2], 3, padding=1, **factory_kwargs)
        self.block_1024 = block(2)
        self.pos_1024 = nn.Parameter(torch.empty(1, 1024, dim[2], **factory_kwargs))
        self.decoder = _decoder(dim[2], decoder_dim, flavor, **factory_kwargs) if decoder_dim else None
        channels = decoder_dim[-1] if decoder_dim else dim[2] // self.patch_size**2
        self.ch_conv = Conv2d(channels, 3, 3, padding=1, **factory_kwargs)
        init_weights(self, flavor)

    def forward(self, z: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Turn z [B, noise_dim] into images [B, 3, img_size, img_size].

        With ``return_weights`` also the blocks' attention maps: [B, H, 64], [B, H, 256], [B, H, 1024],
        tokens in rows of the 8x8, 16x16 and 32x32 map; not differentiable.
        """
        if z.dim() != 2 or z.shape[1] != self.noise_dim:
            raise ValueError(f"z: got shape {list(z.shape)}, expected [B, noise_dim] with noise_dim = {self.noise_dim}")
        attention = []
        x = self.init(z).unflatten(1, (64, -1))  # [B, 64, dim[0]]
        for side, conv, pos, block in (
            (8, None, self.pos_64, self.block_64),
            (16, self.conv_256, self.pos_256, self.block_256),
            (32, self.conv_1024, self.pos_1024, self.block_1024),
        ):
            if conv is not None:
                x = to_tokens(conv(functional.pixel_shuffle(to_feature_map(x, side // 2, side // 2), 2)))
            x = block(x + pos, z, return_weights=return_weights)  # [B, side^2, dim[i]]
            if return_weights:
                x, weights = x
                attention.append(weights)
        x = to_feature_map(x, 32, 32)
        if self.decoder is not None:
            x = self.decoder(x)
        elif self.patch_size > 1:
            x = functional.pixel_shuffle(x, self.patch_size)
        image = self.ch_conv(x)
        return (image, attention) if return_weights else image


class Discriminator(nn.Module):
    """Images to logits: a convolutional encoder down to 16x16, one Ladaformer over it, a head of 25 logits.

    Twice differentiable, as R1 needs. The images' side must be 16 * 2^(len(enc_dim) - 1): 2, 3, 4, 5 widths
    for 32, 64, 128, 256 pixels.

    Args:
        enc_dim: widths of the encoder; the first at full size, one more per halving.
        out_dim: the two widths of the head.
        heads: attention heads; must divide ``enc_dim[-1]``.
        mlp_dim: hidden MLP width.
        flavor: ``"torch"``, ``"tf"`` or a ``Flavor``: initialisation and numerical conventions.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: an argument does not fit, named in the message; the images have another size or channel
            count.
    """

    def __init__(
        self,
        enc_dim: Sequence[int] = (64, 128, 256),
        out_dim: Sequence[int] = (512, 1024),
        heads: int = 4,
        mlp_dim: int = 512,
        *,
        flavor: Flavor | str = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        flavor = resolve_flavor(flavor)
        if not enc_dim:
            raise ValueError("enc_dim: got no width, expected one or more")
        if len(out_dim) != 2:
            raise ValueError(f"out_dim: got {list(out_dim)}, expected two widths")
        width = enc_dim[-1]
        self.img_size = 16 * 2 ** (len(enc_dim) - 1)
        self.inp_conv = nn.Sequential(
            Conv2d(3, enc_dim[0], 3, padding=1, bias=False, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        self.encoder = nn.ModuleList(
            DownBlock(enc_dim[i], enc_dim[i + 1], flavor=flavor, **factory_kwargs) for i in range(len(enc_dim) - 1)
        )
        self.pos_256 = nn.Parameter(torch.empty(1, 256, width, **factory_kwargs))
        self.block_256 = Ladaformer(256, width, heads, mlp_dim, ln_eps=flavor.ln_eps, **factory_kwargs)
        self.conv_256 = Conv2d(4 * width, out_dim[0], 3, padding=1, **factory_kwargs)
        self.logits = nn.Sequential(
            Conv2d(out_dim[0], out_dim[1], 1, bias=False, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
            Conv2d(out_dim[1], 1, 4, bias=False, **factory_kwargs),
        )
        init_weights(self, flavor)

    def forward(self, x: Tensor) -> Tensor:
        """Judge x [B, 3, S, S], values in [-1, 1]: [B, 25], one logit per 4x4 window of the last 8x8 map."""
        if x.dim() != 4 or x.shape[1:] != (3, self.img_size, self.img_size):
            expected = f"[B, 3, {self.img_size}, {self.img_size}]"
            raise ValueError(f"x: got shape {list(x.shape)}, expected {expected} for {len(self.encoder) + 1} widths in enc_dim")
        x = self.inp_conv(x)
        for down in self.encoder:
            x = down(x)
        x = self.block_256(to_tokens(x) + self.pos_256)  # [B, 256, enc_dim[-1]]
        x = functional.pixel_unshuffle(to_feature_map(x, 16, 16), 2)  # [B, 4 enc_dim[-1], 8, 8]
        return self.logits(self.conv_256(x)).flatten(1)  # [B, 25]


class DownBlock(nn.Module):
    """Halves a map's sides: the mean of a two-convolution path and of a pooled 1x1 path."""

    def __init__(
        self,
        in_planes: int,
        out_planes: int,
        *,
        flavor: Flavor | str = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        flavor = resolve_flavor(flavor)
        halving = SamePadConv2d if flavor.same_pad else Conv2d
        self.main = nn.Sequential(
            halving(in_planes, out_planes, 3, 2, 0 if flavor.same_pad else 1, bias=False, **factory_kwargs),
            _batch_norm(out_planes, flavor, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
            Conv2d(out_planes, out_planes, 3, padding=1, bias=False, **factory_kwargs),
            _batch_norm(out_planes, flavor, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )
        self.direct = nn.Sequential(
            MeanPool(),
            Conv2d(in_planes, out_planes, 1, bias=False, **factory_kwargs),
            _batch_norm(out_planes, flavor, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] -> [B, out_planes, H/2, W/2]; H and W even."""
        return (self.main(x) + self.direct(x)) / 2


class SamePadConv2d(Conv2d):
    """For 3x3 kernels of stride 2: pads 0 before and 1 after, as TensorFlow's "same" does for even sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H/2, W/2]; H and W even."""
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def _batch_norm(channels: int, flavor: Flavor, **factory_kwargs: Any) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=flavor.bn_eps, momentum=flavor.bn_momentum, **factory_kwargs)


def _decoder(channels: int, widths: Sequence[int], flavor: Flavor, **factory_kwargs: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Upsample(scale_factor=2, mode="nearest"),
            Conv2d(channels, width, 3, padding=1, **factory_kwargs),
            _batch_norm(width, flavor, **factory_kwargs),
            nn.LeakyReLU(LEAKY_SLOPE),
        ]
        channels = width
    return nn.Sequential(*layers)


def _check_generator(
    img_size: int,
    dim: Sequence[int],
    heads: Sequence[int],
    mlp_dim: Sequence[int],
    decoder_dim: Sequence[int] | None,
) -> int:
    """Check the generator's arguments and return the side of the patch that one token becomes."""
    if img_size not in (32, 64, 128, 256):
        raise ValueError(f"img_size: got {img_size}, expected 32, 64, 128 or 256")
    for name, values in (("dim", dim), ("heads", heads), ("mlp_dim", mlp_dim)):
        if len(values) != 3:
            raise ValueError(f"{name}: got {list(values)}, expected three values, one per block")
    for i in (0, 1):
        if dim[i] % 4:
            raise ValueError(f"dim[{i}]: got {dim[i]}, expected a multiple of 4, as a 2x2 pixel shuffle follows")
    doublings = (img_size // 32).bit_length() - 1
    if decoder_dim:
        if len(decoder_dim) != doublings:
            raise ValueError(
                f"decoder_dim: got {list(decoder_dim)}, expected {doublings} widths, "
                f"one per doubling from 32 to img_size = {img_size}"
            )
        return 1
    patch_size = img_size // 32
    if dim[2] % patch_size**2:
        raise ValueError(
            f"dim[2]: got {dim[2]}, expected a multiple of {patch_size**2} for img_size = {img_size}, "
            f"as each token becomes {patch_size}x{patch_size} pixels"
        )
    return patch_size
