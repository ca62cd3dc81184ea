"""Every CUDA kernel from the PTX of every architecture and compiler, judged in float64 over the table of problems."""

import itertools

import pytest
import torch
from problems import MASKS, OPS, POOL, SHAPES, Problem, judge
from ptx import build

from lada_kernels import additive_pool, use_backend
from lada_kernels.backends.cuda import launch

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the backend runs on the GPU"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What the table of shapes leaves out: masks, whole vectors, heads beyond a group, and tokens wider than a block takes.
MORE = (
    *(Problem(3, 37, 24, 3, mask=mask) for mask in MASKS),
    Problem(2, 9, 1024, 8, mask="random"),
    Problem(1, 7, 4096, 4),
    Problem(2, 33, 60, 12),
)
WHOLE = (
    Problem(2, 33, 24, 3, per_head=False),
    Problem(1, 40, 256, 8, per_head=False, mask="random"),
    Problem(2, 11, 6, 9, per_head=False),
)
LAYOUTS = ("dense", "misaligned", "third")


# One batch element that many blocks share, in every form of the pools.
SHARED = (
    Problem(1, 300, 64, 4),
    Problem(1, 300, 64, 8),
    Problem(1, 300, 60, 4, per_head=False),
    Problem(1, 300, 60, 8, per_head=False),
    Problem(1, 1100, 24, 12),
)


def table(device):
    """(op, problem, dtype, layout, settings of the device)."""
    # On few processors a block takes many tokens, one tile after the other; without clusters a second kernel runs.
    settings = [{"processors": 2}, {}, {"clusters": False}]
    for i, (problem, (j, dtype)) in enumerate(itertools.product((*SHAPES, *MORE, *WHOLE), enumerate(DTYPES))):
        for k, op in enumerate(OPS):
            if problem not in WHOLE or op is POOL:
                layout = LAYOUTS[(i + j) % 3] if problem in MORE else "dense"
                yield op, problem, dtype, layout, device | settings[(i + k) % 3] | {"blur": i % 4 == 0}
    for problem, dtype, setting in itertools.product(SHARED, DTYPES, settings):
        yield POOL, problem, dtype, "dense", device | setting


@pytest.fixture
def machine(nvcc, device, monkeypatch):
    """The kernels of a compiler on a device, in the place of those that other tests run."""
    kernels = build.Kernels(lambda: build.load_kernels(nvcc))
    monkeypatch.setattr(launch, "kernels", kernels)
    kernels.configure(seed=0, **build.DEVICES[device])
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    with use_backend("cuda"):
        yield kernels
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("device", build.DEVICES)
@pytest.mark.parametrize("nvcc", build.nvccs() if build.unavailable() is None else [])
def test_every_kernel(machine, nvcc, device):
    wrong, before, count = [], machine.launched(), 0
    for op, problem, dtype, layout, settings in table(build.DEVICES[device]):
        machine.configure(**settings)
        try:
            judge(op, problem, dtype, layout=layout, grad_layout=layout)
            count += 1
        except (AssertionError, RuntimeError) as error:
            wrong.append(f"{op} {problem} {layout} {dtype} {settings}: {error}")
    additive_pool(torch.randn(2, 9, 24), torch.randn(3, 24), return_weights=True)
    assert not wrong, "\n".join(wrong)
    run = {kernel[0] for kernel, times in machine.launched().items() if times > before.get(kernel, 0)}
    print(f"nvcc {nvcc}, {device}: {count} problems, {len(run)} kernels")
    left = [name for name in machine.registered() if name not in run and "probe_kernel" not in name]
    assert not left, "\n".join(["not run:", *left])
