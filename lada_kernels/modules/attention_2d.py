"""LadaGAN's attention on feature maps, for convolutional GANs."""

import torch
from torch import Tensor, nn

from lada_kernels.modules.attention import LadaAttention
from lada_kernels.modules.feature_map import to_feature_map, to_tokens


class LadaAttention2d(LadaAttention):
    """`LadaAttention` over the pixels of a feature map: [B, C, H, W] -> [B, C, H, W], for convolutional GANs.

    ::

        attend = LadaAttention2d(256, heads=4)                # the function of LadaAttention(256, 4), pixel by pixel
        attend = LadaAttention2d(256, heads=4, gate=True)     # x + gamma * that

    Parameters are those of `LadaAttention`, by the same names, so each loads what the other saved; in `OnFeatureMap`, which
    takes any token module, they lie under ``module``, and maps keep their tokens in a row.

    ``gate=True`` adds SAGAN's learned gate (arXiv 1805.08318), a parameter ``gamma`` [1] that starts at zero: put into a
    network, trained or not, the layer at first changes nothing that the network computes. Without it nothing passes the
    attention by: the residual is left to the code around it, as in the Ladaformer.

    Args:
        channels: C of the feature map.
        heads: number of heads; must divide ``channels``.
        gate: see above.
        recompute: see `LadaAttention`.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: as `LadaAttention` does; the input is not [B, channels, H, W]; the mask is not [B, H, W].
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        *,
        gate: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory_kwargs = {"device": device, "dtype": dtype}
        super().__init__(channels, heads, recompute=recompute, **factory_kwargs)
        self.register_parameter("gamma", nn.Parameter(torch.zeros(1, **factory_kwargs)) if gate else None)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over the pixels of ``x``.

        Args:
            x: [B, channels, H, W], at least one pixel; float32, float64, bfloat16 or float16. Channels-last maps need no copy.
            mask: bool [B, H, W], True = the pixel takes part in the global query.
            return_weights: also return alpha.

        Returns:
            [B, channels, H, W]; with ``return_weights`` a pair of it and alpha [B, heads, H, W] (not differentiable).
        """
        if x.dim() != 4 or x.shape[1] != self.dim:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, channels, H, W] with channels = {self.dim}")
        batch, _, height, width = x.shape
        if mask is not None:
            if mask.shape != (batch, height, width):
                raise ValueError(f"mask: got shape {list(mask.shape)}, expected [B, H, W] = {[batch, height, width]}")
            mask = mask.flatten(1)
        out = super().forward(to_tokens(x), mask=mask, return_weights=return_weights)
        if return_weights:
            out, weights = out
        out = to_feature_map(out, height, width)
        if self.gamma is not None:
            # In the dtype of what it scales: under autocast a float32 gamma would widen the map.
            out = x + self.gamma.to(out.dtype) * out
        return (out, weights.unflatten(2, (height, width))) if return_weights else out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate={self.gamma is not None}"
