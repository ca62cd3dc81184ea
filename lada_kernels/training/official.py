"""Checkpoints of LadaGAN's official PyTorch code, and what every official checkpoint is turned into.

A checkpoint says nothing of the configuration; that follows from the shapes of its tensors.
"""

import codecs
from dataclasses import dataclass
from itertools import count, takewhile
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lada_kernels.training.config import Config
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.families import LadaGANDiscriminator, LadaGANGenerator
from lada_kernels.training.trainer import build_discriminator, build_generator
from lada_kernels.training.weights import Shapes, compare, shapes_of

BLOCKS = (64, 256, 1024)  # tokens of the generator's blocks
MODELS = ("generator", "discriminator", "ema")


@dataclass(frozen=True)
class Weights:
    """What an official checkpoint is worth here.

    Attributes:
        config: builds its models; of all else it has the defaults, as the checkpoint says nothing.
        iteration: training steps behind it.
        states: state dicts of the models so built: "generator", "discriminator", and "ema", the averaged generator.
    """

    config: Config
    iteration: int
    states: dict[str, dict[str, Tensor]]


def read_pytorch(path: Path) -> Weights:
    """Read ``last_ckpt.pt`` or ``best_ckpt.pt`` of the official PyTorch code, without running code from the file.

    Raises:
        TrainingError: the file is missing, unreadable, not such a checkpoint, or a tensor in it is missing, unknown or
            misshapen; the message names it.
    """
    if not path.is_file():
        raise TrainingError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch.load raises whatever its unpickler runs into
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TrainingError(f"{path} is not a readable PyTorch checkpoint: {reason}") from error
    missing = [key for key in ("iter", *MODELS) if not isinstance(state, dict) or key not in state]
    if missing:
        raise TrainingError(f"{path} is not a training checkpoint of the official code: it lacks {', '.join(missing)}")
    for name in MODELS:
        if not isinstance(state[name], dict) or not all(isinstance(value, Tensor) for value in state[name].values()):
            raise TrainingError(f"{name} in {path} is no state dict")
    states = {name: dict(state[name]) for name in MODELS}
    found = {name: shapes_of(states[name]) for name in MODELS}
    config = infer_config(found["ema"], found["discriminator"], "torch")
    for name in MODELS:
        compare(found[name], expected_shapes(config, name), f"{name} in {path}")
    return Weights(config, int(state["iter"]), states)


def _numpy_scalars() -> list[Any]:
    """What unpickles the FID that the official code keeps, a NumPy scalar, by the names of NumPy before and since 2.0."""
    rebuild = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = (type(np.dtype(kind)) for kind in ("float32", "float64"))
    return [*((rebuild, name) for name in names), np.dtype, *dtypes, codecs.encode]  # which a pickle spells bytes with


def infer_config(generator: Shapes, discriminator: Shapes, flavor: str) -> Config:
    """The configuration of models with parameters of these shapes, named as ours.

    Raises:
        TrainingError: a tensor that it follows from is missing, or has a shape that no LadaGAN has.
    """
    img_size, g = _infer_generator(generator, flavor)
    return Config(img_size=img_size, generator=g, discriminator=_infer_discriminator(discriminator, flavor))


def _infer_generator(shapes: Shapes, flavor: str) -> tuple[int, LadaGANGenerator]:
    dim = tuple(_size(shapes, f"pos_{tokens}", -1) for tokens in BLOCKS)
    stages = takewhile(lambda name: name in shapes, (f"decoder.{1 + 4 * i}.weight" for i in count()))
    decoder_dim = tuple(_size(shapes, name, 0) for name in stages)
    img_size = 32 * 2 ** len(decoder_dim)
    if not decoder_dim:  # a token of dim[2] channels became patch x patch pixels
        channels = _size(shapes, "ch_conv.weight", 1)
        img_size = 32 * isqrt(dim[2] // max(1, channels))
        if 32**2 * dim[2] != channels * img_size**2:
            raise TrainingError(f"ch_conv.weight: {channels} channels are left by no square patch of tokens with {dim[2]}")
    config = LadaGANGenerator(
        noise_dim=_size(shapes, "init.0.weight", 1),
        dim=dim,
        heads=tuple(_size(shapes, f"block_{tokens}.attn.q_attn.weight", 0) for tokens in BLOCKS),
        mlp_dim=tuple(_size(shapes, f"block_{tokens}.mlp.0.weight", 0) for tokens in BLOCKS),
        decoder_dim=decoder_dim,
        flavor=flavor,
    )
    return img_size, config


def _infer_discriminator(shapes: Shapes, flavor: str) -> LadaGANDiscriminator:
    stages = takewhile(lambda name: name in shapes, (f"encoder.{i}.main.0.weight" for i in count()))
    return LadaGANDiscriminator(
        enc_dim=(_size(shapes, "inp_conv.0.weight", 0), *(_size(shapes, name, 0) for name in stages)),
        out_dim=(_size(shapes, "conv_256.weight", 0), _size(shapes, "logits.0.weight", 0)),
        heads=_size(shapes, "block_256.attn.q_attn.weight", 0),
        mlp_dim=_size(shapes, "block_256.mlp.0.weight", 0),
        flavor=flavor,
    )


def _size(shapes: Shapes, name: str, axis: int) -> int:
    if name not in shapes:
        raise TrainingError(f"{name} is missing, so this is no LadaGAN of the official code")
    if not -len(shapes[name]) <= axis < len(shapes[name]):
        raise TrainingError(f"{name} has shape {list(shapes[name])}, so this is no LadaGAN of the official code")
    return shapes[name][axis]


def expected_shapes(config: Config, name: str) -> Shapes:
    """Shapes of the tensors of "generator", "ema" or "discriminator" as configured; ``TrainingError`` if it cannot be built."""
    with torch.device("meta"):
        model = build_discriminator(config) if name == "discriminator" else build_generator(config)
    return shapes_of(model.state_dict())
