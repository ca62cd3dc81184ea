"""What is measured: the ops with their plain twins, and for each kind of machine the shapes and a training step."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from lada_kernels import additive_attention, additive_pool, gated_product, modulated_layer_norm, use_backend
from lada_kernels.training.config import Config
from lada_kernels.training.families import StyleGAN2Discriminator, ViTGANDiscriminator, ViTGANGenerator
from lada_kernels.training.presets import PRESETS

ORDERS = ("forward", "backward", "double backward")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PEER_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 1e-1}  # they compute what they claim, though they may round more
LADAGAN_SHAPES = ((64, 64, 1024, 4), (64, 256, 256, 4), (64, 1024, 64, 4))  # at batch 64

Shape = tuple[int, ...]
Call = tuple[str, Shape, torch.dtype]  # (op, [B, N, D, H], dtype)


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
class Scaling:
    """One attention layer at batch 1 over ever more tokens; who needs N x N products leaves after so many."""

    channels: int
    heads: int
    tokens: tuple[int, ...]
    r1: tuple[int, ...]  # of these tokens R1, too
    most_fused: int  # time is quadratic, that of our own quadratic layers as well
    most_math: int  # memory, too


@dataclass(frozen=True)
class Plan:
    """Where to measure, and what."""

    device: str
    ops: tuple[Call, ...]
    attention: tuple[Shape, ...]  # [B, N, D]
    scaling: Scaling
    models: tuple[Config, ...]
    families: tuple[dict[str, Config], ...]  # those that race each other, by what they are called
    floors: tuple[Call, ...] = ()
    compiled: tuple[Call, ...] = ()  # of `ops`, those whose plain twin also runs compiled: that takes time
    compile_layers: bool = True  # the official attention layer
    compile_models: tuple[int, ...] = ()  # pixels of the official models that also run compiled: minutes on few cores
    rehearsal: bool = False  # times mean nothing
    repeats: int | None = None  # None: what each suite is used to
    seconds: float = math.inf  # for the readings of a row, if they are not the fewest
    largest_truth: int = 2**25  # elements of [B,N,D] that are judged in float64 at a time
    backends: dict[str, str] = field(default_factory=lambda: {"ours": "cpu"})  # what our contestants are called, who computes

    def on(self, name: str) -> AbstractContextManager:
        """Choose the contestant's backend, if it has one."""
        return use_backend(self.backends[name]) if name in self.backends else nullcontext()


def cpu_plan(device: str) -> Plan:
    """Sizes that two cores go through in twelve minutes."""
    attention = (*LADAGAN_SHAPES, (8, 4096, 256, 8), (1, 65536, 256, 8))
    ops = [("additive_attention", shape, torch.float32) for shape in attention]
    ops += [(name, (64, 256, 256, 4), dtype) for dtype in DTYPES for name in list(OPS)[1:]]
    return Plan(
        device,
        tuple(ops),
        ((16, 64, 1024), (16, 256, 512), (16, 256, 256), (16, 1024, 64)),
        Scaling(256, 4, tuple(2**n for n in range(6, 17)), r1=(2**7, 2**9, 2**11), most_fused=2**13, most_math=2**12),
        tuple(model_config(preset, batch, device) for preset, batch in (("cifar10", 4), ("celeba64", 16), ("ffhq128", 2))),
        tuple(family_configs(pixels, 4, device) for pixels in (32, 64)),
        compiled=tuple(call for call in ops if call[1] == (64, 256, 256, 4) and call[2] == torch.float32),
        seconds=6.0,
    )


def cuda_plan(device: str) -> Plan:
    """Sizes beyond a GPU's caches, 2^26 and 2^28 elements in each [B,N,D]; LadaGAN's own, where a launch counts."""
    ops = [(name, (batch, 4096, 256, 4), torch.bfloat16) for batch in (64, 256) for name in OPS]
    wide, long = (64, 1024, 1024, 4), (1, 2**20, 64, 4)
    more = ((wide, torch.bfloat16), (wide, torch.float32), (long, torch.bfloat16))
    ops += [("additive_attention", shape, dtype) for shape, dtype in more]
    return Plan(
        device,
        tuple(ops),
        ((64, 64, 1024), (64, 256, 512), (64, 256, 256), (64, 1024, 64)),
        Scaling(256, 4, tuple(2**n for n in range(6, 17)), r1=(2**8, 2**10, 2**12, 2**14), most_fused=2**16, most_math=2**14),
        tuple(
            model_config(preset, batch, device)
            for preset, batch in (("cifar10", 64), ("celeba64", 64), ("celeba64", 128), ("ffhq128", 32))
        ),
        tuple(family_configs(pixels, 64, device) for pixels in (32, 64)),
        floors=tuple(("additive_attention", shape, dtype) for dtype in reversed(DTYPES) for shape in LADAGAN_SHAPES),
        compiled=tuple(call for call in ops if call[1][0] == 64),
        compile_models=(64,),
        seconds=4.0,
    )


