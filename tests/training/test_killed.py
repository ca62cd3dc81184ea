"""Runs that are killed with SIGKILL, which nothing can catch, and go on: killing.py is what the processes run."""

import os
import random
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from training import killing
from training.running import Pooled, save_net
from training.variants import assert_bit_equal, with_run

from lada_kernels.training import checkpoint
from lada_kernels.training.config import load_config, save_config
from lada_kernels.training.errors import TrainingError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

KILLS, SEED = 20, 14  # whose first kill comes early, before there is a checkpoint
LADAGAN = "--generator.dim 16 8 8 --generator.noise-dim 8 --generator.heads 2 2 2 --generator.mlp-dim 8 8 8"
LADAGAN_D = "--discriminator.enc-dim 4 8 --discriminator.out-dim 8 8 --discriminator.heads 2 --discriminator.mlp-dim 8"
OPTIM = "--optim.batch-size 4 --optim.r1 0.01 --optim.r1-every 3 --optim.ema-decay 0.9 --optim.warmup 20 --data.mirror"
RUN = (
    "--run.device cpu --run.save-every 2 --run.grid-every 5 --run.grid-images 4 --run.evaluate-every 5 --run.evaluate-samples 8"
)
OPTIONS = shlex.split(f"{LADAGAN} {LADAGAN_D} {OPTIM} {RUN}")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """What the first process imports for all others is found by it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, filter(None, sys.path))))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*_ckpt.pt*")}


def train(log: Path, *arguments: object) -> float:
    """Train to the end, in a process of its own; returns the seconds that it lived."""
    start = time.monotonic()
    process = killing.start(killing.train, list(map(str, arguments)), log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - start


def test_a_run_killed_twenty_times_ends_as_the_undisturbed_one(tmp_path):
    """At moments drawn uniformly over the time that it takes to start and to train for eight steps."""
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    options = [*OPTIONS, "--run.inception", save_net(Pooled(), tmp_path / "net.pt")]
    train(log, *options, "--run.out", tmp_path / "warm-up", "--run.steps", 1)
    longest = train(log, *options, "--run.out", tmp_path / "measured", "--run.steps", 8)
    draw, kills = random.Random(SEED), []
    for _ in range(KILLS):
        # As its user would: where nothing was saved, it starts anew.
        going_on = ["--resume", run] if checkpoint.exists(run) else [*options, "--run.out", run, "--run.steps", 100_000]
        moment = draw.uniform(0, longest)
        process = killing.start(killing.train, list(map(str, going_on)), log)
        time.sleep(moment)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        saved = checkpoint.read_latest(run)["iter"] if checkpoint.exists(run) else None
        kills.append(saved)
        print(f"killed after {moment:.3f} s, saved: {saved}, files: {sorted(names(run))}")
    steps = kills[-1] + 3
    assert kills[0] is None
    assert len(set(kills)) > 2
    train(log, "--resume", run, "--run.steps", steps)
    train(log, *options, "--run.out", whole, "--run.steps", steps)
    # To the last bit: weights, optimisers, average, random numbers, the sampler, and which evaluation was the best.
    kept = (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST)
    assert names(run) == set(kept)
    for name in kept:
        found, true = checkpoint.read(run / name), checkpoint.read(whole / name)
        assert found.pop("config") | {"run": None} == true.pop("config") | {"run": None}
        assert_bit_equal(found, true)
    grids = [{path.name: path.read_bytes() for path in (folder / "grids").iterdir()} for folder in (run, whole)]
    assert grids[0] == grids[1]


def state(iteration: int) -> dict:
    return {key: {} for key in checkpoint.KEYS} | {"iter": iteration, "ema": {"weight": torch.ones(1000)}}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def prepare(folder: Path, case: str) -> None:
    """Checkpoints as they may lie there before the next one is written, of step 4."""
    for iteration in () if case == "nothing" else (1, 2):
        checkpoint.write(state(iteration), folder)
    last, previous = folder / checkpoint.LAST, folder / checkpoint.PREVIOUS
    if case == "last one damaged":
        half(last)
    elif case == "previous one damaged":
        half(previous)
    elif case == "last one missing":
        last.unlink()
    elif case == "remains of a kill":
        for path in (last, previous):
            path.with_name(f"{path.name}.tmp").write_bytes(b"half a checkpoint")


def readable(folder: Path) -> int | None:
    try:
        return checkpoint.read_latest(folder)["iter"]
    except TrainingError:
        return None


CASES = ["nothing", "two", "last one damaged", "previous one damaged", "last one missing", "remains of a kill"]


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_line_of_writing_a_readable_checkpoint_stays(tmp_path, monkeypatch, case):
    """And the next one is written as ever."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # here alone, for speed
    found = []
    for line in range(1000):
        folder = tmp_path / str(line)
        folder.mkdir()
        prepare(folder, case)
        before, was_there = readable(folder), (folder / checkpoint.LAST).exists()
        process = killing.start(killing.killed_at, line, checkpoint.__file__, checkpoint.write, state(4), folder)
        process.join(60)
        found.append(readable(folder))
        assert found[-1] in (before, 4), line
        assert (folder / checkpoint.LAST).exists() >= was_there, line
        checkpoint.write(state(5), folder)
        assert readable(folder) == 5
        assert names(folder) <= {checkpoint.LAST, checkpoint.PREVIOUS}
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert found[0] == before
    assert found[-1] == 4
    assert len(found) > 5


def test_killed_at_any_line_of_writing_the_best_one_there_is_a_whole_one(tmp_path):
    checkpoint.write_best(state(2), tmp_path)
    found = []
    for line in range(1000):
        process = killing.start(killing.killed_at, line, checkpoint.__file__, checkpoint.write_best, state(4), tmp_path)
        process.join(60)
        found.append(checkpoint.read(tmp_path / checkpoint.BEST)["iter"])
        assert found[-1] in (2, 4), line
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == {checkpoint.BEST}
    assert found[0] == 2
    assert found[-1] == 4
    assert len(found) > 5


def test_killed_in_any_line_of_writing_the_configuration_a_whole_one_stays(tiny, tmp_path):
    """Which every start writes anew, and resuming reads."""
    path, longer, found = tmp_path / "config.json", with_run(tiny, steps=9), []
    save_config(tiny, path)
    for line in range(1000):
        writing = (Path.write_text.__code__.co_filename, save_config, longer, path)
        process = killing.start(killing.killed_at, line, *writing)
        process.join(60)
        found.append(load_config(path))
        assert found[-1] in (tiny, longer), line
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert found[0] == tiny
    assert found[-1] == longer
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
