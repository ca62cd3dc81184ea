import pytest
import torch
from problems import DEVICES, FINEST, TARGETS, poisoned, skip_interpreted

from lada_kernels import backends


@pytest.fixture(params=TARGETS)
def backend(request):
    """Run the test on this backend."""
    if request.node.callspec.params.get("dtype") == torch.float64 != FINEST[request.param]:
        pytest.skip(f"backend {request.param!r} has no float64")
    for value in request.node.callspec.params.values():
        if isinstance(value, torch.dtype):
            skip_interpreted(request.param, value)
    with backends.use_backend(request.param):
        yield request.param


@pytest.fixture
def finest(backend):
    """The most accurate dtype that the backend computes in."""
    return FINEST[backend]


@pytest.fixture
def for_gradcheck(finest, backend):
    """What gradcheck and gradgradcheck want of a backend."""
    if finest != torch.float64:
        pytest.skip(f"gradcheck takes float64, which backend {backend!r} has not")


@pytest.fixture
def device(backend):
    return DEVICES[backend]


@pytest.fixture(autouse=True)
def poison():
    with poisoned():
        yield
