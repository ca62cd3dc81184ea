"""Run the suites and keep what they find: python -m benchmarks [--device cuda] [--only ops,attention].

On the CPU two threads; on a machine with more cores the rest stays idle. Needs torch and this repository alone.
"""

import argparse
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.cases import PLANS, Plan
from benchmarks.record import RESULTS, describe, file_of, save, start_record
from benchmarks.suites import ORDER, SUITES
from lada_kernels import available, info

THREADS = 2


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_backends(device: str, wanted: str | None) -> dict[str, str]:
    """What our contestants are called, and their backends: of those `wanted`, or of the device's, the ones that can run."""
    names = wanted.split(",") if wanted else ["cpu"] if device == "cpu" else ["cuda", "triton"]
    found = available()
    if unknown := [name for name in names if name not in found]:
        raise SystemExit(f"--backend: unknown backend {unknown[0]!r}, expected some of {','.join(found)}")
    for name in names:
        if not found[name]:
            print(f"backend {name!r} is left out: {found[name].reason}")
    names = [name for name in names if found[name]]
    if not names:
        raise SystemExit(f"there is no backend for {device}")
    return {"ours": names[0]} if len(names) == 1 else {name: name for name in names}


def make_plan(device: str, tiny: bool = False, backend: str | None = None, repeats: int | None = None) -> Plan:
    """The plan of the device's kind of machine; `repeats` instead of each suite's own."""
    plan = PLANS["tiny" if tiny else device](device)
    return dataclasses.replace(plan, backends=choose_backends(device, backend), repeats=repeats or plan.repeats)


def run(plan: Plan, suites: Sequence[str], out: Path, allocator: str = "the system's default") -> int:
    """Time everything, keeping each row as it comes; non-zero when a result of ours was wrong. `out`: a file or a folder."""
    if unknown := [name for name in suites if name not in SUITES]:
        raise SystemExit(f"--only: unknown suite {unknown[0]!r}, expected some of {','.join(SUITES)}")
    torch.set_num_threads(THREADS)
    # sys.argv[0] would tell where this checkout lies.
    record = start_record(shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), plan.device, allocator)
    out = file_of(record, out) if out.is_dir() else out
    print(f"{info.describe(record.machine)}\n\nallocator: {allocator}")
    for name in suites:
        print(f"\n{name}")
        try:
            for case in SUITES[name](plan):
                record.rows.append(case.row())
                print(describe(record.rows[-1]), flush=True)
                save(record, out)
            record.suites.append(name)
        finally:
            save(record, out)
    print(f"\nwritten to {out}")
    return int(any(row.refused for row in record.rows))


def add_options(add: Callable[..., Any]) -> None:
    """What every way to run the suites can be told; `add` takes what `ArgumentParser.add_argument` takes."""
    add("--device", choices=("cpu", "cuda"), help="where the tensors are (cuda where there is a GPU)")
    who = "who computes: one, or several against each other (cpu on the CPU, cuda,triton on a GPU)"
    add("--backend", help=f"{who}; attention over pairs of tokens, and the families, run where their ops are chosen to")
    add("--tiny", action="store_true", help="a rehearsal on the smallest sizes, whose times mean nothing")
    add("--repeats", type=int, help="readings of each contestant, at the most (each suite has its own)")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = "the JSON file to write, or its folder (benchmarks/results; a temporary one with --tiny)"
    parser.add_argument("--out", type=Path, help=where)
    orders = "; ".join(f"{device}: {','.join(names)}" for device, names in ORDER.items())
    parser.add_argument("--only", help=f"suites to run, in this order; the file will hold no others ({orders})")
    add_options(parser.add_argument)
    parser.add_argument(
        "--default-allocator", action="store_true", help="leave the CPU's allocator alone: fresh outputs with their page faults"
    )
    options = parser.parse_args()
    device = options.device or default_device()
    allocator = "the system's default, by request" if options.default_allocator else harness.keep_freed_memory()
    plan = make_plan(device, options.tiny, options.backend, options.repeats)
    suites = options.only.split(",") if options.only else ORDER["cuda" if options.tiny else device]
    # The times of a rehearsal are not to lie among results.
    return run(plan, suites, options.out or (Path(tempfile.mkdtemp()) if options.tiny else RESULTS), allocator)


if __name__ == "__main__":
    sys.exit(main())
