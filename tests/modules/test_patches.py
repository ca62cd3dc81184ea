"""Patches and positions against a convolution and the sine of coordinates."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d

from lada_kernels.modules import PatchEmbedding, SinePosition


@pytest.mark.parametrize(("patch", "overlap", "width"), [(4, None, 8), (4, 0, 4), (3, 1, 5), (8, None, 16)])
def test_patches_are_those_of_a_strided_convolution(patch, overlap, width):
    torch.manual_seed(0)
    embed = PatchEmbedding(patch, 10, overlap).double()
    images = torch.randn(2, 3, 4 * patch, 2 * patch, dtype=torch.float64)
    kernel = embed.proj.weight.view(10, 3, width, width)
    expected = conv2d(images, kernel, embed.proj.bias, stride=patch, padding=embed.overlap)  # [B, dim, 4, 2]
    torch.testing.assert_close(embed(images), expected.flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_patches_twice_differentiable():
    embed = PatchEmbedding(2, 3).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(embed, (images,))
    assert gradgradcheck(lambda x: embed(x).square(), (images,))


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (3, 8, 8)])
def test_patches_must_cover_the_image(shape):
    with pytest.raises(ValueError, match=r"images: got shape .*, expected \[B, C, H, W\] with H and W multiples of 4"):
        PatchEmbedding(4, 8)(torch.ones(shape))


def test_positions():
    embed = SinePosition(6).double()
    out = embed(3, 5)
    weight, bias = embed.proj.weight, embed.proj.bias
    for row in range(3):
        for column in range(5):
            x, y = column / 2 - 1, row - 1.0
            expected = (weight[:, 0] * x + weight[:, 1] * y + bias).sin()
            torch.testing.assert_close(out[row * 5 + column], expected, rtol=1e-12, atol=1e-12)
    assert embed.proj.weight.abs().max() <= 4.5**0.5
    assert embed(1, 1).shape == (1, 6)
