"""ViTGAN: vision transformers as a GAN (arXiv 2107.04589).

The official code holds the generator alone. The discriminator follows the paper; what the paper leaves open is said where it
is decided.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lada_kernels.modules import MappingNetwork, PatchEmbedding, SelfModulatedLayerNorm, SinePosition, checks
from lada_kernels.modules.feature_map import to_feature_map
from lada_kernels.modules.modulated import StyledConv2d, ToRGB
from lada_kernels.modules.norm import LayerNorm
from lada_kernels.modules.vit import StyledViTBlock, ViTBlock

_GRID = 8  # tokens along a side in the generator, at every image size


def _depth(blocks: int | None, img_size: int) -> int:
    if blocks is None:
        return 4 if img_size <= 32 else 6
    checks.positive(blocks=blocks)
    return blocks


class Generator(nn.Module):
    """Latents to images: transformer blocks over 8x8 positions, all content from the style, then a head that draws pixels.

    A mapping network turns z into the style w. The tokens start as the positions alone, sines of a linear function of their
    coordinates; w enters by the scale and shift of every norm, the last one's too. ``output="conv"`` draws by modulated
    convolutions (`ConvolutionalHead`), the variant that the official code recommends, ``"inr"`` by an implicit neural
    representation (`ImplicitHead`), the paper's.

    Images pass through tanh: discriminators of images in [-1, 1] cannot tell fakes by their range, and unlike a clamp it
    has a gradient everywhere and is the same in training and in evaluation. In evaluation mode z determines the image: the
    convolutions add noise in training only.

    Args:
        img_size: side of the image, a power of two from 16.
        noise_dim: values per latent, standard normal, and per style.
        dim: channels of a token.
        blocks: default 4 up to 32 pixels and 6 above, the paper's at 32 and 64; beyond those, our choice. The official code
            has 4 throughout.
        heads: attention heads per block; must divide ``dim``.
        mlp_dim: hidden MLP width.
        output: the head, see above.
        attention, residual, spectral_norm, ln_eps, gamma_offset: see `StyledViTBlock`. The official code has
            residual="official" and spectral_norm=True.
        equalized: `EqualizedLinear` in blocks and norms; mapping network and heads have an equalised learning rate anyway.
        inr_dim, inr_layers: see `ImplicitHead`; without effect on the other head.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: an argument does not fit, named in the message; z is not [B, noise_dim].
    """

    def __init__(
        self,
        img_size: int = 32,
        *,
        noise_dim: int = 384,
        dim: int = 384,
        blocks: int | None = None,
        heads: int = 6,
        mlp_dim: int = 1536,
        output: Literal["conv", "inr"] = "conv",
        attention: Literal["dot", "l2"] = "dot",
        residual: Literal["pre-norm", "official"] = "pre-norm",
        spectral_norm: bool = False,
        equalized: bool = True,
        ln_eps: float = 1e-3,
        gamma_offset: float = 1.0,
        inr_dim: int = 512,
        inr_layers: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if img_size < 2 * _GRID or img_size & (img_size - 1):
            raise ValueError(f"img_size: got {img_size}, expected a power of two, {2 * _GRID} or more")
        if output not in ("conv", "inr"):
            raise ValueError(f"output: got {output!r}, expected 'conv' or 'inr'")
        checks.positive(noise_dim=noise_dim, dim=dim, mlp_dim=mlp_dim)
        factory_kwargs = {"device": device, "dtype": dtype}
        modulation = {"equalized": equalized, "gamma_offset": gamma_offset}
        options = {"attention": attention, "residual": residual, "spectral_norm": spectral_norm, "ln_eps": ln_eps}
        self.noise_dim = noise_dim
        self.output = output
        self.mapping = MappingNetwork(noise_dim, **factory_kwargs)
        self.position = SinePosition(dim, **factory_kwargs)
        self.blocks = nn.ModuleList(
            StyledViTBlock(dim, heads, mlp_dim, noise_dim, **options, **modulation, **factory_kwargs)
            for _ in range(_depth(blocks, img_size))
        )
        self.norm = SelfModulatedLayerNorm(dim, noise_dim, eps=ln_eps, hidden=False, **modulation, **factory_kwargs)
        self.head = (
            ConvolutionalHead(dim, img_size, noise_dim, **factory_kwargs)
            if output == "conv"
            else ImplicitHead(dim, img_size, inr_dim, inr_layers, **factory_kwargs)
        )

    def forward(self, z: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Turn z [B, noise_dim] into images [B, 3, img_size, img_size], values in [-1, 1].

        With ``return_weights`` also the blocks' attention maps, [B, H, 64, 64] each, tokens in rows of the 8x8 grid; not
        differentiable.
        """
        if z.dim() != 2 or z.shape[1] != self.noise_dim:
            raise ValueError(f"z: got shape {list(z.shape)}, expected [B, noise_dim] with noise_dim = {self.noise_dim}")
        attention = []
        w = self.mapping(z)
        tokens = self.position(_GRID, _GRID).expand(z.shape[0], -1, -1)  # [B, 64, dim]
        for block in self.blocks:
            tokens = block(tokens, w, return_weights=return_weights)
            if return_weights:
                tokens, weights = tokens
                attention.append(weights)
        tokens = self.norm(tokens, w)
        image = (self.head(tokens, w) if self.output == "conv" else self.head(tokens)).tanh()
        return (image, attention) if return_weights else image


