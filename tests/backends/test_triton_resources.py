"""Every Triton kernel compiled for every architecture, without a GPU: loops do not spill, chips have the shared memory."""

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


# Machine code with a spill before both of its loops, one in the outer, two in the inner one, and one after.
MACHINE_CODE = """
    /*0000*/  STL [R1], R2 ;
    /*0010*/  @P0 LDL R3, [R1] ;
    /*0020*/  STL.64 [R1+0x8], R4 ;
    /*0030*/  LDL.LU R5, [R1+0x8] ;
    /*0040*/  @!P1 BRA P2, 0x20 ;
    /*0050*/  BRA.U UP0, `(.L_x_1) 0x10 ;
    /*0060*/  LDL R2, [R1] ;
    /*0070*/  BRA 0x70;
"""


def test_spills_count_where_they_are_in_an_innermost_loop():
    done = compiling("-c", f"from benchmarks import resources; print(resources.looped_spills({MACHINE_CODE!r}))")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) == 2


@pytest.mark.parametrize("channels", [1024])
def test_kernels_fit_every_architecture_and_the_table_says_so(channels, tmp_path):
    """Of one of the table's widths, where registers are scarce: all of them take a quarter of an hour."""
    out = tmp_path / "table.md"
    done = compiling("-m", "benchmarks.resources", "--channels", str(channels), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in out.read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 30
    if f"Triton {triton.__version__} " not in TABLE.read_text():
        pytest.skip(f"all fit; but {TABLE.name} was written with another Triton than {triton.__version__}")
    assert set(rows) <= set(TABLE.read_text().splitlines())
