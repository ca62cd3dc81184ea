"""Token modules on convolutional feature maps."""

from typing import Any

from torch import Tensor, nn


def to_tokens(feature_map: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C], rows first; no copy where the map is channels-last in memory."""
    return feature_map.flatten(2).transpose(1, 2)


def to_feature_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W], rows first; dense tokens give a channels-last view without a copy."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class OnFeatureMap(nn.Module):
    """Applies a token module, [B, N, C] -> [B, N, C], to a feature map: [B, C, H, W] -> [B, C, H, W].

    ::

        attend = OnFeatureMap(LadaAttention(256))
        y = attend(x)                                    # x, y: [B, 256, H, W]
        y, weights = attend(x, return_weights=True)      # weights: [B, heads, H*W]

    Every further argument goes to the module; of a tuple that it returns, only the first entry becomes a map.

    Raises:
        ValueError: the input is not [B, C, H, W].
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        """Apply the module to x [B, C, H, W]; see the class."""
        if x.dim() != 4:
            raise ValueError(f"x: got shape {list(x.shape)}, expected a feature map [B, C, H, W]")
        height, width = x.shape[2:]
        out = self.module(to_tokens(x), *args, **kwargs)
        if isinstance(out, tuple):
            return to_feature_map(out[0], height, width), *out[1:]
        return to_feature_map(out, height, width)
