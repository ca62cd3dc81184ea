"""Softmax attention by distance, with tied queries and keys, differentiable twice."""

from typing import Literal, overload

from torch import Tensor

from ..reference.precision import accumulate_dtype
from . import checks
from .define import Op


@overload
def l2_attention(qk: Tensor, v: Tensor, *, scale: float | None = None, return_weights: Literal[False] = False) -> Tensor: ...
@overload
def l2_attention(
    qk: Tensor, v: Tensor, *, scale: float | None = None, return_weights: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@overload
def l2_attention(
    qk: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool
) -> Tensor | tuple[Tensor, Tensor]: ...
def l2_attention(
    qk: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""softmax_j(-scale·‖x_i − x_j‖²) v_j, x the tied queries and keys, differentiable twice in O(N) memory.

    The attention of ViTGAN's discriminator (arXiv 2107.04589; Kim et al. 2021): unlike that by products it is
    Lipschitz continuous. It runs as dot-product attention with a bias of each key, which is kept in float32 beside 16-bit
    tokens: see `lada_kernels.reference.l2_attention`.

    Args:
        qk: [B, H, N, d]; float32, bfloat16, float16 or float64. B may be 0.
        v: [B, H, N, e] in qk's dtype.
        scale: factor on the squared distances; default d^-0.5.
        return_weights: also return the weights [B, H, N, N], not differentiable, in the accumulation dtype (float32; float64
            for float64); they, and other matrices of their size on the way, are then held as a whole.

    Returns:
        [B, H, N, e] in qk's dtype; with `return_weights` a pair (out, weights).

    Raises:
        ValueError: a shape, a device, or N, d or e = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.by_heads("qk", qk, "[B, H, N, d]")
    checks.by_heads("v", v, "[B, H, N, e]", ("qk", qk))
    if v.shape[2] != qk.shape[2]:
        raise ValueError(f"v: got {v.shape[2]} tokens, expected qk's N = {qk.shape[2]}")
    scale = qk.shape[3] ** -0.5 if scale is None else float(scale)
    out, weights = _l2_attention(qk, v, scale, return_weights)
    return (out, weights) if return_weights else out


def _shapes(qk: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    wide = accumulate_dtype(qk.dtype)
    weights = qk.new_empty((*qk.shape[:3], qk.shape[2]), dtype=wide) if return_weights else None
    return v.new_empty(v.shape), weights


_l2_attention = Op[tuple[Tensor, Tensor]](
    "l2_attention",
    _shapes,
    inputs=("qk", "v"),
    settings=("float scale",),
    options=("bool return_weights",),
    results=("out", "weights"),
    gradients=("qk", "v"),
    saved=("qk", "v"),
    primary="qk",
)
