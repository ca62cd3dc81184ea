"""Drawing from a trained generator in a few lines of Python.

from lada_kernels.training.sampling import draw, load_generator, save_grid
generator = load_generator("runs/digits")
save_grid(draw(generator, 16, seed=7), "grid.png")
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from lada_kernels.training.attention_maps import attention_maps, attention_sheet
from lada_kernels.training.config import from_dict
from lada_kernels.training.grid import image_grid, save_animation, save_grid, save_singles
from lada_kernels.training.latents import closed_loop, latent_stream, seeded_stream
from lada_kernels.training.loop import sample
from lada_kernels.training.trainer import build_generator, pick_device
from lada_kernels.training.weights import load_generator

__all__ = [
    "attention_maps",
    "attention_sheet",
    "averaged_generator",
    "draw",
    "latents_of",
    "load_generator",
    "save_animation",
    "save_grid",
    "save_singles",
    "walk",
]


def averaged_generator(state: dict[str, Any], device: str = "auto") -> nn.Module:
    """The averaged generator of a checkpoint that has been read, in evaluation mode."""
    generator = build_generator(from_dict(state["config"]))
    generator.load_state_dict(state["ema"])
    return generator.to(pick_device(device)).requires_grad_(False).eval()


def latents_of(generator: nn.Module, count: int = 64, *, seed: int = 0, seeds: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Endless latents [B, noise_dim] of B images, on the CPU; the first are those of `draw`.

    Args:
        generator: with an attribute ``noise_dim``.
        count: B, unless there are ``seeds``.
        seed: of all of them.
        seeds: one for each image in the place of ``count`` and ``seed``; image i depends on ``seeds[i]`` alone.
    """
    if seeds is not None:
        return seeded_stream(generator.noise_dim, seeds)
    return latent_stream(generator.noise_dim, count, seed)


def draw(
    generator: nn.Module, count: int = 64, *, seed: int = 0, seeds: Sequence[int] | None = None, batch_size: int = 64
) -> Tensor:
    """Images [B, 3, S, S], float32 on the CPU; see `latents_of` for what is drawn. Values outside [-1, 1] are not clipped."""
    return sample(generator, next(latents_of(generator, count, seed=seed, seeds=seeds)), batch_size)


def walk(
    generator: nn.Module,
    count: int = 16,
    *,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    keys: int = 4,
    frames: int = 24,
    columns: int | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Sheets for `save_animation`: every image turns into ``keys - 1`` others and back, by spherical interpolation.

    Args:
        generator, count, seed, seeds: see `latents_of`; the first sheet shows the images of `draw`.
        keys: latents that an image passes through, at least 2.
        frames: sheets from one to the next.
        columns: see `image_grid`.
        batch_size: images at a time.

    Yields:
        [H, W, 3] uint8, ``keys * frames`` times.
    """
    for latents in closed_loop(latents_of(generator, count, seed=seed, seeds=seeds), keys, frames):
        yield image_grid(sample(generator, latents, batch_size), columns)
