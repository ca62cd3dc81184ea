"""Train a GAN: ``python -m lada_kernels.train [--preset NAME] [--resume RUN] [overrides]``.

Without arguments it learns handwritten digits on whatever machine this is. Ctrl-C saves, then ends;
``--resume RUN`` goes on from there exactly, on the CPU to the last bit. ``torchrun --nproc-per-node=N -m lada_kernels.train``
trains on N GPUs as on one.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from lada_kernels.training import checkpoint, data
from lada_kernels.training.config import Config, check_same_run, from_dict, load_config
from lada_kernels.training.distributed import ALONE, Processes, joined_processes
from lada_kernels.training.errors import TrainingError, import_extra, one_line_errors
from lada_kernels.training.families import DISCRIMINATORS, GENERATORS
from lada_kernels.training.loop import fit
from lada_kernels.training.presets import PRESETS, PresetName
from lada_kernels.training.trainer import Trainer, pick_device


def parse(args: list[str] | None = None) -> tuple[Config, Path | None, bool]:
    """Read the command line: the configuration, the run to resume, and whether to overwrite."""
    tyro = import_extra("tyro")

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        preset: PresetName | None = None
        """starting point of the configuration; default digits, or the resumed run's own"""
        resume: Path | None = None
        """run folder to go on with"""
        overwrite: bool = False
        """start anew in a folder that already holds checkpoints, and lose them"""
        config: Annotated[Config, tyro.conf.arg(name="")] = PRESETS["digits"]

    # Which other settings there are, and their defaults, depends on these: they are read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=PRESETS)
    first.add_argument("--resume", type=Path)
    first.add_argument("--generator.family", dest="generator", choices=GENERATORS)
    first.add_argument("--discriminator.family", dest="discriminator", choices=DISCRIMINATORS)
    known, _ = first.parse_known_args(args)
    config = PRESETS[known.preset or "digits"]
    if known.resume:
        if not known.preset:
            config = load_config(known.resume / "config.json")
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, out=str(known.resume)))
    for name, kinds in (("generator", GENERATORS), ("discriminator", DISCRIMINATORS)):
        family = getattr(known, name)
        if family not in (None, getattr(config, name).family):
            config = dataclasses.replace(config, **{name: kinds[family]()})
    given = tyro.cli(
        Arguments, args=args, default=Arguments(config=config), description=__doc__, config=(tyro.conf.AvoidSubcommands,)
    )
    return given.config, given.resume, given.overwrite


def load_images(config: Config, processes: Processes = ALONE) -> Tensor:
    """The training images, [n, 3, S, S] uint8; decoded once a machine, if it has several processes."""
    source, size = config.data.source, config.img_size
    spill = Path(config.run.out) / "images.uint8"
    if processes.count == 1 or source in ("", "digits"):
        return data.load_images(source, size, config.data.memory_gib, spill)

    def shared(count: int) -> Tensor:
        shape = (count, 3, size, size)
        return torch.from_file(str(spill), shared=True, size=math.prod(shape), dtype=torch.uint8).view(shape)

    return processes.from_machine(lambda: data.load_images(source, size, 0.0, spill), shared)


def make_room(folder: Path, overwrite: bool) -> None:
    """Delete the checkpoints of a folder that a new run is to write to; ``TrainingError`` unless ``overwrite`` permits it."""
    if not checkpoint.exists(folder):
        return
    if not overwrite:
        raise TrainingError(f"run.out: {folder} already holds a run: --resume {folder} goes on, --overwrite loses it")
    checkpoint.remove(folder)


def main() -> int:
    """Train as the command line says. Exit code 0 when the budget is spent, 130 when interrupted."""
    config, resume, overwrite = parse()
    with joined_processes(pick_device(config.run.device)) as processes:
        return train(config, resume, overwrite, processes)


def train(config: Config, resume: Path | None, overwrite: bool, processes: Processes) -> int:
    """`main` in one of the processes."""
    folder = Path(config.run.out)

    def say(text: str) -> None:
        if processes.leads:
            print(text)

    # What contradicts is said before anything is loaded or written.
    state = None
    if resume:
        state = checkpoint.read_latest(resume)
        if not state["rng"]:
            raise TrainingError(f"{resume} was converted: it holds weights, not a run that could be resumed")
        check_same_run(config, from_dict(state["config"]))
    else:
        processes.once(lambda: make_room(folder, overwrite))

    images = load_images(config, processes)
    trainer = Trainer(config, images, processes)
    if state:
        trainer.load_state_dict(state)
        say(f"resumed {resume} at step {trainer.iteration}")
    where = f"{trainer.device}, {config.run.precision}" + (f", {processes.count} processes" if processes.count > 1 else "")
    say(f"{len(images)} images, {where}; writing to {folder}")
    if fit(trainer, folder):
        say(f"done: {trainer.iteration} steps, samples in {folder / 'grids'}")
        return 0
    say(f"stopped and saved at step {trainer.iteration}; go on with --resume {folder}")
    return 130


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
