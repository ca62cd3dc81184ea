r"""3x3 convolutions by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 16 multiplications where 36 are in the sum.

A map is cut into tiles of 2x2 pixels; d is the 4x4 window around one, over which w slides, and u = G w Gᵀ the kernel's
spectrum. The tile of the result, and the gradients that its own ȳ gives to u and, by the kernel w' mirrored in both
directions, to x, are

    y = Aᵀ (u ∘ Bᵀ d B) A        ū = (A ȳ Aᵀ) ∘ (Bᵀ d B)        w̄ = Gᵀ ū G        x̄ = w' * ȳ

         ⎡1  0 -1  0⎤        ⎡ 1   0   0 ⎤        ⎡1 1  1  0⎤
    Bᵀ = ⎢0  1  1  0⎥    G = ⎢1/2 1/2 1/2⎥   Aᵀ = ⎣0 1 -1 -1⎦
         ⎢0 -1  1  0⎥        ⎢1/2 -1/2 1/2⎥
         ⎣0  1  0 -1⎦        ⎣ 0   0   1 ⎦

where ∘ is, for each of the 16 places, a product of matrices over channels and tiles: torch's, between the transformations of
csrc/cpu/convolution.cpp. Mirroring w swaps the first and the last rows of u, and columns.
"""

import torch
from torch import Tensor

from ...native import native
from ...reference.precision import as_given
from ..compiled.addresses import DTYPES

# Bytes of tiles that are worked on at a time, so that they stay in the cache; but at least so many tiles, as every time the
# whole spectrum is read.
_CACHED, _ENOUGH = 8 << 20, 256
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


def spectrum(weight: Tensor) -> Tensor:
    """w [C', C, 3, 3] -> u [16, C', C]; of torch's operations, which have derivatives."""
    g = weight.new_tensor(_G)
    return (torch.kron(g, g) @ weight.flatten(2).flatten(0, 1).T).unflatten(1, weight.shape[:2])


def output(x: Tensor, spectrum: Tensor) -> Tensor:
    """x [B, C, H, W], u [16, C', C] -> y [B, C', H, W], channels-last; H and W even."""
    return _convolve(x, spectrum, mirrored=False)


def input(grad: Tensor, spectrum: Tensor) -> Tensor:
    """ȳ [B, C', H, W], u [16, C', C] -> x̄ [B, C, H, W], channels-last."""
    return _convolve(grad, spectrum.mT, mirrored=True)


def kernel(grad: Tensor, x: Tensor) -> Tensor:
    """ȳ [B, C', H, W], x [B, C, H, W] -> ū [16, C', C]."""
    x, grad = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, grad))
    out = x.new_empty((16, grad.shape[1], x.shape[1]))
    step = _step(x, grad)
    tiles, grad_tiles = _tiles(x[:step]), _tiles(grad[:step])
    with as_given("cpu"):
        for first in range(0, len(x), step):
            some, some_grads = x[first : first + step], grad[first : first + step]
            _run("winograd_input", some, tiles := _first(tiles, some))
            _run("winograd_gradient", some_grads, grad_tiles := _first(grad_tiles, some))
            out = torch.baddbmm(out, grad_tiles.mT, tiles, beta=int(first > 0), out=out)  # beta=0 does not read
    return out


def _convolve(x: Tensor, spectrum: Tensor, mirrored: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (x.shape[0], spectrum.shape[1], *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    step = _step(x, out)
    tiles, products = _tiles(x[:step]), _tiles(out[:step])
    with as_given("cpu"):
        for some, results in zip(x.split(step), out.split(step), strict=True):
            _run("winograd_input", some, tiles := _first(tiles, some), mirrored)
            torch.bmm(tiles, spectrum.mT, out=(products := _first(products, some)))
            _run("winograd_output", results, products, mirrored)
    return out


def _step(*maps: Tensor) -> int:
    """How many maps of each kind are worked on at a time."""
    _, _, height, width = maps[0].shape
    fit = _CACHED // sum(4 * kind[0].numel() * kind.element_size() for kind in maps)
    return max(fit, -(-4 * _ENOUGH // (height * width)))


def _tiles(maps: Tensor) -> Tensor:
    """Room for the tiles of maps [B, C, H, W]: [16, tiles, C]."""
    batch, channels, height, width = maps.shape
    count = batch * height * width // 4
    # One row more: places a power of two apart would share few lines of the cache.
    return maps.new_empty((16, count + 1, channels))[:, :count]


def _first(tiles: Tensor, maps: Tensor) -> Tensor:
    return tiles[:, : maps.shape[0] * maps.shape[2] * maps.shape[3] // 4]


def _run(kernel: str, maps: Tensor, tiles: Tensor, mirrored: bool = False) -> None:
    batch, channels, height, width = maps.shape
    shape = (batch, height * width // 4, channels, 1, DTYPES[maps.dtype], torch.get_num_threads())
    layout = (maps.data_ptr(), maps.stride(0), maps.stride(2), maps.stride(3))
    getattr(native, kernel)(shape, width // 2, layout, tiles.data_ptr(), tiles.stride(0), mirrored)
