"""StyleGAN2's discriminator against its equations, written out plainly, and against the sizes of the published network."""

import numpy as np
import pytest
import torch
from torch.autograd import gradgradcheck
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import lada_kernels.flops  # noqa: F401 - its formulas
from lada_kernels.models.stylegan2 import Discriminator, minibatch_deviation


def small(img_size=16, widths=(4, 6, 5), **options):
    torch.manual_seed(0)
    model = Discriminator(img_size, widths, **options).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def images(batch, size=16, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(batch, 3, size, size, dtype=dtype) * 2 - 1


def blurred(x, padding):
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).to(x) / 64
    return functional.conv2d(x.flatten(0, 1)[:, None], kernel[None, None], padding=padding)[:, 0].unflatten(0, x.shape[:2])


def activated(x):
    return 2**0.5 * functional.leaky_relu(x, 0.2)


def convolved(layer, x, **options):
    return functional.conv2d(x, layer.weight / layer.weight[0].numel() ** 0.5, layer.bias, **options)


def dense(layer, x):
    return functional.linear(x, layer.weight / layer.weight.shape[1] ** 0.5, layer.bias)


def plain_logits(model, x, groups):
    """The network as the papers give it, every factor in its place."""
    x = activated(convolved(model.from_rgb, x))
    for block in model.blocks:
        main = activated(convolved(block.conv1, x, padding=1))
        main = activated(convolved(block.conv2, blurred(main, 2), stride=2))
        skip = convolved(block.skip, blurred(x, 1)[:, :, ::2, ::2])
        x = (main + skip) / 2**0.5
    deviations = []
    for members in x.split(groups):
        deviation = ((members - members.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        deviations.append(deviation.expand(len(members), 1, 4, 4))
    x = activated(convolved(model.conv, torch.cat((x, torch.cat(deviations)), 1), padding=1))
    return dense(model.logit, activated(dense(model.dense, x.flatten(1))))


@pytest.mark.parametrize(("batch", "groups"), [(1, [1]), (3, [3]), (5, [3, 2]), (8, [4, 4])])
def test_logits_and_r1_of_the_equations(batch, groups):
    model, x = small(), images(batch).requires_grad_()
    results = []
    for logits in (model(x), plain_logits(model, x, groups)):
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        loss = functional.softplus(-logits).mean() + slope.square().sum((1, 2, 3)).mean()
        results.append([logits, slope, *torch.autograd.grad(loss, [*model.parameters()])])
    assert results[0][0].shape == (batch, 1)
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10 * plain.abs().max().item())


def test_second_derivatives_end_to_end():
    model = small(8, (3, 4))
    x = images(3, 8).requires_grad_()

    def logits(x, weight):
        return torch.func.functional_call(model, {"blocks.0.conv1.weight": weight}, x)

    assert gradgradcheck(logits, (x, model.blocks[0].conv1.weight), fast_mode=True)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (0, []),
        (1, [1]),
        (2, [2]),
        (4, [4]),
        (5, [3, 2]),
        (6, [3, 3]),
        (7, [4, 3]),
        (9, [3, 3, 3]),
        (10, [4, 3, 3]),
        (12, [4] * 3),
    ],
)
def test_groups_of_the_deviation(batch, sizes):
    x = np.random.default_rng(0).standard_normal((batch, 2, 3, 3))
    expected, start = [], 0
    for size in sizes:
        members = x[start : start + size]
        expected += [np.sqrt(members.var(0) + 1e-8).mean()] * size
        start += size
    deviation = minibatch_deviation(torch.from_numpy(x))
    torch.testing.assert_close(deviation, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_alone_in_half_precision(dtype):
    x = torch.randn(1, 2, 4, 4).to(dtype).requires_grad_()
    deviation = minibatch_deviation(x)
    assert deviation.item() == pytest.approx(1e-4, rel=1e-2)
    (slope,) = torch.autograd.grad(deviation.sum(), x)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_groups_do_not_see_each_other():
    model, x = small(), images(8)
    torch.testing.assert_close(model(x)[:4], model(x[:4]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small(group=1)(x)[2:3], model(x[2:3]), rtol=1e-12, atol=1e-12)
    assert (model(x)[:4] - model(x.flip(0))[4:].flip(0)).abs().max() < 1e-12
    assert (model(x)[:1] - model(x[:1])).abs() > 1e-6


def test_nothing_is_random():
    model, x = small().eval(), images(3)
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), model.train()(x))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_it_begins_with_standard_normals_and_zeros():
    torch.manual_seed(0)
    for name, parameter in Discriminator(16, (64, 128, 128)).named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif parameter.numel() > 5000:
            assert parameter.std().item() == pytest.approx(1, abs=0.05), name


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_published_size():
    with torch.device("meta"):
        model = Discriminator()
        assert parameters(model) == 13_918_849
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(4, 3, 32, 32))
    ours = counter.get_total_flops() / 2 / 4  # multiply-adds per image
    blocks = ((32, 128, 256), (16, 256, 512), (8, 512, 512))
    skip_blurs = sum((side // 2) ** 2 * 16 * width for side, width, _ in blocks)
    main_blurs = sum((side + 1) ** 2 * 16 * width for side, width, _ in blocks)
    layers = 3 * 128 * 32**2 + 513 * 512 * 9 * 4**2 + 16 * 512 * 512 + 512
    for side, width, out in blocks:
        layers += side**2 * width * width * 9 + (side // 2) ** 2 * width * out * (9 + 1)
    assert ours == layers + main_blurs + skip_blurs

    # The published 22,439,809 parameters and 0.721 G multiply-adds hold two projections that nothing is trained by, and blur
    # the skipped maps at every pixel, of which one in four is kept.
    projections = 2 * (8192 * 512 + 512 * 128)
    assert 13_918_849 + projections + 2 * (512 + 128) == 22_439_809
    full_skip_blurs = sum((side - 1) ** 2 * 16 * width for side, width, _ in blocks)
    assert round((ours - skip_blurs + full_skip_blurs + projections) / 1e9, 3) == 0.721


@pytest.mark.parametrize(
    ("img_size", "widths"),
    [
        (32, [128, 256, 512, 512]),
        (64, [128, 256, 512, 512, 512]),
        (128, [128, 256, 512, 512, 512, 512]),
        (256, [128, 256, 512, 512, 512, 512, 512]),
    ],
)
def test_default_widths(img_size, widths):
    with torch.device("meta"):
        model = Discriminator(img_size)
        assert model(torch.empty(2, 3, img_size, img_size)).shape == (2, 1)
    outs = [model.from_rgb.weight.shape[0], *(block.conv2.weight.shape[0] for block in model.blocks)]
    assert outs == widths
    with torch.device("meta"):
        assert parameters(Discriminator(img_size, widths)) == parameters(model)


@pytest.mark.parametrize("img_size", [32, 64, 128, 256])
def test_image_sizes_train(img_size):
    model = small(img_size, [4] * (img_size.bit_length() - 2)).float()
    x = images(3, img_size, torch.float32).requires_grad_()
    logits = model(x)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    (functional.softplus(logits).mean() + slope.square().sum((1, 2, 3)).mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_empty_batch_and_autocast():
    model = small().float()
    assert model(torch.empty(0, 3, 16, 16)).shape == (0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(4, dtype=torch.float32))
    functional.softplus(logits.float()).mean().backward()
    assert logits.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 48}, "img_size: got 48, expected a power of two, 8 or more"),
        ({"img_size": 4}, "img_size: got 4, expected a power of two, 8 or more"),
        ({"img_size": 16, "widths": (4, 4)}, r"widths: got \[4, 4\], expected 3 widths for img_size = 16"),
        ({"img_size": 16, "widths": (4, 0, 4)}, "widths: got 0, expected 1 or more"),
        ({"group": 0}, "group: got 0, expected 1 or more"),
    ],
)
def test_refused_arguments(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Discriminator(**arguments)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 16, 16), (3, 16, 16)], ids=str)
def test_refused_images(shape):
    with pytest.raises(ValueError, match=r"x: got shape .*, expected \[B, 3, 16, 16\]"):
        small()(torch.empty(shape, dtype=torch.float64))
