"""Every Triton kernel compiled for every architecture, without a GPU: no spills, and shared memory that the chips have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.xdist_group("resources")  # compiled once
ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/triton-resources.md"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(exit status, what was printed, the table) of compiling all kernels, in a process that does not interpret them."""
    out = tmp_path_factory.mktemp("resources") / "table.md"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return done.returncode, done.stdout, out.read_text()


def test_no_kernel_spills_or_needs_more_shared_memory_than_there_is(compiled):
    status, printed, table = compiled
    assert status == 0, printed
    print(table)


def test_the_table_in_the_docs_is_what_the_compiler_says(compiled):
    if f"Triton {triton.__version__} " not in TABLE.read_text():
        pytest.skip(f"{TABLE.name} was written with another Triton than {triton.__version__}")
    assert compiled[2] == TABLE.read_text()
