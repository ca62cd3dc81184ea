"""ViTGAN's blocks against their equations, in float64."""

import copy
import io

import pytest
import torch
import vit_equations
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize

from lada_kernels.modules import SelfModulatedLayerNorm
from lada_kernels.modules.vit import StyledViTBlock, ViTBlock

DTYPE = torch.float64
DIM, HEADS, MLP, STYLE = 12, 3, 20, 7
KINDS = [
    pytest.param(styled, attention, id=f"{'styled' if styled else 'plain'}-{attention}")
    for styled in (False, True)
    for attention in ("dot", "l2")
]


def make(styled, attention, dim=DIM, heads=HEADS, mlp_dim=MLP, style_dim=STYLE, **options):
    torch.manual_seed(0)
    style = (style_dim,) if styled else ()
    block = (StyledViTBlock if styled else ViTBlock)(dim, heads, mlp_dim, *style, attention=attention, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.dim() == 1:  # biases and gains begin as zeros and ones, which hide mistakes
                parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def inputs(styled, batch=2, tokens=5, dim=DIM, style_dim=STYLE):
    torch.manual_seed(1)
    x = torch.randn(batch, tokens, dim, dtype=DTYPE)
    return (x, torch.randn(batch, style_dim, dtype=DTYPE)) if styled else (x,)


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize(("styled", "attention"), KINDS)
def test_blocks_equal_the_equations(styled, attention, equalized):
    block, given = make(styled, attention, equalized=equalized), inputs(styled)
    torch.testing.assert_close(block(*given), vit_equations.block(block, *given), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("residual", ["pre-norm", "official"])
@pytest.mark.parametrize(("eps", "offset"), [(1e-3, 1.0), (0.1, 0.0)])
def test_residuals_and_conventions(residual, eps, offset):
    block = make(True, "dot", residual=residual, ln_eps=eps, gamma_offset=offset)
    x, w = inputs(True)
    expected = vit_equations.block(block, x, w, residual, eps=eps, offset=offset)
    torch.testing.assert_close(block(x, w), expected, rtol=1e-11, atol=1e-11)
    assert repr(residual) in repr(block)


def test_the_norm_without_a_hidden_layer():
    torch.manual_seed(0)
    norm = SelfModulatedLayerNorm(6, 4, hidden=False, equalized=True).double()
    assert list(norm.state_dict()) == [f"mlp_{part}.{kind}" for part in ("gamma", "beta") for kind in ("weight", "bias")]
    x, w = torch.randn(2, 3, 6, dtype=DTYPE), torch.randn(2, 4, dtype=DTYPE)
    gamma, beta = w @ norm.mlp_gamma.weight.T / 2, w @ norm.mlp_beta.weight.T / 2
    expected = gamma[:, None] * vit_equations.standardised(x, 1e-6) + beta[:, None]
    torch.testing.assert_close(norm(x, w), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(("styled", "attention"), KINDS)
def test_second_derivatives(styled, attention, spectral_norm):
    block = make(styled, attention, 4, 2, 3, 2, spectral_norm=spectral_norm).eval()
    given = [t.requires_grad_() for t in inputs(styled, 1, 3, 4, 2)]
    assert gradcheck(block, given)
    assert gradgradcheck(block, given)


@pytest.mark.parametrize(("styled", "attention"), KINDS)
def test_a_gradient_penalty_reaches_the_parameters(styled, attention):
    block, results = make(styled, attention), []
    for function in (block, lambda *given: vit_equations.block(block, *given)):
        x, *w = inputs(styled)
        (slope,) = torch.autograd.grad(function(x.requires_grad_(), *w).square().sum(), x, create_graph=True)
        penalty = slope.square().sum()
        results.append(torch.autograd.grad(penalty, list(block.parameters()), materialize_grads=True))
    largest = max(truth.abs().max().item() for truth in results[1])
    for ours, truth in zip(*results, strict=True):
        # Of what softmax cancels, a bias of the keys, only rounding is left.
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12 * largest)


@pytest.mark.parametrize(("styled", "attention", "count"), [(False, "l2", 5), (False, "dot", 4), (True, "dot", 4)])
def test_spectral_norm_is_on_the_projections(styled, attention, count):
    plain, block = make(styled, attention), make(styled, attention, spectral_norm=True)
    normed = {name for name, layer in block.named_modules() if parametrize.is_parametrized(layer)}
    projections = ["to_qk", "to_v", "to_out"] if attention == "l2" else ["to_qkv", "to_out"]
    assert normed == {*(f"attn.{name}" for name in projections), "mlp.0", "mlp.2"}
    assert len(normed) == count
    for name in normed:
        layer, before = block.get_submodule(name), plain.get_submodule(name).weight
        original = layer.parametrizations.weight.original
        assert torch.equal(original, before)
        initial = torch.linalg.svdvals(before.detach())[0]
        with torch.no_grad():
            original.mul_(3)
        for _ in range(300):
            layer.weight  # noqa: B018 - an iteration each
        torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach())[0], initial, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("styled", "attention"), KINDS)
def test_saved_loaded_and_copied_after_a_step(styled, attention):
    block, given = make(styled, attention, spectral_norm=True), inputs(styled)
    optimizer = torch.optim.Adam(block.parameters(), 1e-2)
    block(*given).square().sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    copied, loaded = copy.deepcopy(block), make(styled, attention, spectral_norm=True)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expected = block.eval()(*given)
    for other in (copied, loaded):
        assert torch.equal(other.eval()(*given), expected)


@pytest.mark.parametrize(("styled", "attention"), KINDS)
def test_weights_of_the_attention(styled, attention):
    block, given = make(styled, attention), inputs(styled)
    out, weights = block(*given, return_weights=True)
    assert weights.shape == (2, HEADS, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 5, dtype=DTYPE))
    torch.testing.assert_close(out, block(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("styled", [False, True])
def test_autocast(styled):
    block, given = make(styled, "dot").float(), [t.float() for t in inputs(styled)]
    with torch.autocast("cpu", torch.bfloat16):
        out = block(*given)
    assert out.dtype == torch.float32  # the residual's
    assert (out - block(*given)).norm() < 2e-2 * out.norm()


def test_errors():
    for styled in (False, True):
        with pytest.raises(ValueError, match="attention: got 'cosine', expected 'dot' or 'l2'"):
            make(styled, "cosine")
        with pytest.raises(ValueError, match="heads: got 5, expected a divisor of dim = 12"):
            make(styled, "dot", heads=5)
    with pytest.raises(ValueError, match="residual: got 'post', expected 'pre-norm' or 'official'"):
        make(True, "dot", residual="post")
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5, 7\].*, expected \[B, N, dim\] with dim = 12"):
        make(True, "dot")(torch.ones(2, 5, 7), torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"z: got shape \[2, 6\].*, expected \[B, cond_dim\] = \[2, 7\]"):
        make(True, "dot")(torch.ones(2, 5, 12), torch.ones(2, 6))
