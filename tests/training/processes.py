"""Training as two processes: the cases, and what each process computes for the tests to judge."""

import copy
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from training.variants import DISCRIMINATORS, EVERYTHING, GENERATORS, with_optim, with_run

from lada_kernels.modules.batch_norm import BatchNorm2d, synchronize_batch_norm
from lada_kernels.training import checkpoint, trainer
from lada_kernels.training.config import Config, DataConfig, OptimConfig, RunConfig
from lada_kernels.training.distributed import ALONE, Processes
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.loop import fit
from lada_kernels.training.trainer import Trainer

WORLD = 2
STEPS, HALF = 5, 3

# Rates at which five steps are far from where they began, and an average that begins among them.
_CHANGES = {"g_lr": 1e-2, "d_lr": 1e-2, "warmup": 3, "lecam_decay": 0.5, "ema_half_life": 16, "ema_start": 8}
_OPTIM = OptimConfig(batch_size=8, **EVERYTHING | _CHANGES)
_CONFIG = Config(
    img_size=32,
    optim=_OPTIM,
    data=DataConfig(source="digits", mirror=True),
    run=RunConfig(steps=STEPS, log_every=1, grid_every=100, save_every=100, grid_images=1, device="cpu"),
)


def _pairing(generator: Any, discriminator: Any, **optim: Any) -> Config:
    return with_optim(dataclasses.replace(_CONFIG, generator=generator, discriminator=discriminator), **optim)


