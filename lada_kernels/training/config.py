"""What defines a run: typed configuration, and its JSON form.

The fields' docstrings are the help texts of ``python -m lada_kernels.train --help``.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lada_kernels.training.augment import Operation
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.families import DiscriminatorConfig, GeneratorConfig, LadaGANDiscriminator, LadaGANGenerator
from lada_kernels.training.losses import LossName


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise TrainingError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    source: str = ""
    """the word "digits" (real handwritten digits, embedded); a folder of images, or a .zip of them, searched recursively; or
    CIFAR's binary version, cifar-10-binary.tar.gz, cifar-100-binary.tar.gz or the folder inside"""
    mirror: bool = False
    """show half of the images, drawn anew each time, left to right"""
    memory_gib: float = 16.0
    """pixels beyond this size go to a memory-mapped file in the run folder"""

    def __post_init__(self) -> None:
        _require(self.memory_gib >= 0, "data.memory_gib", self.memory_gib, "0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """Losses and optimisers."""

    loss: LossName = "nonsaturating"
    """adversarial loss, for D and for G"""
    batch_size: int = 128
    """images per step, for D and for G, of all processes and micro-batches together"""
    accumulate: int = 1
    """micro-batches that a step's gradients are averaged over, each run by itself, to save memory"""
    sync_bn: bool = True
    """batch normalisation over the images of all processes, not of each alone"""
    g_lr: float = 2e-4
    """G: Adam's learning rate"""
    d_lr: float = 2e-4
    """D: Adam's learning rate"""
    betas: tuple[float, float] = (0.5, 0.99)
    """Adam's betas, for both"""
    warmup: int = 0
    """steps over which both learning rates rise linearly to their values"""
    r1: float = 1e-4
    """R1 coefficient, without the usual 1/2: officially, LadaGAN has 1e-4 with the tf flavor, 1e-2 with torch"""
    r1_every: int = 1
    """R1 every so many steps, weighted by as much (lazy regularisation)"""
    augment: tuple[Operation, ...] = ("color", "translation")
    """DiffAugment operations, for real and fake"""
    augment_p: float = 1.0
    """probability of each of them, for each image"""
    augment_adversarial: bool = True
    """the adversarial losses and R1 see augmented images; without, only bCR's second look is at them"""
    bcr_real: float = 0.0
    """bCR weight on real images: D's squared change under another augmentation"""
    bcr_fake: float = 0.0
    """bCR weight on generated images"""
    gp: float = 0.0
    """WGAN-GP's coefficient, 10 in its paper; at every step"""
    lecam: float = 0.0
    """LeCam's coefficient; it is made for few images"""
    lecam_decay: float = 0.99
    """decay of the averages of D's logits that LeCam compares with, per step; they begin at 0"""
    ema_decay: float = 0.999
    """decay of G's moving average, per step, unless a half-life is set"""
    ema_half_life: int = 0
    """half-life of G's moving average, in images; 0: ema_decay holds"""
    ema_start: int = 0
    """images until the average begins; before that it is a copy of G"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "r1_every"):
            _require(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "1 or more")
        for name in ("g_lr", "d_lr", "warmup", "r1", "bcr_real", "bcr_fake", "gp", "lecam", "ema_half_life", "ema_start"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "values in [0, 1)")
        _require(0 <= self.augment_p <= 1, "optim.augment_p", self.augment_p, "a value in [0, 1]")
        for name in ("ema_decay", "lecam_decay"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "a value in [0, 1)")
        looks = bool(self.augment) and self.augment_p > 0
        for name in ("bcr_real", "bcr_fake"):
            _require(looks or not getattr(self, name), f"optim.{name}", getattr(self, name), "0 where nothing is augmented")


@dataclass(frozen=True)
class RunConfig:
    """How far, where and how; all of it may change when a run is resumed."""

    out: str = "runs/default"
    """folder of configuration, checkpoints, grids and TensorBoard events"""
    steps: int = 100_000
    """the budget: training ends after this many steps in all"""
    log_every: int = 50
    """steps between reports of the losses"""
    grid_every: int = 1000
    """steps between sample grids"""
    save_every: int = 1000
    """steps between checkpoints"""
    grid_images: int = 64
    """images in a sample grid"""
    evaluate_every: int = 0
    """steps between evaluations, the best one's checkpoint is kept; 0: never"""
    evaluate_samples: int = 10_000
    """images that an evaluation generates"""
    inception: str = ""
    """path or URL of the TF-ported Inception as a TorchScript file, for evaluations; the digits need none"""
    inception_sha256: str = ""
    """SHA-256 of that file, or how it begins; empty: not checked"""
    wandb: str = ""
    """project in Weights & Biases that losses and evaluations are sent to as well; default none"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with float32 weights and R1 in float32"""
    channels_last: bool = False
    """keep convolution weights and images channels-last"""
    compile: bool = False
    """G, and D but for R1's pass, through torch.compile; for one process"""
    cuda_graphs: bool = False
    """record a whole step, R1's double backward included, as CUDA graphs, and replay it; for one process on CUDA"""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "grid_every", "save_every", "grid_images"):
            _require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "1 or more")
        _require(self.evaluate_every >= 0, "run.evaluate_every", self.evaluate_every, "0 or more")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    img_size: int = 64
    """side of the images in pixels, a power of two; for LadaGAN 32 to 256"""
    generator: GeneratorConfig = field(default_factory=LadaGANGenerator)
    discriminator: DiscriminatorConfig = field(default_factory=LadaGANDiscriminator)
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    """of initial weights, latents, augmentation and the order of images"""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts of plain values, as kept in JSON and in checkpoints."""
    return dataclasses.asdict(config)


def from_dict(values: object) -> Config:
    """Rebuild a configuration; ``TrainingError`` names a field that is missing, unknown or mistyped."""
    return _parse(Config, values, "")


def _parse(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_fields(kind, value, name)
    if origin in (Union, UnionType):  # of families
        families = {kind.family: kind for kind in args}
        family = value.get("family") if isinstance(value, dict) else value
        _require(isinstance(family, str) and family in families, f"{name}.family", family, f"one of {', '.join(families)}")
        return _parse_fields(families[family], value, name)
    if origin is Literal:
        _require(value in args, name, value, f"one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), name, value, "a list")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        _require(len(value) == len(kinds), name, value, f"{len(kinds)} values")
        return tuple(_parse(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, name, value, f"a value of type {kind.__name__}")
    return value


def _parse_fields(kind: Any, values: Any, name: str) -> Any:
    _require(isinstance(values, dict), name or "configuration", values, "an object with named fields")
    hints, prefix = get_type_hints(kind), f"{name}." if name else ""
    for key in values.keys() - hints.keys():
        raise TrainingError(f"{prefix}{key}: unknown field, expected {', '.join(hints)}")
    for key in hints.keys() - values.keys():
        raise TrainingError(f"{prefix}{key}: missing field")
    return kind(**{key: _parse(hint, values[key], prefix + key) for key, hint in hints.items()})


def save_config(config: Config, path: Path) -> None:
    """Write as JSON, making the folder; an old file is replaced once the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    os.replace(temporary, path)


def load_config(path: Path) -> Config:
    """Read `save_config`'s JSON; ``TrainingError`` names the file and what is wrong with it."""
    try:
        return from_dict(json.loads(path.read_text()))
    except OSError as error:
        raise TrainingError(f"no configuration at {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TrainingError) as error:
        raise TrainingError(f"{path}: {error}") from error


def check_same_run(given: Config, trained: Config) -> None:
    """Raise ``TrainingError`` naming the first field of ``given`` that contradicts the checkpoint's configuration.

    ``run`` may change, and the images are held to their content, not to their path.
    """

    def compare(a: Any, b: Any, name: str) -> None:
        if isinstance(a, dict):
            for key in a:
                compare(a[key], b[key], f"{name}.{key}" if name else key)
        elif a != b:
            raise TrainingError(f"{name}: {a!r} contradicts the checkpoint, which was trained with {b!r}")

    data = dataclasses.replace(trained.data, mirror=given.data.mirror)
    compare(to_dict(dataclasses.replace(given, run=trained.run, data=data)), to_dict(trained), "")
