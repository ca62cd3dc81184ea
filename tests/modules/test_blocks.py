"""Self-modulated LayerNorm, the two Ladaformers and the feature-map wrapper."""

import pytest
import torch
from torch.nn import functional

from lada_kernels.modules import LadaAttention, Ladaformer, OnFeatureMap, SelfModulatedLayerNorm, SMLadaformer
from lada_kernels.modules.feature_map import to_feature_map, to_tokens
from lada_kernels.modules.norm import LayerNorm

DTYPE = torch.float64


def inputs(batch=2, tokens=5, dim=8, cond_dim=6):
    torch.manual_seed(0)
    return torch.randn(batch, tokens, dim, dtype=DTYPE), torch.randn(batch, cond_dim, dtype=DTYPE)


def modulated(norm, x, z, eps=1e-6, gamma_offset=0.0):
    condition = functional.relu(functional.linear(z, norm.h[0].weight, norm.h[0].bias))
    gamma = norm.mlp_gamma(condition) + gamma_offset
    return functional.layer_norm(x, x.shape[-1:], eps=eps) * gamma[:, None] + norm.mlp_beta(condition)[:, None]


@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"gamma_offset": 1.0}])
def test_norm_equals_formula(backend, options):
    x, z = inputs()
    norm = SelfModulatedLayerNorm(8, 6, **options).double()
    torch.testing.assert_close(norm(x, z), modulated(norm, x, z, **options), rtol=1e-12, atol=1e-12)


def test_norm_keys():
    assert list(SelfModulatedLayerNorm(8, 6).state_dict()) == [
        f"{layer}.{part}" for layer in ("h.0", "mlp_gamma", "mlp_beta") for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("build", [SelfModulatedLayerNorm, lambda d, c: SMLadaformer(d, c, 2, 16)])
def test_both_calling_conventions(backend, build):
    x, z = inputs()
    module = build(8, 6).double()
    expected = module(x, z)
    for pair in ([x, z], (x, z)):
        assert torch.equal(module(pair), expected)
    with pytest.raises(ValueError, match="z: got none, expected module"):
        module(x)
    with pytest.raises(ValueError, match="x: got a pair and z as well, expected module"):
        module([x, z], z)


def test_norm_flattens_the_condition(backend):
    x, z = inputs()
    norm = SelfModulatedLayerNorm(8, 6).double()
    assert torch.equal(norm(x, z.view(2, 2, 3)), norm(x, z))


@pytest.mark.parametrize("shape", [(2, 5), (3, 6), (6,), (2, 6, 2)])
def test_norm_refuses_other_conditions(shape):
    with pytest.raises(ValueError, match=r"z: got shape \[.*, expected \[B, cond_dim\] = \[2, 6\]"):
        SelfModulatedLayerNorm(8, 6)(torch.randn(2, 5, 8), torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 8)])
def test_norm_refuses_other_inputs(shape):
    with pytest.raises(ValueError, match=r"x: got shape \[.*, expected \[B, N, dim\] with dim = 8"):
        SelfModulatedLayerNorm(8, 6)(torch.randn(shape), torch.randn(2, 6))


def test_self_modulated_block_has_one_residual(backend):
    x, z = inputs()
    block = SMLadaformer(8, 6, 2, 16).double()
    a = block.attn(modulated(block.ln_1, x, z)) + x
    expected = block.mlp(modulated(block.ln_2, a, z))
    torch.testing.assert_close(block(x, z), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_plain_block_has_two_residuals(backend, eps):
    x, _ = inputs()
    block = Ladaformer(5, 8, 2, 16, ln_eps=eps).double()
    a = block.attn(functional.layer_norm(x, (8,), eps=eps)) + x
    expected = block.mlp(functional.layer_norm(a, (8,), eps=eps)) + a
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_blocks_hand_on_mask_and_weights(backend):
    x, z = inputs()
    mask = torch.tensor([[True, True, False, True, True], [False, True, True, True, False]])
    for block, arguments in ((Ladaformer(5, 8, 2, 16), (x,)), (SMLadaformer(8, 6, 2, 16), (x, z))):
        out, weights = block.double()(*arguments, mask=mask, return_weights=True)
        assert out.shape == x.shape
        assert weights.shape == (2, 2, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, dtype=DTYPE))
        assert weights[~mask[:, None].expand_as(weights)].eq(0).all()
        assert torch.equal(block(*arguments, mask=mask), out)


def test_blocks_hand_on_heads_and_mlp_dim():
    for block in (Ladaformer(5, 8, 2, 24), SMLadaformer(8, 6, 2, 24)):
        assert block.attn.heads == 2
        assert block.mlp[0].out_features == 24


def test_block_defaults_are_the_official_ones():
    plain, modulated_block = Ladaformer(256, 16), SMLadaformer(16, 6)
    for block in (plain, modulated_block):
        assert block.attn.heads == 4
        assert block.mlp[0].out_features == 512
    assert plain.ln_1.eps == plain.ln_2.eps == 1e-5
    assert modulated_block.ln_1.eps == modulated_block.ln_2.eps == 1e-6


def test_tokens_are_rows_first():
    feature_map = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    tokens = to_tokens(feature_map)
    assert torch.equal(tokens[1, 2 * 5 + 3], feature_map[1, :, 2, 3])
    assert torch.equal(to_feature_map(tokens, 4, 5), feature_map)


def test_feature_map_wrapper(backend):
    attention = LadaAttention(8, 2).double()
    x = torch.randn(2, 8, 3, 4, dtype=DTYPE)
    out, weights = OnFeatureMap(attention)(x, return_weights=True)
    expected = attention(x.flatten(2).transpose(1, 2))
    assert weights.shape == (2, 2, 12)
    torch.testing.assert_close(out, expected.transpose(1, 2).reshape(2, 8, 3, 4), rtol=1e-13, atol=1e-13)
    assert torch.equal(OnFeatureMap(attention)(x), out)


def test_feature_map_wrapper_hands_on_the_condition(backend):
    block = SMLadaformer(8, 6, 2, 16).double()
    x, z = torch.randn(2, 8, 3, 4, dtype=DTYPE), torch.randn(2, 6, dtype=DTYPE)
    expected = to_feature_map(block(to_tokens(x), z), 3, 4)
    assert torch.equal(OnFeatureMap(block)(x, z), expected)


def test_feature_map_wrapper_refuses_tokens():
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5, 8\], expected a feature map \[B, C, H, W\]"):
        OnFeatureMap(LadaAttention(8, 2))(torch.randn(2, 5, 8))


def test_layer_norm_is_torchs_to_second_order(backend):
    torch.manual_seed(0)
    ours, theirs = LayerNorm(12, 1e-5).double(), torch.nn.LayerNorm(12, 1e-5).double()
    torch.nn.init.normal_(theirs.weight)
    torch.nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    inputs, results = torch.randn(3, 5, 12, dtype=torch.float64), []
    for norm in (ours, theirs):
        x = inputs.clone().requires_grad_()
        out = norm(x)
        (gradient,) = torch.autograd.grad((out**3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append((out, gradient, x.grad, norm.weight.grad, norm.bias.grad))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours.float()(inputs.float()), theirs.float()(inputs.float()), rtol=0, atol=0)
