"""A run: both models, their optimisers, G's average, and the step that trains them."""

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lada_kernels.modules.batch_norm import synchronize_batch_norm
from lada_kernels.training.augment import augment
from lada_kernels.training.config import Config, check_same_run, from_dict, to_dict
from lada_kernels.training.data import Sampler, to_float
from lada_kernels.training.distributed import ALONE, Part, Processes
from lada_kernels.training.ema import make_ema, update_ema
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.loader import Loader
from lada_kernels.training.losses import LOSSES, consistency, gradient_penalty, lecam_penalty, r1_penalty
from lada_kernels.training.recording import RECORDERS, Recorded


def build_generator(config: Config) -> nn.Module:
    """G as configured, freshly initialised; ``TrainingError`` when an argument does not fit."""
    return _build(config, "generator")


def build_discriminator(config: Config) -> nn.Module:
    """D as configured, freshly initialised; ``TrainingError`` when an argument does not fit."""
    return _build(config, "discriminator")


def _build(config: Config, name: str) -> nn.Module:
    try:
        return getattr(config, name).build(config.img_size)
    except ValueError as error:
        raise TrainingError(f"{name}: {error}") from error


def pick_device(name: str) -> torch.device:
    """The device for ``run.device``; ``TrainingError`` when CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("run.device: CUDA is not available to torch on this machine")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _grad_norm(model: nn.Module) -> Tensor:
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


class Trainer:
    """Models, optimisers, average, loader and step count of one run.

    Args:
        config: seeds torch's generators, so that equal configurations train equal models.
        images: [n, 3, S, S] uint8, on the CPU.
        processes: those that train together, each with a trainer of its own; default this one alone.

    Raises:
        TrainingError: the configuration does not fit, or processes differ in it or in the images.
    """

    def __init__(self, config: Config, images: Tensor, processes: Processes = ALONE) -> None:
        parts = processes.count * config.optim.accumulate
        if config.optim.batch_size % parts:
            raise TrainingError(
                f"optim.batch_size: expected a multiple of {parts}, processes x optim.accumulate = "
                f"{processes.count} x {config.optim.accumulate}, got {config.optim.batch_size}"
            )
        for name in ("compile", "cuda_graphs"):  # neither of which sees how parts draw
            if parts > 1 and getattr(config.run, name):
                count = f"{processes.count} and {config.optim.accumulate}"
                raise TrainingError(f"run.{name}: expected one process and optim.accumulate 1, got {count}")
        torch.manual_seed(config.seed)
        self.config, self.images, self.processes = config, images, processes
        self.device = pick_device(config.run.device)
        self._run = self._choose_run()
        layout = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.generator = build_generator(config).to(self.device, memory_format=layout)
        self.discriminator = build_discriminator(config).to(self.device, memory_format=layout)
        self.ema = make_ema(self.generator)
        self.g_opt = self._make_optimizer(self.generator, config.optim.g_lr)
        self.d_opt = self._make_optimizer(self.discriminator, config.optim.d_lr)
        self.parts = [Part(micro * processes.count + processes.rank, parts) for micro in range(config.optim.accumulate)]
        sampler = Sampler(len(images), config.optim.batch_size, config.seed)
        self.loader = Loader(images, sampler, self.parts, self.device, layout)
        self.fingerprint = {"images": len(images), "crc32": zlib.crc32(images.contiguous().numpy())}
        self.iteration = 0
        self.logit_means = torch.zeros(2, device=self.device)  # of reals and of fakes, for LeCam
        self.best: dict[str, Any] = {}  # evaluation so far; see `selection`
        processes.check_equal("configuration", to_dict(config))
        processes.check_equal("data.source", self.fingerprint)
        if processes.count > 1 and config.optim.sync_bn:
            for model in (self.generator, self.discriminator):
                synchronize_batch_norm(model)
        if config.run.compile:
            for model in (self.generator, self.discriminator):
                model.compile(dynamic=False)
        self._replicas = {model: processes.replicate(model) for model in (self.generator, self.discriminator)}

    def _choose_run(self) -> Callable[[bool, Tensor], Tensor]:
        """How `_train` is run."""
        if not self.config.run.cuda_graphs:
            return self._train
        if self.device.type not in RECORDERS:
            raise TrainingError(f"run.cuda_graphs: expected a CUDA device to record them on, got {self.device.type}")
        return Recorded(self._train, RECORDERS[self.device.type]())

    def _make_optimizer(self, model: nn.Module, rate: float) -> torch.optim.Adam:
        recorded = isinstance(self._run, Recorded)
        lr = torch.tensor(rate, device=self.device) if recorded else rate  # a record reads it anew from there
        return torch.optim.Adam(model.parameters(), lr, self.config.optim.betas, fused=True, capturable=recorded)

    def step(self) -> Tensor:
        """Train D, then G, on one batch of reals; returns its `progress.METRICS`, [10], on the device.

        Nothing in it waits for the device. Of several processes each returns what its own part of the batch gave.
        """
        optim = self.config.optim
        self._set_learning_rates()
        metrics = self._run(optim.r1 > 0 and self.iteration % optim.r1_every == 0, next(self.loader))
        self.iteration += 1
        update_ema(self.ema, self.generator, self._ema_decay())
        return metrics

    def _train(self, penalise: bool, pixels: Tensor) -> Tensor:
        """A step but for what changes from one to the next: with R1 or without, on these reals, [b, 3, S, S] uint8."""
        self.d_opt.zero_grad()
        d_loss, *penalties, real_logit, fake_logit = self._differentiate(
            self.discriminator, partial(self._discriminator_loss, penalise), pixels.tensor_split(len(self.parts))
        )
        d_norm = _grad_norm(self.discriminator)
        self.d_opt.step()
        if self.config.optim.lecam > 0:
            now = self.processes.mean(torch.stack([real_logit, fake_logit]))
            self.logit_means.lerp_(now, 1 - self.config.optim.lecam_decay)

        self.discriminator.requires_grad_(False)
        self.g_opt.zero_grad()
        (g_loss,) = self._differentiate(self.generator, self._generator_loss)
        g_norm = _grad_norm(self.generator)
        self.g_opt.step()
        self.discriminator.requires_grad_(True)
        return torch.stack([d_loss, g_loss, *penalties, real_logit, fake_logit, d_norm, g_norm])

    def _differentiate(
        self, model: nn.Module, loss: Callable[..., tuple[Tensor, list[Tensor]]], *of_parts: tuple[Tensor, ...]
    ) -> Tensor:
        """Give ``model`` the gradients of the mean of a loss over micro-batches and processes.

        ``loss(part, *values)``, with each part's own of the values, returns it with what it reports, scalars, whose mean over
        the micro-batches is returned.
        """
        replica, count = self._replicas[model], len(self.parts)
        weights = list(model.parameters())  # and nothing else: not the reals
        start = self._rng_state() if count > 1 else {}
        reports = []
        for micro, part in enumerate(self.parts):
            if micro:  # every part draws for the whole batch
                self._set_rng_state(start)
            with nullcontext() if micro == count - 1 else replica.no_sync():
                value, report = replica(loss, part, *(values[micro] for values in of_parts))
                (value / count).backward(inputs=weights)
            reports.append(torch.stack(report).detach())
        return torch.stack(reports).mean(0)

    def _discriminator_loss(self, penalise: bool, part: Part, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        optim, loss = self.config.optim, LOSSES[self.config.optim.loss]
        with part.draws(), torch.no_grad():
            reals = self._reals(pixels)  # [B, 3, S, S]
            seen_reals = self._seen(reals)
            fakes = self._fakes(part)
            seen_fakes = self._seen(fakes)
            looks = [
                (weight, self._augment(images) if weight > 0 else None)
                for weight, images in ((optim.bcr_real, reals), (optim.bcr_fake, fakes))
            ]
            if optim.gp > 0:
                share = torch.rand(len(reals), 1, 1, 1, device=self.device)  # [B, 1, 1, 1]
                between = torch.lerp(seen_reals, seen_fakes, share)
        real_logits = self._judge(seen_reals.requires_grad_(penalise), twice=penalise)
        fake_logits = self._judge(seen_fakes)
        d_loss = loss.discriminator(real_logits, fake_logits)
        r1 = optim.r1_every * r1_penalty(real_logits, seen_reals) if penalise else d_loss.new_zeros(())
        bcr = gp = lecam = d_loss.new_zeros(())
        for (weight, images), logits in zip(looks, (real_logits, fake_logits), strict=True):
            if images is not None:
                bcr = bcr + weight * consistency(logits, self._judge(images))
        if optim.gp > 0:
            gp = gradient_penalty(self._judge(between.requires_grad_(), twice=True), between)
        if optim.lecam > 0:
            lecam = lecam_penalty(real_logits, fake_logits, *self.logit_means)
        whole = d_loss + optim.r1 * r1 + bcr + optim.gp * gp + optim.lecam * lecam
        return whole, [d_loss, r1, bcr, gp, lecam, real_logits.mean(), fake_logits.mean()]

    def _generator_loss(self, part: Part) -> tuple[Tensor, list[Tensor]]:
        with part.draws():
            images = self._seen(self._fakes(part))  # [B, 3, S, S]
        g_loss = LOSSES[self.config.optim.loss].generator(self._judge(images))
        return g_loss, [g_loss]

    def _set_learning_rates(self) -> None:
        optim = self.config.optim
        rise = min(1.0, (self.iteration + 1) / max(1, optim.warmup))
        for optimizer, rate in ((self.g_opt, optim.g_lr), (self.d_opt, optim.d_lr)):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rise * rate)
                else:
                    group["lr"] = rise * rate

    def _ema_decay(self) -> float:
        optim = self.config.optim
        if self.iteration * optim.batch_size <= optim.ema_start:
            return 0.0
        return 0.5 ** (optim.batch_size / optim.ema_half_life) if optim.ema_half_life else optim.ema_decay

    def _reals(self, pixels: Tensor) -> Tensor:
        if self.config.data.mirror:
            mirrored = torch.rand(len(pixels), 1, 1, 1, device=self.device) < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return to_float(pixels)

    def _fakes(self, part: Part) -> Tensor:
        count = self.config.optim.batch_size // part.count
        latents = torch.randn(count, self.config.generator.noise_dim, device=self.device)
        with self._autocast():
            return self.generator(latents).float()  # [B, 3, S, S]

    def _augment(self, images: Tensor) -> Tensor:
        return augment(images, self.config.optim.augment, self.config.optim.augment_p)

    def _seen(self, images: Tensor) -> Tensor:
        return self._augment(images) if self.config.optim.augment_adversarial else images

    def _judge(self, images: Tensor, twice: bool = False) -> Tensor:
        # A compiled model cannot be differentiated twice from outside, and 16 bits do not survive it.
        eager = torch.compiler.set_stance("force_eager") if twice and self.config.run.compile else nullcontext()
        with eager, self._autocast(not twice):
            return self.discriminator(images).float()  # [B, ...]

    def _autocast(self, enabled: bool = True) -> AbstractContextManager:
        enabled = enabled and self.config.run.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _rng_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _set_rng_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything `load_state_dict` needs to go on as if nothing had happened; see `checkpoint`.

        Any number of processes may go on with it, whatever the number was.
        """
        return {
            "iter": self.iteration,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "g_opt": self.g_opt.state_dict(),
            "d_opt": self.d_opt.state_dict(),
            "rng": self._rng_state(),
            "sampler": self.loader.state_dict(),
            "data": self.fingerprint,
            "logit_means": self.logit_means,
            "best": self.best,
            "config": to_dict(self.config),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a run. ``TrainingError`` when the configuration or the data contradicts it."""
        check_same_run(self.config, from_dict(state["config"]))
        if state["data"] != self.fingerprint:
            raise TrainingError(
                f"data.source: not the images that the checkpoint was trained on: {state['data']} then, {self.fingerprint} now"
            )
        for name in ("generator", "discriminator", "ema"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("g_opt", "d_opt"):
            optimizer = getattr(self, name)
            lr, capturable = (optimizer.param_groups[0][key] for key in ("lr", "capturable"))
            optimizer.load_state_dict(state[name])
            (group,) = optimizer.param_groups
            # Whether steps are recorded is this process's choice, not the run's.
            group["lr"] = lr.fill_(group["lr"]) if isinstance(lr, Tensor) else float(group["lr"])
            group["capturable"] = capturable
        self.loader.load_state_dict(state["sampler"])
        self.logit_means.copy_(state["logit_means"])
        self.iteration, self.best = state["iter"], state["best"]
        self._set_rng_state(state["rng"])
