"""Additive pooling, differentiable twice."""

from typing import Literal, overload

from torch import Tensor

from ..reference.precision import accumulate_dtype
from . import checks
from .define import Op


@overload
def additive_pool(
    x: Tensor, score_weight: Tensor, *,
    per_head: bool = True, scale: float | None = None, mask: Tensor | None = None, return_weights: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def additive_pool(
    x: Tensor, score_weight: Tensor, *,
    per_head: bool = True, scale: float | None = None, mask: Tensor | None = None, return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def additive_pool(
    x: Tensor, score_weight: Tensor, *,
    per_head: bool = True, scale: float | None = None, mask: Tensor | None = None, return_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def additive_pool(
    x: Tensor,
    score_weight: Tensor,
    *,
    per_head: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Pool tokens by a learned softmax over them: LadaGAN's global query (arXiv 2401.09596).

    s_nh = scale·⟨x_n, w_h⟩ over the full D channels; α = softmax of s over the tokens n; result Σ_n α_nh y_n, where y_n
    is head h's slice of x_n, or all of x_n.

    Args:
        x: [B, N, D] tokens; float32, bfloat16, float16 or float64. B may be 0. Read in place if its last dimension is dense.
        score_weight: [H, D], one scoring vector a head, in x's dtype or the accumulation dtype (float32; float64 for float64).
            There is no score bias: softmax over tokens ignores a constant a head, and its gradient is exactly 0.
        per_head: True pools head h's slice of D/H channels (H must divide D) into [B, H, D/H]; False pools all channels
            for every head into [B, H, D].
        scale: factor on the scores; default (D/H)^-0.5.
        mask: [B, N] bool, True = the token takes part. What a masked token holds has no effect, NaN included; a batch element
            without tokens pools to zeros with zero gradients.
        return_weights: also return α [B, H, N], not differentiable, in the accumulation dtype.

    Returns:
        The pooled tokens in x's dtype; with `return_weights` a pair (pooled, α).

    Raises:
        ValueError: a shape, a device, or N = 0, or H does not divide D with per_head.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("x", x)
    checks.score_weight(score_weight, "x", x, per_head)
    checks.mask(mask, "x", x)
    scale = default_scale(x, score_weight) if scale is None else float(scale)
    pooled, _, alpha = _additive_pool(x, score_weight, mask, scale, per_head, return_weights)
    pooled = pooled.to(x.dtype)
    return (pooled, alpha) if return_weights else pooled


def default_scale(x: Tensor, score_weight: Tensor) -> float:
    """d^-1/2 with d = D/H, as in arXiv 2401.09596."""
    scale: float = (score_weight.shape[0] / x.shape[2]) ** 0.5
    return scale


def _shapes(
    x: Tensor, weight: Tensor, mask: Tensor | None, scale: float, per_head: bool, return_weights: bool
) -> tuple[Tensor | None, ...]:
    (batch, tokens, channels), heads, wide = x.shape, weight.shape[0], accumulate_dtype(x.dtype)
    pooled = x.new_empty((batch, heads, channels // heads if per_head else channels), dtype=wide)
    normaliser = x.new_empty((batch, heads, 2), dtype=wide)
    return pooled, normaliser, x.new_empty((batch, heads, tokens), dtype=wide) if return_weights else None


_additive_pool = Op[tuple[Tensor, Tensor, Tensor]](
    "additive_pool",
    _shapes,
    inputs=("x", "weight", "mask?"),
    settings=("float scale", "bool per_head"),
    options=("bool return_weights",),
    results=("pooled", "normaliser", "alpha"),
    gradients=("x", "weight"),
    saved=("x", "weight", "mask", "pooled", "normaliser"),
    primary="x",
)
