"""ViTGAN's attention as modules, against the equations."""

import pytest
import torch

from lada_kernels import DotProductAttention, L2Attention

MODULES = (DotProductAttention, L2Attention)


def make(kind, dim=12, heads=3):
    torch.manual_seed(0)
    return kind(dim, heads).double()


def published(module, x):
    """Head by head, from the parameters; also the weights."""
    size = module.dim // module.heads
    heads, maps = [], []
    for h in range(module.heads):
        part = slice(h * size, (h + 1) * size)
        if isinstance(module, L2Attention):
            q = k = module.to_qk(x)[..., part]
            v = module.to_v(x)[..., part]
            scores = -(q[:, :, None] - k[:, None]).square().sum(-1)
        else:
            q, k, v = (t[..., part] for t in module.to_qkv(x).split(module.dim, -1))
            scores = torch.einsum("bnd,bmd->bnm", q, k)
        maps.append((scores / size**0.5).softmax(-1))
        heads.append(maps[-1] @ v)
    return module.to_out(torch.cat(heads, -1)), torch.stack(maps, 1)


@pytest.mark.parametrize("kind", MODULES)
def test_equals_published_equations(kind):
    module, x = make(kind), torch.randn(2, 7, 12, dtype=torch.float64)
    out, weights = module(x, return_weights=True)
    expected, maps = published(module, x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, maps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_a_gradient_penalty_reaches_every_parameter(kind):
    module, x = make(kind), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    parameters = list(module.parameters())
    found = torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True, materialize_grads=True)
    y = x.detach().requires_grad_()
    (true_slope,) = torch.autograd.grad(published(module, y)[0].square().sum(), y, create_graph=True)
    expected = torch.autograd.grad(true_slope.square().sum(), parameters, allow_unused=True, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", MODULES)
def test_constructor_and_errors(kind):
    module = kind(12)
    assert module.heads == 6
    assert sum(p.numel() for p in module.parameters()) == (4 if kind is DotProductAttention else 3) * (12 * 12 + 12)
    with pytest.raises(ValueError, match="heads: got 5, expected a divisor of dim = 12"):
        kind(12, 5)
    with pytest.raises(ValueError, match=r"x: got shape \[3, 12\].*, expected \[B, N, dim\] with dim = 12"):
        module(torch.ones(3, 12))


@pytest.mark.parametrize("kind", MODULES)
def test_autocast(kind):
    module = make(kind).float()
    x = torch.randn(2, 7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert (out - module(x)).norm() < 2e-2 * out.norm()
