"""What a training takes that has a process to itself: the most memory, and how long it waits for images.

python -m benchmarks.alone CONFIG {ours,official}        # CONFIG: a run's configuration as JSON
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.steps import UNTIL_REPLAY, random_pixels
from lada_kernels.training.config import Config, from_dict, to_dict
from lada_kernels.training.trainer import Trainer

STEPS = 5  # those that are looked at
LIMIT = 300.0  # seconds


def train_alone(config: Config, official: bool = False, backend: str | None = None) -> dict[str, float]:
    """A few steps by these settings in a process of their own.

    Returns:
        ``resident bytes``: the most that it held beyond what libraries and images took, resident on a CPU, reserved on a GPU.
        ``waiting``, of ours: the share of the steps' time that was spent on waiting for images.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.alone", json.dumps(to_dict(config)), "official" if official else "ours"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment |= {"LADA_BACKEND": backend} if backend else {}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks.alone failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _most_held(device: str) -> int:
    """Bytes, so far. Linux's own count, as what getrusage says begins with the process that started this one."""
    if device == "cpu":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    return torch.cuda.max_memory_reserved()


def main() -> None:
    """Train, and print the figures as JSON."""
    config = from_dict(json.loads(sys.argv[1]))
    device, pixels = config.run.device, random_pixels(config)
    at_first = _most_held(device)
    trainer: Trainer | peers.OfficialStep = Trainer(config, pixels)
    if sys.argv[2] == "official":
        trainer = peers.OfficialStep(trainer)
    for _ in range(UNTIL_REPLAY if config.run.cuda_graphs else 1):
        trainer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    waited = trainer.loader.waited if isinstance(trainer, Trainer) else 0.0
    start = time.perf_counter()
    for _ in range(STEPS):
        trainer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    figures = {"resident bytes": _most_held(device) - at_first}
    if isinstance(trainer, Trainer):
        figures["waiting"] = (trainer.loader.waited - waited) / seconds
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
