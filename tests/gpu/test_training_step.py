"""The training step on a GPU: it waits for nothing, and what is recorded once computes what plain steps do."""

import pytest
import torch
from training.variants import DISCRIMINATORS, EVERYTHING, GENERATORS, with_run

from lada_kernels.training.config import Config, DataConfig, OptimConfig, RunConfig
from lada_kernels.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: training/test_recording.py records on the CPU"),
]
NETWORKS = [("ladagan", "ladagan"), ("vitgan-conv", "vitgan"), ("vitgan-inr", "stylegan2")]


@pytest.fixture(params=NETWORKS, ids="-".join)
def config(request):
    """`EVERYTHING` at small rates, as rounding differs."""
    generator, discriminator = request.param
    return Config(
        img_size=32,
        generator=GENERATORS[generator],
        discriminator=DISCRIMINATORS[discriminator],
        optim=OptimConfig(batch_size=8, g_lr=2**-14, d_lr=2**-14, **EVERYTHING),
        data=DataConfig(source="digits", mirror=True),
        run=RunConfig(device="cuda"),
    )


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_waits_for_nothing(config, images, precision):
    trainer = Trainer(with_run(config, precision=precision), images)
    for _ in range(2):  # with R1 and without: libraries start
        trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("precision", "channels_last", "tolerance"),
    [("float32", False, 1e-3), ("float32", True, 1e-3), ("bfloat16", False, 5e-2), ("bfloat16", True, 5e-2)],
)
def test_fifty_recorded_steps_are_the_plain_ones(config, images, precision, channels_last, tolerance):
    """Up to what fifty steps make of rounding: weights in units of how far they have come."""
    config = with_run(config, precision=precision, channels_last=channels_last)
    plain, recorded = (Trainer(with_run(config, cuda_graphs=choice), images) for choice in (False, True))
    start = {name: value.clone() for name, value in plain.ema.state_dict().items() if value.is_floating_point()}
    metrics = []
    for trainer in (plain, recorded):
        torch.manual_seed(1)
        metrics.append(torch.stack([trainer.step() for _ in range(50)]).mean(0))
    torch.testing.assert_close(metrics[1], metrics[0], rtol=10 * tolerance, atol=tolerance)
    states = [trainer.ema.state_dict() for trainer in (plain, recorded)]
    apart = torch.stack([(states[1][name] - states[0][name]).norm() for name in start]).norm()
    come = torch.stack([(states[0][name] - start[name]).norm() for name in start]).norm()
    assert apart < 10 * tolerance * come
    assert torch.equal(recorded.state_dict()["rng"]["cuda"], plain.state_dict()["rng"]["cuda"])


def test_a_recorded_run_goes_on_from_its_checkpoint(config, images):
    config = with_run(config, cuda_graphs=True)
    whole, first, second = (Trainer(config, images) for _ in range(3))
    torch.manual_seed(1)
    for _ in range(20):
        whole.step()
    torch.manual_seed(1)
    for _ in range(10):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        second.step()
    assert second.iteration == 20
    state, true = second.ema.state_dict(), whole.ema.state_dict()
    for name in true:
        torch.testing.assert_close(state[name], true[name], rtol=1e-2, atol=1e-3)
