"""Modulated convolutions against one set of weights per item, by grouped convolution in float64."""

import pytest
import torch
from problems import DTYPES, TOLERANCES
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from lada_kernels.modules.modulated import ModulatedConv2d, StyledConv2d, ToRGB
from lada_kernels.modules.resample import Blur

CASES = {
    "plain": {"kernel_size": 3},
    "wide": {"kernel_size": 5, "gain": 3.0},
    "raw": {"kernel_size": 3, "demodulate": False, "gain": 3.0},
    "upsampled": {"kernel_size": 3, "upsample": True},
    "upsampled 1": {"kernel_size": 1, "upsample": True},
    "upsampled raw": {"kernel_size": 5, "upsample": True, "demodulate": False},
    "1x1": {"kernel_size": 1},
    "1x1 raw": {"kernel_size": 1, "demodulate": False, "gain": 3.0},
}


def build(in_channels=5, out_channels=4, style_dim=3, **options):
    torch.manual_seed(0)
    conv = ModulatedConv2d(in_channels, out_channels, style_dim=style_dim, **options).double()
    torch.nn.init.normal_(conv.style.bias, 1)
    return conv


def grouped(conv, x, style, bias=None):
    """The paper's equations: modulated and demodulated weights, an item's own each, in one grouped convolution."""
    batch, (out, channels) = len(x), conv.weight.shape[:2]
    s = style @ conv.style.weight.T / conv.style.in_features**0.5 + conv.style.bias
    weight = conv.weight / (channels * conv.kernel_size**2) ** 0.5 * s[:, None, :, None, None]  # [B, out, in, k, k]
    if conv.demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    x = x.reshape(1, batch * channels, *x.shape[2:])
    if conv.blur is None:
        y = functional.conv2d(x, weight.flatten(0, 1), padding=conv.kernel_size // 2, groups=batch)
    else:
        y = functional.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
    y = y.view(batch, out, *y.shape[2:])
    if conv.blur is not None:
        y = Blur((5 - conv.kernel_size) // 2, gain=4.0)(y)
    return conv.gain * y if bias is None else conv.gain * y + bias[:, None, None]


@pytest.mark.parametrize("size", [(1, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("case", CASES)
def test_two_formulations_agree_at_three_orders(case, biased, size):
    conv = build(**CASES[case])
    results = []
    x = torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True)
    style = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True) if biased else None
    leaves = [x, style, *conv.parameters(), *([bias] if biased else [])]
    for function in (conv, lambda *args: grouped(conv, *args)):
        y = function(x, style, bias)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([y, *first, *second])
    assert results[0][0].shape == (3, 4, *(side * (1 + bool(CASES[case].get("upsample"))) for side in size))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * theirs.abs().max().item())


@pytest.mark.parametrize("case", ["plain", "upsampled", "1x1", "raw"])
def test_derivatives(case):
    conv = build(3, 2, **CASES[case])
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    style = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, style, conv.weight)

    def function(x, style, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, style))

    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["plain", "upsampled", "1x1", "raw"])
def test_dtypes(case, dtype):
    conv = build(32, 16, 8, **CASES[case]).to(dtype)
    x, style, bias = torch.randn(3, 32, 5, 6).to(dtype), torch.randn(3, 8).to(dtype), torch.randn(16).to(dtype)
    with torch.no_grad():
        y = conv(x, style, bias)
        truth = grouped(conv.double(), x.double(), style.double(), bias.double())
    assert y.dtype == dtype
    # Rounded after the style, the scaled weights, the modulation, the convolution, the blur and the demodulation.
    assert (y.double() - truth).norm() <= 6 * TOLERANCES[dtype].norm * truth.norm()


def test_it_begins_at_unit_scale():
    torch.manual_seed(0)
    conv = ModulatedConv2d(256, 128, 3, 64)
    assert conv.weight.std().item() == pytest.approx(1, rel=1e-2)
    assert torch.equal(conv.style.bias, torch.ones(256))
    with torch.no_grad():
        y = conv(torch.randn(4, 256, 8, 8), 9 * torch.randn(4, 64))
    assert y[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, rel=2e-2)


@pytest.mark.parametrize("upsample", [False, True], ids=["", "upsampled"])
def test_the_layer(upsample):
    torch.manual_seed(0)
    layer = StyledConv2d(5, 4, 3, 6, upsample=upsample).double()
    assert torch.equal(layer.strength, torch.zeros((), dtype=torch.float64))
    x, style = torch.randn(3, 5, 4, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.normal_()
        layer.strength.fill_(0.7)
    layer.conv.gain = 1.0
    plain = grouped(layer.conv, x, style, layer.bias)
    layer.conv.gain = 2**0.5

    def activated(y):
        return 2**0.5 * functional.leaky_relu(y, 0.2)

    torch.manual_seed(1)
    noise = torch.randn(3, 1, *plain.shape[2:], dtype=torch.float64)
    torch.manual_seed(1)
    torch.testing.assert_close(layer(x, style), activated(plain + 0.7 * noise), rtol=1e-12, atol=1e-12)
    assert not torch.equal(layer(x, style), layer(x, style))
    layer.eval()
    torch.testing.assert_close(layer(x, style), activated(plain), rtol=1e-12, atol=1e-12)


def test_a_layer_without_noise():
    torch.manual_seed(0)
    layer = StyledConv2d(5, 4, 1, 6, noise=False)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "conv.weight", "conv.style.weight", "conv.style.bias"]
    x, style = torch.randn(2, 5, 4, 4), torch.randn(2, 6)
    assert torch.equal(layer(x, style), layer(x, style))


def test_to_rgb():
    torch.manual_seed(0)
    layer = ToRGB(8, 6).double()
    assert torch.equal(layer.bias, torch.zeros(3, dtype=torch.float64))
    torch.nn.init.normal_(layer.bias)
    x, style = torch.randn(2, 8, 4, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    s = style @ layer.conv.style.weight.T / 6**0.5 + 1  # [B, in]
    expected = torch.einsum("oi,bi,bihw->bohw", layer.conv.weight[:, :, 0, 0] / 8**0.5, s, x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, style), expected, rtol=1e-12, atol=1e-12)


def test_empty_batch_and_autocast():
    torch.manual_seed(0)
    for upsample in (False, True):
        layer = StyledConv2d(5, 4, 3, 6, upsample=upsample)
        assert layer(torch.empty(0, 5, 4, 4), torch.empty(0, 6)).shape[:2] == (0, 4)
        with torch.autocast("cpu", torch.bfloat16):
            y = ToRGB(4, 6)(layer(torch.randn(2, 5, 4, 4), torch.randn(2, 6)), torch.randn(2, 6))
        y.float().square().sum().backward()
        assert y.dtype == torch.bfloat16
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, "kernel_size: got 2, expected an odd number above 0"),
        ({"kernel_size": 7, "upsample": True}, "kernel_size: got 7, expected 1, 3 or 5 to upsample"),
    ],
)
def test_refused_kernels(options, message):
    with pytest.raises(ValueError, match=message):
        ModulatedConv2d(5, 4, style_dim=3, **options)


def test_refused_inputs():
    conv = build(kernel_size=3).float()
    with pytest.raises(
        ValueError, match=r"x: got shape \[2, 4, 3, 3\], expected \[B, in_channels, H, W\] with in_channels = 5"
    ):
        conv(torch.ones(2, 4, 3, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"style: got shape \[1, 3\], expected \[B, style_dim\] = \[2, 3\]"):
        conv(torch.ones(2, 5, 3, 3), torch.ones(1, 3))
