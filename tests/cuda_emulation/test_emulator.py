import functools
import re

import pytest
import torch
from cuda_emulation import build
from problems import GATE, Problem, judge

from lada_kernels import use_backend
from lada_kernels.backends.cuda import launch

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulation: {build.unavailable()}")
SEEDS = range(6)


@functools.cache
def features():
    return build.load((build.HERE / "kernels" / "features.cu",))


@pytest.fixture(params=SEEDS)
def seed(request):
    features().configure(seed=request.param, processors=2, clusters=True, shared=227 << 10)


def start(kernel, *, blocks=1, threads=32, shared=0, cluster=1, wants=1, option=1):
    """Start one of kernels/features.cu; returns what it read [blocks, threads] and wrote [blocks, wants]."""
    x = torch.randn(blocks, threads, generator=torch.Generator().manual_seed(0))
    out = torch.full((blocks, wants), torch.inf)
    getattr(features(), kernel)(blocks, threads, shared, cluster, x.data_ptr(), out.data_ptr(), option)
    return x, out


SUMS = {  # what each kernel that sums makes of x, in how much shared memory, by clusters of how many blocks
    "block_sum": (lambda x: x.sum(1, keepdim=True), 256, 1),
    "rounds": (lambda x: 3 * x.roll(-1, 1) + 3, 256, 1),
    "cluster_sum": (lambda x: x[:, :1].unflatten(0, (-1, 4)).sum(1).repeat_interleave(4, 0), 4, 4),
}


def sums_are_right(kernel, option=1):
    expected, shared, cluster = SUMS[kernel]
    wants = 64 if kernel == "rounds" else 1
    x, out = start(kernel, blocks=8, threads=64, shared=shared, cluster=cluster, wants=wants, option=option)
    return torch.allclose(out, expected(x), atol=1e-5)


@pytest.mark.parametrize("kernel", SUMS)
def test_a_missing_barrier_shows(kernel):
    def right(seed, option):
        features().configure(seed=seed, clusters=True)
        return sums_are_right(kernel, option)

    assert all(right(seed, option=1) for seed in SEEDS)
    assert not all(right(seed, option=0) for seed in SEEDS)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_and_votes(width):
    x, out = start("warp", blocks=3, threads=64, wants=64 * 5, option=width)
    out = out.view(-1, 32, 5)
    groups = x.view(-1, width)
    down = torch.cat([groups[:, 3:], groups[:, -3:]], 1)  # the last three keep their own
    shuffles = (groups[:, 2:3].expand_as(groups), groups.unflatten(1, (-1, 2)).flip(2).flatten(1), down)
    for i, expected in enumerate(shuffles):
        assert torch.equal(out[:, :, i], expected.reshape(-1, 32))
    warps = x.view(-1, 1, 32)
    ballot = (warps > 0)[:, :, :16].mul(2 ** torch.arange(16)).sum(2)
    assert torch.equal(out[:, :, 3], ballot.expand(-1, 32).float())
    assert torch.equal(out[:, :, 4], ((warps > 2).any(2) * 2 + (warps > -2).all(2)).expand(-1, 32).float())


@pytest.mark.usefixtures("seed")
def test_shared_memory_starts_as_nan():
    for _ in range(2):
        assert start("unwritten", blocks=3, threads=64, shared=256, wants=64)[1].isnan().all()
        start("block_sum", blocks=3, threads=64, shared=256)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("barrier_for_some", "deadlock in the cluster of block 0, threads: 252 wait at __syncthreads; 4 have ended"),
        ("barriers_of_two_kinds", "deadlock .* 128 wait at __syncthreads; 128 wait at cluster_barrier"),
        ("collectives_of_two_kinds", "deadlock .* 128 wait at a vote; 128 wait at a shuffle"),
        ("shuffle_outside_of_mask", r"thread \d+ of block \d: shuffle from lane \d+, outside of its mask 0x0000ffff"),
        ("misaligned", r"thread \d+ of block \d: misaligned address"),
        ("shared_of_nobody", r"thread \d+ of block \d: shared_of: block 4 of a cluster of 4"),
    ],
)
def test_errors_end_a_launch(kernel, error):
    with pytest.raises(RuntimeError, match=error):
        start(kernel, blocks=4, threads=64, shared=256, cluster=4, wants=64)
    assert sums_are_right("block_sum")  # nothing of it stays


@pytest.mark.parametrize(
    "grid",
    [
        {"threads": 1025},
        {"threads": 0},
        {"blocks": 6, "cluster": 4},
        {"blocks": 16, "cluster": 16},
        {"blocks": 2, "cluster": 2, "clusters": False},
        {"shared": 4097, "most": 4096},
        {"shared": (227 << 10) + 1},
        {"blocks": 2**31},
    ],
    ids=str,
)
def test_what_cuda_refuses(grid):
    grid = {"blocks": 1, "threads": 32, "shared": 256, "cluster": 1, "clusters": True, "most": 227 << 10} | grid
    features().configure(clusters=grid["clusters"], shared=grid["most"])
    with pytest.raises(RuntimeError, match="invalid configuration"):
        features().block_sum(grid["blocks"], grid["threads"], grid["shared"], grid["cluster"], 0, 0, 1)
    features().block_sum(0, grid["threads"], grid["shared"], grid["cluster"], 0, 0, 1)  # no blocks, no start


def test_settings_stay():
    features().configure(seed=7, processors=3, clusters=False, shared=4096)
    assert features().configure(processors=4) == {"seed": 7, "processors": 4, "clusters": False, "shared": 4096}


def test_static_shared_memory_does_not_compile(tmp_path):
    kernel = tmp_path / "static.cu"
    kernel.write_text("#include <device.h>\n__global__ void kernel() { __shared__ float x; x = 1; }\n")
    with pytest.raises(RuntimeError, match="__shared__"):
        build.load((kernel,))


def test_a_barrier_taken_from_a_kernel_shows(tmp_path, monkeypatch):
    if launch.DEVICE != "cpu":
        pytest.skip("the backend runs on a GPU")
    source = (build.CSRC / "cuda" / "gated_product.cu").read_text()
    barrier = re.compile(r"(float\* leave_sum\(.*?)__syncthreads\(\);\n", re.DOTALL)
    without, count = barrier.subn(r"\1\n", source)
    assert count == 1
    kernel = tmp_path / "gated_product.cu"
    kernel.write_text(without)

    def right(seed):
        launch.kernels.configure(seed=seed, processors=2, clusters=True)
        try:
            judge(GATE, Problem(2, 40, 24), torch.float32)
        except AssertionError:
            return False
        return True

    with use_backend("cuda"):
        assert all(map(right, SEEDS))
        monkeypatch.setattr(launch, "kernels", build.load(build.changed(kernel)))
        assert not all(map(right, SEEDS))
