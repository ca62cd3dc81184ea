import pytest
from problems import DTYPES, GATE, SHAPES, judge


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(GATE, problem, dtype, device)
