"""What the networks are shown in a step, and what of it they are trained on."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional
from training.variants import DISCRIMINATORS, with_optim

from lada_kernels.training.config import Config
from lada_kernels.training.data import Sampler, to_float
from lada_kernels.training.progress import METRICS
from lada_kernels.training.trainer import Trainer

ALL = ("color", "translation", "cutout", "scaling")

# Of logits in float64: D's of real and fake, G's of fake.
FORMULAS = {
    "nonsaturating": (
        lambda r, f: (1 + (-r).exp()).log().mean() + (1 + f.exp()).log().mean(),
        lambda f: (1 + (-f).exp()).log().mean(),
    ),
    "hinge": (lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(), lambda f: -f.mean()),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
    "least_squares": (lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2, lambda f: ((f - 1) ** 2).mean() / 2),
}


@pytest.fixture
def exact(tiny) -> Config:
    """No noise, no statistics of batches: what a network says, a copy says again. R1 in every third step."""
    return with_optim(dataclasses.replace(tiny, discriminator=DISCRIMINATORS["stylegan2"]), r1=0.3, r1_every=3)


class Recorder:
    """What passes through the networks of a trainer until `stop`."""

    def __init__(self, trainer: Trainer) -> None:
        self.seen, self.followed, self.logits, self.latents, self.drawn = [], [], [], [], []
        judge = trainer.discriminator.register_forward_hook(self._judged)
        draw = trainer.generator.register_forward_hook(self._drawn)
        self.handles = (judge, draw)

    def _judged(self, _, args, logits) -> None:
        self.seen.append(args[0].detach().clone())
        self.followed.append(args[0].requires_grad)
        self.logits.append(logits.detach().clone())

    def _drawn(self, _, args, images) -> None:
        self.latents.append(args[0].clone())
        self.drawn.append(images.detach().clone())

    def stop(self) -> "Recorder":
        for handle in self.handles:
            handle.remove()
        return self


def recorded_step(trainer: Trainer) -> tuple[dict, Recorder]:
    recorder = Recorder(trainer)
    metrics = dict(zip(METRICS, trainer.step().tolist(), strict=True))
    return metrics, recorder.stop()


def first_reals(config: Config, images: torch.Tensor) -> torch.Tensor:
    return to_float(images[next(Sampler(len(images), config.optim.batch_size, config.seed))])


def assert_gradients(model, truth) -> None:
    whole = torch.cat([gradient.flatten() for gradient in truth])
    ours = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    assert (ours - whole).norm() < 1e-5 * whole.norm()
    torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("loss", FORMULAS)
def test_the_discriminator_descends_the_sum_of_its_terms(exact, images, loss):
    config = with_optim(exact, loss=loss, augment=ALL, augment_p=0.8, bcr_real=10.0, bcr_fake=5.0, gp=2.0, lecam=0.5)
    trainer = Trainer(config, images)
    trainer.logit_means.copy_(torch.tensor([0.3, -0.2]))
    twin = copy.deepcopy(trainer.discriminator).double()
    metrics, recorder = recorded_step(trainer)
    reals, fakes, other_reals, other_fakes, between, _ = (x.double() for x in recorder.seen)
    shares = ((between - reals) * (fakes - reals)).sum((1, 2, 3)) / ((fakes - reals) ** 2).sum((1, 2, 3))  # [B]
    torch.testing.assert_close(between, torch.lerp(reals, fakes, shares[:, None, None, None]), rtol=1e-5, atol=1e-5)
    assert 0 < shares.min() < shares.max() < 1
    real, fake, other_real, other_fake = (twin(x) for x in (reals.requires_grad_(), fakes, other_reals, other_fakes))
    adversarial = FORMULAS[loss][0](real, fake)
    (slopes,) = torch.autograd.grad(real.sum(), reals, create_graph=True)
    penalty = (slopes**2).sum() / 4
    bcr = 10 * ((real - other_real) ** 2).mean() + 5 * ((fake - other_fake) ** 2).mean()
    (slopes,) = torch.autograd.grad(twin(between.requires_grad_()).sum(), between, create_graph=True)
    gp = (((slopes**2).sum((1, 2, 3)) ** 0.5 - 1) ** 2).mean()
    lecam = ((real + 0.2).clamp(min=0) ** 2).mean() + ((0.3 - fake).clamp(min=0) ** 2).mean()
    whole = adversarial + 0.3 * 3 * penalty + bcr + 2 * gp + 0.5 * lecam
    truth = torch.autograd.grad(whole, list(twin.parameters()))
    assert_gradients(trainer.discriminator, truth)
    means = [0.99 * before + 0.01 * now.mean().item() for before, now in ((0.3, real), (-0.2, fake))]
    assert trainer.logit_means.tolist() == pytest.approx(means, rel=1e-5)
    expected = {
        "d_loss": adversarial,
        "r1": 3 * penalty,
        "bcr": bcr,
        "gp": gp,
        "lecam": lecam,
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "d_grad_norm": torch.stack([(gradient**2).sum() for gradient in truth]).sum().sqrt(),
    }
    assert min(penalty, bcr, gp, lecam) > 0
    assert {name: metrics[name] for name in expected} == pytest.approx({n: v.item() for n, v in expected.items()}, rel=1e-4)


@pytest.mark.parametrize("loss", FORMULAS)
def test_the_generator_descends_its_loss(exact, images, loss):
    trainer = Trainer(with_optim(exact, loss=loss, augment=()), images)
    twin = copy.deepcopy(trainer.generator).double()
    metrics, recorder = recorded_step(trainer)
    judge = copy.deepcopy(trainer.discriminator).double()  # as D's step left it
    value = FORMULAS[loss][1](judge(twin(recorder.latents[1].double())))
    truth = torch.autograd.grad(value, list(twin.parameters()))
    assert_gradients(trainer.generator, truth)
    norm = torch.stack([(gradient**2).sum() for gradient in truth]).sum().sqrt()
    assert metrics["g_loss"] == pytest.approx(value.item(), rel=1e-5)
    assert metrics["g_grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert not torch.equal(*recorder.latents)


@pytest.mark.parametrize(("real", "fake", "passes"), [(0.0, 0.0, 3), (1.0, 0.0, 4), (0.0, 1.0, 4), (1.0, 1.0, 5)])
def test_consistency_costs_a_pass_only_where_it_weighs(exact, images, real, fake, passes):
    metrics, recorder = recorded_step(Trainer(with_optim(exact, bcr_real=real, bcr_fake=fake), images))
    assert len(recorder.seen) == passes
    first, others = recorder.logits[:2], recorder.logits[2:-1]
    pairs = zip((x for x, weight in zip(first, (real, fake), strict=True) if weight), others, strict=True)
    assert metrics["bcr"] == pytest.approx(sum(((a - b) ** 2).mean().item() for a, b in pairs), rel=1e-5)


def shifts(images: torch.Tensor, originals: torch.Tensor) -> list[tuple[int, int]]:
    """By how many pixels down and right each image was translated; an error unless it was."""
    found = []
    for image, original in zip(images, originals, strict=True):
        padded = functional.pad(original, (4, 4, 4, 4))
        found += [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.equal(image, padded[:, 4 - dy : 36 - dy, 4 - dx : 36 - dx])
        ]
    assert len(found) == len(images)
    return found


def test_every_look_is_augmented_independently(exact, images):
    config = with_optim(exact, augment=("translation",), bcr_real=1.0, bcr_fake=1.0)
    _, recorder = recorded_step(Trainer(config, images))
    reals, (fakes, later) = first_reals(config, images), recorder.drawn
    looks = [shifts(*pair) for pair in zip(recorder.seen, (reals, fakes, reals, fakes, later), strict=True)]
    assert all(len(set(look)) > 1 for look in looks)  # within a batch
    assert len(set(map(tuple, looks))) == 5  # and between them


def test_images_are_augmented_with_the_configured_probability(exact, images):
    config = with_optim(exact, augment=("color",), augment_p=0.25, bcr_real=1.0, bcr_fake=1.0, batch_size=60)
    _, recorder = recorded_step(Trainer(config, images))
    reals, (fakes, later) = first_reals(config, images), recorder.drawn
    for seen, plain in zip(recorder.seen, (reals, fakes, reals, fakes, later), strict=True):
        changed = (seen != plain).flatten(1).any(1).sum().item()
        assert 3 <= changed <= 27  # of 60, within some four standard deviations of 15


def test_without_augmented_adversaries_only_consistency_looks_at_augmented_images(exact, images):
    config = with_optim(exact, augment=("translation",), augment_adversarial=False, bcr_real=2.0, bcr_fake=1.0)
    trainer = Trainer(config, images)
    twin = copy.deepcopy(trainer.discriminator)
    metrics, recorder = recorded_step(trainer)
    reals, (fakes, later) = first_reals(config, images), recorder.drawn
    plain = recorder.seen[0], recorder.seen[1], recorder.seen[4]
    assert all(torch.equal(*pair) for pair in zip(plain, (reals, fakes, later), strict=True))
    assert set(shifts(recorder.seen[2], reals)) != {(0, 0)}
    assert set(shifts(recorder.seen[3], fakes)) != {(0, 0)}
    assert recorder.followed == [True, False, False, False, True]  # R1's reals, and the fakes that train G
    (slopes,) = torch.autograd.grad(twin(reals.requires_grad_()).sum(), reals)
    assert metrics["r1"] == pytest.approx(3 * (slopes**2).sum().item() / 4, rel=1e-4)
    real, fake, other_real, other_fake, _ = recorder.logits
    bcr = 2 * ((real - other_real) ** 2).mean() + ((fake - other_fake) ** 2).mean()
    assert metrics["bcr"] == pytest.approx(bcr.item(), rel=1e-5)


def test_r1_is_taken_when_due_and_only_then(exact, images):
    trainer, taken = Trainer(exact, images), []
    for _ in range(5):
        metrics, recorder = recorded_step(trainer)
        assert recorder.followed[0] == (metrics["r1"] > 0)
        taken.append(metrics["r1"] > 0)
    assert taken == [True, False, False, True, False]
    metrics, recorder = recorded_step(Trainer(with_optim(exact, r1=0.0), images))
    assert metrics["r1"] == 0
    assert not recorder.followed[0]


def test_mirroring_shows_half_of_the_images_left_to_right(tiny, images):
    mirroring = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, mirror=True))
    config = with_optim(mirroring, augment=(), r1=0.0, batch_size=50)
    trainer, order, flipped = Trainer(config, images), Sampler(10, 50, config.seed), 0
    by_batch, by_image = set(), set()
    for step in range(4):
        _, recorder = recorded_step(trainer)
        for index, image in zip(next(order).tolist(), recorder.seen[0], strict=True):
            original = to_float(images[index])
            mirrored = torch.equal(image, original.flip(-1))
            assert mirrored or torch.equal(image, original)
            flipped += mirrored
            by_batch.add((step, mirrored))
            by_image.add((index, mirrored))
    assert 72 <= flipped <= 128  # of 200, four standard deviations
    assert len(by_batch) == 2 * 4
    assert len(by_image) == 2 * 10
