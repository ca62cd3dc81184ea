"""Every generator against every discriminator."""

import dataclasses
from pathlib import Path

import pytest
import torch
from training.variants import DISCRIMINATORS, assert_bit_equal, resumed, trained, with_optim, with_run

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.families import StyleGAN2Discriminator
from lada_kernels.training.loop import fit, fixed_latents, sample
from lada_kernels.training.progress import METRICS
from lada_kernels.training.trainer import Trainer, build_discriminator, build_generator


@pytest.fixture
def hard(pairing) -> Config:
    """One of the pairings with all that a step can be asked for; warm-up and average change after the fourth."""
    mirrored = dataclasses.replace(pairing, data=dataclasses.replace(pairing.data, mirror=True))
    return with_optim(
        mirrored,
        warmup=5,
        augment=("color", "translation", "cutout", "scaling"),
        augment_p=0.8,
        bcr_real=10.0,
        bcr_fake=5.0,
        gp=0.2,
        lecam=0.3,
        ema_half_life=8,
        ema_start=16,
    )


def networks(trainer: Trainer) -> dict:
    named = (*trainer.generator.named_parameters(prefix="G"), *trainer.discriminator.named_parameters(prefix="D"))
    return {name: parameter.detach() for name, parameter in named}


def test_a_step_trains_every_weight(hard, images):
    trainer = Trainer(hard, images)
    before = {name: value.clone() for name, value in networks(trainer).items()}
    penalised, spared = (dict(zip(METRICS, trainer.step().tolist(), strict=True)) for _ in range(2))
    assert penalised.pop("r1") > 0
    assert spared.pop("r1") == 0
    for metrics in (penalised, spared):
        assert all(torch.tensor(value).isfinite() and value for value in metrics.values()), metrics
    assert all(value.isfinite().all() for value in networks(trainer).values())
    still = {name for name, value in networks(trainer).items() if torch.equal(value, before[name])}
    assert all(name.endswith("q_attn.bias") for name in still), still  # softmax cancels it
    drawn = sample(trainer.ema, fixed_latents(3, hard.generator.noise_dim, 0), batch_size=2)
    assert drawn.shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("generator", "discriminator", "precision"),
    [
        ("vitgan-conv", "vitgan", "float32"),
        ("vitgan-conv", "vitgan", "bfloat16"),
        ("vitgan-inr", "stylegan2", "float32"),
        ("ladagan", "vitgan", "float32"),
        ("vitgan-conv", "ladagan", "float32"),
    ],
    indirect=["generator", "discriminator"],
)
def test_resuming_is_exact(hard, images, precision):
    hard = with_run(hard, precision=precision)
    whole, second = trained(hard, images, 6), resumed(hard, images, 3)
    assert second.g_opt.param_groups[0]["lr"] == pytest.approx(3 / 5 * hard.optim.g_lr)
    for _ in range(3):
        second.step()
    assert_bit_equal(second.state_dict(), whole.state_dict())
    copied = (torch.equal(*pair) for pair in zip(whole.ema.parameters(), whole.generator.parameters(), strict=True))
    assert not all(copied)  # it averages by now


@pytest.mark.parametrize(("generator", "discriminator"), [("vitgan-conv", "vitgan")], indirect=True)
@pytest.mark.parametrize("network", ["generator", "discriminator", "ema"])
def test_a_checkpoint_without_the_vectors_of_spectral_normalisation_is_refused(hard, images, network):
    trainer = Trainer(hard, images)
    state = trainer.state_dict()
    (name, *_) = (name for name in state[network] if name.endswith("weight.0.u"))
    del state[network][name]
    with pytest.raises(RuntimeError, match=rf"Missing key.*{name}"):
        trainer.load_state_dict(state)


@pytest.mark.parametrize(
    ("generator", "discriminator"), [("vitgan-conv", "stylegan2"), ("vitgan-inr", "vitgan")], indirect=True
)
@pytest.mark.parametrize(("changes", "tolerance"), [({"channels_last": True}, 1e-4), ({"precision": "bfloat16"}, 0.05)])
def test_other_layouts_and_precisions_compute_the_same(hard, images, changes, tolerance):
    hard = with_optim(hard, bcr_real=0.1, bcr_fake=0.1)
    plain, other = Trainer(hard, images), Trainer(with_run(hard, **changes), images)
    results = []
    for trainer in (plain, other):
        torch.manual_seed(5)
        results.append(trainer.step())
    torch.testing.assert_close(*results, rtol=tolerance, atol=0.1 * tolerance)


@pytest.mark.parametrize(("generator", "discriminator"), [("vitgan-inr", "stylegan2")], indirect=True)
def test_fit_writes_grids_and_checkpoints(pairing, images):
    folder = Path(pairing.run.out)
    assert fit(Trainer(pairing, images), folder)
    assert sorted(p.name for p in (folder / "grids").iterdir()) == ["0000000.png", "0000004.png"]
    assert checkpoint.read_latest(folder)["iter"] == 4


def test_generators_that_do_not_fit_are_named(generator, tiny):
    heads = (3, 2, 2) if generator.family == "ladagan" else 3
    odd = dataclasses.replace(tiny, generator=dataclasses.replace(generator, heads=heads))
    with pytest.raises(TrainingError, match=r"^generator: heads: got \d+, expected a divisor of dim"):
        build_generator(odd)
    with pytest.raises(TrainingError, match=r"^generator: img_size: got 48, expected"):
        build_generator(dataclasses.replace(tiny, generator=generator, img_size=48))


@pytest.mark.parametrize(
    ("discriminator", "changes", "message"),
    [
        ("ladagan", {"heads": 3}, r"heads: got 3, expected a divisor of dim"),
        ("ladagan", {"enc_dim": (4, 4, 8)}, r"enc_dim: 3 widths are for images of 64 pixels, not of 32"),
        ("vitgan", {"patch": 5}, r"patch: got 5, expected a divisor of img_size = 32"),
        ("stylegan2", {"widths": (4, 4)}, r"widths: got \[4, 4\], expected 4 widths for img_size = 32"),
        ("stylegan2", {"group": 0}, r"group: got 0, expected 1 or more"),
    ],
    indirect=["discriminator"],
)
def test_discriminators_that_do_not_fit_are_named(discriminator, changes, message, tiny):
    odd = dataclasses.replace(tiny, discriminator=dataclasses.replace(discriminator, **changes))
    with pytest.raises(TrainingError, match=f"^discriminator: {message}"):
        build_discriminator(odd)


def test_what_is_left_open_follows_from_the_image(tiny):
    """0 is an eighth of the side, () the usual widths down to 4x4."""
    vit = dataclasses.replace(tiny, img_size=64, discriminator=dataclasses.replace(DISCRIMINATORS["vitgan"], patch=0))
    assert build_discriminator(vit).side == 8
    patch = dataclasses.replace(tiny, img_size=64, discriminator=dataclasses.replace(DISCRIMINATORS["vitgan"], patch=16))
    assert build_discriminator(patch).side == 4
    with torch.device("meta"):
        model = build_discriminator(dataclasses.replace(tiny, img_size=64, discriminator=StyleGAN2Discriminator()))
    assert [len(model.from_rgb.weight), *(len(block.conv2.weight) for block in model.blocks)] == [128, 256, 512, 512, 512]
