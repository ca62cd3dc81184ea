"""The CPU kernels give the same bits for a number of threads, and the same numbers for any."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from problems import OPS, Problem, assert_orders, cancelling, make_cotangents, make_inputs, three_orders, true_orders

from lada_kernels import available, use_backend

pytestmark = pytest.mark.skipif(not available()["cpu"], reason=f"backend 'cpu': {available()['cpu']}")

# One batch element, whose tokens the threads share; and batch elements that they do not divide.
PROBLEMS = (Problem(1, 2053, 40, 8), Problem(5, 131, 24, 3), Problem(3, 1, 16, 4), Problem(1, 3, 8, 2))
each_op = pytest.mark.parametrize("op", OPS, ids=str)
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


@pytest.fixture(autouse=True)
def restore():
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        yield
    torch.set_num_threads(threads)


def arguments(op, problem, dtype=torch.float32):
    inputs = make_inputs(op, problem, dtype)
    return inputs, *make_cotangents(op, problem, inputs)


@pytest.mark.parametrize("threads", [1, 2, 3])
@each_problem
@each_op
def test_bit_for_bit_repeatable(op, problem, threads):
    torch.set_num_threads(threads)
    args = arguments(op, problem)
    first = three_orders(op, *args)
    for _ in range(5):
        for label, result in three_orders(op, *args).items():
            assert torch.equal(result, first[label]), label


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@each_problem
@each_op
def test_accurate_with_any_number_of_threads(op, problem, threads):
    torch.set_num_threads(threads)
    args = arguments(op, problem)
    bounds = {"condition": op.condition(args[0]), "floor": cancelling(op, problem)}
    assert_orders(three_orders(op, *args), true_orders(op, *args), args[0], **bounds)


@each_op
def test_concurrent_calls_do_not_meet(op):
    """Several Python threads at once: no scratch memory may be shared between calls."""
    problem = Problem(2, 333, 40, 8)
    calls = [[x.detach().mul(i + 1).requires_grad_() for x in arguments(op, problem)[0]] for i in range(4)]
    grad, cotangents = make_cotangents(op, problem, calls[0])
    one = partial(three_orders, op, grad=grad, cotangents=cotangents)
    alone = [one(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for expected, got in zip(alone, pool.map(one, calls), strict=True):
                for label, result in got.items():
                    assert torch.equal(result, expected[label]), label
