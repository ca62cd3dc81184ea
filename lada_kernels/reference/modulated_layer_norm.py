r"""Modulated layer norm y = γ_b ⊙ x̂ + β_b in plain torch, to second order; x̂ = (x − μ) r, r = (var + eps)^-1/2, per token.

Write ⟨·⟩ for the mean over the D channels of a token and P z = z − ⟨z⟩ − x̂ ⟨z x̂⟩, which is symmetric. With ĝ = γ ȳ:

    x̄ = r P ĝ       γ̄ = Σ_n ȳ x̂       β̄ = Σ_n ȳ

Double backward, given cotangents X, Γ, Β of x̄, γ̄, β̄. ⟨X, x̄⟩ depends on ĝ (linearly, through the symmetric P), on x̂
(through P: −D r ⟨ĝ x̂⟩⟨X x̂⟩) and on r. Collecting the x̂ terms in h, and using ∂r/∂x = −r² x̂ / D:

    ∂ȳ = γ r P X + Γ x̂ + Β          ∂γ = Σ_n ȳ r P X
    h  = Γ ȳ − r (ĝ ⟨X x̂⟩ + X ⟨ĝ x̂⟩)     ∂x = r P h − r² ⟨ĝ P X⟩ x̂
"""

import torch
from torch import Tensor

from .precision import widen


def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B,N,D], gamma and beta [B,D] -> y [B,N,D] in x's dtype, mean and reciprocal deviation [B,N] wide."""
    dtype = x.dtype
    x, gamma, beta = widen(dtype, x, gamma[:, None], beta[:, None])
    mean = x.mean(-1)  # [B, N]
    rstd = (x - mean[:, :, None]).square().mean(-1).add(eps).rsqrt()  # [B, N]
    return (gamma * _normalise(x, mean, rstd) + beta).to(dtype), mean, rstd


def backward(grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad [B,N,D] -> gradients of x (x's dtype), gamma and beta (gamma's dtype)."""
    x_dtype, gamma_dtype = x.dtype, gamma.dtype
    grad, x, gamma = widen(x_dtype, grad, x, gamma[:, None])
    normal = _normalise(x, mean, rstd)  # [B, N, D]
    grad_x = rstd[:, :, None] * _project(gamma * grad, normal)
    return grad_x.to(x_dtype), (grad * normal).sum(1).to(gamma_dtype), grad.sum(1).to(gamma_dtype)


def double_backward(
    cot_x: Tensor | None,
    cot_gamma: Tensor | None,
    cot_beta: Tensor | None,
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of backward's three results (None = zero) -> total gradients of (grad, x, gamma)."""
    grad_dtype, x_dtype, gamma_dtype = grad.dtype, x.dtype, gamma.dtype
    cot_x = torch.zeros_like(x) if cot_x is None else cot_x
    cot_gamma = torch.zeros_like(gamma) if cot_gamma is None else cot_gamma
    cot_beta = torch.zeros_like(gamma) if cot_beta is None else cot_beta
    cot_x, cot_gamma, cot_beta, grad, x, gamma = widen(
        x_dtype, cot_x, cot_gamma[:, None], cot_beta[:, None], grad, x, gamma[:, None]
    )
    normal, rstd = _normalise(x, mean, rstd), rstd[:, :, None]  # [B, N, D], [B, N, 1]
    g_hat = gamma * grad  # [B, N, D]
    projected = _project(cot_x, normal)  # [B, N, D]
    h = cot_gamma * grad - rstd * (g_hat * _mean(cot_x * normal) + cot_x * _mean(g_hat * normal))
    out_x = rstd * _project(h, normal) - rstd.square() * _mean(g_hat * projected) * normal
    out_grad = gamma * rstd * projected + cot_gamma * normal + cot_beta
    out_gamma = (grad * rstd * projected).sum(1)  # [B, D]
    return out_grad.to(grad_dtype), out_x.to(x_dtype), out_gamma.to(gamma_dtype)


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (x - mean[:, :, None]) * rstd[:, :, None]  # [B, N, D]


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)  # [B, N, 1]


def _project(z: Tensor, normal: Tensor) -> Tensor:
    return z - _mean(z) - normal * _mean(z * normal)  # [B, N, D]
