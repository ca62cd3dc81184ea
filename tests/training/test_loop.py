import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from training.processes import in_float64, noise_images
from training.variants import DISCRIMINATORS, GENERATORS, assert_bit_equal, flat, resumed, trained, with_optim, with_run

from lada_kernels.training import checkpoint
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.loop import fit
from lada_kernels.training.progress import METRICS
from lada_kernels.training.trainer import Trainer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_is_exact(tiny, images, precision):
    tiny = with_run(tiny, precision=precision)
    whole, second = trained(tiny, images, 6), resumed(tiny, images, 3)
    for _ in range(3):
        second.step()
    assert second.iteration == 6
    assert_bit_equal(second.state_dict(), whole.state_dict())


def test_resuming_on_other_images_is_refused(tiny, images):
    state = Trainer(tiny, images).state_dict()
    with pytest.raises(TrainingError, match=r"data\.source: not the images .*'images': 10.*'images': 9"):
        Trainer(tiny, images[:9]).load_state_dict(state)
    with pytest.raises(TrainingError, match=r"data\.source: not the images"):
        Trainer(tiny, 255 - images).load_state_dict(state)
    moved = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source="elsewhere"))
    Trainer(moved, images).load_state_dict(state)


def test_every_network_learns_and_the_average_follows(tiny, images):
    trainer = Trainer(tiny, images)
    before = {k: v.clone() for k, v in flat(trainer.state_dict()).items() if isinstance(v, torch.Tensor)}
    trainer.step()
    after = flat(trainer.state_dict())
    for network in ("generator", "discriminator"):
        names = [k for k in before if k.startswith(f"/{network}/") and k.endswith("weight") and "q_attn" not in k]
        assert names
        assert not any(torch.equal(before[k], after[k]) for k in names)
    for name in (k for k in before if k.startswith("/ema/")):
        current = after[name.replace("/ema/", "/generator/")]
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * current)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step_reports_finite_metrics_and_r1_only_when_due(tiny, images, precision):
    trainer = Trainer(with_run(tiny, precision=precision), images)
    penalised, spared = trainer.step(), trainer.step()
    assert penalised.dtype == torch.float32
    assert torch.isfinite(torch.stack([penalised, spared])).all()
    assert penalised[METRICS.index("r1")] > 0
    assert spared[METRICS.index("r1")] == 0
    assert penalised.shape == (len(METRICS),)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in trainer.discriminator.parameters())


def test_discriminator_gets_no_gradient_from_the_generator_step(tiny, images):
    trainer, after_d = Trainer(tiny, images), {}
    step = trainer.d_opt.step

    def noting_step() -> None:
        after_d.update({n: p.grad.clone() for n, p in trainer.discriminator.named_parameters()})
        step()

    trainer.d_opt.step = noting_step
    trainer.step()
    for name, parameter in trainer.discriminator.named_parameters():
        assert torch.equal(parameter.grad, after_d[name]), name


def test_channels_last_computes_the_same(tiny, images):
    plain, permuted = Trainer(tiny, images), Trainer(with_run(tiny, channels_last=True), images)
    torch.manual_seed(5)
    expected = plain.step()
    torch.manual_seed(5)
    torch.testing.assert_close(permuted.step(), expected, rtol=1e-4, atol=1e-5)


def test_fit_writes_config_grids_and_checkpoints(tiny, images):
    folder = Path(tiny.run.out)
    assert fit(Trainer(tiny, images), folder)
    assert sorted(p.name for p in (folder / "grids").iterdir()) == ["0000000.png", "0000004.png"]
    assert (folder / "config.json").exists()
    assert checkpoint.read(folder / checkpoint.LAST)["iter"] == 4
    assert checkpoint.read(folder / checkpoint.PREVIOUS)["iter"] == 2


def test_fit_survives_a_disk_that_is_full_for_a_while(tiny, images, monkeypatch, capsys):
    write, calls = checkpoint.write, []

    def full_at_first(state, folder):
        calls.append(state["iter"])
        if len(calls) == 1:
            raise OSError("cannot write: No space left on device")
        return write(state, folder)

    monkeypatch.setattr(checkpoint, "write", full_at_first)
    assert fit(Trainer(tiny, images), Path(tiny.run.out))
    assert calls == [2, 4]
    assert checkpoint.read_latest(Path(tiny.run.out))["iter"] == 4
    assert "WARNING: cannot write: No space left on device" in capsys.readouterr().err


