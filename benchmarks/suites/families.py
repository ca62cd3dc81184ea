"""The families side by side: images and whole training steps of each preset at one batch size, and what its models consist of.

Nobody is asked for a backend: each op runs where it is chosen to, as the families' ops have no other backend in common than the
reference. That is the truth's, in float64.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain, repeat

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks import tasks
from benchmarks.cases import Plan
from benchmarks.counting import multiply_adds
from benchmarks.harness import Contestant, multiplying
from benchmarks.record import Row
from benchmarks.steps import first_step, judged, random_pixels, true_step
from benchmarks.suites.attention import FACTOR
from benchmarks.suites.models import TOLERANCES
from benchmarks.trial import CHOSEN, Case, Trial
from lada_kernels import use_backend
from lada_kernels.training.config import Config
from lada_kernels.training.trainer import Trainer, build_generator

Configs = dict[str, Config]  # by family
# At first D's logits hardly change under another augmentation: bCR's gradients follow what rounding leaves of the difference.
TRAINING_TOLERANCE = 2e-2


def cases(plan: Plan) -> Iterator[Case]:
    for configs in plan.families:
        config = next(iter(configs.values()))
        for task, run in (("images", time_images), ("training step", time_training)):
            about = {"pixels": config.img_size, "batch": config.optim.batch_size, "task": task}
            yield Case("families", about, tuple(configs), ("matmul",), partial(run, plan, configs, about))


def open_trial(plan: Plan, about: dict[str, object], tolerance: float) -> Trial:
    """With a matrix product in it, by which `benchmarks.compare` can tell a slower machine."""
    trial = Trial(plan, "families", about, tolerance, tolerance)
    trial.enter("matmul", lambda: multiplying(FACTOR[plan.device], torch.float32, plan.device))
    return trial


def race(trial: Trial, batch: int, repeats: int) -> Row:
    row = trial.race(repeats, warmup=0)  # the first call that is judged has warmed up
    for name in trial.ours if row.times else ():
        trial.note("images/s", name, batch / row.times[name].median)
    return row


def time_images(plan: Plan, configs: Configs, about: dict[str, object], repeats: int = 11) -> Row:
    """What G draws in evaluation mode, without gradients."""
    trial = open_trial(plan, about, TOLERANCES["float32"])

    def enter(name: str, config: Config) -> None:
        truth = []

        def make() -> Contestant:
            torch.manual_seed(0)
            generator = build_generator(config).eval().to(plan.device)
            latents = torch.randn(config.optim.batch_size, config.generator.noise_dim, device=plan.device)
            given = (tasks.output, generator, latents, latents)
            with use_backend("reference"):
                truth.extend(tasks.truth(*given))
            return tasks.calling(*given)

        trial.enter(name, make, truth, CHOSEN)

    with exactly():
        for name, config in configs.items():
            enter(name, config)
    row = race(trial, about["batch"], repeats)
    if row.times:
        trial.peaks()
    return row


def time_training(plan: Plan, configs: Configs, about: dict[str, object], repeats: int = 11) -> Row:
    """The training script's step, all of it; losses and gradients of the first are held to those of its equations."""
    trial, trainers = open_trial(plan, about, TRAINING_TOLERANCE), {}

    def enter(name: str, config: Config) -> None:
        truth = []

        def make() -> Contestant:
            trainers[name] = trainer = Trainer(config, random_pixels(config))
            optim, true = true_step(trainer)
            truth.extend(judged(true, true))
            # The call that is judged, and all others: steps take long.
            steps = chain([lambda: judged(first_step(trainer, optim), true)], repeat(trainer.step))
            return lambda: next(steps)()

        trial.enter(name, make, truth, CHOSEN)

    with exactly():
        for name, config in configs.items():
            enter(name, config)
    row = race(trial, about["batch"], repeats)
    if row.times:
        for name in trial.ours:
            note_sizes(trial, name, trainers[name])
            for model in (trainers[name].generator, trainers[name].discriminator):
                model.zero_grad()  # a step's gradients are its own
        trial.peaks()
    return row


def exactly() -> AbstractContextManager:
    """Convolutions are not rounded to TF32: it is not them that are judged."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def note_sizes(trial: Trial, name: str, trainer: Trainer) -> None:
    """Parameters of both models, and the multiply-adds of the forward of one image alone."""
    config, device = trainer.config, trainer.device
    latent = torch.randn(1, config.generator.noise_dim, device=device)
    image = torch.randn(1, 3, config.img_size, config.img_size, device=device)
    for part, model, given in (("G", trainer.generator, latent), ("D", trainer.discriminator, image)):
        trial.note(f"{part} parameters", name, sum(p.numel() for p in model.parameters()))
        trial.note(f"{part} multiply-adds", name, round(forward_of_one(model, given)))


@torch.no_grad()
def forward_of_one(model: nn.Module, given: Tensor) -> float:
    """Multiply-adds, but for those that a batch shares: of the spectral norms of weights."""
    with parametrize.cached():
        model(given)
        return multiply_adds(lambda: model(given), within=True)[1]
