"""Official LadaGAN weights in our models: the same images, logits, R1 penalty, losses and gradients, in
float64.

The files in tests/data/golden were written by the official PyTorch code: a small generator and
discriminator in train mode without augmentation, with R1 coefficient 0.01; everything in float64, weights
and gradients stored as float32.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from spellings import set_folding
from torch.nn import functional

from lada_kernels.models.ladagan import Discriminator, Generator

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
R1_COEFFICIENT = 0.01


def load(size):
    with np.load(GOLDEN / f"ladagan_{size}.npz") as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files if name != "config"}, (
            ast.literal_eval(str(archive["config"]))
        )


def section(golden, prefix):
    return {name[len(prefix) :]: value for name, value in golden.items() if name.startswith(prefix)}


def build(golden, config, fold_query):
    generator = Generator(
        config["img_size"],
        config["dim"],
        config["noise_dim"],
        config["heads"],
        config["mlp_dim"],
    )
    discriminator = Discriminator(config["enc"], config["out"], config["dheads"], config["dmlp"])
    for model, prefix in ((generator, "G/"), (discriminator, "D/")):
        weights = section(golden, prefix)
        assert list(model.state_dict()) == list(weights)
        model.load_state_dict(weights, strict=True)
        set_folding(model.double().train(), fold_query)
    return generator, discriminator


def relative_error(value, truth):
    return ((value - truth).norm() / truth.norm()).item()


def assert_gradients(model, truth):
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert list(gradients) == list(truth)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        if name.endswith("q_attn.bias"):
            assert torch.equal(gradient, torch.zeros_like(gradient)), name
            continue
        assert relative_error(gradient, truth[name].double()) < 1e-5, name


@pytest.mark.parametrize("fold_query", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("size", [32, 64])
def test_training_step_matches_official_code(backend, size, fold_query):
    golden, config = load(size)
    z, real = golden["in/z"], golden["in/x"].clone().requires_grad_()
    generator, discriminator = build(golden, config, fold_query)

    fake = generator(z)
    logits_real = discriminator(real)
    logits_fake = discriminator(fake.detach())
    (slope,) = torch.autograd.grad(logits_real.sum(), real, create_graph=True)
    r1_penalty = slope.square().sum((1, 2, 3)).mean()
    d_loss = functional.softplus(-logits_real).mean() + functional.softplus(logits_fake).mean() + R1_COEFFICIENT * r1_penalty
    d_loss.backward()
    discriminator.requires_grad_(False)
    g_loss = functional.softplus(-discriminator(fake)).mean()
    g_loss.backward()

    outputs = {
        "img": fake,
        "logits_real": logits_real,
        "logits_fake": logits_fake,
        "r1_penalty": r1_penalty,
        "d_loss": d_loss,
        "g_loss": g_loss,
    }
    for name, value in outputs.items():
        assert relative_error(value.detach(), golden[f"out/{name}"]) < 1e-9, name
    assert_gradients(discriminator, section(golden, "dgrad/"))
    assert_gradients(generator, section(golden, "ggrad/"))
