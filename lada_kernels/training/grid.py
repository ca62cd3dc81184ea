"""Sheets of images as PNG."""

from pathlib import Path

import torch
from torch import Tensor

from lada_kernels.training.errors import import_extra


def image_grid(images: Tensor, columns: int | None = None, pad: int = 2) -> Tensor:
    """Lay images out on one sheet.

    Args:
        images: [B, 3, H, W]. [-1, 1] maps to 0..255 for the whole sheet, never image by image: contrast can
            be compared. What lies outside is clipped.
        columns: images a row; default the square root of B, rounded up.
        pad: pixels of mid grey around each image.

    Returns:
        [rows * (H + pad) + pad, columns * (W + pad) + pad, 3] uint8, on the CPU.
    """
    count, channels, height, width = images.shape
    columns = columns or max(1, int(count**0.5 + 0.999))
    rows = -(-count // columns)
    pixels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)
    sheet = torch.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 128, dtype=torch.uint8)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1)):  # [H, W, 3]
        y = pad + index // columns * (height + pad)
        x = pad + index % columns * (width + pad)
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write `image_grid` as a PNG, making the folder; ``OSError`` when the disk refuses."""
    image = import_extra("PIL.Image").fromarray(image_grid(images, columns).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")
