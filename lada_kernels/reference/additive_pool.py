r"""Additive pooling in plain torch, to second order.

Per batch element and head h, with y_n the part of x_n that is pooled (head h's slice, or all of x_n) and τ = scale:

    s_n = τ ⟨x_n, w⟩      α = softmax over tokens n      P = Σ_n α_n y_n

Backward, given ḡ = ∂L/∂P. With u_n = ⟨y_n, ḡ⟩ and t = Σ_n α_n u_n = ⟨P, ḡ⟩, the softmax gives ∂L/∂s_n = e_n = α_n (u_n − t), so

    x̄_n = α_n ḡ (into the pooled part) + τ Σ_h e_nh w_h        w̄ = τ Σ_n e_n x_n

Double backward, given cotangents X of x̄ and W of w̄ (Y: X's pooled part). Differentiate ⟨X, x̄⟩ + ⟨W, w̄⟩ =
Σ_n α_n c_n + Σ_n e_n a_n with c_n = ⟨Y_n, ḡ⟩ and a_n = τ (⟨X_n, w⟩ + ⟨W, x_n⟩). Writing ā = Σ α a:

    through u_n and t:   ∂ḡ = Σ α_n Y_n + Σ α_n (a_n − ā) y_n
    through α:           σ_n = α_n (c_n + u_n a_n − u_n ā − t a_n − m),   m = Σ α_n (c_n + u_n a_n) − 2 t ā
    ∂x_n = α_n (a_n − ā) ḡ (pooled part) + τ Σ_h (e_nh W_h + σ_nh w_h)
    ∂w   = τ Σ_n (e_n X_n + σ_n x_n)

The forward keeps P and, of the softmax, the normaliser (m, Z): the largest score and Σ exp(s − m), so that
α = exp(s − m) / Z. A log-sum-exp would do in exact arithmetic; a large one is rounded so coarsely that Σ α ≠ 1.

P, m and Z are functions of x and w here, so these are *total* derivatives: nothing flows back through what the
forward saved. Masked tokens take no part: α = 0 there, and what they hold (NaN included) is never read into a sum.
"""

import torch
from torch import Tensor

from .precision import accumulate_dtype


def forward(
    x: Tensor, weight: Tensor, mask: Tensor | None, scale: float, per_head: bool, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [B,N,D], weight [H,D], mask [B,N] -> pooled [B,H,D/H] or [B,H,D], normaliser [B,H,2] and α [B,H,N], all kept wide."""
    x, weight = _widen(x, weight, mask)
    scores = _scores(x, weight, mask, scale)  # [B, H, N]
    largest = scores.amax(-1)  # [B, H]
    normaliser = torch.stack((largest, (scores - _finite(largest)[:, :, None]).exp().sum(-1)), dim=-1)  # [B, H, 2]
    alpha = attention(scores, normaliser)
    return _pool(alpha, x, per_head), normaliser, alpha if return_weights else None


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor, Tensor]:
    """grad like pooled -> grad of x (x's dtype) and of weight (weight's dtype)."""
    x_dtype, weight_dtype = x.dtype, weight.dtype
    x, weight = _widen(x, weight, mask)
    grad = grad.to(x.dtype)
    alpha = attention(_scores(x, weight, mask, scale), normaliser)  # [B, H, N]
    e = alpha * (_project(x, grad, per_head) - (pooled * grad).sum(-1, keepdim=True))  # [B, H, N]
    grad_x = _scatter(alpha, grad, per_head) + scale * torch.einsum("bhn,hd->bnd", e, weight)
    grad_weight = scale * torch.einsum("bhn,bnd->hd", e, x)
    return grad_x.to(x_dtype), grad_weight.to(weight_dtype)


def double_backward(
    cot_x: Tensor | None,
    cot_weight: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of backward's two results (None = zero) -> total gradients of (grad, x, weight)."""
    grad_dtype, x_dtype, weight_dtype = grad.dtype, x.dtype, weight.dtype
    x, weight = _widen(x, weight, mask)
    grad = grad.to(x.dtype)
    cot_x = torch.zeros_like(x) if cot_x is None else _hide(cot_x.to(x.dtype), mask)
    cot_weight = torch.zeros_like(weight) if cot_weight is None else cot_weight.to(x.dtype)

    alpha = attention(_scores(x, weight, mask, scale), normaliser)  # [B, H, N]
    u, c = _project(x, grad, per_head), _project(cot_x, grad, per_head)  # [B, H, N]
    a = scale * (torch.einsum("bnd,hd->bhn", cot_x, weight) + torch.einsum("bnd,hd->bhn", x, cot_weight))
    t = (pooled * grad).sum(-1, keepdim=True)  # [B, H, 1]
    a_mean = (alpha * a).sum(-1, keepdim=True)  # [B, H, 1]
    m = (alpha * (c + u * a)).sum(-1, keepdim=True) - 2 * t * a_mean
    e = alpha * (u - t)
    slope = alpha * (a - a_mean)
    sigma = alpha * (c + u * a - u * a_mean - t * a - m)

    out_grad = _pool(alpha, cot_x, per_head) + _pool(slope, x, per_head)
    out_x = _scatter(slope, grad, per_head) + scale * (
        torch.einsum("bhn,hd->bnd", e, cot_weight) + torch.einsum("bhn,hd->bnd", sigma, weight)
    )
    out_weight = scale * (torch.einsum("bhn,bnd->hd", e, cot_x) + torch.einsum("bhn,bnd->hd", sigma, x))
    return out_grad.to(grad_dtype), out_x.to(x_dtype), out_weight.to(weight_dtype)


def _widen(x: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(x.dtype)
    return _hide(x.to(wide), mask), weight.to(wide)


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, :, None], 0.0)


