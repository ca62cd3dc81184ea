"""What is measured: the ops with their plain twins, and for each kind of machine the shapes and a training step."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from lada_kernels import additive_attention, additive_pool, gated_product, modulated_layer_norm
from lada_kernels.training.config import PRESETS, Config

ORDERS = ("forward", "backward", "double backward")
DTYPES = (torch.float32, torch.bfloat16)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """An op, its plain twin, what its inputs are, and the [B,N,D] tensors that each order must move at the least."""

    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: str  # t: tokens [B,N,D], c: channels [B,D], w: score weight [H,D]
    units: tuple[int, int, int]


OPS = {
    "additive_attention": Op(additive_attention, peers.plain_attention, "tttw", (4, 7, 11)),
    "additive_pool": Op(additive_pool, peers.plain_pool, "tw", (1, 2, 3)),
    "additive_pool, all channels": Op(
        partial(additive_pool, per_head=False), partial(peers.plain_pool, per_head=False), "tw", (1, 2, 3)
    ),
    "gated_product": Op(gated_product, peers.plain_gated_product, "ctt", (3, 5, 8)),
    "modulated_layer_norm": Op(modulated_layer_norm, peers.plain_modulated_layer_norm, "tcc", (2, 3, 5)),
}
TINY_SHAPE = (1, 4, 8, 2)  # B, N, D, H


@dataclass(frozen=True)
class Plan:
    """Where to measure, and what."""

    device: str
    ops: tuple[tuple[str, Shape, torch.dtype], ...]  # (op, [B, N, D, H], dtype)
    modules: tuple[Shape, ...]  # [B, N, D]
    step: Config
    repeats: int | None = None  # None: what each section is used to
    largest_truth: int = 2**25  # elements of [B,N,D] up to which all of a case is judged in float64, and a part beyond


def cpu_plan(device: str) -> Plan:
    """Sizes that two cores go through in some minutes."""
    attention = ((64, 64, 1024, 4), (64, 256, 256, 4), (64, 1024, 64, 4), (8, 4096, 256, 8), (1, 65536, 256, 8))
    ops = [("additive_attention", shape, torch.float32) for shape in attention]
    ops += [(name, (64, 256, 256, 4), dtype) for dtype in DTYPES for name in list(OPS)[1:]]
    return Plan(device, tuple(ops), ((16, 64, 1024), (16, 256, 512), (16, 256, 256), (16, 1024, 64)), step_config(device))


def cuda_plan(device: str) -> Plan:
    """Sizes beyond a GPU's caches: 2^26 and 2^28 elements in each [B,N,D]."""
    attention = ((64, 1024, 1024, 4), (256, 1024, 256, 8), (64, 4096, 1024, 4), (1, 2**20, 256, 8))
    ops = [("additive_attention", shape, torch.bfloat16) for shape in attention]
    ops += [("additive_attention", attention[0], torch.float32)]
    ops += [(name, attention[0], torch.bfloat16) for name in list(OPS)[1:]]
    modules = ((64, 64, 1024), (64, 256, 512), (64, 256, 256), (64, 1024, 64))
    return Plan(device, tuple(ops), modules, step_config(device))


def tiny_plan(device: str) -> Plan:
    """A rehearsal of every section."""
    ops = tuple((name, (2, 8, 16, 4), dtype) for dtype in DTYPES for name in OPS)
    return Plan(device, ops, ((2, 8, 16),), tiny_config(device), repeats=1)


PLANS = {"cpu": cpu_plan, "cuda": cuda_plan, "tiny": tiny_plan}


def step_config(device: str) -> Config:
    """LadaGAN-64 in the official sizes, batch 16, R1 every step."""
    preset, replace = PRESETS["celeba64"], dataclasses.replace
    return replace(
        preset,
        model=replace(preset.model, flavor="torch"),
        optim=replace(preset.optim, batch_size=16, r1=1e-2, r1_every=1),
        run=replace(preset.run, device=device),
    )


def tiny_config(device: str) -> Config:
    """A LadaGAN that is only as large as its code needs."""
    config = step_config(device)
    small = dataclasses.replace(
        config.model, img_size=32, dim=(64, 16, 8), mlp_dim=(8, 8, 8), enc_dim=(8, 16), out_dim=(8, 8), d_mlp_dim=8
    )
    return dataclasses.replace(config, model=small, optim=dataclasses.replace(config.optim, batch_size=4))
