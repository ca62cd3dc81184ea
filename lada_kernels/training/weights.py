"""Generators as safetensors files that say how to build them.

The metadata's ``config`` is JSON: ``{"img_size": 64, "generator": {"family": "ladagan", ...}}``, the arguments of the model as
a run's ``config.json`` has them. A file holds numbers and that text: nothing in it is run when it is loaded.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config, from_dict, to_dict
from lada_kernels.training.errors import TrainingError, import_extra
from lada_kernels.training.trainer import build_generator, pick_device

Shapes = Mapping[str, tuple[int, ...]]
SUFFIX = ".safetensors"
_KEYS = ("img_size", "generator")


def load_generator(path: str | Path, device: str = "auto") -> nn.Module:
    """The generator that `save_generator` wrote, or the averaged one of a training run.

    Args:
        path: a safetensors file; or a checkpoint file, or run folder.
        device: auto, cpu or cuda.

    Returns:
        `lada_kernels.models.ladagan.Generator` or `lada_kernels.models.vitgan.Generator` in evaluation mode, without gradients:
        z [B, generator.noise_dim] to images [B, 3, S, S], trained towards [-1, 1].

    Raises:
        TrainingError: there is no such file, or it is of another kind or damaged; its tensors are not exactly those of the
            generator that its configuration builds; or CUDA is asked for and absent.
        ImportError: safetensors is not installed.
    """
    _, generator = read_generator(Path(path))
    return generator.to(pick_device(device))


def save_generator(state: dict[str, Tensor], config: Config, path: str | Path) -> None:
    """Write a generator's state dict, with the part of the configuration that builds it, as a safetensors file.

    Args:
        state: of the generator that ``config`` builds.
        config: of which ``img_size`` and ``generator`` are kept.
        path: of the file; its folder is made, and an old file replaced once the new one is complete.

    Raises:
        ImportError: safetensors is not installed.
    """
    serialise = import_extra("safetensors.torch").save
    values = to_dict(config)
    metadata = {"format": "pt", "config": json.dumps({key: values[key] for key in _KEYS})}
    content = serialise({name: value.detach().contiguous() for name, value in state.items()}, metadata)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_generator(path: Path) -> tuple[Config, nn.Module]:
    """`load_generator`'s on the CPU, and its configuration, default where a safetensors file says nothing."""
    if path.suffix == SUFFIX:
        config, state = _read_safetensors(path)
    else:
        run = checkpoint.read_latest(path)
        config, state = from_dict(run["config"]), run["ema"]
    generator = build_generator(config)
    compare(shapes_of(state), shapes_of(generator.state_dict()), f"{path}, as it is configured,")
    generator.load_state_dict(state)
    return config, generator.requires_grad_(False).eval()


def _read_safetensors(path: Path) -> tuple[Config, dict[str, Tensor]]:
    safetensors = import_extra("safetensors")
    if not path.is_file():
        raise TrainingError(f"no weights at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{path} is not a readable safetensors file: {error}") from error
    if "config" not in metadata:
        raise TrainingError(f"{path} holds no configuration of a generator, so it was not written by lada_kernels")
    return _parse(metadata["config"], path), state


def _parse(text: str, path: Path) -> Config:
    try:
        values: Any = json.loads(text)
        if not isinstance(values, dict) or sorted(values) != sorted(_KEYS):
            raise TrainingError(f"expected {', '.join(_KEYS)}, got {text}")
        return from_dict({**to_dict(Config()), **values})
    except (json.JSONDecodeError, TrainingError) as error:
        raise TrainingError(f"configuration in {path}: {error}") from error


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def compare(found: Shapes, expected: Shapes, where: str) -> None:
    """Raise ``TrainingError`` naming every tensor that is missing, unknown or misshapen."""
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {list(found[name])} for {list(expected[name])}"
            for name in expected
            if name in found and found[name] != expected[name]
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise TrainingError(f"{where} does not fit: {listed}")
