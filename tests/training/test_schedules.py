"""What changes over a run: learning rates that warm up, and the moving average of G."""

import dataclasses

import pytest
import torch
from training.variants import GENERATORS, with_optim

from lada_kernels.training.trainer import Trainer


def rates(trainer: Trainer) -> list[float]:
    return [group["lr"] for optimizer in (trainer.g_opt, trainer.d_opt) for group in optimizer.param_groups]


def test_learning_rates_rise_linearly(tiny, images):
    trainer = Trainer(with_optim(tiny, warmup=4, g_lr=1e-2, d_lr=4e-3), images)
    before = [p.detach().clone() for p in trainer.generator.parameters()]
    for step, rise in enumerate((0.25, 0.5, 0.75, 1, 1, 1)):
        trainer.step()
        assert rates(trainer) == pytest.approx([rise * 1e-2, rise * 4e-3], rel=1e-12)
        if step == 0:  # Adam's first step is as long as the rate
            moved = max((p - q).abs().max().item() for p, q in zip(trainer.generator.parameters(), before, strict=True))
            assert moved == pytest.approx(0.25 * 1e-2, rel=1e-3)


def test_without_warm_up_the_rates_are_there_at_once(tiny, images):
    trainer = Trainer(with_optim(tiny, g_lr=1e-2, d_lr=4e-3), images)
    trainer.step()
    assert rates(trainer) == [1e-2, 4e-3]


def test_a_resumed_run_warms_up_where_it_was(tiny, images):
    config = with_optim(tiny, warmup=4, g_lr=1e-2, d_lr=4e-3)
    first = Trainer(config, images)
    for _ in range(2):
        first.step()
    second = Trainer(config, images)
    second.load_state_dict(first.state_dict())
    for rise in (0.75, 1, 1):
        second.step()
        assert rates(second) == pytest.approx([rise * 1e-2, rise * 4e-3], rel=1e-12)


def floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", ["ladagan", "vitgan-conv"])
def test_the_average_copies_until_its_start(tiny, images, name):
    config = dataclasses.replace(with_optim(tiny, ema_start=8, ema_half_life=12, g_lr=1e-2), generator=GENERATORS[name])
    trainer = Trainer(config, images)
    for images_seen in (4, 8, 12, 16):
        before = floats(trainer.ema)
        trainer.step()
        after, current = floats(trainer.ema), floats(trainer.generator)
        for key, value in current.items():
            if images_seen <= 8:
                assert torch.equal(after[key], value), key
            else:
                expected = 0.5 ** (4 / 12) * before[key].double() + (1 - 0.5 ** (4 / 12)) * value.double()
                torch.testing.assert_close(after[key].double(), expected, rtol=1e-5, atol=1e-6)
        moving = [key for key in current if not torch.equal(before[key], current[key])]
        assert any(key in dict(trainer.generator.named_parameters()) for key in moving)
        assert any(key.endswith("weight.0.u") for key in moving) == (name == "vitgan-conv")


@pytest.mark.parametrize(("half_life", "steps"), [(12, 3), (4, 1), (2, 1), (1_000_000, 3)])
def test_the_average_forgets_by_half_in_a_half_life_of_images(tiny, images, half_life, steps):
    trainer = Trainer(with_optim(tiny, g_lr=0.0, ema_half_life=half_life), images)
    with torch.no_grad():
        for parameter in trainer.generator.parameters():
            parameter.add_(1)
    for _ in range(steps):
        trainer.step()
    left = 0.5 ** (4 * steps / half_life)
    for mean, parameter in zip(trainer.ema.parameters(), trainer.generator.parameters(), strict=True):
        torch.testing.assert_close(parameter - mean, torch.full_like(mean, left), rtol=0, atol=1e-5)


def test_without_a_half_life_the_decay_is_per_step(tiny, images):
    trainer = Trainer(with_optim(tiny, g_lr=0.0, ema_decay=0.7, ema_start=4), images)
    with torch.no_grad():
        trainer.generator.ch_conv.bias.add_(1)
    trainer.step()
    assert torch.equal(trainer.ema.ch_conv.bias, trainer.generator.ch_conv.bias)
    with torch.no_grad():
        trainer.generator.ch_conv.bias.add_(1)
    for _ in range(2):
        trainer.step()
    torch.testing.assert_close(trainer.generator.ch_conv.bias - trainer.ema.ch_conv.bias, torch.full((3,), 0.49))
