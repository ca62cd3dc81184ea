r"""Attention by distance, as dot-product attention, to second order.

Tied queries and keys x_i attend by s_ij = −τ ‖x_i − x_j‖² (Kim et al. 2021; ViTGAN, arXiv 2107.04589). The square expands to
‖x_i‖² − 2 ⟨x_i, x_j⟩ + ‖x_j‖², and the softmax over j ignores ‖x_i‖², so

    s_ij = 2τ ⟨x_i, x_j⟩ + b_j + a constant of the row,      b_j = −τ ‖x_j‖²

is dot-product attention of x with itself at scale 2τ, with a bias of each key. What follows takes q = k = x and b in the
derivation of `dot_product_attention` and adds up what reaches x:

    x̄_j = q̄_j + k̄_j − 2τ b̄_j x_j

Double backward, given a cotangent X of x̄: X is the cotangent of q̄ and of k̄, and −2τ ⟨X_j, x_j⟩ that of b̄_j;

    ∂x_j = ∂q_j + ∂k_j − 2τ (∂b_j x_j + b̄_j X_j)

Large numbers cancel in these sums, so they are taken in the accumulation dtype and rounded once. What the tokens have in common
moves no distance: the mean of x over the tokens, and of X, is taken off first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import dot_product_attention
from .precision import widen


def forward(qk: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    """qk [B,H,N,d], v [B,H,N,e] -> o [B,H,N,e] in qk's dtype, and P [B,H,N,N], which is kept wide."""
    x = centred(*widen(qk.dtype, qk))
    weights = dot_product_attention.attention(x, x, bias_of(x, scale), 2 * scale)
    return (weights @ widen(qk.dtype, v)[0]).to(qk.dtype), weights if return_weights else None


def backward(
    grad: Tensor,
    qk: Tensor,
    v: Tensor,
    scale: float,
    compute: Callable[..., tuple[Tensor, ...]] = dot_product_attention.gradients,
) -> tuple[Tensor, ...]:
    """grad like o -> gradients of qk and v in qk's dtype; `compute`: those of dot-product attention."""
    grad, x, wide_v = widen(qk.dtype, grad, qk, v)
    x = centred(x)
    of_q, of_k, of_v, of_bias = compute(grad, x, x, wide_v, bias_of(x, scale), 2 * scale)
    return dot_product_attention.narrowed((of_q + of_k - 2 * scale * of_bias.unsqueeze(-1) * x, of_v), qk.dtype)


def double_backward(
    cot_qk: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    qk: Tensor,
    v: Tensor,
    scale: float,
    compute: Callable[..., tuple[Tensor, ...]] = dot_product_attention.second_gradients,
) -> tuple[Tensor, ...]:
    """Cotangents of backward's results (None = zero) -> total gradients of (grad, qk, v) in qk's dtype."""
    cotangents = [torch.zeros_like(x) if c is None else c for c, x in zip((cot_qk, cot_v), (qk, v), strict=True)]
    cot_x, cot_v, grad, x, wide_v = widen(qk.dtype, *cotangents, grad, qk, v)
    cot_x, x = centred(cot_x), centred(x)
    cot_bias = -2 * scale * (cot_x * x).sum(-1)
    of_grad, of_q, of_k, of_v, of_bias, bias_grad = compute(
        cot_x, cot_x, cot_v, cot_bias, grad, x, x, wide_v, bias_of(x, scale), 2 * scale
    )
    of_x = of_q + of_k - 2 * scale * (of_bias.unsqueeze(-1) * x + bias_grad.unsqueeze(-1) * cot_x)
    return dot_product_attention.narrowed((of_grad, of_x, of_v), qk.dtype)


def bias_of(x: Tensor, scale: float) -> Tensor:
    """b [B,H,N] of wide tokens x [B,H,N,d]."""
    return -scale * x.square().sum(-1)


def centred(x: Tensor) -> Tensor:
    """x [B,H,N,d] minus its mean over the tokens."""
    return x - x.mean(-2, keepdim=True)
