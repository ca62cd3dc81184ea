import dataclasses

import pytest
import torch

from benchmarks import cases
from lada_kernels import backends

MISSING = backends.available()["cpu"]


@pytest.fixture
def plan():
    if MISSING:
        pytest.skip(f"backend 'cpu': {MISSING}")
    return cases.tiny_plan("cpu")


@pytest.fixture
def two(plan):
    return dataclasses.replace(plan, backends={"cpu": "cpu", "reference": "reference"})


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
