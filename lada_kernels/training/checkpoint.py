"""Checkpoints: written atomically, the previous one kept, read without running code from the file.

A run folder holds ``last_ckpt.pt``, ``previous_ckpt.pt`` and, of a run that evaluates, ``best_ckpt.pt``. Keys that the official
PyTorch code has are named as there (iter, generator, discriminator, ema, g_opt, d_opt); rng, sampler, data, config and
logit_means, LeCam's, make resuming exact; best says which evaluation was the best.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lada_kernels.training.errors import TrainingError

LAST, PREVIOUS, BEST = "last_ckpt.pt", "previous_ckpt.pt", "best_ckpt.pt"
KEYS = (
    "iter",
    "generator",
    "discriminator",
    "ema",
    "g_opt",
    "d_opt",
    "rng",
    "sampler",
    "data",
    "config",
    "logit_means",
    "best",
)


def exists(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint, readable or not."""
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


def remove(folder: Path) -> None:
    """Delete the checkpoints of ``folder``, so that a new run there can never fall back to an old one."""
    for name in (LAST, PREVIOUS, BEST):
        path = folder / name
        path.unlink(missing_ok=True)
        _temporary(path).unlink(missing_ok=True)


def write(state: dict[str, Any], folder: Path) -> Path:
    """Write ``state`` as the last checkpoint of ``folder`` and keep the one before it.

    Wherever this is killed, or the power fails, a readable checkpoint stays if there was one: the bytes reach the disk before
    any name changes, the last one's name is never missing, and the previous one goes only when the new one is there.

    Raises:
        OSError: the disk is full or refuses; temporary files are gone, earlier checkpoints are untouched.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    written, replaced = _temporary(last), _temporary(previous)
    try:
        _write(state, written)
        replaced.unlink(missing_ok=True)
        if last.exists():
            _second_name(last, replaced)
    except (OSError, RuntimeError) as error:  # torch's writer reports some disk errors as RuntimeError
        written.unlink(missing_ok=True)
        replaced.unlink(missing_ok=True)
        raise OSError(f"cannot write {last}: {error}; earlier checkpoints are untouched") from error
    os.replace(written, last)
    if replaced.exists():
        os.replace(replaced, previous)
    _sync_names(folder)
    return last


def write_best(state: dict[str, Any], folder: Path) -> Path:
    """Write ``state`` as the best checkpoint of ``folder``, in the place of the one before, or not at all (``OSError``)."""
    best = folder / BEST
    written = _temporary(best)
    try:
        _write(state, written)
    except (OSError, RuntimeError) as error:
        written.unlink(missing_ok=True)
        raise OSError(f"cannot write {best}: {error}; the best one before is untouched") from error
    os.replace(written, best)
    _sync_names(folder)
    return best


def _write(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # not every file system has hard links
        shutil.copyfile(path, name)


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse it; the bytes are safe already
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
