"""ViTGAN against its equations, in training, and beside LadaGAN."""

import copy
import io
import itertools

import pytest
import torch
import vit_equations
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import lada_kernels.flops  # noqa: F401 - its formulas
from lada_kernels.models import ladagan
from lada_kernels.models.vitgan import Discriminator, Generator, ImplicitHead
from lada_kernels.training.losses import LOSSES, r1_penalty

LOSS = LOSSES["nonsaturating"]
SMALL = {"dim": 12, "heads": 3, "mlp_dim": 16, "blocks": 2}


def small_discriminator(img_size=32, **options):
    torch.manual_seed(2)
    return Discriminator(img_size, **{**SMALL, **options})


def small_generator(img_size=32, **options):
    torch.manual_seed(1)
    return Generator(img_size, **{"noise_dim": 10, "inr_dim": 16, **SMALL, **options})


def latents(batch=2, dtype=torch.float32):
    torch.manual_seed(4)
    return torch.randn(batch, 10, dtype=dtype)


def real_images(img_size=32, batch=2, dtype=torch.float32):
    torch.manual_seed(3)
    return torch.rand(batch, 3, img_size, img_size, dtype=dtype) * 2 - 1


def positions(position, side):
    """One by one, row by row; the corners lie at (±1, ±1)."""
    ends = [-1 + 2 * i / (side - 1) for i in range(side)]
    points = position.proj.weight.new_tensor([(x, y) for y in ends for x in ends])
    return (points[:, :1] * position.proj.weight[:, 0] + points[:, 1:] * position.proj.weight[:, 1] + position.proj.bias).sin()


