"""The loop around a trainer's steps: reports, grids, evaluations, checkpoints, and an orderly stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lada_kernels.training import checkpoint
from lada_kernels.training.config import save_config, to_dict
from lada_kernels.training.grid import save_grid
from lada_kernels.training.latents import latent_stream
from lada_kernels.training.progress import Progress
from lada_kernels.training.selection import Selection
from lada_kernels.training.trainer import Trainer


@torch.no_grad()
def sample(generator: nn.Module, latents: Tensor, batch_size: int = 64) -> Tensor:
    """Images [n, 3, S, S] on the CPU from latents [n, noise_dim], batch by batch, float32."""
    device = next(generator.parameters()).device
    return torch.cat([generator(z.to(device)).float().cpu() for z in latents.split(batch_size)])


def fixed_latents(count: int, noise_dim: int, seed: int) -> Tensor:
    """Standard normal latents [count, noise_dim] on the CPU, the same whatever torch's generator has done."""
    return next(latent_stream(noise_dim, count, seed))


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying mid-step; a second one acts as usual."""
    requests: list[int] = []

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        requests.append(number)
        restore()

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        restore()


def fit(trainer: Trainer, folder: Path) -> bool:
    """Train up to ``run.steps``, with reports, grids from fixed latents, evaluations and checkpoints in ``folder``.

    What cannot be written on the way costs a warning; the final checkpoint must succeed. Of several processes the first one
    evaluates and writes, and all end after the same step.

    Returns:
        False when Ctrl-C or SIGTERM, to any process, ended training early; the state is saved all the same.

    Raises:
        TrainingError: a loss is no longer finite; the checkpoints keep the last sound state. Or nothing can be evaluated as
            configured. Or another process could not write the final checkpoint.
        OSError: the final checkpoint could not be written.
    """
    config, run, processes = trainer.config, trainer.config.run, trainer.processes
    processes.once(lambda: save_config(config, folder / "config.json"))
    selection = Selection(trainer, folder) if run.evaluate_every else None
    latents = fixed_latents(run.grid_images, config.generator.noise_dim, config.seed)
    shown = {"wandb": run.wandb, "config": to_dict(config)}
    progress = Progress(folder, run.steps, trainer.iteration, config.optim.batch_size, processes, **shown)

    def save() -> None:
        checkpoint.write(trainer.state_dict(), folder)

    def draw() -> None:
        save_grid(sample(trainer.ema, latents), folder / "grids" / f"{trainer.iteration:07d}.png")

    def evaluate() -> None:
        figures, best = selection.evaluate()
        if processes.leads:
            progress.show_evaluation(figures)
        if best:
            progress.attempt(selection.write)

    def due(every: int) -> bool:
        return every > 0 and trainer.iteration % every == 0 and trainer.iteration < run.steps

    with stop_requests() as requests, progress:
        while trainer.iteration < run.steps and not processes.any(bool(requests)):
            if trainer.iteration == 0:
                progress.attempt(draw)
            progress.add(trainer.step())
            if due(run.log_every) or due(run.save_every) or due(run.evaluate_every):
                progress.report(trainer.loader.waited)  # raises before a broken state could replace a sound one
            if due(run.evaluate_every):
                evaluate()
            if due(run.grid_every):
                progress.attempt(draw)
            if due(run.save_every):  # at the end: a run that is killed takes up no step whose files are not all there
                progress.attempt(save)
        progress.report(trainer.loader.waited)
        done = trainer.iteration >= run.steps
        if done and run.evaluate_every:
            evaluate()
        processes.once(save)
        progress.attempt(draw)
    return done
