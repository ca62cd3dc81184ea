"""What the machine does with small CUDA kernels, right and wrong ones: kernels/features.cu, compiled by nvcc."""

import functools

import pytest
import torch
from ptx import build

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}")
SEEDS = range(4)


@functools.cache
def features():
    return build.load((build.HERE / "kernels" / "features.cu",), architectures=("80", "90"))


@pytest.fixture(params=SEEDS)
def seed(request):
    features().configure(seed=request.param, **build.DEVICES["sm_90"])


def start(kernel, *, blocks=1, threads=32, shared=0, cluster=1, wants=1, option=1):
    """Start one of kernels/features.cu; returns what it read [blocks, threads] and wrote [blocks, wants]."""
    x = torch.randn(blocks, threads, generator=torch.Generator().manual_seed(0))
    out = torch.full((blocks, wants), torch.inf)
    features().forget()
    for tensor in (x, out):
        features().allow(tensor.data_ptr(), tensor.nbytes, False)
    getattr(features(), kernel)(blocks, threads, shared, cluster, x.data_ptr(), out.data_ptr(), option)
    return x, out


SUMS = {  # what each kernel that sums makes of x, in how much shared memory, by clusters of how many blocks
    "block_sum": (lambda x: x.sum(1, keepdim=True), 256, 1),
    "rounds": (lambda x: 3 * x.roll(-1, 1) + 3, 256, 1),
    "warp_sum": (lambda x: x.unflatten(1, (-1, 32)).sum(2).repeat_interleave(32, 1), 256, 1),
    "cluster_sum": (lambda x: x[:, :1].unflatten(0, (-1, 4)).sum(1).repeat_interleave(4, 0), 4, 4),
}
FAULTS = {  # what is said of the one whose barrier is left out
    "block_sum": "features.*block_sum.*line [0-9]+: ld.shared.*race: reads 4 bytes at .* of shared memory, which thread",
    "rounds": "rounds.*line [0-9]+: st.shared.*race: writes 4 bytes at .* of shared memory, which thread [0-9]+ read",
    "warp_sum": "warp_sum.*race: reads 4 bytes at .* of shared memory, which thread",
    "cluster_sum": "cluster_sum.*(shared memory of block [0-3] of the cluster, which has ended)",
}


def run_sum(kernel, option=1):
    expected, shared, cluster = SUMS[kernel]
    wants = 64 if kernel in ("rounds", "warp_sum") else 1
    x, out = start(kernel, blocks=8, threads=64, shared=shared, cluster=cluster, wants=wants, option=option)
    torch.testing.assert_close(out, expected(x), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("kernel", SUMS)
def test_a_missing_barrier_is_said(kernel):
    run_sum(kernel)
    with pytest.raises(RuntimeError, match=FAULTS[kernel]):
        run_sum(kernel, option=0)


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
def test_lanes_diverge_and_meet():
    x, out = start("diverge", blocks=3, threads=96, wants=96)
    lane = torch.arange(96)
    expected = sum(torch.where(lane % 3 >= i, x, 0) for i in range(3)) * torch.where(lane % 2 == 1, 10, 1)
    torch.testing.assert_close(out, expected[:, lane ^ 1])


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        ("unwritten", "line [0-9]+: ld.shared.*reads 4 bytes at [0-9]+ of shared memory that nobody wrote"),
        ("past_shared_memory", "out of bounds: writes 4 bytes at 256 of 256 of shared memory"),
        ("past_the_end", "out of bounds: writes 4 bytes at 0x[0-9a-f]+, 0 bytes past the end of a tensor"),
        (
            "barrier_for_some",
            "deadlock in the cluster of block 0: 252 threads wait at line .*bar.*; 4 threads have ended|ended.*252",
        ),
        ("barriers_of_two_kinds", "deadlock .*128 threads wait at line .*128 threads wait at line"),
        ("collectives_of_two_kinds", "deadlock .*128 threads wait at line .*128 threads wait at line"),
        ("shuffle_outside_of_mask", "shuffles from lane [0-9]+, which takes no part: 0x0000ffff do"),
        ("misaligned", "ld.global.nc.*thread [0-9]+ of block [0-9]: misaligned: 16 bytes at"),
        ("misaligned_store", "st.global.v4.*thread [0-9]+ of block [0-9]: misaligned: 16 bytes at"),
        ("shared_of_nobody", "mapa.*maps an address to block 4 of a cluster of 4"),
    ],
)
def test_errors_end_a_launch(kernel, error):
    with pytest.raises(RuntimeError, match=error):
        start(kernel, blocks=4, threads=64, shared=256, cluster=4, wants=64)
    run_sum("block_sum")  # nothing of it stays


@pytest.mark.parametrize(
    ("grid", "error"),
    [
        ({"threads": 1025}, "invalid block of 1025 threads"),
        ({"threads": 0}, "invalid block of 0 threads"),
        ({"blocks": 6, "cluster": 4}, "clusters of 4 blocks in a grid of 6"),
        ({"blocks": 16, "cluster": 16}, "clusters of 16 blocks"),
        ({"blocks": 2, "cluster": 2, "clusters": False}, "the device has no clusters"),
        ({"shared": 49153, "most": 49152}, "49153 bytes of shared memory .* the device has 49152"),
        ({"shared": (227 << 10) + 1}, "232449 bytes of shared memory .* the device has 232448"),
        ({"shared": 4097, "most": 4096}, "4097 bytes of shared memory .* the device has 4096"),
        ({"blocks": 2**31}, "the grid is too large: 2147483648 blocks"),
        ({"blocks": 2**32 + 1}, "the grid is too large: 4294967297 blocks"),
        ({"architecture": 75}, "no kernel image is available for execution on the device"),
    ],
    ids=str,
)
def test_what_a_device_refuses(grid, error):
    grid = {
        "blocks": 1,
        "threads": 32,
        "shared": 256,
        "cluster": 1,
        "clusters": True,
        "most": 227 << 10,
        "architecture": 90,
    } | grid
    features().configure(clusters=grid["clusters"], shared=grid["most"], architecture=grid["architecture"])
    with pytest.raises(RuntimeError, match=error):
        features().block_sum(grid["blocks"], grid["threads"], grid["shared"], grid["cluster"], 0, 0, 1)
    features().block_sum(0, grid["threads"], grid["shared"], grid["cluster"], 0, 0, 1)  # no blocks, no start


def test_settings_stay():
    settings = {"architecture": 80, "processors": 3, "shared": 4096, "clusters": False, "blur": True}
    features().configure(seed=7, **settings)
    assert features().configure(processors=4) == settings | {"processors": 4}
    features().configure(**build.DEVICES["sm_90"], blur=False)