CASES = {
    # Batch norm in both networks; G's runs without gradients, too.
    "ladagan": dataclasses.replace(
        _pairing(
            dataclasses.replace(GENERATORS["ladagan"], decoder_dim=(4,)),
            dataclasses.replace(DISCRIMINATORS["ladagan"], enc_dim=(4, 4, 8)),
            batch_size=4,
        ),
        img_size=64,
    ),
    # Noise in G, spectral normalisation in both, and two micro-batches in each process.
    "vitgan": _pairing(GENERATORS["vitgan-conv"], DISCRIMINATORS["vitgan"], accumulate=2),
    # Groups of two in D, four in each process.
    "stylegan2": _pairing(GENERATORS["vitgan-inr"], DISCRIMINATORS["stylegan2"], r1_every=1, loss="hinge"),
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Trainers made inside compute in float64: Adam turns the rounding of gradients that cancel into steps of any size."""
    to_float = trainer.to_float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(trainer, "to_float", lambda pixels: to_float(pixels).double())
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def noise_images(size: int, count: int = 20) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def train(trainer: Trainer, steps: int) -> Tensor:
    """The metrics of so many steps, over all processes."""
    return torch.stack([trainer.processes.mean(trainer.step()) for _ in range(steps)])


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """The trainer's state, untouched by what it does later."""
    return {name: copy.deepcopy(value) for name, value in trainer.state_dict().items() if name not in ("config", "data")}


def run(rank: int, folder: str) -> None:
    """Process `rank` of WORLD: everything that needs both, saved for the tests to judge. At the end, 1 is killed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    both, here = Processes(rank, WORLD, rank), Path(folder)
    out: dict[str, Any] = {}
    with in_float64():
        for name, config in CASES.items():
            out[name] = _compared(config, both, here)
        out["resumed"] = _resumed(CASES["ladagan"], both, here)
        out["batch norm"] = _batch_norm(rank)
        out["without synchronisation"] = _unsynchronised(both)
    ladagan = with_run(CASES["ladagan"], out=str(here / "fit"))
    out["stopped"] = _stopped(with_run(ladagan, steps=10_000), both)
    out["errors"] = {name: _error(fail, ladagan, both) for name, fail in FAILURES.items()}
    torch.save(out, here / f"{rank}.pt")
    torch.save(_left_behind(with_run(ladagan, steps=10_000), both), here / "survivor.pt")


def _compared(config: Config, both: Processes, folder: Path) -> dict[str, Any]:
    """The same run by both processes, and, in the first one, by itself; where they were halfway lies in the folder."""
    images, out = noise_images(config.img_size), {}
    for label, processes in (("", both), ("true ", ALONE)):
        if not both.rank or processes is both:
            trainer = Trainer(config, images, processes)
            metrics = train(trainer, HALF)
            if both.leads:
                torch.save(trainer.state_dict(), folder / f"{config.discriminator.family} {processes.count}.pt")
            out[f"{label}metrics"] = torch.cat((metrics, train(trainer, STEPS - HALF)))
            out[f"{label}state"] = snapshot(trainer)
    return out


def _resumed(config: Config, both: Processes, folder: Path) -> dict[tuple[int, int], Any]:
    """The second half of a run by two processes or one, where two or one left it."""
    images, out = noise_images(config.img_size), {}
    for before, after in ((both, both), (ALONE, both), (both, ALONE)):
        if both.leads or after is both:
            torch.manual_seed(999 + both.rank)  # what happened before must not matter
            trainer = Trainer(config, images, after)
            trainer.load_state_dict(torch.load(folder / f"{config.discriminator.family} {before.count}.pt"))
            out[before.count, after.count] = {"metrics": train(trainer, STEPS - HALF), "state": snapshot(trainer)}
    return out


SHARES = (3, 5)  # of the items that a batch norm sees


def norm_inputs() -> tuple[Tensor, ...]:
    """Items, gradients of the result, cotangents of the items' gradients, and of those of weight and bias in each process."""
    generator = torch.Generator().manual_seed(5)
    whole = [torch.randn(sum(SHARES), 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    whole[0] = 2 * whole[0] + torch.linspace(-3, 3, sum(SHARES), dtype=torch.float64)[:, None, None, None]
    return *whole, torch.randn(WORLD, 2, 2, generator=generator, dtype=torch.float64)


def norm_orders(norm: nn.Module, x: Tensor, grad: Tensor, cotangents: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> dict:
    """Value, first derivatives, and derivatives of what the cotangents make of them; `weights` are what they are taken by."""
    out = norm(x)
    firsts = torch.autograd.grad(out, (x, *weights), grad, create_graph=True)
    seconds = torch.autograd.grad(firsts, (grad, x, weights[0]), cotangents)
    names = ("value", "x", "weight", "bias", "second of grad", "second of x", "second of weight")
    return dict(zip(names, (out.detach(), *(f.detach() for f in firsts), *seconds), strict=True))


def _batch_norm(rank: int) -> dict[str, Any]:
    items, grads, cotangents, of_weights = norm_inputs()
    norm = BatchNorm2d(2, momentum=0.3)
    synchronize_batch_norm(norm)
    nn.init.constant_(norm.weight, 1.5)
    x, grad, cotangent = (t.split(SHARES)[rank].clone().requires_grad_() for t in (items, grads, cotangents))
    out = norm_orders(norm, x, grad, (cotangent.detach(), *of_weights[rank]), (norm.weight, norm.bias))
    with torch.no_grad():
        out["value without gradients"] = norm(x)
    half = norm(x.detach().bfloat16())
    return out | {"dtype": half.dtype, "buffers": dict(norm.named_buffers())}


def _unsynchronised(both: Processes) -> dict[str, Tensor]:
    """Running statistics of D after a step in which each process kept to its own images."""
    config = with_optim(CASES["ladagan"], sync_bn=False)
    trainer = Trainer(config, noise_images(config.img_size), both)
    trainer.step()
    buffers = {name: value for name, value in trainer.discriminator.named_buffers() if "running" in name}
    return buffers | {"weight": trainer.discriminator.inp_conv[0].weight.detach()}


def _hooked(trainer: Trainer, step: int, action: Callable[[], None]) -> Trainer:
    """A trainer that does something before a step."""
    take = trainer.step

    def taking() -> Tensor:
        if trainer.iteration == step:
            action()
        return take()

    trainer.step = taking
    return trainer


def _stopped(config: Config, both: Processes) -> dict[str, Any]:
    """The second process is asked to stop, and both do."""
    trainer = Trainer(config, noise_images(config.img_size), both)
    if both.rank == 1:
        _hooked(trainer, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return {"finished": fit(trainer, Path(config.run.out)), "iteration": trainer.iteration}


def _broken_loss(config: Config, both: Processes) -> None:
    trainer = Trainer(config, noise_images(config.img_size), both)
    step = trainer.step
    trainer.step = lambda: step() * (float("nan") if both.rank == 1 and trainer.iteration == 2 else 1)
    fit(trainer, Path(config.run.out))


def _full_disk(config: Config, both: Processes) -> None:
    def full(state: dict, folder: Path) -> None:
        raise OSError("cannot write: No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        fit(Trainer(with_run(config, steps=1), noise_images(config.img_size), both), Path(config.run.out))


def _other_images(config: Config, both: Processes) -> None:
    Trainer(config, noise_images(config.img_size, 20 + both.rank), both)


def _other_seed(config: Config, both: Processes) -> None:
    Trainer(dataclasses.replace(config, seed=both.rank), noise_images(config.img_size), both)


def _odd_batch(config: Config, both: Processes) -> None:
    Trainer(with_optim(config, batch_size=10, accumulate=2), noise_images(config.img_size), both)


FAILURES = {
    "broken loss": _broken_loss,
    "full disk": _full_disk,
    "other images": _other_images,
    "other seed": _other_seed,
    "odd batch": _odd_batch,
}


def _error(fail: Callable[[Config, Processes], None], config: Config, both: Processes) -> tuple[str, str]:
    try:
        fail(config, both)
    except (TrainingError, OSError) as error:
        return type(error).__name__, str(error)
    return "", ""


def _left_behind(config: Config, both: Processes) -> dict[str, Any]:
    """The second process is killed within a run; how long the first one goes on, and what ends it."""
    trainer = Trainer(config, noise_images(config.img_size), both)
    if both.rank == 1:
        _hooked(trainer, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    start: list[float] = []
    _hooked(trainer, 2, lambda: start.append(time.monotonic()))
    try:
        fit(trainer, Path(config.run.out))
    except RuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - start[0], "iteration": trainer.iteration}
    return {"error": "", "iteration": trainer.iteration}
