"""A small run of every CUDA kernel, held against the truth, for a sanitizer to watch: python -m benchmarks.sanitized."""

import sys

import torch

from benchmarks.cases import DTYPES, OPS, ORDERS, TOLERANCES, Op, Shape
from benchmarks.harness import worst_error
from benchmarks.orders import at_order, make_cotangents, make_inputs, truth_of
from lada_kernels import use_backend
from lada_kernels.backends.cuda import launch

# By 16 bytes at a time and by elements: batch elements of a few blocks each, which are a cluster where there are clusters, and
# one of many, whose parts a second kernel brings together; many heads.
SHAPES = ((2, 300, 64, 4), (1, 5000, 64, 4), (2, 299, 15, 3), (1, 4999, 33, 3), (2, 65, 48, 16))


def check(op: Op, shape: Shape, dtype: torch.dtype) -> float:
    """The largest error of all orders, in tolerances; torch itself computes on the CPU, so that others' kernels are few."""
    torch.manual_seed(0)
    inputs = make_inputs(op.inputs, shape, dtype)
    grad, cotangents = make_cotangents(op, inputs)
    placed = [x.detach().to(launch.DEVICE).requires_grad_() for x in (grad, *inputs)]
    placed_cotangents = [x.to(launch.DEVICE) for x in cotangents]
    worst = 0.0
    for order in ORDERS:
        results = at_order(order, op.ours, placed[1:], placed[0], placed_cotangents)()
        truth = truth_of(op, order, inputs, grad, cotangents)
        worst = max(worst, worst_error([None if x is None else x.cpu() for x in results], truth) / TOLERANCES[dtype])
    return worst


def main() -> int:
    wrong = 0
    with use_backend("cuda"):
        for shape in SHAPES:
            for dtype in DTYPES:
                for name, op in OPS.items():
                    error = check(op, shape, dtype)
                    print(f"{name:<28} {'x'.join(map(str, shape)):<14} {dtype}: error of {error:.2g} tolerances", flush=True)
                    wrong += not error <= 1
    print(f"{wrong} wrong results" if wrong else "every result is right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
