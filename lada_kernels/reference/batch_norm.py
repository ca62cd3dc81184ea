r"""Batch norm to second order in torch's fused passes over the maps.

The normalisation is the one that `modulated_layer_norm` derives, over batch and pixels in place of channels, and its double
backward needs nothing but torch's own fused backward once more. With ⟨·⟩ the mean per channel, r the reciprocal deviation,
x̄ = γ r P ȳ what the backward returned (P z = z − ⟨z⟩ − x̂ ⟨z x̂⟩), and cotangents X, Γ, Β of x̄, γ̄, β̄:

    Z = r P X                        the fused backward of X, for γ = 1
    ∂ȳ = γ Z + Γ x̂ + Β               ∂γ = Σ ȳ Z
    ∂x = r P h − r ⟨γ ȳ Z⟩ x̂         h = Γ ȳ − r γ (ȳ ⟨X x̂⟩ + X ⟨ȳ x̂⟩)

and r P h is again a combination of Z and r P ȳ = x̄/γ, so that no further pass over the maps is normalised.
"""

import torch
from torch import Tensor

from .convolution import laid_out


def forward(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, momentum: float
) -> tuple[Tensor, ...]:
    """x [B,C,H,W], the others [C] -> out, mean and reciprocal deviation [C], and the running statistics moved by momentum."""
    running_mean, running_var = running_mean.clone(), running_var.clone()
    out, mean, rstd = torch.native_batch_norm(x, gamma, beta, running_mean, running_var, True, momentum, eps)
    return laid_out(out, x), mean, rstd, running_mean, running_var


def backward(grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """grad like x -> gradients of x, gamma and beta."""
    options = (None, None, mean, rstd, True, eps, [True, True, True])
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(grad, x, gamma, *options)
    return laid_out(grad_x, x), grad_gamma, grad_beta


def double_backward(
    cot_x: Tensor | None,
    cot_gamma: Tensor | None,
    cot_beta: Tensor | None,
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_gamma: Tensor,
    grad_beta: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of backward's three results (None = zero) -> total gradients of (grad, x, gamma)."""
    count = x.numel() // x.shape[1]
    cot_x = torch.zeros_like(grad) if cot_x is None else cot_x
    # Z, and from the same pass Σ X x̂
    projected, cot_normal, _ = backward(cot_x, x, torch.ones_like(gamma), mean, rstd, eps)
    out_gamma = (grad * projected).sum((0, 2, 3)).to(gamma.dtype)
    # ∂x over x̄, Z and x̂ = (x − mean) r, one factor per channel each; Γ ȳ joins through r P ȳ = x̄ / γ and its own ⟨Γ ȳ x̂⟩.
    slope = -rstd * gamma * out_gamma / count  # of x̂
    over_projected = -rstd * gamma * grad_gamma / count
    over_backward = -rstd * cot_normal / count  # of γ r P ȳ
    out_x = _channels(over_backward) * grad_x
    out_x.addcmul_(_channels(over_projected).expand_as(out_x), projected)
    out_x.addcmul_(_channels(slope * rstd).expand_as(out_x), x).sub_(_channels(slope * rstd * mean))
    out_grad = projected.mul_(_channels(gamma))
    if cot_gamma is not None:
        normal = (x - _channels(mean)).mul_(_channels(rstd))
        out_x += _channels(rstd * cot_gamma) * (grad - _channels(grad_beta / count) - normal * _channels(grad_gamma / count))
        out_grad += _channels(cot_gamma) * normal
    if cot_beta is not None:
        out_grad += _channels(cot_beta)
    return laid_out(out_grad, grad), laid_out(out_x, x), out_gamma


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]  # [C, 1, 1]
