"""Every Triton kernel compiled for every architecture, without a GPU: no spills, and shared memory that the chips have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/triton-resources.md"


# How often each kernel that the ops launch in float64 widens a float32, by its name.
WIDENED = """
import json, torch
from benchmarks import resources
found = {}
for wanted in resources.every_launch([16], [torch.float64]):
    ptx = resources.compiled(wanted, 90).asm["ptx"]
    found[f"{len(found)} {wanted.module} {wanted.kernel}"] = ptx.count("cvt.f64.f32")
print(json.dumps(found))
"""


def compiling(*command):
    """Run Python where Triton compiles its kernels instead of interpreting them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_nothing_in_a_float64_kernel_has_been_rounded_to_float32():
    done = compiling("-c", WIDENED)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= 20
    assert {kernel: count for kernel, count in found.items() if count} == {}


def test_every_kernel_fits_every_architecture_and_the_table_says_so(tmp_path):
    out = tmp_path / "table.md"
    done = compiling("-m", "benchmarks.resources", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    print(out.read_text())
    if f"Triton {triton.__version__} " not in TABLE.read_text():
        pytest.skip(f"no spills; but {TABLE.name} was written with another Triton than {triton.__version__}")
    assert out.read_text() == TABLE.read_text()
