"""Commands in this process, runs that nobody trained, and small nets in the Inception's place."""

import dataclasses
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config, save_config
from lada_kernels.training.trainer import Trainer

WIDTH = 12  # features of `Pooled`


def run_command(monkeypatch, capsys, name: str, *args: object) -> tuple[object, str, str]:
    """``python -m lada_kernels.NAME args``: exit code or message, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    sys.modules.pop(f"lada_kernels.{name}", None)  # what is imported already, runpy warns of
    try:
        runpy.run_module(f"lada_kernels.{name}", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def save_run(config: Config, images: Tensor) -> dict:
    """Write a run as it is before the first step, but for an average that is not the generator; returns its state."""
    state = Trainer(config, images).state_dict()
    state["ema"] = Trainer(dataclasses.replace(config, seed=config.seed + 1), images).ema.state_dict()
    save_config(config, Path(config.run.out) / "config.json")
    checkpoint.write(state, Path(config.run.out))
    return state


class Pooled(nn.Module):
    """Mean colours of a quarter each; like NVIDIA's file, it has features where it is asked for them."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        quarters = adaptive_avg_pool2d(img.float(), (2, 2)).flatten(1)  # [B, 12]
        return quarters if return_features else quarters.softmax(1)


class Plain(nn.Module):
    """The same without a choice."""

    def forward(self, img: Tensor) -> Tensor:
        return adaptive_avg_pool2d(img.float(), (2, 2)).flatten(1)


class Maps(nn.Module):
    """Features that are not [B, F]."""

    def forward(self, img: Tensor) -> Tensor:
        return img.float()


class Fixed(nn.Module):
    """Takes one size of image alone."""

    def forward(self, img: Tensor) -> Tensor:
        return img.float().view(-1, 3 * 17 * 17)


def save_net(net: nn.Module, path: Path) -> str:
    """Write as TorchScript; the path as text."""
    torch.jit.script(net).save(str(path))
    return str(path)


def pooled(pixels: Tensor) -> np.ndarray:
    """What `Pooled` and `Plain` compute, by numpy in float64: [B, 12] of uint8 [B, 3, S, S]."""
    x = pixels.numpy().astype(np.float64)
    half = x.shape[-1] // 2
    return x.reshape(len(x), 3, 2, half, 2, half).mean((3, 5)).reshape(len(x), 12)
