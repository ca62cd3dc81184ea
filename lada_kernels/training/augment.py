"""DiffAugment (Zhao et al., arXiv 2006.10738): differentiable augmentation of what D sees, real or fake.

Every operation is always applied and draws once per sample from torch's generator. Images are [B, C, H, W] in
[-1, 1]; 0, a mid grey, fills what translation uncovers and cutout removes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Operation = Literal["color", "translation", "cutout"]


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    draw = torch.rand(images.shape[0], 1, 1, 1, dtype=images.dtype, device=images.device)  # [B, 1, 1, 1]
    return low + (high - low) * draw


def _integers(images: Tensor, low: int, high: int) -> Tensor:
    return torch.randint(low, high + 1, (images.shape[0], 1), device=images.device)  # [B, 1]


def color(images: Tensor) -> Tensor:
    """Brightness + U(-.5, .5), saturation x U(0, 2) about the grey, contrast x U(.5, 1.5) about the mean."""
    images = images + _uniform(images, -0.5, 0.5)
    grey = images.mean(dim=1, keepdim=True)  # [B, 1, H, W]
    images = grey + (images - grey) * _uniform(images, 0.0, 2.0)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    return mean + (images - mean) * _uniform(images, 0.5, 1.5)


def translation(images: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift by a whole number of pixels, at most ``ratio`` of the side each way."""
    height, width = images.shape[2:]
    most_y, most_x = int(height * ratio + 0.5), int(width * ratio + 0.5)
    rows = torch.arange(height, device=images.device) + _integers(images, -most_y, most_y)  # [B, H]
    columns = torch.arange(width, device=images.device) + _integers(images, -most_x, most_x)  # [B, W]
    inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    sample = torch.arange(images.shape[0], device=images.device)[:, None, None]  # [B, 1, 1]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    shifted = images.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)  # [B, C, H, W]
    return shifted * (inside_y[:, None, :, None] & inside_x[:, None, None, :])


def cutout(images: Tensor, ratio: float = 0.5) -> Tensor:
    """Blank a rectangle of ``ratio`` of each side, centred anywhere: part of it may fall outside."""

    def covered(side: int) -> Tensor:
        size = int(side * ratio + 0.5)
        start = _integers(images, 0, side - size % 2) - size // 2  # [B, 1]
        index = torch.arange(side, device=images.device)
        return (index >= start) & (index < start + size)  # [B, side]

    rows, columns = covered(images.shape[2]), covered(images.shape[3])
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


OPERATIONS = {"color": color, "translation": translation, "cutout": cutout}


def augment(images: Tensor, policy: Sequence[Operation]) -> Tensor:
    """Apply the named operations in order; an empty policy returns the images as they are.

    Args:
        images: [B, C, H, W], floating point, in [-1, 1].
        policy: names of operations: "color", "translation", "cutout".

    Raises:
        ValueError: an unknown name.
    """
    for name in policy:
        if name not in OPERATIONS:
            raise ValueError(f"policy: unknown operation {name!r}, expected some of {list(OPERATIONS)}")
        images = OPERATIONS[name](images)
    return images