def judged(model, images):
    """The discriminator's equations."""
    patch, dim = model.img_size // model.side, model.head.in_features
    kernel = model.embed.proj.weight.view(dim, 3, 2 * patch, 2 * patch)
    patches = functional.conv2d(images, kernel, model.embed.proj.bias, patch, patch // 2).flatten(2).transpose(1, 2)
    tokens = patches + positions(model.position, model.side)
    tokens = torch.cat([model.class_token.repeat(len(images), 1, 1), tokens], 1)
    for block in model.blocks:
        tokens = vit_equations.block(block, tokens)
    return vit_equations.affine(model.head, vit_equations.layer_norm(model.norm, tokens)[:, 0])


def mapped(network, z):
    w = z / (z.square().mean(-1, keepdim=True) + 1e-8).sqrt()
    for layer in network.layers:
        w = w @ (layer.weight * 0.01 / w.shape[1] ** 0.5).T + 0.01 * layer.bias
        w = 2**0.5 * functional.leaky_relu(w, 0.2)
    return w


def modulated(conv, pixels, style, demodulate):
    """The weights of one token, applied to pixels [P, in]."""
    weight = conv.weight[:, :, 0, 0] / conv.in_channels**0.5 * vit_equations.affine(conv.style, style)  # [out, in]
    if demodulate:
        weight = weight / (weight.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return pixels @ weight.T


def implicit(head, tokens):
    """Token by token, its patch put where it belongs."""
    p = head.patch
    image = tokens.new_zeros(len(tokens), 3, 8 * p, 8 * p)
    sines = positions(head.position, p)
    for item, row, column in itertools.product(range(len(tokens)), range(8), range(8)):
        style = mapped(head.mapping, tokens[item, 8 * row + column, None])[0]
        pixels = sines
        for layer in head.layers:
            pixels = modulated(layer.conv, pixels, style, True) + layer.bias
            pixels = 2**0.5 * functional.leaky_relu(pixels, 0.2)
        colours = modulated(head.to_rgb.conv, pixels, style, False) + head.to_rgb.bias  # [p * p, 3]
        image[item, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = colours.T.view(3, p, p)
    return image


def generated(model, z, residual, **conventions):
    """The generator's equations; those of modulated convolutions have tests of their own."""
    w = mapped(model.mapping, z)
    tokens = positions(model.position, 8).repeat(len(z), 1, 1)
    for block in model.blocks:
        tokens = vit_equations.block(block, tokens, w, residual, **conventions)
    tokens = vit_equations.styled_norm(model.norm, tokens, w, **conventions)
    if isinstance(model.head, ImplicitHead):
        return implicit(model.head, tokens).tanh()
    x = tokens.view(len(z), 8, 8, -1).permute(0, 3, 1, 2)
    for layer in model.head.layers:
        x = layer(x, w)
    return model.head.to_rgb(x, w).tanh()


@pytest.mark.parametrize("output", ["conv", "inr"])
@pytest.mark.parametrize("img_size", [32, 64, 128])
def test_images(img_size, output):
    model = small_generator(img_size, output=output, blocks=None)
    assert len(model.blocks) == (4 if img_size == 32 else 6)
    images = model(latents())
    assert images.shape == (2, 3, img_size, img_size)
    assert images.abs().max() <= 1
    assert (images[0] - images[1]).abs().mean() > 0.01
    assert model(torch.empty(0, 10)).shape == (0, 3, img_size, img_size)
    assert model(1000 * latents()).abs().max() <= 1


@pytest.mark.parametrize("output", ["conv", "inr"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": "official", "spectral_norm": True, "equalized": False},
        {"attention": "l2", "ln_eps": 0.1, "gamma_offset": 0.0, "inr_layers": 1},
    ],
)
def test_generator_and_gradients_equal_the_equations(output, options):
    model, z = small_generator(16, output=output, **options).double().eval(), latents(dtype=torch.float64)
    truth = generated(
        model, z, options.get("residual", "pre-norm"), eps=options.get("ln_eps", 1e-3), offset=options.get("gamma_offset", 1.0)
    )
    images = model(z)
    torch.testing.assert_close(images, truth, rtol=1e-9, atol=1e-9)
    parameters = [p for name, p in model.named_parameters() if not name.endswith("strength")]  # noise is for training
    results = [torch.autograd.grad(x.sub(0.5).square().sum(), parameters) for x in (images, truth)]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


# The official code counts, in each of four blocks, a temperature and spectral normalisation's vectors, each as long as its
# layer's output, two of them per layer. Ours are buffers and of the sides' lengths, and the attention's scale is not learned.
OFFICIAL_EXTRAS = 4 * (1 + 2 * (1152 + 384 + 1536 + 384))


def multiply_adds(model, dim):
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, dim))
    assert counter.get_total_flops() % 2 == 0
    # The counter does not see into the ops of the attention: 64 x 64 scores and sums over them in each block.
    return counter.get_total_flops() // 2 + len(model.blocks) * 2 * 64 * 64 * dim


def test_size_of_the_convolutional_generator():
    model = Generator(32)
    assert sum(p.numel() for p in model.parameters()) == 17_014_667 - OFFICIAL_EXTRAS == 16_987_015
    # Ours demodulates by a product of matrices: 384 squared for each of the four convolutions.
    macs = multiply_adds(model, 384) - 4 * 384**2
    assert macs == 2_602_598_400
    assert round(macs / 1e6) == 2603


def test_size_of_the_implicit_generator():
    model = Generator(32, output="inr")
    noises = 3  # the official code adds noise to the pixels of a patch too
    assert sum(p.numel() for p in model.parameters()) == 13_020_042 - OFFICIAL_EXTRAS - noises == 12_992_387
    # Ours demodulates by a product of matrices per token, and computes the sines of the patch once, not per token.
    sines, demodulation = 16 * 2 * 384, 64 * (384 * 512 + 2 * 512 * 512)
    macs = multiply_adds(model, 384) - demodulation + 63 * sines
    assert macs == 1_294_942_208
    assert round(macs / 1e6) == 1295


def test_size_at_64_pixels():
    convolutional, implicit = Generator(64, blocks=4), Generator(64, blocks=4, output="inr")
    assert sum(p.numel() for p in convolutional.parameters()) == 19_965_325 - OFFICIAL_EXTRAS
    assert sum(p.numel() for p in implicit.parameters()) == 13_020_042 - OFFICIAL_EXTRAS - 3


def test_channels_of_the_convolutions():
    def channels(img_size, dim):
        layers = small_generator(img_size, dim=dim).head.layers
        return [(layer.conv.in_channels, layer.conv.out_channels) for layer in layers]

    same = (384, 384)
    assert channels(32, 384) == [same] * 4
    assert channels(128, 384) == [same] * 6 + [(384, 192), (192, 192)]
    assert channels(256, 12)[-4:] == [(12, 6), (6, 6), (6, 3), (3, 3)]
    assert small_generator(256)(latents(1)).shape == (1, 3, 256, 256)


def test_evaluation_is_deterministic():
    model = small_generator()
    with torch.no_grad():
        for layer in model.head.layers:
            layer.strength.fill_(0.5)
    z = latents()
    assert not torch.equal(model(z), model(z))
    model.eval()
    assert torch.equal(model(z), model(z))


@pytest.mark.parametrize("output", ["conv", "inr"])
def test_autocast(output):
    generator, discriminator = small_generator(output=output).eval(), small_discriminator().eval()
    images = generator(latents())
    with torch.autocast("cpu", torch.bfloat16):
        narrow, logits = generator(latents()), discriminator(images)
    assert (narrow - images).norm() < 0.1 * images.norm()
    torch.testing.assert_close(logits.float(), discriminator(images), rtol=0.02, atol=0.02)


def test_attention_maps():
    model = small_generator(blocks=3).eval()
    images, maps = model(latents(), return_weights=True)
    assert [tuple(one.shape) for one in maps] == [(2, 3, 64, 64)] * 3
    for one in maps:
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 3, 64))
    torch.testing.assert_close(images, model(latents()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("output", ["conv", "inr"])
def test_generator_trained_saved_loaded_and_copied(output, spectral_norm):
    options = {"output": output, "spectral_norm": spectral_norm}
    model = small_generator(**options)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    LOSS.generator(small_discriminator()(model(latents()))).backward()
    optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not still
    assert_travels(model, small_generator(**options), (latents(),))


@pytest.mark.parametrize("img_size", [32, 64, 128])
def test_logits(img_size):
    model = small_discriminator(img_size, blocks=None)
    assert len(model.blocks) == (4 if img_size == 32 else 6)
    assert model.side == 8
    logits = model(real_images(img_size))
    assert logits.shape == (2, 1)
    assert logits.isfinite().all()
    assert model(torch.empty(0, 3, img_size, img_size)).shape == (0, 1)


@pytest.mark.parametrize("options", [{}, {"attention": "dot", "equalized": True}, {"spectral_norm": False, "patch": 8}])
def test_discriminator_and_r1_equal_the_equations(options):
    model, results = small_discriminator(16, **options).double().eval(), []
    for function in (model, lambda x: judged(model, x)):
        reals = real_images(16, dtype=torch.float64).requires_grad_()
        logits = function(reals)
        loss = LOSS.discriminator(logits, function(-reals.detach())) + 10 * r1_penalty(logits, reals)
        results.append((logits, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-10)
    largest = max(gradient.abs().max().item() for gradient in results[1][1])
    for ours, truth in zip(results[0][1], results[1][1], strict=True):
        # Of what softmax cancels, a bias of the keys, only rounding is left.
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12 * largest)


def test_size_of_the_discriminator():
    model = Discriminator(32)
    norm, projection, mlp = 2 * 384, 384 * 384 + 384, 2 * 384 * 1536 + 1536 + 384
    blocks = 4 * (2 * norm + 3 * projection + mlp)
    assert blocks == 6_506_496
    embedding = (3 * 8 * 8 * 384 + 384) + (2 * 384 + 384) + 384  # overlapping patches, positions, class token
    assert sum(p.numel() for p in model.parameters()) == embedding + blocks + norm + 385 == 6_583_297
    with FlopCounterMode(display=False) as counter:
        Discriminator(32, spectral_norm=False)(real_images(batch=1))
    # The counter does not see into the ops of the attention.
    macs = 64 * (192 + 2) * 384 + 4 * 65 * (3 * 384 * 384 + 2 * 384 * 1536) + 384
    assert counter.get_total_flops() == 2 * macs


def test_discriminator_trained_saved_loaded_and_copied():
    model = small_discriminator()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    reals = real_images().requires_grad_()
    logits = model(reals)
    (LOSS.discriminator(logits, model(-reals.detach())) + r1_penalty(logits, reals)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert_travels(model, small_discriminator(), (real_images(),))


def assert_travels(model, fresh, given):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(model)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    expected = model.eval()(*given)
    for other in (copied, fresh):
        assert torch.equal(other.eval()(*given), expected)


def assert_adversaries(generator, discriminator, noise_dim):
    fakes = generator(torch.randn(2, noise_dim))
    LOSS.generator(discriminator(fakes)).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    reals = real_images(fakes.shape[-1]).requires_grad_()
    logits = discriminator(reals)
    discriminator.zero_grad()
    (LOSS.discriminator(logits, discriminator(fakes.detach())) + r1_penalty(logits, reals)).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_ladagan_against_vitgans_discriminator():
    torch.manual_seed(0)
    generator = ladagan.Generator(32, (64, 16, 64), 8, (4, 2, 4), (16, 16, 16))
    assert_adversaries(generator, small_discriminator(), 8)


@pytest.mark.parametrize("output", ["conv", "inr"])
def test_vitgans_generator_against_both_discriminators(output):
    assert_adversaries(small_generator(output=output), small_discriminator(), 10)
    assert_adversaries(small_generator(output=output), ladagan.Discriminator((8, 16), (8, 8), 2, 16), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 48}, "img_size: got 48, expected a power of two, 16 or more"),
        ({"img_size": 8}, "img_size: got 8, expected a power of two, 16 or more"),
        ({"output": "mlp"}, "output: got 'mlp', expected 'conv' or 'inr'"),
        ({"blocks": 0}, "blocks: got 0, expected 1 or more"),
        ({"output": "inr", "inr_layers": 0}, "inr_layers: got 0, expected 1 or more"),
        ({"output": "inr", "inr_dim": 0}, "inr_dim: got 0, expected 1 or more"),
        ({"noise_dim": 0}, "noise_dim: got 0, expected 1 or more"),
        ({"dim": -12}, "dim: got -12, expected 1 or more"),
        ({"mlp_dim": 0}, "mlp_dim: got 0, expected 1 or more"),
        ({"heads": 5}, "heads: got 5, expected a divisor of dim = 12"),
        ({"residual": "post"}, "residual: got 'post', expected 'pre-norm' or 'official'"),
        ({"attention": "cosine"}, "attention: got 'cosine', expected 'dot' or 'l2'"),
        ({"img_size": 256, "dim": 3}, "dim: got 3, expected 4 or more for img_size = 256"),
    ],
)
def test_generator_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        small_generator(**options)


@pytest.mark.parametrize("shape", [(2, 9), (10,), (2, 10, 1)])
def test_generator_refuses_other_latents(shape):
    with pytest.raises(ValueError, match=r"z: got shape \[.*\], expected \[B, noise_dim\] with noise_dim = 10"):
        small_generator()(torch.ones(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, "patch: got 5, expected a divisor of img_size = 32"),
        ({"patch": 0}, "patch: got 0, expected a divisor of img_size = 32"),
        ({"blocks": 0}, "blocks: got 0, expected 1 or more"),
        ({"dim": 0}, "dim: got 0, expected 1 or more"),
        ({"mlp_dim": 0}, "mlp_dim: got 0, expected 1 or more"),
        ({"heads": 5}, "heads: got 5, expected a divisor of dim = 12"),
        ({"attention": "cosine"}, "attention: got 'cosine', expected 'dot' or 'l2'"),
    ],
)
def test_discriminator_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        small_discriminator(**options)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32)])
def test_discriminator_refuses_other_images(shape):
    with pytest.raises(ValueError, match=r"x: got shape \[.*\], expected \[B, 3, 32, 32\]"):
        small_discriminator()(torch.ones(shape))
