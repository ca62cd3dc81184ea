"""Checkpoints: written atomically, the previous one kept, read without running code from the file.

A run folder holds ``last_ckpt.pt`` and ``previous_ckpt.pt``. Keys that the official PyTorch code has are named
as there (iter, generator, discriminator, ema, g_opt, d_opt); rng, sampler, data and config make resuming exact.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from lada_kernels.training.errors import TrainingError

LAST, PREVIOUS = "last_ckpt.pt", "previous_ckpt.pt"
KEYS = ("iter", "generator", "discriminator", "ema", "g_opt", "d_opt", "rng", "sampler", "data", "config")


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint, readable or not."""
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


def remove(folder: Path) -> None:
    """Delete the checkpoints of ``folder``, so that a new run there can never fall back to an old one."""
    for name in (LAST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def write(state: dict[str, Any], folder: Path) -> Path:
    """Write ``state`` as the last checkpoint of ``folder`` and keep the one before it.

    Whatever happens, the last complete checkpoint stays: the bytes go to a temporary file and reach the disk
    before any name changes.

    Raises:
        OSError: the disk is full or refuses; the temporary file is gone, earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last, temporary = folder / LAST, folder / f"{LAST}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer reports some disk errors as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {last}: {error}; earlier checkpoints are untouched") from error
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(temporary, last)
    return last


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint file onto the CPU.

    Raises:
        TrainingError: no such file, unreadable, truncated, or not one of ours.
    """
    if not path.is_file():
        raise TrainingError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes torch.load raises whatever its unpickler runs into
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TrainingError(f"{path} is not a readable checkpoint (truncated, or another kind of file): {reason}") from error
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise TrainingError(f"{path} is not a checkpoint of lada_kernels.train: it lacks {', '.join(missing)}")
    return state


def read_latest(path: Path) -> dict[str, Any]:
    """Read a checkpoint file, or the last one of a run folder: where that is unreadable, the one before it.

    Falling back is said on stderr. Raises ``TrainingError`` when nothing can be read.
    """
    if not path.is_dir():
        return read(path)
    try:
        return read(path / LAST)
    except TrainingError as error:
        if not (path / PREVIOUS).exists():
            raise
        state = read(path / PREVIOUS)
        print(f"WARNING: {error}\nWARNING: falling back to {PREVIOUS}, step {state['iter']}", file=sys.stderr)
        return state
