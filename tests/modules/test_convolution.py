"""Conv2d against torch's own in float64, whose derivatives to second order are the truth."""

import copy

import pytest
import torch
from problems import TOLERANCES
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels import use_backend
from lada_kernels.backends.cpu import convolution as winograd
from lada_kernels.modules.convolution import Conv2d
from lada_kernels.native import why_not_built
from lada_kernels.ops import convolution

TILED = "lada_kernels.winograd"  # how the calls to Winograd's form begin
needs_native = pytest.mark.skipif(why_not_built() is not None, reason=f"backend 'cpu': {why_not_built()}")

# (in, out, kernel, stride, padding), the map's sides, whether in Winograd's form
CASES = {
    "tiles": ((64, 72, 3, 1, 1), (6, 10), True),
    "one tile": ((65, 64, 3, 1, 1), (2, 2), True),
    "narrow": ((8, 64, 3, 1, 1), (6, 6), False),
    "odd": ((64, 64, 3, 1, 1), (5, 6), False),
    "halving": ((64, 64, 3, 2, 1), (8, 6), False),
    "pixelwise": ((5, 6, 1, 1, 0), (4, 4), False),
    "window": ((5, 1, 4, 1, 0), (7, 6), False),
    "image": ((3, 16, 3, 1, 1), (8, 8), False),
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
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def count(self, start):
        return sum(name.startswith(start) for name in self.names)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_both_orders(case, batch, bias):
    shape, sides, tiled = CASES[case]
    ours, theirs = pair(shape, bias)
    x = torch.randn(batch, shape[0], *sides)
    with Calls() as calls:
        got = orders(ours, x)
    assert (calls.count(TILED) > 0) == (tiled and why_not_built() is None)
    assert_right(got, orders(theirs, x.double()))


@needs_native
def test_more_maps_than_are_worked_on_at_a_time(monkeypatch):
    monkeypatch.setattr(winograd, "_CACHED", 1)
    monkeypatch.setattr(winograd, "_ENOUGH", 5)
    ours, theirs = pair(CASES["tiles"][0])
    x = torch.randn(3, 64, 4, 4)  # two maps, then one
    assert_right(orders(ours, x), orders(theirs, x.double()))


@needs_native
@pytest.mark.parametrize("layout", ["dense", "sliced", "expanded"])
def test_layouts(layout):
    ours, theirs = pair(CASES["tiles"][0])
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


@needs_native
def test_tiles_round_about_as_much_as_the_sum():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 256, 8, 8), torch.randn(256, 256, 3, 3)
    truth = nn.functional.conv2d(x.double(), weight.double(), padding=1)
    tiled = winograd.output(x, winograd.spectrum(weight))
    plain = nn.functional.conv2d(x, weight, padding=1)
    assert (tiled - truth).norm() <= 3 * (plain - truth).norm()


@needs_native
@pytest.mark.parametrize("tiled", [True, False])
def test_gradcheck_and_gradgradcheck(tiled, monkeypatch):
    monkeypatch.setattr(convolution, "_worth_tiles", lambda *_: tiled)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 3, 3), torch.randn(2)
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]

    def apply(x, weight, bias):
        return convolution.convolve(x, weight, bias, padding=(1, 1))

    assert gradcheck(apply, inputs, fast_mode=True)
    assert gradgradcheck(apply, inputs, fast_mode=True)

    def first(x, weight):
        return torch.autograd.grad(apply(x, weight, bias.double()).square().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first, inputs[:2], fast_mode=True)  # the third order, too


@pytest.mark.parametrize("case", ["tiles", "halving"])
def test_input_gradients_only(case):
    shape, sides, _ = CASES[case]
    ours, _ = pair(shape)
    x = torch.randn(2, shape[0], *sides, requires_grad=True)

    def r1(around):
        with Calls() as calls, around:
            (slope,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
        return calls, torch.autograd.grad(slope.square().sum(), ours.weight)

    plain, expected = r1(torch.enable_grad())
    lean, got = r1(convolution.input_gradients_only())
    assert torch.equal(*got, *expected)
    for name in (f"{TILED}_kernel", "aten.convolution_backward"):
        if plain.count(name):
            assert plain.count(name) == 1 + lean.count(name)
    with convolution.input_gradients_only():
        assert torch.autograd.grad(ours(x).sum(), ours.weight, allow_unused=True) == (None,)
    ours(x).sum().backward()
    assert ours.weight.grad is not None


def test_an_empty_batch():
    ours, _ = pair(CASES["tiles"][0])
    x = torch.randn(0, 64, 4, 4, requires_grad=True)
    y = ours(x)
    assert y.shape == (0, 72, 4, 4)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not ours.weight.grad.any()


def test_the_reference_is_torchs_own():
    ours, _ = pair(CASES["tiles"][0])
    x = torch.randn(2, 64, 4, 4)
    with use_backend("reference"):
        assert torch.equal(
            ours(x),
            nn.functional.conv2d(x.contiguous(memory_format=torch.channels_last), ours.weight, None, 1, 1)
            + ours.bias[:, None, None],
        )


def test_autocast_is_torchs():
    ours, _ = pair(CASES["tiles"][0])
    x = torch.randn(2, 64, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
        expected = nn.functional.conv2d(x, ours.weight, ours.bias, 1, 1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.parametrize("case", ["tiles", "halving"])
def test_compiled_as_a_whole(case):
    shape, sides, _ = CASES[case]
    ours, theirs = pair(shape)
    x = torch.randn(2, shape[0], *sides)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    y, truth = compiled(x), theirs(x.double())
    assert_right(
        (y, *torch.autograd.grad(y.sum(), ours.parameters())),
        (truth, *torch.autograd.grad(truth.sum(), theirs.parameters())),
    )


@needs_native
def test_the_calls_are_right_by_torchs_own_check():
    x, grad = (torch.randn(2, c, 4, 4).contiguous(memory_format=torch.channels_last) for c in (5, 6))
    spectrum = winograd.spectrum(torch.randn(6, 5, 3, 3))
    calls = torch.ops.lada_kernels
    for call, args in (
        (calls.winograd_output, (x, spectrum)),
        (calls.winograd_input, (grad, spectrum)),
        (calls.winograd_kernel, (grad, x)),
    ):
        torch.library.opcheck(call.default, args, test_utils=("test_schema", "test_faketensor"))


def test_is_torchs_to_checkpoints_and_copies():
    ours, theirs = pair(CASES["tiles"][0])
    assert isinstance(ours, nn.Conv2d)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(1, 64, 4, 4)
    ours(x).sum().backward()
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))
