"""What is installed here and who would compute: ``python -m lada_kernels.info [--json]``."""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lada_kernels._version import __version__
from lada_kernels.backends import available, use_backend
from lada_kernels.backends.native import native
from lada_kernels.ops import additive_pool

VARIABLES = ("LADA_BACKEND", "LADA_CPU_ISA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def collect() -> dict[str, Any]:
    """Versions, devices, backends and the environment variables that matter, as plain values.

    ``backends`` maps each name to None, or to the reason why it cannot run here; ``devices.cpu.kernels`` is None where
    the compiled module is missing, its ``cuda_architectures`` where that was built without CUDA. ``triton_first_starts``
    holds the seconds that the first starts of Triton's kernels, compilation included, have taken in this process.
    """
    return {
        "versions": {
            "lada_kernels": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": _version("numpy"),
            "triton": _version("triton"),
        },
        "devices": {"cpu": _cpu(), "cuda": _cuda()},
        "backends": {name: found.reason for name, found in available().items()},
        "triton_first_starts": _first_starts(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def describe(facts: dict[str, Any]) -> str:
    """`collect`'s facts as lines of text."""
    cpu, cuda = facts["devices"]["cpu"], facts["devices"]["cuda"]
    lines = [f"{name:<13} {value or 'not installed'}" for name, value in facts["versions"].items()]
    lines += ["", f"{'cpu':<13} {cpu['name']}, {cpu['cores']} cores, torch threads: {cpu['threads']}"]
    if cpu["kernels"]:
        kernels = cpu["kernels"]
        others = [name for name in kernels["instruction_sets"] if name != kernels["instruction_set"]]
        also = f" (can run: {', '.join(others)})" if others else ""
        openmp = "OpenMP" if kernels["openmp"] else "without OpenMP, on one thread"
        lines.append(f"{'':<13} kernels use {kernels['instruction_set']}{also}, {openmp}, compiler {kernels['compiler']}")
        lines.append(f"{'':<13} {_cuda_kernels(kernels['cuda_architectures'])}")
    lines += [f"{'cuda':<13} {gpu['name']}, sm_{gpu['capability']}, {gpu['memory_gib']} GiB" for gpu in cuda["devices"]]
    if not cuda["devices"]:
        lines.append(f"{'cuda':<13} no device: {cuda['reason']}")
    lines.append("")
    for name, reason in facts["backends"].items():
        lines.append(f"{'backend ' + name:<20} {'not available: ' + reason if reason else 'available'}")
        if name == "triton" and facts["triton_first_starts"]:
            starts = ", ".join(f"{name.strip('_')} {seconds:.2f} s" for name, seconds in facts["triton_first_starts"].items())
            lines.append(f"{'':<20} first starts, compilation or Triton's cache included: {starts}")
    if facts["environment"]:
        lines += ["", *(f"{name}={value}" for name, value in facts["environment"].items())]
    return "\n".join(lines)


def _cuda_kernels(architectures: str | None) -> str:
    if not architectures:
        return "built without CUDA"
    return "CUDA kernels for " + ", ".join(f"sm_{architecture}" for architecture in architectures.split(","))


def _first_starts() -> dict[str, float]:
    launch = sys.modules.get("lada_kernels.backends.triton.launch")
    return launch.first_start_seconds() if launch else {}


def _try_triton() -> None:
    """Start Triton's pooling kernel once, so that there is a first start to report."""
    if available()["triton"]:
        from lada_kernels.backends.triton import launch

        with use_backend("triton"):
            additive_pool(torch.ones(1, 64, 64, device=launch.device_type()), torch.ones(4, 64, device=launch.device_type()))


def _version(module: str) -> str | None:
    # The module is asked: distributions of Triton go by several names.
    try:
        return import_module(module).__version__
    except ImportError:
        return None


def _cpu() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": _cpu_name(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "kernels": native.build_info() if native else None,
    }


def _cpu_name() -> str:
    """As the system says it, else the architecture."""
    try:
        if platform.system() == "Darwin":
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "torch finds none" if built else "this torch was built without CUDA"
        return {"devices": [], "reason": reason}
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "devices": [
            {"name": gpu.name, "capability": f"{gpu.major}{gpu.minor}", "memory_gib": round(gpu.total_memory / 2**30, 1)}
            for gpu in devices
        ],
        "reason": None,
    }


def main() -> None:
    """Print the facts: as text, or with ``--json`` as JSON. Where Triton can run, one of its kernels is started for it."""
    parser = argparse.ArgumentParser(prog="python -m lada_kernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    _try_triton()
    facts = collect()
    print(json.dumps(facts, indent=2) if options.json else describe(facts))


if __name__ == "__main__":
    main()
