"""Softmax attention over pairs of tokens, differentiable twice."""

from typing import Literal, overload

from torch import Tensor

from ..reference.precision import accumulate_dtype
from . import checks
from .define import Op


@overload
def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, return_weights: Literal[False] = False
) -> Tensor: ...
@overload
def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, return_weights: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@overload
def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool
) -> Tensor | tuple[Tensor, Tensor]: ...
def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""softmax_j(scale·⟨q_i, k_j⟩) v_j (Vaswani et al. 2017, equation 1), differentiable twice in O(N) memory.

    What `torch.nn.functional.scaled_dot_product_attention` computes without mask and dropout; its fused kernels have no second
    derivative, and without them it keeps N x N matrices. Here no order keeps one: gradients compute the weights again, for some
    rows at a time.

    Args:
        q: [B, H, N, d]; float32, bfloat16, float16 or float64. B may be 0.
        k: [B, H, M, d] in q's dtype.
        v: [B, H, M, e] in q's dtype.
        scale: factor on the products; default d^-0.5.
        return_weights: also return the weights [B, H, N, M], not differentiable, in the accumulation dtype (float32; float64
            for float64); they, and other matrices of their size on the way, are then held as a whole.

    Returns:
        [B, H, N, e] in q's dtype; with `return_weights` a pair (out, weights).

    Raises:
        ValueError: a shape, a device, or N, M, d or e = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.by_heads("q", q, "[B, H, N, d]")
    checks.by_heads("k", k, "[B, H, M, d]", ("q", q))
    checks.by_heads("v", v, "[B, H, M, e]", ("q", q))
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k: got {k.shape[3]} channels, expected q's d = {q.shape[3]}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"v: got {v.shape[2]} tokens, expected k's M = {k.shape[2]}")
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    out, weights = _dot_product_attention(q, k, v, scale, return_weights)
    return (out, weights) if return_weights else out


def _shapes(q: Tensor, k: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    wide = accumulate_dtype(q.dtype)
    weights = q.new_empty((*q.shape[:3], k.shape[2]), dtype=wide) if return_weights else None
    return q.new_empty((*q.shape[:3], v.shape[3])), weights


_dot_product_attention = Op[tuple[Tensor, Tensor]](
    "dot_product_attention",
    _shapes,
    inputs=("q", "k", "v"),
    settings=("float scale",),
    options=("bool return_weights",),
    results=("out", "weights"),
    gradients=("q", "k", "v"),
    saved=("q", "k", "v"),
    primary="q",
)
