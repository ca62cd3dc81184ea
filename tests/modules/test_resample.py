"""Blurred resampling against direct sums in float64."""

import numpy as np
import pytest
import torch
from problems import DTYPES, TOLERANCES
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import interpolate

from lada_kernels.modules.resample import Blur, BlurDownsample, BlurUpsample, MeanPool

KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def direct(x, padding, stride=1, gain=1.0):
    """Every output as the sum over its 4x4 window."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((side - 4) // stride + 1 for side in x.shape[2:])
    out = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            out[:, :, i, j] = (x[:, :, i * stride : i * stride + 4, j * stride : j * stride + 4] * KERNEL).sum((2, 3))
    return gain * out


def direct_upsample(x):
    spread = np.zeros((*x.shape[:2], 2 * x.shape[2] + 1, 2 * x.shape[3] + 1))
    spread[:, :, 1::2, 1::2] = x  # one more line of zeros in front centres the kernel
    return direct(spread, 1, gain=4.0)[:, :, : 2 * x.shape[2], : 2 * x.shape[3]]


CASES = {
    "blur": (Blur, lambda x: direct(x, 1)),
    "wide": (lambda: Blur(padding=2, gain=3.0), lambda x: direct(x, 2, gain=3.0)),
    "bare": (lambda: Blur(padding=0, stride=3), lambda x: direct(x, 0, 3)),
    "down": (BlurDownsample, lambda x: direct(x, 1, 2)),
    "up": (BlurUpsample, direct_upsample),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (1, 1, 5, 7), (0, 2, 6, 6), (1, 40, 4, 4)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_direct_sums(case, shape, dtype):
    torch.manual_seed(0)
    build, truth = CASES[case]
    x = torch.randn(shape).to(dtype)
    y = build()(x)
    expected = torch.from_numpy(truth(x.double().numpy()))
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    if x.numel():
        assert (y.double() - expected).norm() <= TOLERANCES[dtype].norm * expected.norm()


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    torch.manual_seed(0)
    module = CASES[case][0]()
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(module, x, fast_mode=True)
    assert gradgradcheck(lambda x: module(x).pow(3), x, fast_mode=True)


def test_upsampling_is_bilinear_inside():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    expected = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(BlurUpsample()(x)[inside], expected[inside], rtol=1e-14, atol=1e-14)


def test_strided_and_channels_last_inputs():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 12, dtype=torch.float64)
    for view in (x[:, ::2, :, ::2], x.transpose(2, 3), x.contiguous(memory_format=torch.channels_last)):
        for module in (Blur(), BlurDownsample(), BlurUpsample()):
            torch.testing.assert_close(module(view), module(view.contiguous()), rtol=1e-14, atol=1e-14)


def test_nothing_is_saved():
    assert Blur().state_dict() == {}
    assert Blur().half().kernel.dtype == torch.float16


@pytest.mark.parametrize("build", [Blur, BlurDownsample, BlurUpsample])
def test_refused_maps(build):
    with pytest.raises(ValueError, match=r"x: got shape \[3, 4, 4\], expected \[B, C, H, W\]"):
        build()(torch.ones(3, 4, 4))
    with pytest.raises(ValueError, match=r"x: got shape \[1, 1, 4, 0\], expected"):
        build()(torch.ones(1, 1, 4, 0))


def test_refused_arguments():
    with pytest.raises(ValueError, match="padding, stride: got -1, 1, expected 0 or more, 1 or more"):
        Blur(-1)
    with pytest.raises(ValueError, match="padding, stride: got 1, 0, expected 0 or more, 1 or more"):
        Blur(stride=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["dense", "channels_last"])
def test_mean_pool(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    y = MeanPool()(x)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)
    grad = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], grad.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)
    assert gradgradcheck(lambda x: MeanPool()(x).pow(3), x, fast_mode=True)


def test_mean_pool_refuses_odd_sides():
    with pytest.raises(ValueError, match=r"x: got shape \[1, 2, 4, 5\], expected .* H and W even"):
        MeanPool()(torch.ones(1, 2, 4, 5))