def test_a_broken_loss_stops_and_spares_the_checkpoint(tiny, images):
    trainer, folder = Trainer(tiny, images), Path(tiny.run.out)
    step = trainer.step
    trainer.step = lambda: step() * (1 if trainer.iteration <= 2 else float("nan"))
    with pytest.raises(TrainingError, match=r"step 4: a loss is no longer finite"):
        fit(trainer, folder)
    assert checkpoint.read_latest(folder)["iter"] == 2


def test_cuda_asked_for_and_absent_is_an_error(tiny, images):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(TrainingError, match=r"run.device: CUDA is not available"):
        Trainer(with_run(tiny, device="cuda"), images)


@pytest.mark.parametrize(("generator", "accumulate"), [("ladagan", 4), ("vitgan-conv", 2)])
def test_micro_batches_train_as_the_whole_batch(tiny, generator, accumulate):
    """Where nothing looks at a batch as a whole, or changes with every look."""
    networks = {"generator": GENERATORS[generator], "discriminator": DISCRIMINATORS["stylegan2"]}
    if generator != "ladagan":
        networks["generator"] = dataclasses.replace(networks["generator"], spectral_norm=False)  # but noise
    config = with_optim(
        dataclasses.replace(tiny, **networks, data=dataclasses.replace(tiny.data, mirror=True)),
        batch_size=8,
        g_lr=1e-2,
        d_lr=1e-2,
        r1=0.1,
        bcr_real=1.0,
        bcr_fake=0.5,
        augment_p=0.7,
    )
    images = noise_images(32)
    runs = []
    with in_float64():
        for count in (1, accumulate):
            trainer = Trainer(with_optim(config, accumulate=count), images)
            runs.append(({"metrics": torch.stack([trainer.step() for _ in range(3)])}, trainer.state_dict()))
    (true_metrics, whole), (metrics, parts) = runs
    torch.testing.assert_close(metrics, true_metrics, rtol=1e-9, atol=1e-10)
    assert torch.equal(parts["rng"]["cpu"], whole["rng"]["cpu"])
    for network in ("generator", "discriminator", "ema"):
        torch.testing.assert_close(parts[network], whole[network], rtol=1e-9, atol=1e-10)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(tiny, images):
    with pytest.raises(TrainingError, match=r"^optim.batch_size: expected a multiple of 3, .* = 1 x 3, got 4"):
        Trainer(with_optim(tiny, accumulate=3), images)


def test_every_parameter_gets_a_gradient(pairing, images):
    """Which DistributedDataParallel waits for."""
    trainer = Trainer(pairing, images)
    trainer.step()
    for model in (trainer.generator, trainer.discriminator):
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", ["ladagan", "vitgan"])
def test_compiled_networks_train_as_the_plain_ones(tiny, images, monkeypatch, family):
    """With autograd's graphs traced, as for every backend, and run without a compiler; R1's pass is left alone."""
    compile, compiled = nn.Module.compile, []

    def traced(model, **options):
        compiled.append((type(model).__name__, options))
        compile(model, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", traced)
    generator = GENERATORS[{"ladagan": "ladagan", "vitgan": "vitgan-inr"}[family]]
    networks = {"generator": generator, "discriminator": DISCRIMINATORS[family]}
    config = with_optim(dataclasses.replace(tiny, **networks), bcr_real=1.0, bcr_fake=1.0)
    runs = []
    with in_float64():
        for choice in (False, True):
            trainer = Trainer(with_run(config, compile=choice), images)
            runs.append((torch.stack([trainer.step() for _ in range(4)]), trainer.state_dict()))
    assert compiled == [("Generator", {"dynamic": False}), ("Discriminator", {"dynamic": False})]
    (true_metrics, true), (metrics, found) = runs
    torch.testing.assert_close(metrics, true_metrics, rtol=1e-9, atol=1e-10)
    for network in ("generator", "discriminator", "ema"):
        torch.testing.assert_close(found[network], true[network], rtol=1e-8, atol=1e-9)
