"""The families side by side: who is wrong in any part of a step does not race, and sizes are those of the models."""

import dataclasses

import pytest
import torch

from benchmarks import cases, steps
from benchmarks.counting import multiply_adds
from benchmarks.harness import worst_error
from benchmarks.suites import families
from lada_kernels import backends, reference
from lada_kernels.backends import blockwise, cpu
from lada_kernels.models import ladagan, stylegan2, vitgan
from lada_kernels.training import trainer
from lada_kernels.training.presets import PRESETS
from lada_kernels.training.trainer import Trainer

NAMES = ("LadaGAN", "ViTGAN", "ViTGAN with StyleGAN2's D")
SIZES = ("G parameters", "D parameters", "G multiply-adds", "D multiply-adds")


@pytest.fixture
def patched(monkeypatch):
    """Kernels that are found once are kept."""
    backends._kernels.cache_clear()
    yield monkeypatch
    backends._kernels.cache_clear()


def exchange(patched, backend, op, order, kernel):
    patched.setitem(backend.KERNELS, op, dataclasses.replace(backend.KERNELS[op], **{order: kernel}))


def row_of(plan, task):
    (case,) = [case for case in families.cases(plan) if case.about["task"] == task]
    assert case.ours == NAMES
    return case.row()


@pytest.mark.parametrize("task", ["images", "training step"])
def test_all_families_race(plan, task):
    row = row_of(plan, task)
    assert row.refused is None
    assert row.absent == {}
    assert set(row.times) == {*NAMES, "matmul"}
    assert max(row.errors[name] for name in NAMES) < 1e-4
    for name in NAMES:
        assert row.figures["images/s"][name] == 4 / row.times[name].median
        assert row.figures["peak bytes"][name] > 4 * 3 * 32 * 32 * 4  # the images
    assert set(row.figures["images/s"]) == set(row.figures["peak bytes"]) == set(NAMES)
    assert (set(SIZES) <= set(row.figures)) == (task == "training step")


def test_the_gradients_are_of_the_step_s_peak(plan):
    row = row_of(plan, "training step")
    for name in NAMES:
        parameters = sum(row.figures[f"{part} parameters"][name] for part in "GD")
        assert row.figures["peak bytes"][name] > 4 * parameters


def scaled(function, factor=1.05):
    return lambda *args: factor * function(*args)


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (trainer, "r1_penalty", {"LadaGAN", "ViTGAN with StyleGAN2's D"}),
        (trainer, "consistency", {"ViTGAN", "ViTGAN with StyleGAN2's D"}),
        (Trainer, "_fakes", set(NAMES)),
    ],
)
def test_a_step_that_is_wrong_is_refused(plan, monkeypatch, place, name, wrong):
    """By the twentieth part of a term that its preset gives a ten-thousandth of the weight."""
    monkeypatch.setattr(place, name, scaled(getattr(place, name)))
    row = row_of(plan, "training step")
    assert set(row.times) - {"matmul"} == set(NAMES) - wrong
    for one in wrong:
        assert f"{one}: wrong result: relative error 0." in row.refused
    for figure in ("images/s", "peak bytes", *SIZES) if row.times else ():
        assert set(row.figures[figure]) == set(NAMES) - wrong


@pytest.mark.parametrize(
    ("backend", "op", "order", "wrong"),
    [
        (cpu, "additive_attention", "double_backward", {"LadaGAN"}),
        (blockwise, "l2_attention", "forward", {"ViTGAN"}),
        (blockwise, "l2_attention", "backward", {"ViTGAN"}),
        (blockwise, "dot_product_attention", "backward", {"ViTGAN", "ViTGAN with StyleGAN2's D"}),
    ],
)
def test_a_family_whose_kernel_is_wrong_is_refused(plan, patched, backend, op, order, wrong):
    right = getattr(backend.KERNELS[op], order)
    exchange(patched, backend, op, order, lambda *args: tuple(x if x is None else 1.5 * x for x in right(*args)))
    row = row_of(plan, "training step")
    assert set(row.times) == {*NAMES, "matmul"} - wrong
    assert all(f"{name}: wrong result" in row.refused for name in wrong)


