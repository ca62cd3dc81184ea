"""ViTGAN's equations in plain torch, head by head, from the parameters of our modules."""

import torch
from torch.nn.functional import gelu, silu

from lada_kernels.modules import EqualizedLinear


def affine(layer, x):
    scale = x.shape[-1] ** -0.5 if isinstance(layer, EqualizedLinear) else 1
    return x @ (layer.weight * scale).mT + layer.bias


def attend(attention, x):
    by_distance = hasattr(attention, "to_qk")
    if by_distance:
        q = k = affine(attention.to_qk, x)
        v = affine(attention.to_v, x)
    else:
        q, k, v = affine(attention.to_qkv, x).chunk(3, -1)
    size, out = x.shape[-1] // attention.heads, []
    for part in (slice(h * size, (h + 1) * size) for h in range(attention.heads)):
        q_i, k_j = q[:, :, None, part], k[:, None, :, part]
        scores = -(q_i - k_j).square().sum(-1) if by_distance else (q_i * k_j).sum(-1)
        out.append((scores / size**0.5).softmax(-1) @ v[..., part])
    return affine(attention.to_out, torch.cat(out, -1))


def standardised(x, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def layer_norm(norm, x, eps=1e-5):
    return standardised(x, eps) * norm.weight + norm.bias


def styled_norm(norm, x, w, eps=1e-3, offset=1.0):
    return (offset + affine(norm.mlp_gamma, w))[:, None] * standardised(x, eps) + affine(norm.mlp_beta, w)[:, None]


def block(module, x, w=None, residual="pre-norm", **conventions):
    def norm(one, x):
        return layer_norm(one, x) if w is None else styled_norm(one, x, w, **conventions)

    normed = norm(module.ln_1, x)
    x = attend(module.attn, normed) + (normed if residual == "official" else x)
    normed = norm(module.ln_2, x)
    hidden = (gelu if w is None else silu)(affine(module.mlp[0], normed))
    return affine(module.mlp[2], hidden) + (normed if residual == "official" else x)
