"""The transformer blocks of LadaGAN (arXiv 2401.09596): plain in D, self-modulated in G."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lada_kernels.modules.attention import LadaAttention
from lada_kernels.modules.norm import LayerNorm, SelfModulatedLayerNorm, unpack_condition


def _mlp(dim: int, mlp_dim: int, **factory_kwargs: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, mlp_dim, **factory_kwargs), nn.GELU(), nn.Linear(mlp_dim, dim, **factory_kwargs))


class Ladaformer(nn.Module):
    """Pre-norm block with two residuals: ``a = attn(ln_1(x)) + x``, ``out = mlp(ln_2(a)) + a``.

    Args:
        seq_len: unused, as in the official code whose signature this is; any number of tokens is accepted.
        dim: channels D.
        heads: attention heads; must divide ``dim``.
        mlp_dim: hidden width of the MLP (GELU).
        ln_eps: LayerNorm's eps: 1e-5 in the official PyTorch code, 1e-6 in the TensorFlow code.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; the input is not [B, N, dim].
    """

    def __init__(
        self,
        seq_len: int,
        dim: int,
        heads: int = 4,
        mlp_dim: int = 512,
        *,
        ln_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.ln_1 = LayerNorm(dim, ln_eps, **factory_kwargs)
        self.attn = LadaAttention(dim, heads, **factory_kwargs)
        self.ln_2 = LayerNorm(dim, ln_eps, **factory_kwargs)
        self.mlp = _mlp(dim, mlp_dim, **factory_kwargs)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """[B, N, dim] -> [B, N, dim]; ``mask`` and ``return_weights`` as in ``LadaAttention.forward``."""
        attended = self.attn(self.ln_1(x), mask=mask, return_weights=return_weights)
        if return_weights:
            attended, weights = attended
        x = attended + x
        out = self.mlp(self.ln_2(x)) + x
        return (out, weights) if return_weights else out


class SMLadaformer(nn.Module):
    """Self-modulated block: ``a = attn(ln_1(x, z)) + x``, ``out = mlp(ln_2(a, z))``.

    The MLP has no residual, in the paper's TensorFlow code and in the PyTorch code alike.

    Args:
        dim: channels D.
        cond_dim: values per condition z.
        heads: attention heads; must divide ``dim``.
        mlp_dim: hidden width of the MLP (GELU).
        ln_eps, gamma_offset: see ``SelfModulatedLayerNorm``.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; the input is not [B, N, dim] with z [B, cond_dim].
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        heads: int = 4,
        mlp_dim: int = 512,
        *,
        ln_eps: float = 1e-6,
        gamma_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        modulation = {"eps": ln_eps, "gamma_offset": gamma_offset}
        self.ln_1 = SelfModulatedLayerNorm(dim, cond_dim, **modulation, **factory_kwargs)
        self.attn = LadaAttention(dim, heads, **factory_kwargs)
        self.ln_2 = SelfModulatedLayerNorm(dim, cond_dim, **modulation, **factory_kwargs)
        self.mlp = _mlp(dim, mlp_dim, **factory_kwargs)

    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        z: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map x [B, N, dim] under z [B, cond_dim] to [B, N, dim].

        The official calling convention, one pair ``[x, z]`` in place of x, works as well.
        ``mask`` and ``return_weights`` as in ``LadaAttention.forward``.
        """
        x, z = unpack_condition(x, z)
        attended = self.attn(self.ln_1(x, z), mask=mask, return_weights=return_weights)
        if return_weights:
            attended, weights = attended
        out = self.mlp(self.ln_2(attended + x, z))
        return (out, weights) if return_weights else out
