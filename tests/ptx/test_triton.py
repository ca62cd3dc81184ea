"""Triton's kernels from the PTX of every architecture, in processes of their own: nothing is interpreted there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ptx import build

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}")
ROOT = build.ROOT
OTHER = Path(sys.prefix) / "other-triton"  # where the Makefile installs the Triton that torch for CUDA comes with
CASES = [  # the rest: python -m ptx.triton_kernels --whole
    ("pinned", 80, ("bfloat16", "float64")),
    ("pinned", 90, ("float32",)),
    ("pinned", 100, ("float16",)),
    ("other", 90, ("bfloat16",)),
]


@pytest.mark.parametrize(("which", "architecture", "dtypes"), CASES, ids=lambda value: str(value).replace("'", ""))
def test_every_op(which, architecture, dtypes, tmp_path):
    if which == "other" and not OTHER.exists():
        pytest.skip(f"there is no other Triton in {OTHER}")
    paths = [*([str(OTHER)] if which == "other" else []), str(ROOT / "tests"), str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "ptx.triton_kernels", "--architecture", str(architecture), "--dtypes", *dtypes]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["wrong"] == 0
    refused = found["refused"]  # by name, products on tensor cores that the machine does not know
    assert {name: found["problems"][name] + refused.get(name, 0) for name in dtypes} == dict.fromkeys(dtypes, 17)
    assert not refused or architecture > 80
    assert found["kernels"] >= 20 * len(dtypes)
