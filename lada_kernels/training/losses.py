"""What D and G are trained on: adversarial losses, gradient penalties, balanced consistency and LeCam's penalty."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, relu, softplus

from lada_kernels.ops.convolution import no_weight_gradients

LossName = Literal["nonsaturating", "hinge", "wasserstein", "least_squares"]


class Loss(NamedTuple):
    """An adversarial loss: scalars from logits of any shape, averaged over all of them."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """of real logits and fake logits"""
    generator: Callable[[Tensor], Tensor]
    """of fake logits"""


LOSSES: dict[LossName, Loss] = {
    # Goodfellow et al. 2014: D's is the logistic loss.
    "nonsaturating": Loss(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda fake: softplus(-fake).mean(),
    ),
    # Lim and Ye 2017, Miyato et al. 2018.
    "hinge": Loss(
        lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
    # Arjovsky et al. 2017: D is to be held smooth by a penalty or by its architecture.
    "wasserstein": Loss(
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
    ),
    # Mao et al. 2017, with the targets 1 for real and 0 for fake.
    "least_squares": Loss(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake: (fake - 1).square().mean() / 2,
    ),
}


def consistency(logits: Tensor, augmented_logits: Tensor) -> Tensor:
    """What bCR weighs (Zhao et al., arXiv 2002.04724): ``mean (D(x) - D(T(x)))^2``, a scalar, for reals and fakes each.

    Args:
        logits: [B, ...], D's of what the adversarial loss sees.
        augmented_logits: [B, ...], of the same images under another augmentation.
    """
    return mse_loss(augmented_logits, logits)


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
    return _squared_slopes("real_logits", real_logits, "reals", reals).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """WGAN-GP's (Gulrajani et al. 2017): ``mean_b (|d sum(logits) / d x| - 1)^2``, the norm over an image's pixels.

    Args:
        logits: [B, ...], as of `r1_penalty`.
        images: [B, C, H, W] with ``requires_grad``: between reals and fakes, each at a random place of its own.

    Returns:
        A scalar with a graph. The coefficient is the caller's.

    Raises:
        ValueError: the logits are 16-bit or the images do not require a gradient.
    """
    return (_squared_slopes("logits", logits, "images", images).sqrt() - 1).square().mean()


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
    """LeCam's (Tseng et al., arXiv 2104.03310), as its official code has it; keeps D from learning few images by heart.

    ``mean relu(D(x) - fake_mean)^2 + mean relu(real_mean - D(G(z)))^2``, a scalar.

    Args:
        real_logits: [B, ...].
        fake_logits: [B, ...].
        real_mean: scalar, the moving average of D's logits of reals.
        fake_mean: scalar, and of fakes.
    """
    return relu(real_logits - fake_mean).square().mean() + relu(real_mean - fake_logits).square().mean()


def _squared_slopes(of_logits: str, logits: Tensor, of_images: str, images: Tensor) -> Tensor:
    """``sum_pixels (d sum(logits) / d x)^2`` of each image, [B]."""
    if logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{of_logits}: a slope's gradient needs float32 or float64, got {logits.dtype}")
    if not images.requires_grad:
        raise ValueError(f"{of_images}: the logits are differentiated by them, call requires_grad_() before D sees them")
    with torch.autocast(images.device.type, enabled=False), no_weight_gradients():
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)  # [B, C, H, W]
        return gradient.square().sum(dim=(1, 2, 3))
