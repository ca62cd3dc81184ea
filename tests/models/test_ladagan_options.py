"""What LadaGAN's models offer beyond the official PyTorch code, and what they refuse."""

import copy
from dataclasses import replace

import pytest
import torch
from spellings import set_folding
from torch import nn
from torch.nn import functional

from lada_kernels.models.flavor import FLAVORS, init_weights
from lada_kernels.models.ladagan import Discriminator, DownBlock, Generator

SMALL = {"dim": (64, 16, 64), "noise_dim": 8, "heads": (4, 2, 4), "mlp_dim": (16, 16, 16)}
DECODERS = {64: (8,), 128: (8, 4), 256: (8, 4, 2)}


def small_generator(img_size=32, **options):
    torch.manual_seed(1)
    return Generator(img_size, **{**SMALL, **options})


def small_discriminator(img_size=32, **options):
    torch.manual_seed(2)
    widths = [4 * (i + 1) for i in range((img_size // 16).bit_length())]
    return Discriminator(widths, (8, 8), 2, 16, **options)


@pytest.mark.parametrize("decoder", [False, True], ids=["patches", "decoder"])
@pytest.mark.parametrize("img_size", [32, 64, 128, 256])
def test_image_sizes_and_logits(backend, img_size, decoder):
    options = {"decoder_dim": DECODERS[img_size]} if decoder and img_size > 32 else {}
    images = small_generator(img_size, **options)(torch.randn(2, 8))
    assert images.shape == (2, 3, img_size, img_size)
    assert images.isfinite().all()
    logits = small_discriminator(img_size)(images)
    assert logits.shape == (2, 25)
    assert logits.isfinite().all()


def test_empty_batch(backend):
    generator = small_generator().eval()
    assert generator(torch.empty(0, 8)).shape == (0, 3, 32, 32)


def test_expanding_widths(backend):
    generator = small_generator(dim=(32, 48, 64))
    assert generator.conv_256.weight.shape == (48, 8, 3, 3)
    assert generator.conv_1024.weight.shape == (64, 12, 3, 3)
    assert generator(torch.randn(2, 8)).shape == (2, 3, 32, 32)


def test_folding_changes_nothing_at_three_orders(backend):
    generator, discriminator = small_generator().double(), small_discriminator().double()
    z = torch.randn(3, 8, dtype=torch.float64)
    results = []
    for fold_query in (True, False):
        for model in (generator, discriminator):
            set_folding(model, fold_query)
        images = generator(z)
        logits = discriminator(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        loss = functional.softplus(logits).mean() + slope.square().sum((1, 2, 3)).mean()
        parameters = [*generator.parameters(), *discriminator.parameters()]
        results.append([images, logits, slope, *torch.autograd.grad(loss, parameters)])
    for folded, unfolded in zip(*results, strict=True):
        scale = unfolded.abs().max().clamp_min(1)
        torch.testing.assert_close(folded / scale, unfolded / scale, rtol=0, atol=1e-12)


def test_attention_maps(backend):
    generator = small_generator().double()
    z = torch.randn(2, 8, dtype=torch.float64)
    images, maps = generator(z, return_weights=True)
    assert torch.equal(images, generator(z))
    assert [tuple(m.shape) for m in maps] == [(2, 4, 64), (2, 2, 256), (2, 4, 1024)]
    for weights in maps:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_autocast_trains(backend):
    generator, discriminator = small_generator(), small_discriminator()
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(2, 8))
        logits = discriminator(images)
    functional.softplus(-logits.float()).mean().backward()
    assert images.dtype == logits.dtype == torch.bfloat16
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        assert parameter.grad.isfinite().all()


def test_deepcopy_after_a_step(backend):
    generator = small_generator(64, decoder_dim=(8,))
    z = torch.randn(2, 8)
    generator(z).sum().backward()
    twin = copy.deepcopy(generator)
    assert torch.equal(twin(z), generator(z))
    assert list(twin.state_dict()) == list(generator.state_dict())


def is_orthogonal(weight):
    matrix = weight.detach().flatten(1).double()
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    return torch.allclose(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64), atol=1e-5)


def layers_of(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("build", [small_generator, small_discriminator])
def test_torch_flavor_initialises_like_the_official_port(build):
    model = build()
    for name, layer in layers_of(model):
        assert is_orthogonal(layer.weight), name
        if layer.bias is not None:
            bound = layer.weight[0].numel() ** -0.5
            assert 0 < layer.bias.abs().max() <= bound, name
    for name, parameter in model.named_parameters():
        if name.startswith("pos_"):
            assert abs(parameter.std().item() - 1) < 0.05, name


@pytest.mark.parametrize("build", [small_generator, small_discriminator])
def test_tf_flavor_initialises_like_the_paper(build):
    model = build(flavor="tf")
    for name, layer in layers_of(model):
        blocks = layer.weight.chunk(3) if name.endswith("to_qkv") else [layer.weight]
        assert all(is_orthogonal(block) for block in blocks), name
        assert layer.bias is None or layer.bias.eq(0).all(), name
    for name, parameter in model.named_parameters():
        if name.startswith("pos_"):
            assert is_orthogonal(parameter[0]), name


def test_same_seed_same_model():
    for flavor in FLAVORS:
        first, second = (small_discriminator(flavor=flavor).state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("flavor", "bn_eps", "bn_momentum", "ln_eps", "padding"),
    [("torch", 1e-5, 0.1, 1e-5, (1, 1)), ("tf", 1e-3, 0.01, 1e-6, (0, 0))],
)
def test_flavors_set_the_conventions(flavor, bn_eps, bn_momentum, ln_eps, padding):
    generator = small_generator(64, decoder_dim=(8,), flavor=flavor)
    discriminator = small_discriminator(64, flavor=flavor)
    norms = [m for model in (generator, discriminator) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 * 3
    assert {(m.eps, m.momentum) for m in norms} == {(bn_eps, bn_momentum)}
    assert discriminator.block_256.ln_1.eps == discriminator.block_256.ln_2.eps == ln_eps
    assert generator.block_64.ln_1.eps == 1e-6
    assert {down.main[0].padding for down in discriminator.encoder} == {padding}


def test_flavors_have_the_same_keys():
    assert list(small_discriminator(64).state_dict()) == list(small_discriminator(64, flavor="tf").state_dict())


def test_a_flavor_of_one_s_own():
    flavor = replace(FLAVORS["torch"], pos_init="orthogonal", bn_eps=0.5)
    discriminator = small_discriminator(flavor=flavor)
    assert is_orthogonal(discriminator.pos_256[0])
    assert discriminator.encoder[0].main[1].eps == 0.5
    init_weights(discriminator, "torch")
    assert not is_orthogonal(discriminator.pos_256[0])


def test_same_padding_samples_one_pixel_further():
    # At stride 2 the centre tap sees pixels 0, 2, ... with padding on both sides and 1, 3, ... with "same".
    image = torch.arange(64.0).view(1, 1, 8, 8)
    for flavor, first in (("torch", 0), ("tf", 1)):
        halving = DownBlock(1, 1, flavor=flavor).main[0]
        with torch.no_grad():
            halving.weight.zero_()
            halving.weight[0, 0, 1, 1] = 1
        assert torch.equal(halving(image), image[:, :, first::2, first::2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 48}, "img_size: got 48, expected 32, 64, 128 or 256"),
        ({"img_size": 512}, "img_size: got 512, expected 32, 64, 128 or 256"),
        ({"dim": (64, 16)}, r"dim: got \[64, 16\], expected three values, one per block"),
        ({"heads": (4,)}, r"heads: got \[4\], expected three values, one per block"),
        ({"mlp_dim": ()}, r"mlp_dim: got \[\], expected three values, one per block"),
        ({"dim": (62, 16, 64), "heads": (2, 2, 4)}, r"dim\[0\]: got 62, expected a multiple of 4, as"),
        ({"dim": (64, 18, 64)}, r"dim\[1\]: got 18, expected a multiple of 4, as"),
        (
            {"dim": (64, 16, 24), "img_size": 128},
            r"dim\[2\]: got 24, expected a multiple of 16 for img_size = 128, as",
        ),
        ({"heads": (5, 2, 4)}, "heads: got 5, expected a divisor of dim = 64"),
        (
            {"img_size": 128, "decoder_dim": (8,)},
            r"decoder_dim: got \[8\], expected 2 widths, .* img_size = 128",
        ),
        ({"img_size": 32, "decoder_dim": (8,)}, r"decoder_dim: got \[8\], expected 0 widths, .* img_size = 32"),
        ({"flavor": "jax"}, r"flavor: got 'jax', expected a Flavor or one of \['tf', 'torch'\]"),
    ],
)
def test_generator_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        small_generator(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (8, 8), 2), "enc_dim: got no width, expected one or more"),
        (((4, 8), (8,), 2), r"out_dim: got \[8\], expected two widths"),
        (((4, 8), (8, 8), 3), "heads: got 3, expected a divisor of dim = 8"),
    ],
)
def test_discriminator_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Discriminator(*arguments)


@pytest.mark.parametrize("field", [{"init": "keras"}, {"pos_init": "uniform"}])
def test_flavor_refuses(field):
    (name, value), *_ = field.items()
    with pytest.raises(ValueError, match=rf"{name}: got '{value}', expected"):
        replace(FLAVORS["torch"], **field)


@pytest.mark.parametrize("shape", [(2, 9), (8,), (2, 8, 1)])
def test_generator_refuses_other_latents(shape):
    with pytest.raises(ValueError, match=r"z: got shape \[.*\], expected \[B, noise_dim\] with noise_dim = 8"):
        small_generator()(torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32)])
def test_discriminator_refuses_other_images(shape):
    with pytest.raises(ValueError, match=r"x: got shape \[.*\], expected \[B, 3, 32, 32\] for 2 widths in enc_dim"):
        small_discriminator()(torch.randn(shape))
