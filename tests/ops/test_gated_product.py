import pytest
import torch
from problems import (
    DTYPES,
    GATE,
    SHAPES,
    Problem,
    assert_accurate,
    doubles,
    judge,
    make_cotangents,
    make_inputs,
    noise,
    three_orders,
    true_orders,
)

from lada_kernels import gated_product


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(GATE, problem, dtype, device)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_propagates_and_stays_in_its_place(bad, backend, device):
    problem = Problem(2, 9, 17)
    inputs = make_inputs(GATE, problem, torch.float32, device)
    with torch.no_grad():
        inputs[1][1, 4, 16] = bad
    arguments = inputs, *make_cotangents(GATE, problem, inputs)
    truth = true_orders(GATE, *arguments)
    for label, result in three_orders(gated_product, *arguments).items():
        assert torch.equal(result.isfinite().cpu(), truth[label].isfinite()), label


def test_one_tensor_as_both_factors(finest, device):
    g, k, _ = make_inputs(GATE, Problem(2, 5, 6), finest, device)
    grad = noise(k.shape, 9, finest, device)
    got = torch.autograd.grad(gated_product(g, k, k), (g, k), grad)
    wide_g, wide_k = doubles([g, k])
    truth = torch.autograd.grad(GATE.truth(wide_g, wide_k, wide_k), (wide_g, wide_k), *doubles([grad]))
    for name, result, expected in zip("gk", got, truth, strict=True):
        assert_accurate(result.cpu(), expected, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factors_side_by_side(dtype, backend, device):
    inputs = make_inputs(GATE, Problem(3, 37, 24), dtype, device)
    grad, (cot_g, cot_k, cot_v) = make_cotangents(GATE, Problem(3, 37, 24), inputs)
    g, kv = inputs[0], torch.cat(inputs[1:], -1).detach().requires_grad_()

    def orders(attend):
        out = attend()
        firsts = torch.autograd.grad(out, (g, kv), grad, create_graph=True)
        seconds = torch.autograd.grad(firsts, (grad, g, kv), (cot_g, torch.cat((cot_k, cot_v), -1)))
        return out, *firsts, *seconds

    together, apart = orders(lambda: gated_product(g, kv)), orders(lambda: gated_product(g, *kv.chunk(2, -1)))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


G, K = torch.zeros(2, 6), torch.zeros(2, 5, 6)
REFUSED = {
    "k of two dimensions": ((G, K[0], K), ValueError, r"k: got shape \[5, 6\], expected \[B, N, D\]"),
    "no tokens": ((G, K[:, :0], K[:, :0]), ValueError, r"k: got shape \[2, 0, 6\], expected at least one token"),
    "integers": ((G, K.int(), K.int()), TypeError, r"k: got dtype torch.int32, expected float32"),
    "fewer tokens in v": ((G, K, K[:, :4]), ValueError, r"v: got shape \[2, 4, 6\], expected k's shape \[2, 5, 6\]"),
    "v in another dtype": ((G, K, K.half()), TypeError, r"v: got dtype torch.float16, expected k's dtype torch.float32"),
    "v elsewhere": ((G, K, K.to("meta")), ValueError, r"v: got device meta, expected k's device cpu"),
    "an odd k alone": ((G, K[..., :5]), ValueError, r"k: got shape \[2, 5, 5\], expected \[B, N, 2D\] as v is not given"),
    "g with tokens": ((K, K, K), ValueError, r"g: got shape \[2, 5, 6\], expected \[B, D\] = \[2, 6\]"),
    "g of another batch": ((G[:1], K, K), ValueError, r"g: got shape \[1, 6\], expected \[B, D\] = \[2, 6\]"),
    "integer g": ((G.long(), K, K), TypeError, r"g: got dtype torch.int64, expected torch.float32 beside k"),
    "half g": ((G.half(), K, K), TypeError, r"g: got dtype torch.float16, expected torch.float32 beside k in torch.float32"),
    "g elsewhere": ((G.to("meta"), K, K), ValueError, r"g: got device meta, expected k's device cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        gated_product(*arguments)
