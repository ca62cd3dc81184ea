"""Faults planted in copies of the CUDA sources: each is caught, and what is said names its place."""

import shutil

import pytest
import torch
from problems import ATTENTION, GATE, Problem, judge
from ptx import build

from lada_kernels import use_backend
from lada_kernels.backends.cuda import launch

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the backend runs on the GPU"),
]
PROBLEM = Problem(2, 130, 64, 4)
HALVES = (torch.bfloat16, torch.float16)

# What stands where, what is put there, and what is said of it.
FAULTS = {
    "a removed barrier": (
        "gated_product.cu",
        "rows[threadIdx.x * V + i] = values[i];\n  __syncthreads();",
        "rows[threadIdx.x * V + i] = values[i];",
        r"gated_product_backward: .*line \d+: ld\.shared.*race: reads 4 bytes at \d+ of shared memory, which thread \d+ wrote",
    ),
    "a shifted bound": (
        "gated_product.cu",
        "if (n + u * at.rows < end) store(p.out",
        "if (n + u * at.rows <= end) store(p.out",
        r"gated_product_forward: .*line \d+: st\.global.*out of bounds: writes 4 bytes at 0x[0-9a-f]+, 0 bytes past the end",
    ),
    "a dropped __syncwarp": (
        "pool_forward.h",
        "__syncwarp();",
        "",
        r"additive_attention_forward: .*line \d+: (ld|st)\.shared.*race: (reads|writes) \d+ bytes at \d+ of shared memory",
    ),
    "a wrong shuffle mask": (
        "pool.h",
        "partial[u][i] += __shfl_xor_sync(~0u,",
        "partial[u][i] += __shfl_xor_sync(0xffffu,",
        r"additive_attention_forward: .*line \d+: shfl\.sync.*thread \d+ of block \d+: is not in its own mask 0x0000ffff",
    ),
    "an unaligned vector load": (
        "vectors.h",
        "reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && ",
        "",
        r"gated_product_forward: .*line \d+: ld\.global\.nc\.\S*v4.*misaligned: 16 bytes at 0x[0-9a-f]+",
    ),
}


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Compiles a kernel of sources of which one file is changed, and puts it in the place of the right one."""

    def planted(kernel, file, right, wrong, device="sm_90"):
        shutil.copytree(build.CSRC, tmp_path / "csrc")
        path = tmp_path / "csrc" / "cuda" / file
        text = path.read_text()
        assert right in text
        path.write_text(text.replace(right, wrong))
        changed = tmp_path / "csrc" / "cuda" / kernel
        architectures = (device.removeprefix("sm_"),)
        kernels = build.Kernels(lambda: build.load_kernels(None, changed, architectures))
        kernels.configure(seed=0, **build.DEVICES[device])
        monkeypatch.setattr(launch, "kernels", kernels)

    with use_backend("cuda"):
        yield planted


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, plant):
    file, right, wrong, message = FAULTS[fault]
    of_pool = file.startswith("pool")
    plant("additive_attention.cu" if of_pool else "gated_product.cu", file, right, wrong)
    layout = "misaligned" if fault == "an unaligned vector load" else "dense"
    with pytest.raises(RuntimeError, match=message):
        judge(ATTENTION if of_pool else GATE, PROBLEM, torch.float32, layout=layout, grad_layout=layout)


@pytest.mark.skipif("13.0.88" not in build.nvccs(), reason="the nvcc on the PATH is another than the one that miscompiles")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
def test_the_loop_that_nvcc_13_0_miscompiles(device, dtype, plant):
    """A memcpy of 32 bytes, of which the compiler drops the second half: every second token of a row is an older one."""
    right = """for (int i = 1; i < kAhead; ++i)
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int p = 0; p < P; ++p) ahead[i - 1][u][p] = ahead[i][u][p];"""
    wrong = "for (int i = 1; i < kAhead; ++i) memcpy(ahead[i - 1], ahead[i], sizeof ahead[i]);"
    plant("additive_attention.cu", "pool.h", right, wrong, device)
    with pytest.raises(AssertionError, match="value: an rms error"):
        judge(ATTENTION, Problem(1, 300, 64, 4), dtype)
