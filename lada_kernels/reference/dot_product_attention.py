r"""Softmax attention over pairs of tokens in plain torch, to second order, for any rows of queries.

Per batch element and head, with queries q_i, keys k_j, values v_j, a bias b_j of each key and τ = scale:

    s_ij = τ ⟨q_i, k_j⟩ + b_j      P = softmax over keys j      o_i = Σ_j P_ij v_j

Backward, given ḡ = ∂L/∂o. With D_ij = ⟨ḡ_i, v_j⟩ and its mean δ_i = Σ_j P_ij D_ij, the softmax gives ∂L/∂s_ij = e_ij =
P_ij (D_ij − δ_i), so

    q̄_i = τ Σ_j e_ij k_j      k̄_j = τ Σ_i e_ij q_i      v̄_j = Σ_i P_ij ḡ_i      b̄_j = Σ_i e_ij

Double backward, given cotangents X, Y, Z, β of q̄, k̄, v̄, b̄. Differentiate ⟨X, q̄⟩ + ⟨Y, k̄⟩ + ⟨Z, v̄⟩ + ⟨β, b̄⟩ =
Σ_ij (e_ij A_ij + P_ij C_ij) with A_ij = τ (⟨X_i, k_j⟩ + ⟨q_i, Y_j⟩) + β_j and C_ij = ⟨ḡ_i, Z_j⟩. Writing Ā_i = Σ_j P_ij A_ij,

    through D:   E_ij = P_ij (A_ij − Ā_i)      ∂ḡ_i = Σ_j (E_ij v_j + P_ij Z_j)      ∂v_j = Σ_i E_ij ḡ_i
    through P:   M_ij = (D_ij − δ_i)(A_ij − Ā_i) + C_ij      σ_ij = P_ij (M_ij − Σ_j P_ij M_ij)
    ∂q_i = τ Σ_j (e_ij Y_j + σ_ij k_j)      ∂k_j = τ Σ_i (e_ij X_i + σ_ij q_i)      ∂b_j = Σ_i σ_ij

P is computed again in each order: nothing flows back through what the forward saved. Every result is a row of its own for each
query, or a sum over queries: given some of the queries only, with their ḡ and X, the functions below give those rows and those
terms of the sums, for all keys. A caller that takes few queries at a time never holds more than so many rows of a matrix.
`dot_product_attention` has no bias: it is there for attention by distance, where it follows from the keys.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .precision import widen

Bias = Tensor | None  # [B, H, M], wide


def attention(q: Tensor, k: Tensor, bias: Bias, scale: float) -> Tensor:
    """P [B,H,R,M] of R queries."""
    scores = (scale * q) @ k.mT
    return (scores if bias is None else scores + bias.unsqueeze(-2)).softmax(-1)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, scale: float) -> tuple[Tensor, ...]:
    """Of R queries: their rows of q̄ and their terms of k̄, v̄ and b̄; everything wide."""
    weights = attention(q, k, bias, scale)  # [B, H, R, M]
    e = weights * _centred(grad @ v.mT, weights)
    return scale * (e @ k), scale * (e.mT @ q), weights.mT @ grad, e.sum(-2)


def second_gradients(
    cot_q: Tensor,
    cot_k: Tensor,
    cot_v: Tensor,
    cot_bias: Bias,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias,
    scale: float,
) -> tuple[Tensor, ...]:
    """Of R queries: their rows of ∂ḡ and ∂q, their terms of ∂k, ∂v and ∂b, and of b̄ itself; everything wide."""
    weights = attention(q, k, bias, scale)  # [B, H, R, M]
    a = scale * (cot_q @ k.mT + q @ cot_k.mT)
    if cot_bias is not None:
        a = a + cot_bias.unsqueeze(-2)
    centred, a = _centred(grad @ v.mT, weights), _centred(a, weights)
    slope, e = weights * a, weights * centred
    sigma = weights * _centred(centred * a + grad @ cot_v.mT, weights)
    return (
        slope @ v + weights @ cot_v,
        scale * (e @ cot_k + sigma @ k),
        scale * (e.mT @ cot_q + sigma.mT @ q),
        slope.mT @ grad,
        sigma.sum(-2),
        e.sum(-2),
    )


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    """q [B,H,N,d], k [B,H,M,d], v [B,H,M,e] -> o [B,H,N,e] in q's dtype, and P [B,H,N,M], which is kept wide."""
    wide_q, wide_k, wide_v = widen(q.dtype, q, k, v)
    weights = attention(wide_q, wide_k, None, scale)
    return (weights @ wide_v).to(q.dtype), weights if return_weights else None


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, compute: Callable[..., tuple[Tensor, ...]] = gradients
) -> tuple[Tensor, ...]:
    """grad like o -> gradients of q, k and v in q's dtype; `compute`: `gradients`, or somebody else's."""
    *results, _ = compute(*widen(q.dtype, grad, q, k, v), None, scale)
    return narrowed(results, q.dtype)


def double_backward(
    cot_q: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    compute: Callable[..., tuple[Tensor, ...]] = second_gradients,
) -> tuple[Tensor, ...]:
    """Cotangents of backward's results (None = zero) -> total gradients of (grad, q, k, v) in q's dtype."""
    cotangents = [torch.zeros_like(x) if c is None else c for c, x in zip((cot_q, cot_k, cot_v), (q, k, v), strict=True)]
    *results, _, _ = compute(*widen(q.dtype, *cotangents), None, *widen(q.dtype, grad, q, k, v), None, scale)
    return narrowed(results, q.dtype)


def narrowed(results: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The results in the dtype of the tensors that they belong to."""
    return tuple([result.to(dtype) for result in results])


def _centred(x: Tensor, weights: Tensor) -> Tensor:
    """x minus its mean over the keys, as the softmax weighs them."""
    return x - (weights * x).sum(-1, keepdim=True)
