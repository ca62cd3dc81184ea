import os

import pytest
import torch
from ptx import build as ptx

# Read when a kernel is decorated, so before anything imports one: without a GPU, Triton's kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without a GPU, the PTX of CUDA's kernels is executed, and compiled by the first test that runs one.
if not torch.cuda.is_available() and ptx.unavailable() is None:
    ptx.stand_in()


def pytest_addoption(parser):
    parser.addoption("--share", default="1/1", help="I/N: of the tests that are left, every N-th from the I-th on")


@pytest.hookimpl(trylast=True)  # once -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    first, every = map(int, config.getoption("share").split("/"))
    items[:] = items[first - 1 :: every]