def _scores(x: Tensor, weight: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = scale * torch.einsum("bnd,hd->bhn", x, weight)  # [B, H, N]
    return scores if mask is None else scores.masked_fill(~mask[:, None, :], -torch.inf)


def attention(scores: Tensor, normaliser: Tensor) -> Tensor:
    """α [B,H,N] of scores [B,H,N], -inf where masked, and the normaliser [B,H,2]."""
    largest, total = normaliser[..., None].unbind(2)  # [B, H, 1]
    # A row without tokens has m = -inf and Z = 0, and weights exp(-inf - 0) / 1 = 0, not NaN.
    return (scores - _finite(largest)).exp() / total.masked_fill(total == 0, 1.0)  # [B, H, N]


def _finite(largest: Tensor) -> Tensor:
    return largest.masked_fill(largest == -torch.inf, 0.0)


def _by_head(x: Tensor, heads: int) -> Tensor:
    return torch.unflatten(x, -1, (heads, x.shape[-1] // heads))  # [B, N, H, D/H]


def _pool(coefficients: Tensor, x: Tensor, per_head: bool) -> Tensor:
    """Σ_n coefficient_nh y_n: [B,H,N], [B,N,D] -> [B,H,D/H] or [B,H,D]."""
    if per_head:
        return torch.einsum("bhn,bnhe->bhe", coefficients, _by_head(x, coefficients.shape[1]))
    return torch.einsum("bhn,bnd->bhd", coefficients, x)


def _project(x: Tensor, pooled: Tensor, per_head: bool) -> Tensor:
    """⟨y_n, pooled_h⟩: the transpose of `_pool` in its coefficients -> [B,H,N]."""
    if per_head:
        return torch.einsum("bnhe,bhe->bhn", _by_head(x, pooled.shape[1]), pooled)
    return torch.einsum("bnd,bhd->bhn", x, pooled)


def _scatter(coefficients: Tensor, pooled: Tensor, per_head: bool) -> Tensor:
    """coefficient_nh pooled_h placed where head h pools from: the transpose of `_pool` in x -> [B,N,D]."""
    if per_head:
        return torch.einsum("bhn,bhe->bnhe", coefficients, pooled).flatten(2)
    return torch.einsum("bhn,bhd->bnd", coefficients, pooled)
