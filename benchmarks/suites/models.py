"""LadaGAN's G and D: images, a step of each, R1 included, and a whole training step, beside the official composition."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks import peers
from benchmarks.alone import train_alone
from benchmarks.cases import Plan
from benchmarks.harness import Contestant
from benchmarks.record import Row
from benchmarks.steps import UNTIL_REPLAY, in_units, random_pixels
from benchmarks.trial import Case, Trial
from lada_kernels.training.config import Config, RunConfig
from lada_kernels.training.losses import LOSSES, r1_penalty
from lada_kernels.training.trainer import Trainer, build_discriminator, build_generator

# Of outputs, losses and gradients. Rounding decides on which side of its kink an activation lies that is almost zero, which
# moves gradients by some thousandths, those of the official composition as well; ops and layers are held to much less.
TOLERANCES = {"float32": 1e-2, "bfloat16": 0.1}
PEER_TOLERANCE = 0.5
R1 = 1e-2
LOSS = LOSSES["nonsaturating"]
WHOLE = 64  # pixels of the model whose whole training step is timed
MODES: dict[str, dict[str, bool]] = {
    "": {},
    " channels_last": {"channels_last": True},
    " recorded": {"cuda_graphs": True},
    " recorded channels_last": {"cuda_graphs": True, "channels_last": True},
}


@dataclasses.dataclass
class Models:
    """Both models and what they are shown."""

    generator: nn.Module
    discriminator: nn.Module
    latents: Tensor  # [B, noise_dim]
    reals: Tensor  # [B, 3, S, S]

    def twin(self, plain: bool = False, dtype: torch.dtype = torch.float32) -> "Models":
        """The same in plain torch or another precision; parameters are not shared."""
        models = [copy.deepcopy(model).to(dtype) for model in (self.generator, self.discriminator)]
        return Models(*(map(peers.make_plain, models) if plain else models), self.latents.to(dtype), self.reals.to(dtype))


def images(models: Models) -> tuple[Tensor]:
    """What G draws, without gradients."""
    with torch.no_grad():
        return (models.generator(models.latents),)


def g_step(models: Models) -> list[Tensor]:
    """G's loss and gradients."""
    loss = LOSS.generator(models.discriminator(models.generator(models.latents)))
    return [loss, *torch.autograd.grad(loss, list(models.generator.parameters()))]


def d_step(models: Models) -> list[Tensor]:
    """D's loss, the penalty included, and gradients; the penalty's pass is not in 16 bits."""
    reals = models.reals.detach().requires_grad_()
    with torch.autocast(reals.device.type, enabled=False):
        real_logits = models.discriminator(reals)
        penalty = r1_penalty(real_logits, reals)
    with torch.no_grad():
        fakes = models.generator(models.latents)
    loss = LOSS.discriminator(real_logits, models.discriminator(fakes)) + R1 * penalty
    return [loss, *torch.autograd.grad(loss, list(models.discriminator.parameters()))]


TASKS: dict[str, Callable[[Models], Sequence[Tensor]]] = {"images": images, "G step": g_step, "D step with R1": d_step}


def cases(plan: Plan) -> Iterator[Case]:
    variants = tuple(variant(plan, who, precision) for who in plan.backends for precision in TOLERANCES)
    for config in plan.models:
        model = {"model": "LadaGAN", "pixels": config.img_size, "batch": config.optim.batch_size}
        for task in TASKS:
            about = model | {"task": task}
            others = ("official", "official bfloat16", "compiled")
            yield Case("models", about, variants, others, partial(time_task, plan, config, task, about))
        if config.img_size == WHOLE or len(plan.models) == 1:
            about = model | {"task": "training step"}
            ours = tuple(f"{variant(plan, who, precision)}{mode}" for who, mode, precision in training_variants(plan))
            yield Case("models", about, ours, ("official", "official, G compiled"), partial(time_training, plan, config, about))


