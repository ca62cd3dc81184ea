"""How the kernels are started: on which device, in how many programs, and what the first start of each took."""

import functools
import struct
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.precision import accumulate_dtype

# The type that sums are kept in, for every storage type.
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.float32, torch.float16: tl.float32, torch.float64: tl.float64}

MANY = 32  # programs for a processor: as many as it holds at once, twice over, so that none waits long for the last


@triton.jit
def _add_up(parts, total, slots, size, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """total [group, size] = the sum of parts [group, slots, size] over the slots, `SLOTS` at a time."""
    tiles = tl.cdiv(size, BLOCK)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    j = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    result = tl.zeros([SLOTS, BLOCK], parts.dtype.element_ty)
    for first in range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)[:, None]
        result += tl.load(parts + (group * slots + slot) * size + j, mask=(slot < slots) & (j < size), other=0.0)
    tl.store(total + group * size + j, tl.sum(result, axis=0)[None, :], mask=j < size)


@triton.jit
def real(value, kind: tl.constexpr):
    """The float that a kernel was started with; a float64 kernel has its bits."""
    return tl.cast(tl.cast(value, tl.int64), tl.float64, bitcast=True) if kind == tl.float64 else value


@triton.jit
def _loop(count):
    """What an interpreter is tried with: not every Triton's can loop with every numpy."""
    for first in range(0, count, 2):
        tl.sum(first + tl.arange(0, 2), axis=0)


# TRITON_INTERPRET is read where a kernel is decorated.
INTERPRETED = not isinstance(_add_up, triton.runtime.JITFunction)

# (kernel, constants, dtypes) -> seconds that its first start took, compilation or a look into Triton's cache included
first_starts: dict[tuple[Any, ...], float] = {}


def start(kernel: Any, grid: Sequence[int], *args: Any, warps: int = 4, **constants: Any) -> None:
    """Start `kernel` on the device of its first argument and on torch's current stream there; no programs, no start.

    Triton rounds a float to float32: float64 kernels get its 64 bits as an integer, of which `real` makes the float again.
    """
    if 0 in grid:
        return
    if constants.get("ACC") == tl.float64:
        args = tuple(struct.unpack("q", struct.pack("d", arg))[0] if isinstance(arg, float) else arg for arg in args)
    key = (kernel, *constants.values(), *(arg.dtype if isinstance(arg, Tensor) else arg is None for arg in args))
    begin = None if key in first_starts else time.perf_counter()
    hand_over(kernel, grid, args, warps, constants)
    if begin is not None:
        first_starts[key] = time.perf_counter() - begin


def hand_over(kernel: Any, grid: Sequence[int], args: Sequence[Any], warps: int, constants: dict[str, Any]) -> None:
    """What `start` does last: give Triton a kernel and its arguments."""
    device = args[0].device
    guard = nullcontext() if INTERPRETED else torch.get_device_module(device).device(device)
    with guard:
        # Triton's default for fusing multiply and add depends on its version.
        kernel[tuple(grid)](*args, **constants, num_warps=warps, enable_fp_fusion=True)


def first_start_seconds() -> dict[str, float]:
    """What the first starts of each kernel have taken in this process, by the kernel's name, over all types and tiles."""
    seconds: dict[str, float] = {}
    for (kernel, *_), taken in first_starts.items():
        seconds[kernel.__name__] = seconds.get(kernel.__name__, 0.0) + taken
    return seconds


def split(batch: int, tokens: int, block: int, device: torch.device, programs: int = 4) -> tuple[int, int]:
    """Cut each batch element's tokens so that the device is filled: (chunks, tokens a chunk), the latter a multiple of `block`.

    A processor gets about that many `programs`. Sizes and device decide alone, so that results repeat bit for bit.
    """
    wanted = programs * processors(device)
    chunks = max(1, min(wanted // max(1, batch), triton.cdiv(tokens, 4 * block)))
    size = triton.cdiv(triton.cdiv(tokens, chunks), block) * block
    return triton.cdiv(tokens, size), size


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors, or what the device calls them."""
    if device.type == "cpu":
        return 2  # enough to split some tests' tokens
    properties = torch.get_device_module(device).get_device_properties(device)
    count: int = getattr(properties, "multi_processor_count", None) or properties.gpu_subslice_count
    return count


def parts(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Room for partial sums [groups, slots, ...] over tensors like `like`; a sole one is the total, in its `dtype`."""
    return like.new_empty(shape, dtype=dtype if shape[1] == 1 else accumulate_dtype(like.dtype))


def add_up(parts: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """[groups, slots, ...] -> [groups, ...] in `dtype`, else in their own: the sums over the slots, in one order always."""
    groups, slots, *sizes = parts.shape
    dtype = dtype or parts.dtype
    if slots == 1:
        return parts[:, 0].to(dtype)
    total = parts.new_empty((groups, *sizes), dtype=dtype)
    size = total[0].numel() if groups else 0
    block = 128
    start(_add_up, (triton.cdiv(size, block) * groups,), parts, total, slots, size, SLOTS=16, BLOCK=block)
    return total


def device_type() -> str:
    """The type of the torch device that Triton's kernels run on."""
    return "cpu" if INTERPRETED else triton.runtime.driver.active.get_active_torch_device().type


def why_no_device() -> str | None:
    """None where kernels can be started."""
    if INTERPRETED:
        try:
            _loop[(1,)](3)
        except Exception as error:
            return f"triton {triton.__version__} cannot interpret its kernels with numpy {numpy.__version__} ({error})"
        return None
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # each driver has its own
        return f"triton finds no GPU ({error}); TRITON_INTERPRET=1 runs its kernels on the CPU, slowly"
    return None
