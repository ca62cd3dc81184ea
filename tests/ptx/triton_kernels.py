"""Triton's kernels, compiled to PTX and executed on the machine of this folder: python -m ptx.triton_kernels

It judges the ops of `problems` on the backend "triton", on CPU tensors, in a process in which nothing is interpreted. A line
of JSON at the end counts what was run.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read where a kernel is decorated
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")

import problems
import torch
import triton
from ops import test_gated_projection as projection
from ptx import build

from benchmarks import resources
from lada_kernels.backends import triton as backend
from lada_kernels.backends import use_backend
from lada_kernels.backends.triton import launch

FORMATS = {"i1": "?", "i32": "i", "i64": "q", "fp32": "f"}
# What the machine refuses: gated_projection's products on the tensor cores of sm_90 and sm_100.
REFUSED = ("wgmma", "tcgen05", "mbarrier", "fence.proxy")


class Kernels:
    """Stands for Triton's launcher: compiles for one architecture and runs what came of it."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.machine = build.load()
        self.machine.configure(**build.DEVICES[f"sm_{architecture}"], seed=0)
        self.compiled: dict[resources.Launch, tuple[Any, int]] = {}

    def hand_over(self, kernel: Any, grid: Sequence[int], args: Sequence[Any], warps: int, constants: dict[str, Any]) -> None:
        """As `launch.hand_over`."""
        wanted = resources.specialise(kernel, args, warps, constants)
        if wanted not in self.compiled:
            binary = resources.compiled(wanted, self.architecture)
            self.compiled[wanted] = self.machine.Module(binary.asm["ptx"]), binary.metadata.shared
        module, shared = self.compiled[wanted]
        values = dict(zip(kernel.arg_names, args, strict=False))
        passed = [(kind, values[name]) for name, kind in wanted.signature if kind != "constexpr"]
        (name,) = module.kernels()
        parameters = bytearray()
        for (kind, value), (_, place, _) in zip(passed, module.parameters(name), strict=False):  # what is left is scratch: none
            parameters += bytes(place - len(parameters))
            parameters += struct.pack("P" if kind[0] == "*" else FORMATS[kind], value.data_ptr() if kind[0] == "*" else value)
        build.storages.hand_over(self.machine)
        module.launch(name, (*grid, 1, 1)[:3], 32 * warps, shared, bytes(parameters))
        build.storages.launched()


@functools.cache
def without_machine_code() -> None:
    """Have Triton stop at PTX, where it can be told to: nothing here runs a cubin."""

    def change(backend: Any = None, stages: Any = None, *_: Any) -> Any:
        if stages is None:
            return "PTX alone", "PTX alone"
        stages["cubin"] = lambda ptx, metadata: b""
        return None

    knobs = getattr(getattr(triton, "knobs", None), "runtime", None)
    if hasattr(knobs, "add_stages_inspection_hook"):
        knobs.add_stages_inspection_hook = change


def stand_in(architecture: int) -> Kernels:
    """Put executed PTX in the place of Triton's launcher: the backend "triton" computes on CPU tensors."""
    without_machine_code()
    kernels = Kernels(architecture)
    build.storages.watch()
    launch.hand_over = kernels.hand_over
    launch.device_type, launch.why_no_device = lambda: "cpu", lambda: None
    backend.unavailable.cache_clear()  # `problems` has asked
    return kernels


def table(whole: bool) -> list[tuple[problems.Op, problems.Problem]]:
    """Every op on every problem, or on those that show most in least time."""
    few = [problems.SHAPES[i] for i in (0, 4, 8)]
    # The second: threads that hold the same sum of many chunks once differed in its last bit.
    pooled = [problems.Problem(2, 33, 24, 3, per_head=False, mask="random"), problems.Problem(1, 253, 64, 4)]
    if whole:
        few = list(problems.SHAPES)
        pooled += [problems.Problem(1, 40, 256, 8, per_head=False), problems.Problem(2, 11, 6, 9, per_head=False)]
        few += [problems.Problem(3, 37, 24, 3, mask=mask) for mask in problems.MASKS]
    return [*itertools.product(problems.OPS, few), *((problems.POOL, problem) for problem in pooled)]


def main() -> int:
    """Judge, print what was wrong, and count."""
    parser = argparse.ArgumentParser(prog="python -m ptx.triton_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, default=90, choices=(80, 90, 100))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--whole", action="store_true", help="the whole table of problems")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    kernels = stand_in(options.architecture)
    wrong, counts, refused = [], collections.Counter(), collections.Counter()

    def judge(name: str, what: str, run: Callable[[], None]) -> None:
        try:
            run()
            counts[name] += 1
        except Exception as error:  # an assertion of the judge's, or an error of the machine's
            if "unknown instruction" in str(error) and any(word in str(error) for word in REFUSED):
                refused[name] += 1
                print(f"refused: {what} {name}: {error}")
            else:
                wrong.append(f"{what} {name}: {type(error).__name__}: {error}")

    with use_backend("triton"):
        for name in options.dtypes:
            dtype = getattr(torch, name)
            for op, problem in table(options.whole):
                judge(name, f"{op} {problem}", functools.partial(problems.judge, op, problem, dtype))
            for sizes in projection.SIZES if options.whole else (projection.PLAIN, projection.ODD, projection.WIDEST):
                inputs = projection.make_inputs(sizes, dtype, "cpu")
                cotangents = projection.make_cotangents(sizes, inputs)
                judge(name, f"gated_projection {sizes}", functools.partial(projection.judge, inputs, *cotangents))
    print(*wrong, sep="\n")
    launches = sum(kernels.machine.launched().values())
    found = {"triton": triton.__version__, "architecture": options.architecture, "kernels": len(kernels.compiled)}
    print(json.dumps(found | {"launches": launches, "problems": counts, "refused": refused, "wrong": len(wrong)}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
