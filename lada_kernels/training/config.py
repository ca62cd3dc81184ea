"""What defines a run: typed configuration, presets, and its JSON form.

The fields' docstrings are the help texts of ``python -m lada_kernels.train --help``.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lada_kernels.training.augment import Operation
from lada_kernels.training.errors import TrainingError


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise TrainingError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Arguments of `lada_kernels.models.ladagan`; the models check them."""

    img_size: int = 64
    """side of the images in pixels: 32, 64, 128 or 256"""
    dim: tuple[int, int, int] = (1024, 256, 64)
    """G: widths at 8x8, 16x16 and 32x32"""
    noise_dim: int = 128
    """G: values per latent"""
    heads: tuple[int, int, int] = (4, 4, 4)
    """G: attention heads per block"""
    mlp_dim: tuple[int, int, int] = (512, 512, 512)
    """G: hidden MLP width per block"""
    decoder_dim: tuple[int, ...] = ()
    """G: widths of the convolutional decoder; none: pixel-shuffled patches"""
    enc_dim: tuple[int, ...] = (64, 128, 256)
    """D: encoder widths, the first at full size, one more per halving down to 16x16"""
    out_dim: tuple[int, int] = (512, 1024)
    """D: widths of the head"""
    d_heads: int = 4
    """D: attention heads"""
    d_mlp_dim: int = 512
    """D: hidden MLP width"""
    flavor: Literal["tf", "torch"] = "tf"
    """initialisation and conventions of the TensorFlow original (the paper's) or of the PyTorch port"""


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    source: str = ""
    """the word "digits" (real handwritten digits, embedded), or a folder of images, searched recursively"""
    memory_gib: float = 16.0
    """pixels beyond this size go to a memory-mapped file in the run folder"""

    def __post_init__(self) -> None:
        _require(self.memory_gib >= 0, "data.memory_gib", self.memory_gib, "0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """Losses and optimisers."""

    batch_size: int = 128
    """images per step, for D and for G"""
    g_lr: float = 2e-4
    """G: Adam's learning rate"""
    d_lr: float = 2e-4
    """D: Adam's learning rate"""
    betas: tuple[float, float] = (0.5, 0.99)
    """Adam's betas, for both"""
    r1: float = 1e-4
    """R1 coefficient, without the usual 1/2: officially 1e-4 with the tf flavor, 1e-2 with torch"""
    r1_every: int = 1
    """R1 every so many steps, weighted by as much (lazy regularisation)"""
    augment: tuple[Operation, ...] = ("color", "translation")
    """DiffAugment operations, for real and fake"""
    ema_decay: float = 0.999
    """decay of G's moving average, per step"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "r1_every"):
            _require(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "1 or more")
        for name in ("g_lr", "d_lr", "r1"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "values in [0, 1)")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "a value in [0, 1)")


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
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with float32 weights and R1 in float32"""
    channels_last: bool = False
    """keep convolution weights and images channels-last"""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "grid_every", "save_every", "grid_images"):
            _require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    run: RunConfig = RunConfig()
    seed: int = 0
    """of initial weights, latents, augmentation and the order of images"""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


PresetName = Literal["digits", "cifar10", "celeba64", "ffhq128"]

PRESETS: dict[PresetName, Config] = {
    # Ours: a small LadaGAN that learns 8x8 scans, enlarged, in minutes on two CPU cores. Augmentation is
    # left out: over so few epochs it slows learning down.
    "digits": Config(
        model=ModelConfig(
            img_size=32,
            dim=(128, 32, 16),
            noise_dim=64,
            mlp_dim=(128, 64, 32),
            enc_dim=(16, 32),
            out_dim=(64, 64),
            d_mlp_dim=64,
        ),
        optim=OptimConfig(batch_size=32, g_lr=1e-3, d_lr=1e-3, r1=1e-3, r1_every=4, augment=(), ema_decay=0.995),
        data=DataConfig(source="digits"),
        run=RunConfig(out="runs/digits", steps=1600, grid_every=200, save_every=200),
    ),
    # The authors' CIFAR-10 values are not in their repository. G is the default that they report (19.9 M) and
    # 68.1 M images their budget; D's widths are chosen here, and batch, R1 and augmentation are CelebA's.
    "cifar10": Config(
        model=ModelConfig(img_size=32, enc_dim=(128, 256)),
        run=RunConfig(out="runs/cifar10", steps=532_000),
    ),
    # The authors' values: 72.2 M images.
    "celeba64": Config(run=RunConfig(out="runs/celeba64", steps=564_000)),
    # The authors' values: 24.1 M images. They add bCR with weight 0.1, which is not implemented here.
    "ffhq128": Config(
        model=ModelConfig(img_size=128, dim=(1024, 512, 256), decoder_dim=(128, 64), enc_dim=(32, 64, 128, 256)),
        optim=OptimConfig(batch_size=64, augment=("color", "translation", "cutout")),
        run=RunConfig(out="runs/ffhq128", steps=376_000),
    ),
}


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
    """Write as JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


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

    ``run`` may change, and ``data`` is held to its content, not to its path.
    """

    def compare(a: Any, b: Any, name: str) -> None:
        if isinstance(a, dict):
            for key in a:
                compare(a[key], b[key], f"{name}.{key}" if name else key)
        elif a != b:
            raise TrainingError(f"{name}: {a!r} contradicts the checkpoint, which was trained with {b!r}")

    compare(to_dict(dataclasses.replace(given, run=trained.run, data=trained.data)), to_dict(trained), "")
