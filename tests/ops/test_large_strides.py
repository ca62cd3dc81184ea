"""Offsets beyond 2^31 elements. The memory between is reserved, never touched."""

import pytest
import torch
from problems import OPS, Problem, judge_inputs, make_cotangents, make_inputs

FAR = 2**31 + 8  # elements; more than an int holds


@pytest.fixture
def unpoisoned(poison, monkeypatch):
    """Filling this much memory would commit it."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


def apart(x, dim):
    """x's values in a tensor whose stride along `dim` is FAR."""
    stride = [x.shape[2] * x.shape[1], x.shape[2], 1]
    stride[dim] = FAR
    buffer = torch.empty((x.shape[dim] - 1) * FAR + x.numel(), dtype=x.dtype, device=x.device)
    far = buffer.as_strided(x.shape, stride)
    far.copy_(x.detach())
    return far.requires_grad_()


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "token"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_strides_beyond_32_bits(op, dim, backend, device, unpoisoned):
    problem = Problem(2, 2, 24, 3)
    inputs = make_inputs(op, problem, torch.float16, device)
    grad, cotangents = make_cotangents(op, problem, inputs)
    inputs = [apart(x, dim) if kind == "tokens" else x for x, kind in zip(inputs, op.kinds, strict=True)]
    judge_inputs(op, inputs, grad, cotangents)
