"""Conv2d against torch's own, whose forward and two derivatives are the truth."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels.modules import Conv2d

GEOMETRIES = [
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)},
]


def convolutions(geometry, dtype=torch.float64):
    theirs = nn.Conv2d(3, 4, **geometry).to(dtype)
    ours = Conv2d(3, 4, **geometry).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("asked", ["everything", "R1", "no input gradient"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_order_is_torchs(geometry, asked):
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    shape = convolutions(geometry)[0](inputs).shape
    noise = torch.randn(shape, dtype=torch.float64)
    results = []
    torch.manual_seed(0)
    for convolution in convolutions(geometry):
        x, grad = inputs.clone().requires_grad_(asked != "no input gradient"), noise.clone().requires_grad_()
        parameters = list(convolution.parameters())
        wanted = {"everything": [x, *parameters], "R1": [x], "no input gradient": parameters}[asked]
        out = convolution(x)
        firsts = torch.autograd.grad(out, wanted, grad, create_graph=True)
        loss = sum((first**2 * (i + 1)).sum() for i, first in enumerate(firsts))
        seconds = torch.autograd.grad(
            loss, [grad, convolution.weight, *([x] if asked == "everything" else [])], allow_unused=True
        )
        results.append((out, *firsts, *[second for second in seconds if second is not None]))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradcheck_and_gradgradcheck(geometry):
    torch.manual_seed(1)
    convolution, _ = convolutions(geometry)
    x = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(convolution.named_parameters())

    def apply(x, *values):
        return torch.func.functional_call(convolution, dict(zip(parameters, values, strict=True)), (x,))

    assert gradcheck(apply, (x, *parameters.values()))
    assert gradgradcheck(apply, (x, *parameters.values()))


def test_the_third_order_raises():
    convolution, _ = convolutions(GEOMETRIES[0])
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((convolution(x) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="Conv2d is differentiable twice"):
        second.sum().backward()


@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"dilation": 2}, {"padding_mode": "circular", "padding": 1}, {"padding": "same"}]
)
def test_what_it_leaves_to_torch(options):
    theirs, ours = nn.Conv2d(3, 6, 3, **options), Conv2d(3, 6, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
