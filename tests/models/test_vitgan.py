"""ViTGAN against its equations, in training, and beside LadaGAN."""

import copy
import io

import pytest
import torch
import vit_equations
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lada_kernels.models import ladagan
from lada_kernels.models.vitgan import Discriminator
from lada_kernels.training.losses import discriminator_loss, generator_loss, r1_penalty

SMALL = {"dim": 12, "heads": 3, "mlp_dim": 16, "blocks": 2}


def small_discriminator(img_size=32, **options):
    torch.manual_seed(2)
    return Discriminator(img_size, **{**SMALL, **options})


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
        loss = discriminator_loss(logits, function(-reals.detach())) + 10 * r1_penalty(logits, reals)
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
    (discriminator_loss(logits, model(-reals.detach())) + r1_penalty(logits, reals)).backward()
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
    generator_loss(discriminator(fakes)).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    reals = real_images(fakes.shape[-1]).requires_grad_()
    logits = discriminator(reals)
    discriminator.zero_grad()
    (discriminator_loss(logits, discriminator(fakes.detach())) + r1_penalty(logits, reals)).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_ladagan_against_vitgans_discriminator():
    torch.manual_seed(0)
    generator = ladagan.Generator(32, (64, 16, 64), 8, (4, 2, 4), (16, 16, 16))
    assert_adversaries(generator, small_discriminator(), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, "patch must divide img_size=32, got 5"),
        ({"patch": 0}, "patch must divide img_size=32, got 0"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide dim, got heads=5 and dim=12"),
        ({"attention": "cosine"}, "attention must be 'dot' or 'l2', got 'cosine'"),
    ],
)
def test_discriminator_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        small_discriminator(**options)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32)])
def test_discriminator_refuses_other_images(shape):
    with pytest.raises(ValueError, match=r"x must be \[B, 3, 32, 32\] as img_size=32, got \["):
        small_discriminator()(torch.ones(shape))
