"""ViTGAN's attention as modules: by products, and by distance with tied queries and keys (arXiv 2107.04589)."""

import torch
from torch import Tensor, nn

from lada_kernels.modules import checks
from lada_kernels.modules.equalized import linear_kind
from lada_kernels.ops import dot_product_attention, l2_attention


def _by_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, N, d]


class _Attention(nn.Module):
    """What both have in common: checks, heads, and the projection of what they attend to."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        checks.divide(dim, heads)
        self.dim, self.heads = dim, heads

    def forward(self, x: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over the tokens of ``x``.

        Args:
            x: [B, N, dim], N >= 1; float32, float64, bfloat16 or float16.
            return_weights: also return the weights, held as a whole.

        Returns:
            [B, N, dim]; with ``return_weights`` a pair of it and the weights [B, H, N, N] (not differentiable).
        """
        checks.tokens(x, self.dim)
        attended = self._attend(x, return_weights)
        out, weights = attended if return_weights else (attended, None)
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return (out, weights) if return_weights else out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}"


class DotProductAttention(_Attention):
    """Multi-head attention by products, differentiable twice in O(N) memory; scale (dim/heads)^-0.5.

    Parameters: ``to_qkv`` (dim -> 3 dim), ``to_out`` (dim -> dim).

    Args:
        dim: channels of the input.
        heads: number of heads; must divide ``dim``.
        equalized: `EqualizedLinear` in place of `torch.nn.Linear`, as in ViTGAN's generator.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; the input is not [B, N, dim].
    """

    def __init__(
        self,
        dim: int,
        heads: int = 6,
        *,
        equalized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, heads)
        factory_kwargs = {"device": device, "dtype": dtype}
        linear = linear_kind(equalized)
        self.to_qkv = linear(dim, 3 * dim, **factory_kwargs)
        self.to_out = linear(dim, dim, **factory_kwargs)

    def _attend(self, x: Tensor, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
        q, k, v = (_by_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=-1))
        return dot_product_attention(q, k, v, return_weights=return_weights)


class L2Attention(_Attention):
    """Multi-head attention by squared distance, with one projection for queries and keys; scale (dim/heads)^-0.5.

    ViTGAN's discriminator attends so, as attention by products is not Lipschitz continuous (Kim et al. 2021). Differentiable
    twice in O(N) memory. Parameters: ``to_qk``, ``to_v`` and ``to_out`` (dim -> dim each).

    Args:
        dim: channels of the input.
        heads: number of heads; must divide ``dim``.
        equalized: `EqualizedLinear` in place of `torch.nn.Linear`, as in ViTGAN's generator.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; the input is not [B, N, dim].
    """

    def __init__(
        self,
        dim: int,
        heads: int = 6,
        *,
        equalized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, heads)
        factory_kwargs = {"device": device, "dtype": dtype}
        linear = linear_kind(equalized)
        self.to_qk = linear(dim, dim, **factory_kwargs)
        self.to_v = linear(dim, dim, **factory_kwargs)
        self.to_out = linear(dim, dim, **factory_kwargs)

    def _attend(self, x: Tensor, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
        qk, v = _by_heads(self.to_qk(x), self.heads), _by_heads(self.to_v(x), self.heads)
        return l2_attention(qk, v, return_weights=return_weights)
