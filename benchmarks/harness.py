"""Timing to rely on: results proven first, contestants in turn in one process, medians with their spread, kept as JSON."""

import ctypes
import dataclasses
import gc
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lada_kernels import info

Contestant = Callable[[], Any]
Around = Callable[[str], AbstractContextManager]  # a contestant's name -> what its calls need, off the clock


@dataclass
class Timing:
    """Seconds of one call: the median and the 20th and 80th percentiles of `repeats` readings."""

    median: float
    p20: float
    p80: float
    repeats: int


@dataclass
class Row:
    """One case: how far the result was from the truth, and, if near enough, everybody's times and what follows from them."""

    section: str
    case: dict[str, Any]
    error: float | None  # None: not finite, or of a wrong shape
    tolerance: float
    refused: str | None = None
    times: dict[str, Timing] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What one run found, and all that is needed to judge or repeat it."""

    command: str
    date: str
    commit: str | None
    dirty: bool | None
    allocator: str
    machine: dict[str, Any]  # `lada_kernels.info`: versions, devices with the instruction set used, backends, environment
    sections: list[str] = field(default_factory=list)  # those that were completed
    rows: list[Row] = field(default_factory=list)


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


def start_report(command: str, allocator: str) -> Report:
    """An empty report on this machine, now."""

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent.parent), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    machine = info.collect() | {"torch_cpu_capability": torch.backends.cpu.get_cpu_capability()}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(command, now, git("rev-parse", "HEAD"), None if changes is None else bool(changes), allocator, machine)


def save(report: Report, path: Path) -> None:
    """Write as JSON, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def load(path: Path) -> Report:
    """Read what `save` wrote."""
    report = Report(**json.loads(path.read_text()))
    report.rows = [Row(**row) for row in report.rows]
    for row in report.rows:
        row.times = {name: Timing(**timing) for name, timing in row.times.items()}
    return report


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
    """The most device memory that a call has allocated at once, its results included; 0 on a CPU."""
    if device == "cpu":
        return 0
    module = torch.get_device_module(device)
    module.synchronize()
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    call()
    module.synchronize()
    return module.max_memory_allocated() - before


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
) -> dict[str, Timing]:
    """Time everybody's calls in turn: noise and clock changes meet all alike.

    A reading takes the mean of `calls` calls in a row: more than one where the clock and cold caches would outweigh a call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, call in contestants.items():
        with around(name):
            for _ in range(warmup):
                call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, call in contestants.items():
                with around(name):
                    seconds[name].append(seconds_of(call, calls, device))
    finally:
        gc.enable()
    return {name: _timing(values) for name, values in seconds.items()}


def trial(
    section: str,
    case: dict[str, Any],
    contestants: dict[str, Contestant],
    errors: dict[str, float],
    tolerance: float,
    repeats: int,
    **options: Any,
) -> Row:
    """The gate and, past it, the race: who is further than `tolerance` from the truth is refused a time.

    The others race unless nobody is left of those who were judged. `options`: as `race` takes them.
    """
    worst = max(errors.values(), key=lambda error: error if math.isfinite(error) else math.inf)
    row = Row(section, case, worst if math.isfinite(worst) else None, tolerance)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        sizes = ", ".join(f"{error:.3g}" if len(errors) == 1 else f"{error:.3g} of {name}" for name, error in wrong.items())
        row.refused = f"wrong result: relative error {sizes}, at most {tolerance:g} is allowed"
    if len(wrong) < len(errors):
        row.times = race({name: call for name, call in contestants.items() if name not in wrong}, repeats, **options)
    return row


def copying(size: int, device: str = "cpu") -> Contestant:
    """A `copy_` that moves `size` bytes, half of them read and half written; `size` is a multiple of 8."""
    if size % 8:
        raise ValueError(f"size: got {size} bytes, expected a multiple of 8")
    source, target = torch.ones(size // 8, device=device), torch.zeros(size // 8, device=device)
    return lambda: target.copy_(source)


def speedup(row: Row, name: str, over: str) -> float:
    """How many times faster `name` was than `over`, by their medians."""
    return row.times[over].median / row.times[name].median


def describe(row: Row) -> str:
    """The row as a line of text."""
    case = " ".join("x".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in row.case.values())
    refused = f"{case:<58} REFUSED: {row.refused}"
    if not row.times:
        return refused
    scale, unit = (1e6, "us") if all(t.median < 1e-3 for t in row.times.values()) else (1e3, "ms")
    times = [f"{n} {t.median * scale:.4g} [{t.p20 * scale:.4g}, {t.p80 * scale:.4g}]" for n, t in row.times.items()]
    figures = [f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.figures.items()]
    line = f"{case:<58} {unit}: {'  '.join(times)} | {'  '.join(figures)}"
    return f"{refused}\n{line}" if row.refused else line


def _timing(seconds: list[float]) -> Timing:
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64))
    return Timing(*quantiles.tolist(), len(seconds))
