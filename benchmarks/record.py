"""What a run of the benchmarks found, as one JSON file, with all that is needed to judge or repeat it."""

import dataclasses
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from lada_kernels import info

RESULTS = Path(__file__).parent / "results"


@dataclass
class Timing:
    """Seconds of one call: the median and the 20th and 80th percentiles of `repeats` readings."""

    median: float
    p20: float
    p80: float
    repeats: int


@dataclass
class Row:
    """One case: how far from the truth everybody was, and, if near enough, their times and what follows from them."""

    suite: str
    case: dict[str, Any]
    tolerance: float  # what our own errors may be
    errors: dict[str, float | None] = field(default_factory=dict)  # relative; None: not finite, or of a wrong shape
    refused: str | None = None  # why ours has no time: it was wrong, or it failed
    absent: dict[str, str] = field(default_factory=dict)  # peers without a time, and why
    times: dict[str, Timing] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)  # of the case; or by contestant
    readings: dict[str, list[float]] = field(default_factory=dict, compare=False)  # seconds; not written to files


@dataclass
class Record:
    """One run."""

    command: str
    date: str
    commit: str | None
    dirty: bool | None
    allocator: str
    device: str
    machine: dict[str, Any]  # `lada_kernels.info`: versions, devices with the instruction set used, backends, environment
    suites: list[str] = field(default_factory=list)  # those that were completed
    rows: list[Row] = field(default_factory=list)


def start_record(command: str, device: str, allocator: str) -> Record:
    """An empty record of this machine, now."""

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(RESULTS), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    machine = info.collect() | {"torch_cpu_capability": torch.backends.cpu.get_cpu_capability()}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Record(
        command, now, git("rev-parse", "HEAD"), None if changes is None else bool(changes), allocator, device, machine
    )


def file_of(record: Record, folder: Path = RESULTS) -> Path:
    """Where the results of such a machine are kept: one file for each device and name."""
    devices = record.machine["devices"]
    name = devices["cpu"]["name"] if record.device == "cpu" else devices["cuda"]["devices"][0]["name"]
    return folder / f"{record.device}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def save(record: Record, path: Path) -> None:
    """Write as JSON, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(record)
    for row in content["rows"]:
        del row["readings"]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def load(path: Path) -> Record:
    """Read what `save` wrote."""
    record = Record(**json.loads(path.read_text()))
    record.rows = [Row(**row) for row in record.rows]
    for row in record.rows:
        row.times = {name: Timing(**timing) for name, timing in row.times.items()}
    return record


def label(case: dict[str, Any]) -> str:
    """A case in a few words: additive_attention 64x64x1024x4 float32 forward."""
    return " ".join("x".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for v in case.values())


def describe(row: Row) -> str:
    """The row as lines of text."""
    case = f"{label(row.case):<58}"
    lines = [f"{case} REFUSED: {row.refused}"] if row.refused else []
    if row.times:
        scale, unit = (1e6, "us") if all(t.median < 1e-3 for t in row.times.values()) else (1e3, "ms")
        times = [f"{n} {t.median * scale:.4g} [{t.p20 * scale:.4g}, {t.p80 * scale:.4g}]" for n, t in row.times.items()]
        figures = [f"{name} {_shown(value)}" for name, value in row.figures.items()]
        lines.append(f"{case} {unit}: {'  '.join(times)} | {'  '.join(figures)}")
    return "\n".join(lines + [f"{case} without {name}: {why}" for name, why in row.absent.items()])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        shown = [f"{name} {_shown(v)}" for name, v in value.items()]
        return shown[0].split(" ", 1)[1] if list(value) == ["ours"] else f"({', '.join(shown)})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