def test_images_that_are_wrong_are_refused(plan, patched):
    right = cpu.KERNELS["modulated_layer_norm"].forward
    exchange(patched, cpu, "modulated_layer_norm", "forward", lambda *args: (right(*args)[0] * 1.05, *right(*args)[1:]))
    row = row_of(plan, "images")
    assert all(f"{name}: wrong result" in row.refused for name in NAMES)
    assert row.times == row.figures == {}


@pytest.mark.parametrize("place", ["the discriminator", "a kernel"])
def test_a_family_that_fails_takes_no_time_from_the_others(plan, patched, place):
    if place == "a kernel":
        exchange(patched, blockwise, "l2_attention", "forward", lambda *args: 1 / 0)
    else:
        patched.setattr(vitgan.Discriminator, "forward", lambda *args: 1 / 0)
    row = row_of(plan, "training step")
    assert set(row.times) == {"LadaGAN", "ViTGAN with StyleGAN2's D", "matmul"}
    assert row.refused == "ViTGAN: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("name", NAMES)
def test_the_judged_step_moves_nothing_and_the_next_is_the_preset_s(plan, name):
    config = plan.families[0][name]
    trainer = Trainer(config, steps.random_pixels(config))
    before = [p.detach().clone() for model in (trainer.generator, trainer.discriminator) for p in model.parameters()]
    optim, truth = steps.true_step(trainer)
    found = steps.first_step(trainer, optim)
    for one, true in (([found.losses], [truth.losses]), (found.of_d, truth.of_d), (found.of_g, truth.of_g)):
        assert worst_error(one, true) < 1e-4
    after = [p for model in (trainer.generator, trainer.discriminator) for p in model.parameters()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert trainer.config == config
    trainer.step()
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_every_term_is_weighed_as_heavy_as_the_adversarial_one(plan):
    config = plan.families[0]["ViTGAN with StyleGAN2's D"]

    def gradients(**weights):
        optim = dataclasses.replace(config.optim, **weights)
        trainer = Trainer(dataclasses.replace(config, optim=optim), steps.random_pixels(config))
        of_d = steps.first_step(trainer, dataclasses.replace(optim, g_lr=0.0, d_lr=0.0)).of_d
        return torch.cat([gradient.flatten() for gradient in of_d])

    optim, _ = steps.true_step(Trainer(config, steps.random_pixels(config)))
    weights = {name: getattr(optim, name) for name in ("r1", "bcr_real", "bcr_fake")}
    assert all(weights.values())
    none = dict.fromkeys(weights, 0.0)
    alone = gradients(**none)
    # bCR's augmentations are drawn in turn: without what comes before it, a term would see others.
    r1 = gradients(**none | {"r1": weights["r1"]}) - alone
    real = gradients(**none | {"bcr_real": weights["bcr_real"]}) - alone
    for term in (r1, real):
        assert term.norm() == pytest.approx(alone.norm().item(), rel=1e-3)


def test_no_parameter_s_gradient_is_lost_beside_the_others():
    losses, long, short, none = torch.ones(2), torch.ones(4), torch.tensor([0.01]), torch.tensor([1e-30])
    truth = steps.Step(losses, [long, short], [long, none])

    def error(of_d, of_g):
        return worst_error(steps.judged(steps.Step(losses, of_d, of_g), truth), steps.judged(truth, truth))

    assert error([long, short], [long, none]) == 0
    assert error([long, 1.5 * short], [long, none]) == pytest.approx(0.5 / 2**0.5)
    assert error([long, short], [long, none + 1e-7]) < 1e-4  # rounding
    assert error([long, short], [long, none + 0.1]) > 1


def test_noise_in_float64_is_that_in_float32():
    x = torch.zeros(2, 1, 5, 7)
    torch.manual_seed(0)
    narrow = torch.randn_like(x)
    torch.manual_seed(0)
    with steps.DrawingInFloat32():
        wide = torch.randn_like(x.double())
    assert wide.dtype == torch.float64
    assert torch.equal(wide, narrow.double())


@pytest.mark.parametrize(("pixels", "data"), [(32, "cifar10"), (64, "celeba64")])
def test_the_configurations_are_the_presets(pixels, data):
    configs = cases.family_configs(pixels, 4, "cpu")
    assert tuple(configs) == NAMES
    for name, preset in (("LadaGAN", data), ("ViTGAN", f"vitgan-{data}"), ("ViTGAN with StyleGAN2's D", None)):
        config = configs[name]
        expected = PRESETS[preset or "vitgan-stylegan2d-cifar10"]
        assert (config.img_size, config.optim.batch_size, config.run.device) == (pixels, 4, "cpu")
        assert dataclasses.replace(config.optim, batch_size=expected.optim.batch_size) == expected.optim
        assert config.discriminator == expected.discriminator
        if preset or pixels == 32:
            assert config.generator == expected.generator
        else:
            assert config.generator == dataclasses.replace(expected.generator, blocks=6)
    assert configs["LadaGAN"].optim.r1_every == configs["ViTGAN with StyleGAN2's D"].optim.r1_every == 1  # as the truth has it
    assert all(config.optim.loss == "nonsaturating" and config.optim.augment_adversarial for config in configs.values())


@pytest.mark.parametrize("name", cases.PLANS)
def test_the_families_have_one_batch_size_and_one_number_of_pixels(name):
    plan = cases.PLANS[name]("cpu")
    for configs in plan.families:
        assert tuple(configs) == NAMES
        assert len({(config.img_size, config.optim.batch_size) for config in configs.values()}) == 1
    assert {next(iter(configs.values())).img_size for configs in plan.families} == ({32} if name == "tiny" else {32, 64})


def test_multiply_adds_of_one_image():
    """Those that the models' own tests count, with what the counter cannot see."""
    z, x = torch.randn(1, 384), torch.randn(1, 3, 32, 32)
    implicit = vitgan.Generator(32, output="inr", inr_layers=1)
    pairs = 2 * 64 * 64 * 384  # scores, and sums by them
    unseen = multiply_adds(lambda: implicit(z))[1]
    assert families.forward_of_one(implicit, z) == unseen + 4 * pairs
    # With a class token; spectral norms are of weights, not of images.
    layers = 64 * (192 + 2) * 384 + 4 * 65 * (3 * 384 * 384 + 2 * 384 * 1536) + 384
    assert families.forward_of_one(vitgan.Discriminator(32), x) == layers + 4 * 2 * 65 * 65 * 384
    last = 513 * 512 * 9 * 4**2 + 16 * 512 * 512 + 512
    layers = 3 * 128 * 32**2 + last
    for side, width, out in ((32, 128, 256), (16, 256, 512), (8, 512, 512)):
        half = side // 2
        blurs = 16 * width * ((side + 1) ** 2 + half**2)
        layers += side**2 * width * width * 9 + half**2 * width * out * (9 + 1) + blurs
    assert families.forward_of_one(stylegan2.Discriminator(), x) == layers


def test_multiply_adds_of_additive_attention():
    model, z = ladagan.Generator(32), torch.randn(1, 128)
    outside = multiply_adds(lambda: model(z))[1]
    heads, pools = 4, sum(side**2 * width for side, width in ((8, 1024), (16, 256), (32, 64)))
    projected = sum(4 * side**2 * width**2 for side, width in ((8, 1024), (16, 256), (32, 64)))
    assert families.forward_of_one(model, z) == outside + pools * (heads + 1) > projected


def test_what_is_within_an_op_is_what_its_reference_computes():
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    found = {}
    for within in (False, True):
        found[within] = multiply_adds(lambda: torch.ops.lada_kernels.dot_product_attention(q, k, v, 0.5, False, ""), within)
    (out, none), (same, pairs) = found[False], found[True]
    assert (none, pairs) == (0, 2 * 2 * 3 * 5 * 5 * 4)
    torch.testing.assert_close(out[0], same[0])
    torch.testing.assert_close(out[0], reference.dot_product_attention.forward(q, k, v, 0.5, False)[0])
