"""Judge every op, order and dtype of a backend in a minute: python -m gpu.smoke [--backend cuda] [--op gated_product] ...

A kernel that reads where there is nothing takes its process with it, so `make gpu STAGES=smoke` runs each backend, op and
dtype in one of its own. Each order is judged on all problems before the next begins.
"""

import argparse
import functools
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import conftest  # noqa: F401  without a GPU, kernels are interpreted and PTX is executed
import torch
from ops import test_gated_projection as projection
from problems import (
    DEVICES,
    HALVES,
    OPS,
    Problem,
    doubles,
    each_order,
    make_cotangents,
    make_inputs,
    poisoned,
    three_orders,
    true_orders,
    worst_error,
)
from torch import Tensor

from benchmarks import verdicts
from lada_kernels import available, gated_projection, use_backend

# On a GPU's many processors, rows of several tiles: batch elements of a cluster of blocks each; of more blocks, whose parts
# a second kernel brings together; and, for the pool alone, whole tokens.
PROBLEMS = (
    Problem(16, 1031, 64, 4),
    Problem(4, 4099, 256, 8, mask="random"),
    Problem(2, 2051, 128, 4, per_head=False),
)
# Where kernels are interpreted.
SMALL = (Problem(2, 33, 32, 4), Problem(1, 19, 32, 8, mask="random"), Problem(1, 19, 32, 8, per_head=False))


@dataclass(frozen=True)
class Case:
    """One problem of one op: what computes it, on what, the truth, and what the judge allows for each result."""

    function: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    grad: Tensor
    cotangents: Sequence[Tensor]
    truth: dict[str, Tensor]
    bounds: Callable[[str], dict[str, Any]]

    def worst_of(self, order: str) -> float:
        """The largest error of an order's results, in units of its bound."""
        steps = each_order(self.function, self.inputs, self.grad, self.cotangents)
        results = next(itertools.islice(steps, list(verdicts.ORDERS).index(order), None))
        return max(
            worst_error(result.to("cpu", self.grad.dtype), self.truth[label], **self.bounds(label))
            for label, result in results.items()
        )


def cases(name: str, dtype: torch.dtype, device: str, small: bool) -> Iterator[Case]:
    """An op's problems, with their truth."""
    for problem in SMALL if small else PROBLEMS:
        if not (problem.per_head or name == "additive_pool"):
            continue
        if name == "gated_projection":
            yield projected(problem, dtype, device)
            continue
        op = next(op for op in OPS if op.name == name)
        inputs, options = make_inputs(op, problem, dtype, device), op.options(problem, device)
        cotangents = make_cotangents(op, problem, inputs)
        bounds = {"condition": op.condition(inputs, **options)}
        truth = true_orders(op, inputs, *cotangents, **options)
        yield Case(functools.partial(op, **options), inputs, *cotangents, truth, lambda label, bounds=bounds: bounds)


def projected(problem: Problem, dtype: torch.dtype, device: str) -> Case:
    """A projection to as many channels as come in, and one back."""
    sizes = projection.Sizes(problem.batch, problem.tokens, problem.channels, problem.channels, problem.channels)
    inputs = projection.make_inputs(sizes, dtype, device)
    cotangents = projection.make_cotangents(sizes, inputs)
    truth = three_orders(
        projection.by_name(projection.truth, inputs),
        doubles(list(inputs.values())),
        *doubles(cotangents[:1]),
        doubles(cotangents[1]),
    )
    rounded = projection.ROUNDINGS if dtype in HALVES else dict.fromkeys(projection.ROUNDINGS, 1)
    return Case(
        projection.by_name(gated_projection, inputs),
        list(inputs.values()),
        *cotangents,
        truth,
        lambda label: {"roundings": rounded[label.split()[0]]},
    )


def judge(backend: str, name: str, dtype: str, small: bool) -> bool:
    """Print a verdict on each order; False when one is wrong."""
    device, right = DEVICES[backend], True
    every = list(cases(name, getattr(torch, dtype), device, small))
    for order in verdicts.ORDERS:
        try:
            found: float | str = max(case.worst_of(order) for case in every)
        except Exception as error:
            traceback.print_exc()
            found = type(error).__name__
        print(verdicts.line((backend, name, dtype, order), found), flush=True)
        right &= verdicts.is_right(found)
        if isinstance(found, str) and device == "cuda":
            torch.cuda.synchronize()  # raises where no kernel can run any more: the rest is not run
    return right


def why_not(backend: str, dtype: str) -> str | None:
    """None where a dtype can be judged on a backend; Triton's interpreter truncates bfloat16, which tests/ptx judges."""
    truncated = (backend, DEVICES[backend], dtype) == ("triton", "cpu", "bfloat16")
    return available()[backend].reason or ("truncated" if truncated else None)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpu.smoke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("BACKENDS", "OPS", "DTYPES"):
        parser.add_argument(
            f"--{name.lower()[:-1]}", nargs="*", choices=getattr(verdicts, name), default=getattr(verdicts, name)
        )
    parser.add_argument("--dry", action="store_true", help="the smallest sizes; what cannot be judged is no failure")
    options = parser.parse_args()
    right = True
    for place in verdicts.places():
        backend, op, dtype, order = place
        if backend not in options.backend or op not in options.op or dtype not in options.dtype:
            continue
        if reason := why_not(backend, dtype):
            print(verdicts.line(place, reason))
            right &= options.dry
        elif order == "forward":
            with use_backend(backend), poisoned():
                right &= judge(backend, op, dtype, options.dry)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
