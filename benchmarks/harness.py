"""Timing to rely on: results proven first, contestants in turn in one process, medians with their spread."""

import ctypes
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Timing

Contestant = Callable[[], Any]
Around = Callable[[str], AbstractContextManager]  # a contestant's name -> what its calls need, off the clock
FEWEST = 3  # readings, however long they take


def keep_freed_memory() -> str:
    """Have glibc keep freed blocks for the next allocation; returns a note of what was done.

    By default it gives large ones back to the kernel, so that every fresh output would be timed together with its page faults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return "the system's default: there is no mallopt to set here"
    most, m_mmap_threshold, m_trim_threshold = 2**31 - 1, -3, -1
    if mallopt(m_mmap_threshold, most) and mallopt(m_trim_threshold, most):
        return "freed memory is kept, for all contestants alike: mallopt M_MMAP_THRESHOLD and M_TRIM_THRESHOLD at 2^31-1"
    return "mallopt refused M_MMAP_THRESHOLD and M_TRIM_THRESHOLD at 2^31-1: fresh outputs may be timed with their page faults"


def worst_error(results: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> float:
    """The largest ‖result − truth‖ / ‖truth‖; infinite where a shape is wrong or a value is not finite.

    None counts as zeros. A truth that is zero up to rounding (an attention's score bias has no effect) is no scale for its
    error: the largest truth is.
    """
    largest = max((t.double().norm().item() for t in truth if t is not None), default=0.0)
    worst = 0.0
    for result, true in zip(results, truth, strict=True):
        if result is None and true is None:
            continue
        result = torch.zeros_like(true) if result is None else result.detach()
        true = torch.zeros_like(result) if true is None else true.detach()
        if result.shape != true.shape:
            return math.inf
        size = true.double().norm().item()
        error = (result.double() - true.double()).norm().item() / (size if size > 1e-12 * largest else largest or 1.0)
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


def seconds_of(call: Contestant, calls: int, device: str) -> float:
    """The mean of `calls` calls in a row, by the wall clock on a CPU and by the device's events elsewhere."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls - 1):
            call()
        result = call()
        seconds = time.perf_counter() - start
        del result  # not on the clock
        return seconds / calls
    module = torch.get_device_module(device)
    start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def peak_bytes(call: Contestant, device: str) -> int:
    """The most memory that a call has allocated at once, its results included."""
    if device == "cpu":
        return _profiled_peak(call)
    module = torch.get_device_module(device)
    module.synchronize()
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    call()
    module.synchronize()
    return module.max_memory_allocated() - before


def _profiled_peak(call: Contestant) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    del result  # its memory was not freed within the profile
    allocated = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(allocated, key=lambda event: event["args"]["Ev Idx"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def saved_bytes(call: Contestant, parameters: Sequence[Tensor] = ()) -> int:
    """What one forward keeps for its backward, parameters aside: the sizes of the distinct storages."""
    given = {p.untyped_storage().data_ptr() for p in parameters}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out  # kept until here, so that no storage was freed and its address used again
    return sum(saved.values())


def head_start(around: Around, device: str) -> Around:
    """`around`, and a GPU kept busy for the milliseconds in which calls are queued: what is timed then is the GPU alone."""
    if device == "cpu":
        return around
    idle = torch.zeros(2**28, device=device)

    @contextmanager
    def ahead(name: str) -> Iterator[None]:
        with around(name):
            for _ in range(6):
                idle.sum()  # reads: what is in the caches afterwards need not be written back on the clock
            yield

    return ahead


def race(
    contestants: dict[str, Contestant],
    repeats: int,
    warmup: int = 2,
    calls: int = 1,
    device: str = "cpu",
    around: Around = nullcontext,
    budget: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds that everybody's calls took, in turn: noise and clock changes meet all alike.

    A reading takes the mean of `calls` calls in a row: more than one where the clock and cold caches would outweigh a call.
    No further turn begins after `budget` seconds, but for the first `FEWEST`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, call in contestants.items():
        with around(name):
            for _ in range(warmup):
                call()
    gc.collect()
    gc.disable()
    end = time.monotonic() + budget
    try:
        for turn in range(repeats):
            if turn >= FEWEST and time.monotonic() > end:
                break
            for name, call in contestants.items():
                with around(name):
                    seconds[name].append(seconds_of(call, calls, device))
    finally:
        gc.enable()
    return seconds


def copying(size: int, device: str = "cpu") -> Contestant:
    """A `copy_` that moves `size` bytes, half of them read and half written; `size` is a multiple of 8."""
    if size % 8:
        raise ValueError(f"size: got {size} bytes, expected a multiple of 8")
    source, target = torch.ones(size // 8, device=device), torch.zeros(size // 8, device=device)
    return lambda: target.copy_(source)


def multiplying(size: int, dtype: torch.dtype, device: str = "cpu") -> Contestant:
    """A product of two square matrices, `2 * size**3` operations."""
    one, other = torch.randn(2, size, size, device=device).to(dtype)
    return lambda: one @ other


def timing_of(seconds: Sequence[float]) -> Timing:
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
    return Timing(*quantiles.tolist(), len(seconds))
