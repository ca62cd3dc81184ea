import os
import subprocess
import sys

import pytest
from cuda_emulation import build
from problems import OPS

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulation: {build.unavailable()}")


def run(*arguments):
    """Run Python under AddressSanitizer and UBSan."""
    path = os.pathsep.join([str(build.ROOT), str(build.HERE.parent)])
    environment = os.environ | build.preload() | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def judge(*arguments):
    return run("-m", "cuda_emulation.judge", *arguments)


FEATURE = """
import ctypes, sys
from cuda_emulation import build
from problems import OPS
memory = (ctypes.c_float * 64)()
address = -(-ctypes.addressof(memory) // 16) * 16
features = build.load((build.HERE / "kernels" / "features.cu",), sanitize=True)
getattr(features, sys.argv[1])(1, 32, 128, 1, address, address, 1)
"""


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("block_sum", None),
        ("past_shared_memory", "heap-buffer-overflow"),
        ("misaligned_store", "store to misaligned address"),
    ],
)
def test_wrong_accesses_are_seen(kernel, report):
    result = run("-c", FEATURE, kernel)
    assert (report or "") in result.stderr
    assert (result.returncode == 0) == (report is None), result.stderr[-4000:]


def test_kernels_stay_within_their_memory():
    result = judge(*(op.name for op in OPS))
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.startswith("judged")


def test_a_write_past_the_end_is_seen(tmp_path):
    source = (build.CSRC / "cuda" / "gated_product.cu").read_text()
    right, wrong = "if (n + u * at.rows < end) store(p.out", "if (n + u * at.rows <= end) store(p.out"
    assert source.count(right) == 1
    kernel = tmp_path / "gated_product.cu"
    kernel.write_text(source.replace(right, wrong))
    result = judge("gated_product", "--kernel", kernel)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "WRITE of size" in result.stderr
