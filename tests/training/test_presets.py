"""The presets build what they are meant to, and hold the values that were published."""

import dataclasses
import functools

import pytest
import torch

from lada_kernels.training.config import load_config, save_config
from lada_kernels.training.families import ViTGANDiscriminator, ViTGANGenerator
from lada_kernels.training.presets import PRESETS
from lada_kernels.training.trainer import Trainer, build_discriminator, build_generator

# Of ViTGAN at 32 pixels, see tests/models/test_vitgan.py: D, a block of D, and of G with two more layers in its head.
VIT_D, D_BLOCK, INR_G = 6_583_297, 1_626_624, 12_992_387
STYLED = 384 * 384 + 384
G_BLOCK = 4 * STYLED + 384 * 1152 + 1152 + STYLED + 2 * 384 * 1536 + 1536 + 384
INR_LAYER = 512 * 512 + 512 + 384 * 512 + 512
WIDER_PATCHES = 3 * (16**2 - 8**2) * 384


@functools.cache
def build(preset: str, network: str) -> torch.nn.Module:
    """Without memory for its weights."""
    config = PRESETS[preset]
    with torch.device("meta"):
        return {"generator": build_generator, "discriminator": build_discriminator}[network](config)


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_matching_models(name):
    preset = PRESETS[name]
    generator, discriminator = build(name, "generator"), build(name, "discriminator")
    with torch.device("meta"):
        images = generator(torch.empty(2, preset.generator.noise_dim))
        assert images.shape == (2, 3, preset.img_size, preset.img_size)
        assert discriminator(images).shape[0] == 2


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("cifar10", 19_901_647, 6_775_940),
        ("celeba64", 19_900_351, 7_004_356),
        ("ffhq128", 24_025_871, 7_061_220),
        ("vitgan-cifar10", INR_G - 2 * INR_LAYER, VIT_D),
        ("vitgan-celeba64", INR_G - 2 * INR_LAYER + 2 * G_BLOCK, VIT_D + 2 * D_BLOCK + WIDER_PATCHES),
        ("vitgan-stylegan2d-cifar10", 16_987_015, 13_918_849),
    ],
)
def test_presets_have_the_published_sizes(name, generator, discriminator):
    assert size(build(name, "generator")) == generator
    assert size(build(name, "discriminator")) == discriminator


def test_ffhq_preset_has_the_published_size_with_its_statistics():
    model = build("ffhq128", "generator")
    statistics = [b for b in model.buffers() if b.is_floating_point()]
    assert sum(t.numel() for t in (*model.parameters(), *statistics)) == 24_026_255


def test_ffhq_preset_regularises_as_published():
    optim = PRESETS["ffhq128"].optim
    assert (optim.bcr_real, optim.bcr_fake, optim.r1, optim.augment_adversarial) == (0.1, 0.1, 1e-4, False)
    assert (optim.batch_size, optim.augment) == (64, ("color", "translation", "cutout"))
    assert PRESETS["ffhq128"].run.steps * 64 == 24_064_000  # images, the official checkpoint's name


@pytest.mark.parametrize(("name", "size", "blocks"), [("vitgan-cifar10", 32, 4), ("vitgan-celeba64", 64, 6)])
def test_vitgan_presets_are_the_papers(name, size, blocks):
    preset, optim = PRESETS[name], PRESETS[name].optim
    assert isinstance(preset.generator, ViTGANGenerator)
    assert isinstance(preset.discriminator, ViTGANDiscriminator)
    for model in (preset.generator, preset.discriminator):
        assert (model.dim, model.mlp_dim, model.heads, model.blocks, model.equalized) == (384, 1536, 6, blocks, True)
    assert (preset.img_size, preset.generator.output, preset.generator.inr_layers) == (size, "inr", 1)
    assert (preset.generator.residual, preset.generator.spectral_norm) == ("pre-norm", False)
    assert (preset.discriminator.attention, preset.discriminator.spectral_norm) == ("l2", True)
    assert (optim.loss, optim.batch_size, optim.g_lr, optim.d_lr, optim.betas) == (
        "nonsaturating",
        128,
        2e-3,
        2e-3,
        (0.0, 0.99),
    )
    assert (optim.bcr_real, optim.bcr_fake, optim.r1, optim.augment_p) == (10.0, 10.0, 0.0, 0.8)
    assert set(optim.augment) == {"translation", "color", "cutout", "scaling"}
    assert optim.augment_adversarial


def test_vitgan_against_stylegan2_is_the_official_codes():
    preset = PRESETS["vitgan-stylegan2d-cifar10"]
    optim = preset.optim
    assert (preset.img_size, preset.generator.family, preset.discriminator.family) == (32, "vitgan", "stylegan2")
    assert (preset.generator.output, preset.generator.residual, preset.generator.spectral_norm) == ("conv", "official", True)
    assert (optim.loss, optim.batch_size, optim.g_lr, optim.d_lr, optim.betas) == ("nonsaturating", 64, 1e-3, 1e-3, (0.0, 0.99))
    assert (optim.warmup, optim.r1, optim.r1_every) == (3000, 0.05, 1)
    assert (optim.bcr_real, optim.bcr_fake, optim.augment_p, optim.augment_adversarial) == (1.0, 1.0, 0.8, True)
    assert set(optim.augment) == {"translation", "color", "cutout"}
    assert (optim.ema_half_life, optim.ema_start) == (1_000_000, 1_000_000)
    assert preset.data.mirror
    assert preset.run.steps == 800_000


@pytest.mark.parametrize("name", ["digits", "vitgan-digits"])
def test_small_presets_train(name, tmp_path):
    preset = PRESETS[name]
    assert preset.data.source == "digits"
    preset = dataclasses.replace(preset, run=dataclasses.replace(preset.run, device="cpu", out=str(tmp_path)))
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    trainer = Trainer(preset, images)
    before = [p.detach().clone() for p in trainer.generator.parameters()]
    assert trainer.step().isfinite().all()
    assert not all(torch.equal(*pair) for pair in zip(before, trainer.generator.parameters(), strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    save_config(PRESETS[name], tmp_path / "new" / "config.json")
    loaded = load_config(tmp_path / "new" / "config.json")
    assert loaded == PRESETS[name]
    assert type(loaded.generator) is type(PRESETS[name].generator)
    assert type(loaded.discriminator) is type(PRESETS[name].discriminator)
