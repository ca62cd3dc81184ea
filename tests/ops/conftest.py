import pytest
import torch
from problems import DEVICES, FINEST, TARGETS, skip_interpreted_bfloat16

from lada_kernels import backends


@pytest.fixture(params=TARGETS)
def backend(request):
    """Run the test on this backend."""
    if request.node.callspec.params.get("dtype") == torch.float64 != FINEST[request.param]:
        pytest.skip(f"backend {request.param!r} has no float64")
    if any(value is torch.bfloat16 for value in request.node.callspec.params.values()):
        skip_interpreted_bfloat16(request.param)
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
def poison(monkeypatch):
    """Every tensor starts as NaN, so that an element that no kernel writes is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