def training_variants(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Backend, mode and precision of our training steps; only the first backend's are recorded, which takes memory."""
    for place, who in enumerate(plan.backends):
        for mode, changes in MODES.items():
            if "cuda_graphs" not in changes or (plan.device == "cuda" and place == 0):
                for precision in TOLERANCES:
                    yield who, mode, precision


def variant(plan: Plan, who: str, precision: str) -> str:
    return precision if len(plan.backends) == 1 else f"{who} {precision}"


def make_models(config: Config, device: str) -> Models:
    generator, discriminator = build_generator(config), build_discriminator(config)
    size, batch = config.img_size, config.optim.batch_size
    reals = interpolate(torch.rand(batch, 3, 8, 8) * 2 - 1, size=size, mode="bilinear")
    latents = torch.randn(batch, config.generator.noise_dim)
    return Models(generator.to(device), discriminator.to(device), latents.to(device), reals.to(device))


def time_task(plan: Plan, config: Config, task: str, about: dict[str, object], repeats: int = 21) -> Row:
    torch.manual_seed(0)
    run, device = TASKS[task], plan.device
    models = make_models(config, device)
    official = models.twin(plain=True)
    true = run(models.twin(plain=True, dtype=torch.float64))
    of = partial(judged, true=true)
    truth = of(true)

    def calling(models: Models, precision: str = "float32") -> Contestant:
        def call() -> Sequence[Tensor]:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                return run(models)

        return call

    trial = Trial(plan, "models", about, TOLERANCES["float32"], PEER_TOLERANCE)
    trial.enter("official", lambda: calling(official), truth, of=of)
    trial.enter("official bfloat16", lambda: calling(official, "bfloat16"), truth, of=of)
    # What 16 bits make of a whole pass depends on the pass: ours may not make much more of it than the official one. From
    # seed to seed the quotient of two right results' errors is anything from 0.4 to 1.8.
    tolerances = {"float32": TOLERANCES["float32"], "bfloat16": 3 * (trial.row.errors.get("official bfloat16") or 0)}
    for who in plan.backends:
        for precision, tolerance in tolerances.items():
            make = partial(calling, models, precision)
            trial.enter(variant(plan, who, precision), make, truth, who, tolerance=tolerance, of=of)
    if run is d_step:
        trial.turn_away("compiled", "what torch.compile compiles cannot be differentiated twice from outside")
    elif config.img_size not in plan.compile_models:
        trial.turn_away("compiled", "left out for time")
    else:
        compiled = official.twin()
        compiled.generator.compile(dynamic=False)
        compiled.discriminator.compile(dynamic=False)
        trial.enter("compiled", lambda: calling(compiled), truth, of=of)
    row = trial.race(repeats, warmup=0)  # the first call that is judged has warmed up
    trial.speedups()
    for name in row.times:
        trial.note("images/s", name, config.optim.batch_size / row.times[name].median)
    if row.times:
        trial.peaks()
    return row


def judged(results: Sequence[Tensor], true: Sequence[Tensor]) -> list[Tensor]:
    """The loss or the images, and all gradients `in_units`."""
    first, *rest = results
    return [first, *([in_units(rest, true[1:])] if rest else [])]


def step_of(contestant: Trainer | peers.OfficialStep) -> list[Tensor]:
    """D's loss and all its gradients from a whole step under one seed: equal latents and augmentation."""
    torch.manual_seed(1)
    result = contestant.step()
    if isinstance(contestant, Trainer):
        d_loss, _, r1, *_ = result
        result = d_loss + contestant.config.optim.r1 * r1
    # The G step leaves D's gradients alone.
    return [result, *(p.grad for p in contestant.discriminator.parameters())]


def time_training(plan: Plan, config: Config, about: dict[str, object], repeats: int = 11) -> Row:
    """The training script's step, augmentation, optimisers and average included, held to the official one in float32."""
    pixels, batch = random_pixels(config), config.optim.batch_size
    trial = Trial(plan, "models", about, TOLERANCES["float32"], TOLERANCES["float32"])
    ran: dict[str, tuple[Config, str]] = {}

    def make(name: str, run: RunConfig, backend: str, first: list[Tensor]) -> Contestant:
        ours = Trainer(dataclasses.replace(config, run=run), pixels)
        first.extend(step_of(ours))
        for _ in range(UNTIL_REPLAY if run.cuda_graphs else 0):
            ours.step()
        ran[name] = ours.config, backend
        return ours.step

    official = peers.OfficialStep(Trainer(config, pixels))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions are not what is judged
        true = step_of(official)
        for who, mode, precision in training_variants(plan):
            run, first = dataclasses.replace(config.run, precision=precision, **MODES[mode]), []
            name = variant(plan, who, precision) + mode
            build = partial(make, name, run, plan.backends[who], first)
            of = partial(judged, true=true)
            trial.enter(name, build, of(true), who, sample=partial(list, first), tolerance=TOLERANCES[precision], of=of)
    trial.enter("official", lambda: official.step)
    if plan.device == "cuda":
        compiled = peers.OfficialStep(Trainer(config, pixels))
        compiled.generator.compile(dynamic=False)
        trial.enter("official, G compiled", lambda: compiled.step)
    else:
        trial.turn_away("official, G compiled", "left out for time")
    row = trial.race(repeats, warmup=0)
    trial.speedups()
    for name in row.times:
        trial.note("images/s", name, batch / row.times[name].median)
    # A process each takes seconds: on a GPU only of one batch size, in 16 bits.
    briefly = plan.device == "cuda"
    first_size = next(other for other in plan.models if other.img_size == config.img_size)
    if row.times and not plan.rehearsal and not (briefly and config != first_size):
        first_backend = next(iter(plan.backends.values()))
        for name, (ours, backend) in ran.items():
            if backend != first_backend or ours.run.channels_last or (briefly and ours.run.precision == "float32"):
                continue
            for figure, value in train_alone(ours, backend=backend).items():
                trial.note(figure, name, value)
        trial.note("resident bytes", "official", train_alone(config, official=True)["resident bytes"])
    return row
