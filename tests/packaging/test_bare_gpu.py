"""`make gpu` on a machine that has torch, triton, numpy, pybind11, ninja, setuptools and pytest, and nothing else."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]

# With what these packages require, and what this repository brings.
NAMES = """torch torchgen functorch triton numpy pybind11 ninja setuptools pytest
    filelock typing_extensions sympy mpmath networkx jinja2 markupsafe fsspec nvidia cuda
    _pytest py iniconfig packaging pluggy pygments exceptiongroup tomli
    lada_kernels benchmarks tests conftest"""
THERE = {*NAMES.split(), *(path.stem for path in (ROOT / "tests").iterdir())}
# A machine with a GPU, as far as collecting tests goes.
BARE = f"""
import importlib.machinery, runpy, sys

there = {{*{sorted(THERE)}, *sys.stdlib_module_names}}
finder = importlib.machinery.PathFinder
find = finder.find_spec

def find_spec(cls, name, path=None, target=None):
    root = name.partition(".")[0]
    return find(name, path, target) if root in there or root.startswith(("_sysconfigdata", "__editable__")) else None

finder.find_spec = classmethod(find_spec)

import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.current_device, torch.cuda.get_device_capability = lambda: 0, lambda device: (9, 0)
"""
COLLECT = BARE + 'sys.argv[0] = "pytest"\nrunpy.run_module("pytest", run_name="__main__")'
MODULES = (
    "benchmarks.__main__",
    "benchmarks.gpu",
    "benchmarks.headlines",
    "benchmarks.sanitized",
    "benchmarks.alone",
    "gpu.smoke",
)
IMPORT = BARE + "import importlib\nprint(*[importlib.import_module(name).__name__ for name in sys.argv[1:]])"


def run_bare(code: str, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_test_for_a_gpu_is_collected():
    folders = [f"tests/{folder}" for folder in gpu.TESTED]
    text = run_bare(COLLECT, "--collect-only", "-q", "-m", "gpu", *folders)
    tests = [line for line in text.splitlines() if "::" in line]
    files = {line.partition("::")[0] for line in tests}
    assert {"tests/gpu/test_device.py", "tests/gpu/test_training_step.py", "tests/ops/test_additive_pool.py"} <= files
    for backend in ("cuda", "triton"):
        assert sum(backend in line for line in tests) > 500
    assert "error" not in text.splitlines()[-1]


def test_no_other_file_has_tests_for_a_gpu():
    for file in (ROOT / "tests").glob("*/test_*.py"):
        if file.parent.name not in gpu.TESTED and file != Path(__file__):
            assert not re.search(r"mark\.gpu|\bTARGETS\b", file.read_text()), file


def test_every_module_that_it_runs_can_be_imported():
    assert run_bare(IMPORT, *MODULES).split() == list(MODULES)


@pytest.mark.skipif(importlib.util.find_spec("hypothesis") is None, reason="hypothesis is not installed")
def test_what_is_not_there_cannot_be_imported():
    with pytest.raises(AssertionError, match="No module named 'hypothesis'"):
        run_bare(IMPORT, "hypothesis")
