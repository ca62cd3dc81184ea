import pytest
from problems import ATTENTION, DTYPES, SHAPES, judge


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(ATTENTION, problem, dtype, device)
