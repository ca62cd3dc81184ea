import dataclasses
import gc

import pytest
import torch

from benchmarks import cases
from lada_kernels import backends

MISSING = backends.available()["cpu"].reason


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


@pytest.fixture(autouse=True, scope="module")
def little_to_collect():
    """Every race collects garbage first: what was imported is not to be gone through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
