"""Equalised layers against their equations."""

import pytest
import torch
from torch.nn.functional import conv2d, leaky_relu, linear

from lada_kernels.modules import EqualizedLinear, MappingNetwork
from lada_kernels.modules.equalized import EqualizedConv2d


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
def test_a_layer_begins_at_unit_scale(multiplier):
    torch.manual_seed(0)
    layer = EqualizedLinear(400, 300, lr_multiplier=multiplier).double()
    x = torch.randn(200, 400, dtype=torch.float64)
    assert layer.weight.std().item() == pytest.approx(1 / multiplier, rel=1e-2)
    assert layer(x).std().item() == pytest.approx(1, rel=1e-2)
    with torch.no_grad():
        layer.bias.normal_()
    expected = linear(x, layer.weight * multiplier / 20, multiplier * layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_without_a_bias():
    layer = EqualizedLinear(4, 3, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer(torch.ones(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
def test_a_convolution(bias):
    torch.manual_seed(0)
    layer = EqualizedConv2d(100, 50, 3, stride=2, padding=1, bias=bias, gain=5.0).double()
    assert layer.weight.std().item() == pytest.approx(1, rel=1e-2)
    x = torch.randn(2, 100, 16, 15, dtype=torch.float64)
    if bias:
        assert torch.equal(layer.bias, torch.zeros(50, dtype=torch.float64))
        torch.nn.init.normal_(layer.bias)
    expected = 5 * conv2d(x, layer.weight / 30, layer.bias, 2, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_the_mapping_network():
    torch.manual_seed(0)
    network = MappingNetwork(64, layers=3).double()
    z = 5 * torch.randn(7, 64, dtype=torch.float64)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in network.layers:
        w = 2**0.5 * leaky_relu(w @ layer.weight.T * 0.01 / 8 + 0.01 * layer.bias, 0.2)
    torch.testing.assert_close(network(z), w, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(network(3 * z), network(z), rtol=1e-7, atol=1e-7)
    assert sum(p.numel() for p in MappingNetwork(384).parameters()) == 8 * (384 * 384 + 384)
