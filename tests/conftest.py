import importlib.util
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


def _round_to_bfloat16() -> None:
    """Round to the nearest bfloat16, as devices do; Triton's interpreter drops the bits."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def rounded(values, source, target, rounding_mode):
        if (str(source), str(target)) == ("fp32", "bf16"):
            return torch.tensor(values).bfloat16().view(torch.uint16).numpy()
        return convert(values, source, target, rounding_mode)

    interpreter._convert_float = rounded


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    _round_to_bfloat16()


def pytest_addoption(parser):
    parser.addoption("--share", default="1/1", help="I/N: of the tests that are left, every N-th from the I-th on")


@pytest.hookimpl(trylast=True)  # once -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    first, every = map(int, config.getoption("share").split("/"))
    items[:] = items[first - 1 :: every]
