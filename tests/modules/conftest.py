import pytest

from lada_kernels import backends


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Run the test on this backend."""
    with backends.use_backend(request.param):
        yield request.param
