r"""The gated product r_n = g ⊙ k_n ⊙ v_n in plain torch, to second order.

It is trilinear, so with r̄ = ∂L/∂r every derivative is again a product:

    ḡ = Σ_n r̄_n k_n v_n      k̄_n = r̄_n g v_n      v̄_n = r̄_n g k_n

Double backward, given cotangents G, K, V of ḡ, k̄, v̄: differentiate ⟨G, ḡ⟩ + ⟨K, k̄⟩ + ⟨V, v̄⟩ =
Σ_n r̄_n (G k_n v_n + g (K_n v_n + V_n k_n)):

    ∂r̄ = g (K v + V k) + G k v     ∂g = Σ_n r̄_n (K_n v_n + V_n k_n)     ∂k = r̄ (g V + G v)     ∂v = r̄ (g K + G k)

Without v, k is [B,N,2D] and holds k and v side by side, and so do its gradients and cotangents.
"""

import torch
from torch import Tensor

from .precision import widen
from .types import MaybeTensor


def forward(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    """g [B,D], k and v [B,N,D] -> [B,N,D] in k's dtype."""
    gate, wide_k, wide_v = widen(k.dtype, g[:, None], *_halves(k, v))
    return (gate * wide_k * wide_v).to(k.dtype)


def backward(grad: Tensor, g: Tensor, k: Tensor, v: MaybeTensor) -> tuple[Tensor, Tensor, MaybeTensor]:
    """grad [B,N,D] -> gradients of g, k, v, each in its tensor's dtype."""
    r, gate, wide_k, wide_v = widen(k.dtype, grad, g[:, None], *_halves(k, v))
    grad_g = (r * wide_k * wide_v).sum(1)  # [B, D]
    grad_k, grad_v = _joined(r * gate * wide_v, r * gate * wide_k, k, v)
    return grad_g.to(g.dtype), grad_k, grad_v


def double_backward(
    cot_g: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    g: Tensor,
    k: Tensor,
    v: MaybeTensor,
) -> tuple[Tensor, Tensor, Tensor, MaybeTensor]:
    """Cotangents of backward's three results (None = zero) -> gradients of (grad, g, k, v)."""
    cot_g = torch.zeros_like(g) if cot_g is None else cot_g
    cot_k = torch.zeros_like(k) if cot_k is None else cot_k
    cot_v = torch.zeros_like(v) if cot_v is None and v is not None else cot_v
    cot_gate, cot_k, cot_v, r, gate, wide_k, wide_v = widen(
        k.dtype, cot_g[:, None], *_halves(cot_k, cot_v), grad, g[:, None], *_halves(k, v)
    )
    cross = cot_k * wide_v + cot_v * wide_k  # [B, N, D]
    out_grad = gate * cross + cot_gate * wide_k * wide_v
    out_k, out_v = _joined(r * (gate * cot_v + cot_gate * wide_v), r * (gate * cot_k + cot_gate * wide_k), k, v)
    return out_grad.to(grad.dtype), (r * cross).sum(1).to(g.dtype), out_k, out_v


def _halves(k: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
    if v is None:
        k, v = k.chunk(2, -1)
    return k, v


def _joined(grad_k: Tensor, grad_v: Tensor, k: Tensor, v: MaybeTensor) -> tuple[Tensor, MaybeTensor]:
    if v is None:
        return torch.cat((grad_k, grad_v), -1).to(k.dtype), None
    return grad_k.to(k.dtype), grad_v.to(v.dtype)