def tiny_plan(device: str) -> Plan:
    """A rehearsal of every suite."""
    ops = tuple((name, (2, 8, 16, 4), dtype) for dtype in DTYPES for name in OPS)
    scaling = Scaling(16, 4, (8, 16, 32), r1=(8,), most_fused=16, most_math=8)
    return Plan(
        device,
        ops,
        ((2, 8, 16),),
        scaling,
        (tiny_config(device),),
        (tiny_families(device),),
        floors=ops[:1],
        compiled=ops[:1],
        rehearsal=True,
        repeats=1,
    )


PLANS = {"cpu": cpu_plan, "cuda": cuda_plan, "tiny": tiny_plan}


def on_device(config: Config, batch: int, device: str) -> Config:
    replace = dataclasses.replace
    return replace(config, optim=replace(config.optim, batch_size=batch), run=replace(config.run, device=device))


def model_config(preset: str, batch: int, device: str) -> Config:
    """A LadaGAN in the official sizes, R1 every step."""
    config, replace = on_device(PRESETS[preset], batch, device), dataclasses.replace
    return replace(
        config,
        generator=replace(config.generator, flavor="torch"),
        discriminator=replace(config.discriminator, flavor="torch"),
        optim=replace(config.optim, r1=1e-2, r1_every=1),
    )


def tiny_config(device: str) -> Config:
    """A LadaGAN that is only as large as its code needs."""
    config, replace = model_config("celeba64", 4, device), dataclasses.replace
    return replace(
        config,
        img_size=32,
        generator=replace(config.generator, dim=(64, 16, 8), mlp_dim=(8, 8, 8)),
        discriminator=replace(config.discriminator, enc_dim=(8, 16), out_dim=(8, 8), mlp_dim=8),
    )


def family_configs(pixels: int, batch: int, device: str) -> dict[str, Config]:
    """Presets for 32 or 64 pixels, as they are but for the batch; the pairing has one for 32, to which 64 add G's depth."""
    data = {32: "cifar10", 64: "celeba64"}[pixels]
    lada, vit, paired = PRESETS[data], PRESETS[f"vitgan-{data}"], PRESETS["vitgan-stylegan2d-cifar10"]
    deep = dataclasses.replace(paired.generator, blocks=vit.generator.blocks)
    return named_families(lada, vit, dataclasses.replace(paired, img_size=pixels, generator=deep), batch, device)


def tiny_families(device: str) -> dict[str, Config]:
    """The same families, only as large as their code needs."""
    replace, lada = dataclasses.replace, tiny_config(device)
    vit, paired = PRESETS["vitgan-cifar10"], PRESETS["vitgan-stylegan2d-cifar10"]
    small = {"dim": 16, "blocks": 1, "heads": 2, "mlp_dim": 16}
    implicit = ViTGANGenerator(noise_dim=8, output="inr", inr_dim=8, inr_layers=1, **small)
    vit = replace(vit, generator=implicit, discriminator=ViTGANDiscriminator(**small))
    convolutional = replace(paired.generator, noise_dim=8, **small)
    paired = replace(paired, generator=convolutional, discriminator=StyleGAN2Discriminator(widths=(8, 8, 8, 8)))
    return named_families(replace(lada, optim=PRESETS["cifar10"].optim), vit, paired, 4, device)


def named_families(lada: Config, vit: Config, paired: Config, batch: int, device: str) -> dict[str, Config]:
    names = ("LadaGAN", "ViTGAN", "ViTGAN with StyleGAN2's D")
    return {name: on_device(config, batch, device) for name, config in zip(names, (lada, vit, paired), strict=True)}
