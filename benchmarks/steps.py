"""A training step as the training script takes it, and from its equations, in terms that can be compared."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import get_total_norm
from torch.overrides import TorchFunctionMode

from lada_kernels import use_backend
from lada_kernels.training.augment import augment
from lada_kernels.training.config import Config, OptimConfig
from lada_kernels.training.data import Sampler, to_float
from lada_kernels.training.progress import METRICS
from lada_kernels.training.trainer import Trainer

UNTIL_REPLAY = 5  # steps


def random_pixels(config: Config) -> Tensor:
    """What to train on: [4 B, 3, S, S] uint8."""
    shape = (4 * config.optim.batch_size, 3, config.img_size, config.img_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass
class Step:
    """What is judged of a step: both losses, and the gradients of all parameters."""

    losses: Tensor
    of_d: list[Tensor]
    of_g: list[Tensor]


def judged(step: Step, truth: Step) -> list[Tensor]:
    """The losses, and the gradients of either model `in_units`."""
    return [step.losses, in_units(step.of_d, truth.of_d), in_units(step.of_g, truth.of_g)]


def in_units(found: Sequence[Tensor], true: Sequence[Tensor]) -> Tensor:
    """All gradients as one, each in units of its own truth's length, so that no parameter's is lost beside the others'.

    What is below a thousandth of the longest, such as a gradient that is zero but for rounding, is in units of that.
    """
    lengths = torch.stack([gradient.norm() for gradient in true])
    units = lengths.clamp(min=1e-3 * lengths.max())
    return torch.cat([gradient.flatten() / unit for gradient, unit in zip(found, units, strict=True)])


def first_step(trainer: Trainer, optim: OptimConfig) -> Step:
    """A step by these settings."""
    config = trainer.config
    trainer.config = dataclasses.replace(config, optim=optim)
    torch.manual_seed(1)
    found = dict(zip(METRICS, trainer.step(), strict=True))
    trainer.config = config
    losses = torch.stack([found["d_loss"] + optim.r1 * found["r1"] + found["bcr"], found["g_loss"]])
    return Step(losses, *([p.grad for p in model.parameters()] for model in (trainer.discriminator, trainer.generator)))


def true_step(trainer: Trainer) -> tuple[OptimConfig, Step]:
    """The same from the equations, with models in float64 on the reference, and settings by which nothing wrong can hide.

    Each term of D's loss has the weight at which its gradients are as long as the adversarial ones: the presets' weights leave
    some of them a thousandth. No weight moves: Adam's first step is the signs of D's gradients, those of rounding too, and G's
    would show it. The images between the models stay in float32, as random numbers depend on the dtype.
    """
    config, optim = trainer.config, trainer.config.optim
    generator, discriminator = (copy.deepcopy(model).double() for model in (trainer.generator, trainer.discriminator))
    indices = next(Sampler(len(trainer.images), optim.batch_size, config.seed))

    def seen(images: Tensor) -> Tensor:
        return augment(images.float(), optim.augment, optim.augment_p).double()

    def fakes() -> Tensor:
        latents = torch.randn(optim.batch_size, config.generator.noise_dim, device=trainer.device)
        return generator(latents.double())

    def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True))

    torch.manual_seed(1)
    with use_backend("reference"), DrawingInFloat32():
        pixels = trainer.images[indices].to(trainer.device)
        if config.data.mirror:
            pixels = torch.where(torch.rand(len(pixels), 1, 1, 1, device=trainer.device) < 0.5, pixels.flip(-1), pixels)
        reals = to_float(pixels)
        seen_reals = seen(reals).requires_grad_()
        with torch.no_grad():
            drawn = fakes()
            seen_drawn = seen(drawn)
        of_reals, of_drawn = discriminator(seen_reals), discriminator(seen_drawn)
        d_loss = softplus(-of_reals).mean() + softplus(of_drawn).mean()
        terms = {}
        if optim.r1:
            (slope,) = torch.autograd.grad(of_reals.sum(), seen_reals, create_graph=True)
            terms["r1"] = slope.square().sum((1, 2, 3)).mean()
        for name, images, logits in (("bcr_real", reals, of_reals), ("bcr_fake", drawn, of_drawn)):
            if getattr(optim, name):
                terms[name] = (discriminator(seen(images)) - logits).square().mean()
        of_d, weights = gradients(d_loss, discriminator), {}
        length = get_total_norm(of_d)
        for name, term in terms.items():
            of_term = gradients(term, discriminator)
            weights[name] = (length / get_total_norm(of_term)).item()
            d_loss = d_loss + weights[name] * term
            of_d = [one + weights[name] * other for one, other in zip(of_d, of_term, strict=True)]
        g_loss = softplus(-discriminator(seen(fakes()))).mean()
        of_g = gradients(g_loss, generator)
    optim = dataclasses.replace(optim, g_lr=0.0, d_lr=0.0, **weights)
    return optim, Step(torch.stack([d_loss, g_loss]).detach(), of_d, of_g)


class DrawingInFloat32(TorchFunctionMode):
    """Equal seeds give G's noise equal values in float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.randn_like:
            return func(args[0].float(), **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))
