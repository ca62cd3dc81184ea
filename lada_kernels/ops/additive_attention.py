"""LadaGAN's additive attention, differentiable twice."""

from typing import Literal, overload

from torch import Tensor

from ..reference.precision import accumulate_dtype
from . import checks
from .additive_pool import default_scale
from .define import Op


@overload
def additive_attention(
    q: Tensor, k: Tensor, v: Tensor, score_weight: Tensor, *,
    scale: float | None = None, mask: Tensor | None = None, return_weights: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def additive_attention(
    q: Tensor, k: Tensor, v: Tensor, score_weight: Tensor, *,
    scale: float | None = None, mask: Tensor | None = None, return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def additive_attention(
    q: Tensor, k: Tensor, v: Tensor, score_weight: Tensor, *,
    scale: float | None = None, mask: Tensor | None = None, return_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_weight: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""LadaGAN's attention core (arXiv 2401.09596): gated_product(additive_pool(q, score_weight), k, v), in O(N·D).

    One global query per head, g_h = Σ_n α_nh q_n (head h's slice), α = softmax over tokens of scale·⟨q_n, w_h⟩, gates every
    token: out_n = g ⊙ k_n ⊙ v_n.

    Args:
        q, k, v: [B, N, D]; float32, bfloat16, float16 or float64, the same for all. B may be 0. Read in place if their
            last dimension is dense: three thirds of one projection need no copy.
        score_weight: [H, D] with H dividing D, in q's dtype or the accumulation dtype (float32; float64 for float64).
        scale: factor on the scores; default (D/H)^-0.5.
        mask: [B, N] bool, True = the token takes part in the pooling (every token is still gated).
        return_weights: also return α [B, H, N], not differentiable, in the accumulation dtype.

    Returns:
        [B, N, D] in q's dtype; with `return_weights` a pair (out, α).

    Raises:
        ValueError: a shape, a device, or N = 0, or H does not divide D.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("q", q)
    checks.like("k", k, "q", q)
    checks.like("v", v, "q", q)
    checks.score_weight(score_weight, "q", q, True)
    checks.mask(mask, "q", q)
    scale = default_scale(q, score_weight) if scale is None else float(scale)
    out, _, _, alpha = _additive_attention(q, k, v, score_weight, mask, scale, return_weights)
    return (out, alpha) if return_weights else out


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
) -> tuple[Tensor | None, ...]:
    (batch, tokens, channels), heads, wide = q.shape, weight.shape[0], accumulate_dtype(q.dtype)
    pooled, normaliser = q.new_empty((batch, heads, channels // heads), dtype=wide), q.new_empty((batch, heads, 2), dtype=wide)
    alpha = q.new_empty((batch, heads, tokens), dtype=wide) if return_weights else None
    return q.new_empty(q.shape), pooled, normaliser, alpha


_additive_attention = Op[tuple[Tensor, Tensor, Tensor, Tensor]](
    "additive_attention",
    _shapes,
    inputs=("q", "k", "v", "weight", "mask?"),
    settings=("float scale",),
    options=("bool return_weights",),
    results=("out", "pooled", "normaliser", "alpha"),
    gradients=("q", "k", "v", "weight"),
    saved=("q", "k", "v", "weight", "mask", "pooled", "normaliser"),
    inner=("grad_pooled",),
    like={"grad_pooled": "pooled"},
    primary="q",
)
