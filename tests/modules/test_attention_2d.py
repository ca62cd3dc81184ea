"""LadaAttention2d: LadaAttention over pixels, and SAGAN's gate around it."""

import copy

import pytest
import torch

from lada_kernels import LadaAttention, LadaAttention2d, OnFeatureMap

DTYPE = torch.float64


def make(**options):
    torch.manual_seed(0)
    return LadaAttention2d(8, 2, **options).double(), torch.randn(2, 8, 3, 4, dtype=DTYPE)


def three_orders(function, parameters, x):
    x = x.clone().requires_grad_()
    out = function(x)
    first = torch.autograd.grad((out**3).sum(), [x, *parameters], create_graph=True)
    return [out, *first, *torch.autograd.grad(first[0].square().sum(), [x, *parameters], materialize_grads=True)]


@pytest.mark.parametrize("fold_query", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_lada_attention_over_pixels(backend, fold_query, memory_format):
    attend, x = make()
    attend.fold_query = fold_query
    tokens = LadaAttention(8, 2, fold_query=fold_query).double()
    tokens.load_state_dict(attend.state_dict(), strict=True)
    expected = three_orders(lambda t: tokens(t.flatten(2).mT).mT.unflatten(2, (3, 4)), tokens.parameters(), x)
    values = three_orders(attend, attend.parameters(), x.to(memory_format=memory_format))
    for value, truth in zip(values, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-11)


def test_gate_starts_as_the_identity_and_opens(backend):
    attend, x = make(gate=True)
    assert torch.equal(attend(x), x)
    assert next(iter(attend.state_dict())) == "gamma"
    plain = LadaAttention2d(8, 2).double()
    plain.load_state_dict({name: value for name, value in attend.state_dict().items() if name != "gamma"}, strict=True)
    with torch.no_grad():
        attend.gamma.fill_(0.5)
    torch.testing.assert_close(attend(x), x + 0.5 * plain(x), rtol=1e-13, atol=1e-13)


def test_gate_to_second_order(backend):
    attend, x = make(gate=True)
    torch.nn.init.constant_(attend.gamma, 0.7)
    inner = OnFeatureMap(copy.deepcopy(attend)).double()

    def written_out(t):
        return t + attend.gamma * super(LadaAttention2d, attend).forward(t.flatten(2).mT).mT.unflatten(2, (3, 4))

    assert inner.module.gamma is not attend.gamma
    parameters = list(attend.parameters())
    for value, truth in zip(three_orders(attend, parameters, x), three_orders(written_out, parameters, x), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-11)


def test_closed_gate_learns():
    """At gamma = 0 the gate itself has a gradient, under R1 too, and the layers behind it have none yet."""
    attend, x = make(gate=True)
    x.requires_grad_()
    out = attend(x)
    (slope,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    ((out**2).sum() + slope.square().sum()).backward()
    assert attend.gamma.grad.abs() > 0
    assert all(p.grad.eq(0).all() for name, p in attend.named_parameters() if name != "gamma")


def test_mask_and_maps(backend):
    attend, x = make(gate=True)
    torch.nn.init.ones_(attend.gamma)
    mask = torch.rand(2, 3, 4) < 0.6
    out, weights = attend(x, mask=mask, return_weights=True)
    assert weights.shape == (2, 2, 3, 4)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(2, 2, dtype=DTYPE))
    assert weights[~mask[:, None].expand_as(weights)].eq(0).all()
    assert torch.equal(attend(x, mask=mask), out)
    assert not torch.equal(attend(x), out)


def test_one_wrong_shape_each():
    attend, x = make()
    with pytest.raises(ValueError, match=r"x: got shape \[2, 12, 8\], expected \[B, channels, H, W\] with channels = 8"):
        attend(x.flatten(2).mT)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 4, 3, 4\], expected \[B, channels, H, W\] with channels = 8"):
        attend(x[:, :4])
    with pytest.raises(ValueError, match=r"mask: got shape \[2, 12\], expected \[B, H, W\] = \[2, 3, 4\]"):
        attend(x, mask=torch.ones(2, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="heads: got 3, expected a divisor of dim = 8"):
        LadaAttention2d(8, 3)


def test_autocast_keeps_narrow_maps():
    attend = LadaAttention2d(8, 2, gate=True)
    x = torch.randn(2, 8, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(x.bfloat16()).dtype == torch.bfloat16
        assert attend(x).dtype == torch.float32


def test_options_and_what_print_shows():
    attend = LadaAttention2d(8, 2, gate=True, recompute=True)
    assert attend.recompute
    assert attend.extra_repr() == "dim=8, heads=2, fold_query=None, recompute=True, gate=True"
    assert LadaAttention2d(16).heads == 8
    assert list(LadaAttention2d(16).state_dict()) == list(LadaAttention(16).state_dict())
