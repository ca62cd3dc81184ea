"""BatchNorm2d against torch's own, whose forward and two derivatives are the truth."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels.modules import BatchNorm2d


def norms(dtype=torch.float64):
    theirs = nn.BatchNorm2d(3, eps=1e-3, momentum=0.2).to(dtype)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = BatchNorm2d(3, eps=1e-3, momentum=0.2).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def orders(norm, x, grad, cotangents):
    """Value, first and second derivatives; the statistics of the running mean are in the module."""
    parameters = (x, norm.weight, norm.bias)
    out = norm(x)
    firsts = torch.autograd.grad(out, parameters, grad, create_graph=True)
    seconds = torch.autograd.grad(firsts, (grad, x, norm.weight), cotangents)
    return out, *firsts, *seconds


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["dense", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (1, 3, 2, 2), (2, 3, 17, 9)], ids=str)
def test_every_order_and_the_running_statistics_are_torchs(shape, layout):
    torch.manual_seed(0)
    ours, theirs = norms()
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 1).to(memory_format=layout).requires_grad_()
    grad = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    cotangents = (torch.randn(shape, dtype=torch.float64), *torch.randn(2, 3, dtype=torch.float64))
    got, truth = orders(ours, x, grad, cotangents), orders(theirs, x, grad, cotangents)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-14, atol=1e-14)


def test_gradcheck_and_gradgradcheck():
    torch.manual_seed(1)
    norm, _ = norms()
    x = torch.randn(3, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def apply(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert gradcheck(apply, (x, norm.weight, norm.bias))
    assert gradgradcheck(apply, (x, norm.weight, norm.bias))


def test_r1_in_float32_agrees_with_float64():
    torch.manual_seed(2)
    ours, theirs = norms(torch.float32)
    theirs = copy.deepcopy(theirs).double()
    x = torch.randn(8, 3, 16, 16)

    def r1(norm, x):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return norm.weight.grad, x.grad  # the bias' gradient is a sum that cancels, here and in torch's

    for got, truth in zip(r1(ours, x), r1(theirs, x.double()), strict=True):
        assert (got.double() - truth).norm() <= 1e-5 * truth.norm()


def test_the_third_order_raises():
    norm, _ = norms()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((norm(x) ** 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="batch_norm is differentiable twice"):
        second.sum().backward()


def test_evaluation_and_cumulative_average_are_torchs():
    ours, theirs = BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for seed in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


def test_wrong_dimensions_are_refused():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNorm2d(3)(torch.randn(2, 3, 4))


def test_one_value_per_channel_is_refused_before_anything_changes():
    ours, theirs = norms()
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        theirs(x)
    with pytest.raises(ValueError, match=r"x: got shape \[1, 3, 1, 1\], expected more than 1 value per channel when training"):
        ours(x)
    for norm in (ours, theirs):
        assert norm.running_var.isfinite().all()


def test_an_empty_batch_is_torchs():
    ours, theirs = norms()
    x = torch.randn(0, 3, 2, 2, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, equal_nan=True)
