"""Every instruction set that was compiled and that this machine has, one process each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lada_kernels import available
from lada_kernels.backends.native import native

TESTS = Path(__file__).parents[1]
SETS = native.instruction_sets() if native else []

CHECK = """
import torch
from lada_kernels import use_backend
from lada_kernels.backends.native import native
from problems import DTYPES, OPS, POOL, Problem, judge

shapes = [Problem(3, 37, 24, 3, mask="random"), Problem(2, 9, 15, 3), Problem(1, 515, 64, 8), Problem(2, 5, 257, 1)]
torch.use_deterministic_algorithms(True)
with use_backend("cpu"):
    for op in OPS:
        for dtype in DTYPES:
            for problem in shapes:
                judge(op, problem, dtype)
                judge(op, problem, dtype, layout="odd_rows", grad_layout="misaligned")
    for dtype in DTYPES:
        judge(POOL, Problem(2, 37, 33, 5, per_head=False), dtype)
print("judged", native.build_info()["instruction_set"])
"""


def run(**environment):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", CHECK]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, **environment}, cwd=TESTS, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(native is None, reason=f"backend 'cpu': {available()['cpu']}")
def test_baseline_is_always_there():
    assert "baseline" in SETS


@pytest.mark.parametrize("name", SETS)
def test_instruction_set(name):
    done = run(LADA_CPU_ISA=name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == ["judged", name]


@pytest.mark.skipif(native is None, reason=f"backend 'cpu': {available()['cpu']}")
def test_unknown_instruction_set():
    done = run(LADA_CPU_ISA="avx9")
    assert done.returncode != 0
    assert "LADA_CPU_ISA" in done.stderr
    assert "avx9" in done.stderr
