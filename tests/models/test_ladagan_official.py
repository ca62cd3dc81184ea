"""LadaGAN's official interface: state-dict keys, sizes, and the official way of training."""

import copy

import pytest
import torch
from spellings import set_folding
from torch import nn
from torch.nn import functional

from lada_kernels.models.ladagan import Discriminator, Generator
from lada_kernels.modules import LadaAttention

FFHQ = {"img_size": 128, "dim": (1024, 512, 256), "decoder_dim": (128, 64)}


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def generator_block(name, dim, cond_dim=128, heads=4, mlp_dim=512):
    def norm(norm_name):
        return {
            **linear(f"{name}.{norm_name}.h.0", dim, cond_dim),
            **linear(f"{name}.{norm_name}.mlp_gamma", dim, dim),
            **linear(f"{name}.{norm_name}.mlp_beta", dim, dim),
        }

    return {**norm("ln_1"), **attention(name, dim, heads), **norm("ln_2"), **mlp(name, dim, mlp_dim)}


def attention(name, dim, heads):
    return {
        **linear(f"{name}.attn.to_qkv", 3 * dim, dim),
        **linear(f"{name}.attn.q_attn", heads, dim),
        **linear(f"{name}.attn.to_out", dim, dim),
    }


def mlp(name, dim, mlp_dim):
    return {**linear(f"{name}.mlp.0", mlp_dim, dim), **linear(f"{name}.mlp.2", dim, mlp_dim)}


def batch_norm(name, channels):
    keys = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {**keys, f"{name}.num_batches_tracked": ()}


def down_block(name, inside, out):
    return {
        f"{name}.main.0.weight": (out, inside, 3, 3),
        **batch_norm(f"{name}.main.1", out),
        f"{name}.main.3.weight": (out, out, 3, 3),
        **batch_norm(f"{name}.main.4", out),
        f"{name}.direct.1.weight": (out, inside, 1, 1),
        **batch_norm(f"{name}.direct.2", out),
    }


GENERATOR_KEYS = {
    "pos_64": (1, 64, 1024),
    "pos_256": (1, 256, 256),
    "pos_1024": (1, 1024, 64),
    "init.0.weight": (65536, 128),
    **generator_block("block_64", 1024),
    "conv_256.weight": (256, 256, 3, 3),
    "conv_256.bias": (256,),
    **generator_block("block_256", 256),
    "conv_1024.weight": (64, 64, 3, 3),
    "conv_1024.bias": (64,),
    **generator_block("block_1024", 64),
    "ch_conv.weight": (3, 16, 3, 3),
    "ch_conv.bias": (3,),
}

DISCRIMINATOR_KEYS = {
    "pos_256": (1, 256, 256),
    "inp_conv.0.weight": (64, 3, 3, 3),
    **down_block("encoder.0", 64, 128),
    **down_block("encoder.1", 128, 256),
    "block_256.ln_1.weight": (256,),
    "block_256.ln_1.bias": (256,),
    **attention("block_256", 256, 4),
    "block_256.ln_2.weight": (256,),
    "block_256.ln_2.bias": (256,),
    **mlp("block_256", 256, 512),
    "conv_256.weight": (512, 1024, 3, 3),
    "conv_256.bias": (512,),
    "logits.0.weight": (1024, 512, 1, 1),
    "logits.2.weight": (1, 1024, 4, 4),
}


@pytest.mark.parametrize(("model", "keys", "count"), [(Generator, GENERATOR_KEYS, 76), (Discriminator, DISCRIMINATOR_KEYS, 56)])
def test_state_dict_is_the_official_one(model, keys, count):
    with torch.device("meta"):
        state = model().state_dict()
    assert len(state) == count
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(keys.items())


