"""Conv2d against torch's own in float64, whose derivatives to second order are the truth."""

import copy

import pytest
import torch
from problems import TOLERANCES
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels.modules.convolution import Conv2d
from lada_kernels.ops import convolution

# (in, out, kernel, stride, padding), the map's sides
CASES = {
    "wide": ((64, 72, 3, 1, 1), (6, 10)),
    "odd": ((64, 64, 3, 1, 1), (5, 6)),
    "halving": ((64, 64, 3, 2, 1), (8, 6)),
    "pixelwise": ((5, 6, 1, 1, 0), (4, 4)),
    "window": ((5, 1, 4, 1, 0), (7, 6)),
    "image": ((3, 16, 3, 1, 1), (8, 8)),
}


def pair(shape, bias=True):
    """Ours in float32, torch's in float64, of equal parameters."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(*shape, bias=bias)
    ours = Conv2d(*shape, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs.double()


def orders(layer, x):
    """Value, gradients and what R1 makes of them, with a loss in which both orders meet."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (slope,) = torch.autograd.grad((y**3).sum() / y.numel(), x, create_graph=True)
    loss = (slope**2).sum() + (y**2).mean()
    return y, slope, *torch.autograd.grad(loss, (x, *layer.parameters()))


def assert_right(got, truth):
    for result, expected in zip(got, truth, strict=True):
        assert result.shape == expected.shape
        error = (result.detach().double() - expected).norm() / expected.norm()
        assert error <= 4 * TOLERANCES[torch.float32].norm, error  # up to four convolutions in a row


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of the operations that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))

    def count(self, start):
        return sum(name.startswith(start) for name, _ in self.calls)

    def wanted(self):
        """Which gradients the backwards of convolutions were asked for."""
        return [args[0] for name, args in self.calls if name.startswith("lada_kernels.convolution_backward")]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_both_orders(case, batch, bias):
    shape, sides = CASES[case]
    ours, theirs = pair(shape, bias)
    x = torch.randn(batch, shape[0], *sides)
    with Calls() as calls:
        got = orders(ours, x)
    assert calls.count("aten._convolution_double_backward") == 0
    assert_right(got, orders(theirs, x.double()))


@pytest.mark.parametrize("layout", ["dense", "sliced", "expanded"])
def test_layouts(layout):
    ours, theirs = pair(CASES["wide"][0])
    x = {
        "dense": lambda: torch.randn(2, 64, 4, 6),
        "sliced": lambda: torch.randn(2, 80, 5, 8)[:, 8:72, 1:, 1:7],
        "expanded": lambda: torch.randn(1, 64, 1, 6).expand(2, -1, 4, -1),
    }[layout]()
    y, truth = ours(x), theirs(x.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    for grad in (torch.randn_like(truth), torch.randn(2, 1, 1, 1, dtype=torch.float64).expand(truth.shape)):
        got = torch.autograd.grad(y, ours.parameters(), grad.float(), retain_graph=True)
        assert_right(got, torch.autograd.grad(truth, theirs.parameters(), grad, retain_graph=True))


def test_gradcheck_and_gradgradcheck():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 3, 3), torch.randn(2)
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]

    def apply(x, weight, bias):
        return convolution.convolution(x, weight, bias, padding=(1, 1))

    assert gradcheck(apply, inputs, fast_mode=True)
    assert gradgradcheck(apply, inputs, fast_mode=True)


@pytest.mark.parametrize("case", ["wide", "halving"])
def test_no_weight_gradients(case):
    shape, sides = CASES[case]
    ours, _ = pair(shape)
    x = torch.randn(2, shape[0], *sides, requires_grad=True)

    def r1(around):
        with Calls() as calls, around:
            (slope,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
        return calls, torch.autograd.grad(slope.square().sum(), ours.weight)

    plain, expected = r1(torch.enable_grad())
    lean, got = r1(convolution.no_weight_gradients())
    assert torch.equal(*got, *expected)
    assert plain.wanted() == [[True, True]]
    assert lean.wanted() == [[True, False]]
    with convolution.no_weight_gradients():
        assert torch.autograd.grad(ours(x).sum(), ours.weight, allow_unused=True) == (None,)
    ours(x).sum().backward()
    assert ours.weight.grad is not None


def test_an_empty_batch():
    ours, _ = pair(CASES["wide"][0])
    x = torch.randn(0, 64, 4, 4, requires_grad=True)
    y = ours(x)
    assert y.shape == (0, 72, 4, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not ours.weight.grad.any()


def test_autocast_is_torchs():
    ours, _ = pair(CASES["wide"][0])
    x = torch.randn(2, 64, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
        expected = nn.functional.conv2d(x, ours.weight, ours.bias, 1, 1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.parametrize("case", ["wide", "halving"])
def test_compiled_as_a_whole(case):
    shape, sides = CASES[case]
    ours, theirs = pair(shape)
    x = torch.randn(2, shape[0], *sides)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    y, truth = compiled(x), theirs(x.double())
    assert_right(
        (y, *torch.autograd.grad(y.sum(), ours.parameters())),
        (truth, *torch.autograd.grad(truth.sum(), theirs.parameters())),
    )


def test_is_torchs_to_checkpoints_and_copies():
    ours, theirs = pair(CASES["wide"][0])
    assert isinstance(ours, nn.Conv2d)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(1, 64, 4, 4)
    ours(x).sum().backward()
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))
