"""Exponential moving average of a model, buffers included."""

import copy
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def make_ema(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` in eval mode, the starting point of its average."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """``ema <- decay * ema + (1 - decay) * model``, in place.

    Floating-point parameters and buffers (BatchNorm statistics) are averaged, by the multi-tensor kernels of
    ``torch.optim.swa_utils``; integer buffers (BatchNorm's step counter) are copied.
    """
    averaged, current = [], []
    pairs = zip(chain(ema.parameters(), ema.buffers()), chain(model.parameters(), model.buffers()), strict=True)
    for mean, value in pairs:
        if mean.is_floating_point():
            averaged.append(mean)
            current.append(value.detach())
        else:
            mean.copy_(value)
    get_ema_multi_avg_fn(decay)(averaged, current, None)
