"""Generators and discriminators of milliseconds per step, and small changes to configurations."""

import dataclasses
from pathlib import Path

import torch

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config
from lada_kernels.training.families import (
    LadaGANDiscriminator,
    LadaGANGenerator,
    StyleGAN2Discriminator,
    ViTGANDiscriminator,
    ViTGANGenerator,
)
from lada_kernels.training.trainer import Trainer

_VIT = {"dim": 8, "blocks": 1, "heads": 2, "mlp_dim": 12}

GENERATORS = {
    "ladagan": LadaGANGenerator(dim=(16, 8, 8), noise_dim=8, heads=(2, 2, 2), mlp_dim=(8, 8, 8)),
    "vitgan-conv": ViTGANGenerator(noise_dim=8, residual="official", spectral_norm=True, **_VIT),
    "vitgan-inr": ViTGANGenerator(noise_dim=6, output="inr", inr_dim=8, inr_layers=1, attention="l2", **_VIT),
}
DISCRIMINATORS = {
    "ladagan": LadaGANDiscriminator(enc_dim=(4, 8), out_dim=(8, 8), heads=2, mlp_dim=8),
    "vitgan": ViTGANDiscriminator(**_VIT),
    "stylegan2": StyleGAN2Discriminator(widths=(4, 4, 4, 4), group=2),
}

# Everything that looks at images or at their number, draws random numbers, or changes from step to step.
EVERYTHING = {
    "warmup": 8,
    "r1": 0.1,
    "r1_every": 2,
    "augment": ("color", "translation", "cutout", "scaling"),
    "augment_p": 0.7,
    "bcr_real": 1.0,
    "bcr_fake": 0.5,
    "gp": 0.2,
    "lecam": 0.3,
    "ema_start": 40,
    "ema_half_life": 100,
}


def with_optim(config: Config, **changes) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **changes))


def with_run(config: Config, **changes) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def flat(state: object, name: str = "") -> dict:
    """A nested state as {path: leaf}."""
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in flat(value, f"{name}/{key}").items()}
    return {name: state}


def assert_bit_equal(a: dict, b: dict) -> None:
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        assert same, name


def trained(config: Config, images: torch.Tensor, steps: int) -> Trainer:
    trainer = Trainer(config, images)
    for _ in range(steps):
        trainer.step()
    return trainer


def resumed(config: Config, images: torch.Tensor, steps: int) -> Trainer:
    """A new trainer that took up what another one left on disk after so many steps."""
    checkpoint.write(trained(config, images, steps).state_dict(), Path(config.run.out))
    torch.manual_seed(999)  # what happens in between must not matter
    trainer = Trainer(config, images)
    trainer.load_state_dict(checkpoint.read_latest(Path(config.run.out)))
    return trainer
