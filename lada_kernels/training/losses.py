"""The losses of LadaGAN (arXiv 2401.09596): non-saturating logistic loss and R1."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of D, ``mean softplus(-real) + mean softplus(fake)``: logits of any shape to a scalar."""
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of G (Goodfellow et al. 2014), ``mean softplus(-fake)``; a scalar."""
    return softplus(-fake_logits).mean()


def r1_penalty(real_logits: Tensor, reals: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018), ``mean_b sum_pixels (d sum(logits) / d x)^2``, without the usual 1/2.

    Args:
        real_logits: [B, ...], computed from ``reals`` in float32 or float64, outside autocast: the
            gradient is differentiated again, which 16 bits do not survive.
        reals: [B, C, H, W] with ``requires_grad``: the images as D saw them, after augmentation.

    Returns:
        A scalar with a graph, ready for ``backward``. The coefficient is the caller's.

    Raises:
        ValueError: the logits are 16-bit or the images do not require a gradient.
    """
    if real_logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"real_logits: R1 needs float32 or float64, got {real_logits.dtype}")
    if not reals.requires_grad:
        raise ValueError("reals: R1 differentiates by them, call requires_grad_() before D sees them")
    with torch.autocast(reals.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)  # [B, C, H, W]
        return gradient.square().sum(dim=(1, 2, 3)).mean()