class ConvolutionalHead(nn.Module):
    """Tokens to colours by StyleGAN2's layers: two modulated 3x3 convolutions per doubling, the first of which upsamples.

    At side s a map has ``dim`` channels up to 64 pixels, half as many for each doubling from there: dim * 64 / s.

    Args:
        dim: channels of a token.
        img_size: side of the image.
        style_dim: values per style w, which modulates every convolution.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``dim`` leaves no channel at the image's size.
    """

    def __init__(
        self,
        dim: int,
        img_size: int,
        style_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList()
        channels, side = dim, _GRID
        while side < img_size:
            side *= 2
            width = min(dim, dim * 64 // side)
            if not width:
                raise ValueError(f"dim: got {dim}, expected {img_size // 64} or more for img_size = {img_size}")
            self.layers.append(StyledConv2d(channels, width, 3, style_dim, upsample=True, **factory_kwargs))
            self.layers.append(StyledConv2d(width, width, 3, style_dim, **factory_kwargs))
            channels = width
        self.to_rgb = ToRGB(channels, style_dim, **factory_kwargs)

    def forward(self, tokens: Tensor, w: Tensor) -> Tensor:
        """tokens [B, 64, dim], w [B, style_dim] -> [B, 3, img_size, img_size], unbounded."""
        x = to_feature_map(tokens, _GRID, _GRID)
        for layer in self.layers:
            x = layer(x, w)
        return self.to_rgb(x, w)


class ImplicitHead(nn.Module):
    """Every token to a patch of p x p pixels, p = img_size / 8, by a network of their coordinates that the token modulates.

    For each pixel of a patch: the sine of a linear function of its coordinates within the patch, the same features in every
    patch; ``inr_layers`` modulated layers with LeakyReLU; a modulated layer to RGB. What modulates is the token after a mapping
    network of four layers, as in the official code. There is no noise: a pixel depends on its token and place alone.

    Args:
        dim: channels of a token, and of the sines.
        img_size: side of the image.
        inr_dim: width of the modulated layers before RGB; 512 in the official code.
        inr_layers: how many; 3 in the official code, 1 in the paper, whose network has two layers in all.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``inr_dim`` or ``inr_layers`` is below 1.
    """

    def __init__(
        self,
        dim: int,
        img_size: int,
        inr_dim: int = 512,
        inr_layers: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        checks.positive(inr_dim=inr_dim, inr_layers=inr_layers)
        self.patch = img_size // _GRID
        self.mapping = MappingNetwork(dim, layers=4, **factory_kwargs)
        self.position = SinePosition(dim, **factory_kwargs)
        widths = [dim] + [inr_dim] * inr_layers
        self.layers = nn.ModuleList(
            StyledConv2d(widths[i], widths[i + 1], 1, dim, noise=False, **factory_kwargs) for i in range(inr_layers)
        )
        self.to_rgb = ToRGB(widths[-1], dim, **factory_kwargs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 64, dim] -> [B, 3, img_size, img_size], unbounded."""
        batch, patch = tokens.shape[0], self.patch
        style = self.mapping(tokens.flatten(0, 1))  # [B * 64, dim]
        x = to_feature_map(self.position(patch, patch)[None], patch, patch).expand(style.shape[0], -1, -1, -1)
        for layer in self.layers:
            x = layer(x, style)
        x = self.to_rgb(x, style).reshape(batch, _GRID, _GRID, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, _GRID * patch, _GRID * patch)


class Discriminator(nn.Module):
    """Images to logits: overlapping patches, transformer blocks with attention by distance, one logit of a class token.

    Twice differentiable, as R1 needs; the paper regularises by ``spectral_norm`` and bCR in its place. A patch's position is
    the sine of a linear function of its coordinates; the class token has none, as it is learned itself.

    Args:
        img_size: side of the image.
        patch: pixels from one patch to the next, each twice as wide; must divide ``img_size``. Default img_size / 8, which
            makes 8x8 tokens.
        dim: channels of a token.
        blocks: default 4 up to 32 pixels and 6 above, the paper's at 32 and 64; beyond those, our choice.
        heads: attention heads per block; must divide ``dim``.
        mlp_dim: hidden MLP width (GELU, our choice).
        attention: ``"l2"``, by distance, as in the paper, or ``"dot"``, by products.
        spectral_norm: `improved_spectral_norm` on the blocks' projections. Patch embedding and head go without, our choice.
        equalized: `EqualizedLinear` in the blocks.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: an argument does not fit, named in the message; the images have another size or channel count.
    """

    def __init__(
        self,
        img_size: int = 32,
        *,
        patch: int | None = None,
        dim: int = 384,
        blocks: int | None = None,
        heads: int = 6,
        mlp_dim: int = 1536,
        attention: Literal["l2", "dot"] = "l2",
        spectral_norm: bool = True,
        equalized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        patch = img_size // 8 if patch is None else patch
        if patch < 1 or img_size % patch:
            raise ValueError(f"patch: got {patch}, expected a divisor of img_size = {img_size}")
        checks.positive(dim=dim, mlp_dim=mlp_dim)
        factory_kwargs = {"device": device, "dtype": dtype}
        options = {"attention": attention, "spectral_norm": spectral_norm, "equalized": equalized}
        self.img_size = img_size
        self.side = img_size // patch
        self.embed = PatchEmbedding(patch, dim, **factory_kwargs)
        self.position = SinePosition(dim, **factory_kwargs)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim, **factory_kwargs))
        self.blocks = nn.ModuleList(
            ViTBlock(dim, heads, mlp_dim, **options, **factory_kwargs) for _ in range(_depth(blocks, img_size))
        )
        self.norm = LayerNorm(dim, **factory_kwargs)
        self.head = nn.Linear(dim, 1, **factory_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Judge x [B, 3, img_size, img_size], values in [-1, 1]: one logit each, [B, 1]."""
        if x.dim() != 4 or x.shape[1:] != (3, self.img_size, self.img_size):
            expected = f"[B, 3, {self.img_size}, {self.img_size}]"
            raise ValueError(f"x: got shape {list(x.shape)}, expected {expected}")
        tokens = self.embed(x) + self.position(self.side, self.side)  # [B, side^2, dim]
        tokens = torch.cat((self.class_token.expand(len(x), -1, -1), tokens), 1)  # [B, 1 + side^2, dim]
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, :1])[:, 0])
