"""Where a generator looks: its attention maps, by stage and head, over the images."""

from math import isqrt, log
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lada_kernels.training.errors import import_extra
from lada_kernels.training.grid import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 1600  # of a sheet, in pixels, about
GAP, STAGE_GAP, HEADER = 4, 20, 56
GREY = "#444444"
MORE, LESS = (217.0, 72.0, 1.0), (23.0, 99.0, 184.0)


@torch.no_grad()
def attention_maps(generator: nn.Module, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images, and how much of each stage's attention every position gets.

    Args:
        generator: one of `lada_kernels.models`; it is called with ``return_weights=True``.
        latents: [B, noise_dim].

    Returns:
        images [B, 3, S, S] and, for each stage or block, maps [B, H, side, side] that add up to one, all on the CPU and
        float32. Of quadratic attention, where every token looks at all, the mean over those that look.
    """
    device = next(generator.parameters()).device
    images, stages = generator(latents.to(device), return_weights=True)
    maps = []
    for weights in stages:
        received = weights.float().mean(2) if weights.dim() == 4 else weights.float()  # [B, H, N]
        side = isqrt(received.shape[-1])
        maps.append(received.unflatten(2, (side, side)).cpu())
    return images.float().cpu(), maps


def relative_to_uniform(maps: Tensor) -> tuple[Tensor, float]:
    """How far each weight is above or below 1 / N, on a logarithmic scale that is one for all of ``maps``.

    Args:
        maps: [B, H, side, side], each adding up to one.

    Returns:
        Values in [-1, 1] of the same shape, 0 for 1 / N; and the factor from there that 1, or by division -1, stands for:
        what the largest weight of a map is, in the median over the maps. Beyond it values are clipped.
    """
    ratio = maps * maps.shape[-1] ** 2
    factor = max(ratio.amax((2, 3)).median().item(), 1.01)
    return (ratio.log() / log(factor)).clamp(-1, 1), factor


def attention_sheet(images: Tensor, maps: list[Tensor]) -> "Image":
    """One row an image: the image, then every stage's heads over it in grey.

    Orange gets more attention than an equal share, blue less, see `relative_to_uniform`; the factor that full colour stands
    for is written above each stage and holds for all of its maps.

    Args:
        images: [B, 3, S, S] in [-1, 1], clipped.
        maps: for each stage [B, H, side, side], as from `attention_maps`.
    """
    pillow, drawing, fonts = (import_extra(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont"))
    size = images.shape[-1]
    columns = 1 + sum(stage.shape[1] for stage in maps)
    cell = size * max(1, WIDTH // (columns * size))
    pixels = interpolate(to_uint8(images).float(), size=(cell, cell))  # [B, 3, cell, cell]
    width = columns * (cell + GAP) + len(maps) * STAGE_GAP + GAP
    sheet = pillow.new("RGB", (width, HEADER + len(images) * (cell + GAP)), "white")
    draw = drawing.Draw(sheet)
    large, small = fonts.load_default(14), fonts.load_default(12)

    def place(cells: Tensor, x: int) -> None:
        """cells [B, 3, cell, cell], one under the other."""
        for row, image in enumerate(cells.round().to(torch.uint8).permute(0, 2, 3, 1)):  # [cell, cell, 3]
            sheet.paste(pillow.fromarray(image.contiguous().numpy()), (x, HEADER + row * (cell + GAP)))

    x = GAP
    place(pixels, x)
    draw.text((x, 2), "image", "black", large)
    x += cell + GAP
    for number, stage in enumerate(maps, 1):
        x += STAGE_GAP
        values, factor = relative_to_uniform(stage)
        side = stage.shape[-1]
        draw.text((x, 2), f"{number}: {side}x{side}", "black", large)
        draw.text((x, 20), f"full colour: {factor:.3g} or 1/{factor:.3g} of an equal share", GREY, small)
        for head in range(stage.shape[1]):
            draw.text((x, 38), f"head {head + 1}", GREY, small)
            place(_over(pixels, interpolate(values[:, head : head + 1], size=(cell, cell))), x)
            x += cell + GAP
    return sheet


def _over(pixels: Tensor, values: Tensor) -> Tensor:
    """Colour for ``values`` [B, 1, S, S] in [-1, 1] over ``pixels`` [B, 3, S, S] in grey: [B, 3, S, S]."""
    grey = 40 + pixels.mean(1, keepdim=True) * (200 / 255)
    more, less = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (MORE, LESS))
    opacity = 0.8 * values.abs()
    return (1 - opacity) * grey + opacity * torch.where(values > 0, more, less)
