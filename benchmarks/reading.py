"""Records as the report, the pictures and the comparison look at them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Record, Row, load
from benchmarks.rivals import RIVALS
from benchmarks.trial import YARDSTICKS

PEERS = ("plain", "official", "official bfloat16", "official, G compiled", "compiled", *RIVALS)
INSTRUCTION_SETS = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline instructions"}


def is_ours(name: str) -> bool:
    return name not in PEERS and name not in YARDSTICKS


def ours(rows: Sequence[Row]) -> list[str]:
    """Those of ours who have a time in any of the rows, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row.times if is_ours(name)))


def read(path: Path) -> Record:
    """A results file; ValueError where it is none."""
    try:
        return load(path)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a file that `python -m benchmarks` wrote, got one without its form: {error}"
        ) from error


def results(folder: Path = RESULTS) -> dict[str, Record]:
    """Every results file by its name without the ending, those of CPUs first."""
    records = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(records.items(), key=lambda item: (item[1].device != "cpu", item[0])))


def rows_of(record: Record, suite: str, **case: Any) -> list[Row]:
    """The rows of a suite whose cases say so."""
    return [row for row in record.rows if row.suite == suite and case.items() <= row.case.items()]


def speedup(row: Row, name: str, over: str) -> float | None:
    """How many times faster `name` was than `over`, by their medians; None where either has no time."""
    if name not in row.times or over not in row.times:
        return None
    return row.times[over].median / row.times[name].median


def machine(record: Record) -> str:
    """Where a record comes from: AMD EPYC, 2 threads, AVX-512."""
    cpu, cuda = record.machine["devices"]["cpu"], record.machine["devices"]["cuda"]
    if record.device != "cpu":
        return cuda["devices"][0]["name"]
    kernels = cpu["kernels"]
    return f"{cpu['name']}, {cpu['threads']} threads" + (f", {INSTRUCTION_SETS[kernels['instruction_set']]}" if kernels else "")


def curve(record: Record, name: str) -> list[tuple[int, float]]:
    """(tokens, seconds) of a contestant of the scaling suite, forward and backward, by tokens."""
    rows = rows_of(record, "scaling", task="forward+backward")
    return sorted((row.case["shape"][1], row.times[name].median) for row in rows if name in row.times)


def crossing(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float | None:
    """Where the first of two curves of (x, y), the greater at first, falls below the other for good; None if nowhere.

    Only the x that both have count; between them the curves are straight in their logarithms.
    """
    above = [(x, math.log(y / dict(other)[x])) for x, y in one if x in dict(other)]
    found = [_root(*pair) for pair in pairwise(above) if pair[0][1] >= 0 > pair[1][1]]
    return found[-1] if found and above[-1][1] < 0 else None


def _root(left: tuple[float, float], right: tuple[float, float]) -> float:
    (x, y), (next_x, next_y) = left, right
    return x * (next_x / x) ** (y / (y - next_y))
