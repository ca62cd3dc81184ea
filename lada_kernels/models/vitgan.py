"""ViTGAN: vision transformers as a GAN (arXiv 2107.04589).

The official code holds the generator alone. The discriminator follows the paper; what the paper leaves open is said where it
is decided.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lada_kernels.modules import PatchEmbedding, SinePosition
from lada_kernels.modules.norm import LayerNorm
from lada_kernels.modules.vit import ViTBlock


def _blocks(blocks: int | None, img_size: int) -> int:
    if blocks is None:
        return 4 if img_size <= 32 else 6
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    return blocks


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
    ) -> None:
        super().__init__()
        patch = img_size // 8 if patch is None else patch
        if patch < 1 or img_size % patch:
            raise ValueError(f"patch must divide img_size={img_size}, got {patch}")
        options = {"attention": attention, "spectral_norm": spectral_norm, "equalized": equalized}
        self.img_size = img_size
        self.side = img_size // patch
        self.embed = PatchEmbedding(patch, dim)
        self.position = SinePosition(dim)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(ViTBlock(dim, heads, mlp_dim, **options) for _ in range(_blocks(blocks, img_size)))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Judge x [B, 3, img_size, img_size], values in [-1, 1]: one logit each, [B, 1]."""
        if x.dim() != 4 or x.shape[1:] != (3, self.img_size, self.img_size):
            expected = f"[B, 3, {self.img_size}, {self.img_size}]"
            raise ValueError(f"x must be {expected} as img_size={self.img_size}, got {list(x.shape)}")
        tokens = self.embed(x) + self.position(self.side, self.side)  # [B, side^2, dim]
        tokens = torch.cat((self.class_token.expand(len(x), -1, -1), tokens), 1)  # [B, 1 + side^2, dim]
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, :1])[:, 0])
