"""Images as sequences of patches, and where each lies (ViTGAN, arXiv 2107.04589)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchEmbedding(nn.Module):
    """Overlapping patches, each projected to a token: a patch reaches ``overlap`` pixels into its neighbours on every side.

    As a convolution with stride ``patch`` and kernel ``patch + 2 overlap`` would compute it, zeros around the image; the
    projection is a linear layer, ``proj``, whose weight is a matrix that `improved_spectral_norm` can take.

    Args:
        patch: pixels from one patch to the next; must divide the image's sides.
        dim: channels of a token.
        overlap: default patch // 2, ViTGAN's, whose patches are twice as wide as they are apart.
        channels: of the image.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        patch: int,
        dim: int,
        overlap: int | None = None,
        channels: int = 3,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.overlap = patch, patch // 2 if overlap is None else overlap
        self.width = patch + 2 * self.overlap
        self.proj = nn.Linear(channels * self.width**2, dim, device=device, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, N, dim], N = (H / patch) (W / patch), row by row."""
        if images.dim() != 4 or images.shape[2] % self.patch or images.shape[3] % self.patch:
            raise ValueError(
                f"images: got shape {list(images.shape)}, expected [B, C, H, W] with H and W multiples of {self.patch}"
            )
        patches = functional.unfold(images, self.width, padding=self.overlap, stride=self.patch)  # [B, C * width^2, N]
        return self.proj(patches.transpose(1, 2))

    def extra_repr(self) -> str:
        return f"patch={self.patch}, overlap={self.overlap}"


class SinePosition(nn.Module):
    """A learned embedding of coordinates: the sine of a linear function of them, ``proj``, at first uniform in ±(9/2)^1/2.

    Args:
        dim: channels of an embedding.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.proj = nn.Linear(2, dim, device=device, dtype=dtype)
        bound = (9 / 2) ** 0.5
        nn.init.uniform_(self.proj.weight, -bound, bound)

    def forward(self, height: int, width: int) -> Tensor:
        """[height * width, dim], row by row, of a grid whose corners lie at (±1, ±1)."""
        like = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        y, x = torch.linspace(-1, 1, height, **like), torch.linspace(-1, 1, width, **like)
        grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1)  # [height, width, 2]
        return self.proj(grid.flatten(0, 1)).sin()
