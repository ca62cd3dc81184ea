"""Every Triton kernel compiled for every architecture, without a GPU: no spills, and shared memory that the chips have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/triton-resources.md"


def test_every_kernel_fits_every_architecture_and_the_table_says_so(tmp_path):
    out = tmp_path / "table.md"
    # A process that does not interpret the kernels.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(out.read_text())
    if f"Triton {triton.__version__} " not in TABLE.read_text():
        pytest.skip(f"no spills; but {TABLE.name} was written with another Triton than {triton.__version__}")
    assert out.read_text() == TABLE.read_text()
