"""The transformer blocks of ViTGAN (arXiv 2107.04589): plain in D, modulated by a style in G."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lada_kernels.modules.equalized import EqualizedLinear, linear_kind
from lada_kernels.modules.norm import LayerNorm, SelfModulatedLayerNorm
from lada_kernels.modules.quadratic_attention import DotProductAttention, L2Attention
from lada_kernels.modules.spectral_norm import improved_spectral_norm

_ATTENTION = {"dot": DotProductAttention, "l2": L2Attention}


class ViTBlock(nn.Module):
    """Pre-norm block with two residuals: ``a = attn(ln_1(x)) + x``, ``out = mlp(ln_2(a)) + a``.

    Parameters: ``ln_1``, ``ln_2``, ``attn`` (see ``DotProductAttention``, ``L2Attention``), ``mlp.0`` (dim -> mlp_dim) and
    ``mlp.2`` (mlp_dim -> dim). Differentiable twice.

    Args:
        dim: channels D.
        heads: attention heads; must divide ``dim``.
        mlp_dim: hidden width of the MLP (GELU, as in Dosovitskiy et al. 2021).
        attention: ``"l2"``, by distance, as in ViTGAN's discriminator, or ``"dot"``, by products.
        spectral_norm: `improved_spectral_norm` on every projection of the attention and of the MLP.
        equalized: `EqualizedLinear` in place of `torch.nn.Linear`.
        ln_eps: added to the variance by both norms.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; ``attention`` is neither; the input is not [B, N, dim].
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        attention: Literal["l2", "dot"] = "l2",
        spectral_norm: bool = False,
        equalized: bool = False,
        ln_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        self.ln_1 = LayerNorm(dim, ln_eps, **factory_kwargs)
        self.attn = _attention(attention, dim, heads, equalized, **factory_kwargs)
        self.ln_2 = LayerNorm(dim, ln_eps, **factory_kwargs)
        self.mlp = _mlp(dim, mlp_dim, nn.GELU(), equalized, **factory_kwargs)
        if spectral_norm:
            _normalise(self.attn, self.mlp)

    def forward(self, x: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """[B, N, dim] -> [B, N, dim]; with ``return_weights`` a pair of it and the attention's [B, H, N, N]."""
        attended = self.attn(self.ln_1(x), return_weights=return_weights)
        attended, weights = attended if return_weights else (attended, None)
        x = attended + x
        out = self.mlp(self.ln_2(x)) + x
        return (out, weights) if return_weights else out


class StyledViTBlock(nn.Module):
    """Block whose norms take scale and shift from a style w; ``ln(x, w)`` is ViTGAN's self-modulated LayerNorm.

    ::

        ln(x, w) = (gamma_offset + gamma(w)) * (x - mean) / sqrt(var + ln_eps) + beta(w)      gamma, beta affine in w

        residual="pre-norm", the paper's:       a = attn(ln_1(x, w)) + x          out = mlp(ln_2(a, w)) + a
        residual="official", the code's:        n = ln_1(x, w)                    m = ln_2(attn(n) + n, w)
                                                out = mlp(m) + m

    The paper prints no offset. It changes no function that can be learned, as gamma has a bias, but where learning begins:
    around the plain norm, as in the official code.

    Parameters: ``ln_1`` and ``ln_2`` with ``mlp_gamma`` and ``mlp_beta`` (style_dim -> dim); ``attn`` (see
    ``DotProductAttention``, ``L2Attention``); ``mlp.0`` (dim -> mlp_dim) and ``mlp.2`` (mlp_dim -> dim).

    Args:
        dim: channels D.
        heads: attention heads; must divide ``dim``.
        mlp_dim: hidden width of the MLP (SiLU, as in the official code).
        style_dim: values per style w.
        attention: ``"dot"``, by products, or ``"l2"``, by distance.
        residual: what the residuals carry, see above.
        spectral_norm: `improved_spectral_norm` on every projection of the attention and of the MLP.
        equalized: `EqualizedLinear` in place of `torch.nn.Linear`, everywhere.
        ln_eps: added to the variance; 1e-3 in the official code.
        gamma_offset: see above; 1 in the official code, 0 in the paper's formula.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; ``attention`` or ``residual`` is neither; the input is not
            [B, N, dim] with w [B, style_dim].
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        style_dim: int,
        *,
        attention: Literal["dot", "l2"] = "dot",
        residual: Literal["pre-norm", "official"] = "pre-norm",
        spectral_norm: bool = False,
        equalized: bool = True,
        ln_eps: float = 1e-3,
        gamma_offset: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if residual not in ("pre-norm", "official"):
            raise ValueError(f"residual: got {residual!r}, expected 'pre-norm' or 'official'")
        factory_kwargs = {"device": device, "dtype": dtype}
        modulation = {"eps": ln_eps, "gamma_offset": gamma_offset, "hidden": False, "equalized": equalized}
        self.residual = residual
        self.ln_1 = SelfModulatedLayerNorm(dim, style_dim, **modulation, **factory_kwargs)
        self.attn = _attention(attention, dim, heads, equalized, **factory_kwargs)
        self.ln_2 = SelfModulatedLayerNorm(dim, style_dim, **modulation, **factory_kwargs)
        self.mlp = _mlp(dim, mlp_dim, nn.SiLU(), equalized, **factory_kwargs)
        if spectral_norm:
            _normalise(self.attn, self.mlp)

    def forward(self, x: Tensor, w: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Map x [B, N, dim] under w [B, style_dim] to [B, N, dim].

        With ``return_weights`` a pair of it and the attention's weights [B, H, N, N], not differentiable.
        """
        normed = self.ln_1(x, w)
        attended = self.attn(normed, return_weights=return_weights)
        attended, weights = attended if return_weights else (attended, None)
        x = attended + self._carried(x, normed)
        normed = self.ln_2(x, w)
        out = self.mlp(normed) + self._carried(x, normed)
        return (out, weights) if return_weights else out

    def _carried(self, x: Tensor, normed: Tensor) -> Tensor:
        return normed if self.residual == "official" else x

    def extra_repr(self) -> str:
        return f"residual={self.residual!r}"


def _attention(name: str, dim: int, heads: int, equalized: bool, **factory_kwargs: Any) -> nn.Module:
    if name not in _ATTENTION:
        raise ValueError(f"attention: got {name!r}, expected 'dot' or 'l2'")
    return _ATTENTION[name](dim, heads, equalized=equalized, **factory_kwargs)


def _mlp(dim: int, mlp_dim: int, activation: nn.Module, equalized: bool, **factory_kwargs: Any) -> nn.Sequential:
    linear = linear_kind(equalized)
    return nn.Sequential(linear(dim, mlp_dim, **factory_kwargs), activation, linear(mlp_dim, dim, **factory_kwargs))


def _normalise(*modules: nn.Module) -> None:
    for layer in (layer for module in modules for layer in module.children()):
        if isinstance(layer, (nn.Linear, EqualizedLinear)):
            improved_spectral_norm(layer)