@pytest.mark.parametrize(("img_size", "channels"), [(32, 64), (128, 4), (256, 1)])
def test_last_convolution_takes_what_the_patches_leave(img_size, channels):
    with torch.device("meta"):
        assert Generator(img_size).ch_conv.weight.shape == (3, channels, 3, 3)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model, x):
    """Multiply-adds of a forward pass per item: dense layers, those of the scores among them, convolutions, pooling's sums."""
    total = 0

    def dense(layer, _, out):
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    def pooling(_, arguments, __):
        nonlocal total
        total += arguments[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(dense)
        elif isinstance(layer, LadaAttention):
            layer.register_forward_hook(pooling)
    model(x)
    return total / len(x)


@pytest.mark.parametrize(
    ("options", "count", "giga"),
    [
        ({"img_size": 32}, 19_901_647, 0.758),
        ({"img_size": 64}, 19_900_351, 0.758),
        ({"img_size": 128}, 19_900_027, 0.758),
        ({"img_size": 256}, 19_899_946, 0.758),
        ({"img_size": 64, "decoder_dim": (32,)}, 19_919_311, 0.836),
        ({"img_size": 128, "decoder_dim": (32, 16)}, 19_923_535, 0.915),
        ({"img_size": 256, "decoder_dim": (32, 16, 8)}, 19_924_495, 0.997),
        (FFHQ, 24_025_871, 4.340),
    ],
)
def test_generator_size(options, count, giga):
    with torch.device("meta"):
        model = Generator(**options)
        set_folding(model, False)
        assert parameters(model) == count
        assert round(multiply_adds(model, torch.empty(2, 128)) / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("img_size", "enc_dim", "count", "giga"),
    [
        (32, (64, 256), 6_610_372, 0.665),
        (32, (128, 256), 6_775_940, 0.709),
        (64, (64, 128, 256), 7_004_356, 0.947),
        (128, (32, 64, 128, 256), 7_061_220, 1.189),
        (256, (16, 32, 64, 128, 256), 7_075_316, 1.438),
    ],
)
def test_discriminator_size(img_size, enc_dim, count, giga):
    with torch.device("meta"):
        model = Discriminator(enc_dim)
        set_folding(model, False)
        assert parameters(model) == count
        assert round(multiply_adds(model, torch.empty(2, 3, img_size, img_size)) / 1e9, 3) == giga


def test_published_ffhq_size():
    with torch.device("meta"):
        model = Generator(**FFHQ)
    statistics = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert statistics == 384
    assert parameters(model) + statistics == 24_026_255


def reinitialise(module):
    """Initialisation by class name, as the official training script applies it to a whole model."""
    name = type(module).__name__
    if "Conv" in name or "Linear" in name or "Parameter" in name:
        nn.init.orthogonal_(module.weight.data)


def mean_gradient_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).mean()


@pytest.mark.parametrize("flavor", ["torch", "tf"])
@pytest.mark.parametrize("fold_query", [True, False], ids=["folded", "unfolded"])
def test_official_training_procedure(backend, fold_query, flavor):
    torch.manual_seed(0)
    generator = Generator(32, [64, 16, 4], 8, [4, 2, 1], [16, 16, 16], flavor=flavor)
    discriminator = Discriminator([8, 16], [16, 16], 4, 16, flavor=flavor)
    for model in (generator, discriminator):
        set_folding(model, fold_query)
        model.apply(reinitialise)
    g_opt = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.99))
    d_opt = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.99))
    average = copy.deepcopy(generator).requires_grad_(False)
    start = copy.deepcopy(generator.state_dict())
    for _ in range(2):
        real = (torch.rand(4, 3, 32, 32) * 2 - 1).requires_grad_()
        generator.requires_grad_(False)
        discriminator.requires_grad_(True)
        logits_real = discriminator(real)
        logits_fake = discriminator(generator(torch.randn(4, 8)).detach())
        (slope,) = torch.autograd.grad(logits_real.sum(), real, create_graph=True)
        penalty = slope.pow(2).reshape(4, -1).sum(1).mean()
        d_loss = functional.softplus(-logits_real).mean() + functional.softplus(logits_fake).mean() + 0.01 * penalty
        discriminator.zero_grad()
        d_loss.backward()
        assert mean_gradient_norm(discriminator).isfinite()
        d_opt.step()

        generator.requires_grad_(True)
        discriminator.requires_grad_(False)
        g_loss = functional.softplus(-discriminator(generator(torch.randn(4, 8)))).mean()
        generator.zero_grad()
        g_loss.backward()
        assert mean_gradient_norm(generator).isfinite()
        g_opt.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(value, 0.001)
    for name, value in generator.state_dict().items():
        # Adam must leave the score bias alone: its gradient is exactly zero, not rounding.
        assert torch.equal(value, start[name]) == name.endswith("q_attn.bias"), name
    average.load_state_dict(generator.state_dict(), strict=True)
