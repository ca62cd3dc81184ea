import pytest
import torch
from problems import (
    DTYPES,
    NORM,
    SHAPES,
    Problem,
    assert_accurate,
    doubles,
    judge,
    judge_inputs,
    make_cotangents,
    make_inputs,
    noise,
    three_orders,
    true_orders,
)

from lada_kernels import modulated_layer_norm

FINE = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(NORM, problem, dtype, device)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
def test_eps(eps, finest, device):
    inputs = make_inputs(NORM, Problem(2, 5, 12), finest, device)
    judge_inputs(NORM, inputs, *make_cotangents(NORM, Problem(2, 5, 12), inputs), eps=eps)


def test_default_eps(finest, device):
    x, gamma, beta = make_inputs(NORM, Problem(2, 5, 12), finest, device)
    assert torch.equal(modulated_layer_norm(x, gamma, beta), modulated_layer_norm(x, gamma, beta, 1e-6))


def test_is_torchs_layer_norm(backend, device):
    x, gamma, beta = make_inputs(NORM, Problem(1, 7, 12), torch.float32, device)
    expected = torch.nn.functional.layer_norm(x, (12,), gamma[0], beta[0], 1e-6)
    torch.testing.assert_close(modulated_layer_norm(x, gamma, beta), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [100.0, 3000.0])
def test_mean_far_above_the_deviation(offset, backend, device):
    """Squares minus the squared mean would lose every digit here: the variance has to be that of centred values."""
    problem = Problem(2, 9, 100)
    inputs = make_inputs(NORM, problem, torch.float32, device)
    with torch.no_grad():
        inputs[0] += offset
    judge_inputs(NORM, inputs, *make_cotangents(NORM, problem, inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_squares_beyond_half_precision(dtype, backend, device):
    problem = Problem(2, 9, 64)
    x, gamma, beta = make_inputs(NORM, problem, dtype, device)
    with torch.no_grad():
        x *= 10_000  # 10^8 is no float16
    assert_accurate(
        modulated_layer_norm(x, gamma, beta).cpu(), NORM.truth(x.cpu().double(), gamma.cpu().double(), beta.cpu().double())
    )


@pytest.mark.parametrize("dtype", FINE, ids=str)
def test_constant_tokens(dtype, backend, device):
    """No variance: y = beta exactly where the constant's mean is exact, and the gradients stay finite."""
    problem = Problem(2, 4, 16)
    inputs = make_inputs(NORM, problem, dtype, device)
    with torch.no_grad():
        inputs[0].fill_(3.0)
    results = three_orders(modulated_layer_norm, inputs, *make_cotangents(NORM, problem, inputs))
    assert torch.equal(results["value"], inputs[2][:, None].expand(2, 4, 16).to(dtype))
    assert all(result.isfinite().all() for result in results.values())
    assert (results["first 1"] == 0).all()


def test_one_affine_for_all(finest, device):
    """gamma and beta of a plain LayerNorm, expanded over the batch, take the sum of the gradients."""
    inputs = [noise(shape, seed, finest, device).requires_grad_() for seed, shape in enumerate(((3, 5, 8), (8,), (8,)))]
    grad = noise((3, 5, 8), 3, finest, device)
    x, gamma, beta = inputs
    got = torch.autograd.grad(modulated_layer_norm(x, gamma.expand(3, 8), beta.expand(3, 8)), inputs, grad)
    wide = doubles(inputs)
    expected = torch.autograd.grad(torch.nn.functional.layer_norm(wide[0], (8,), *wide[1:], 1e-6), wide, *doubles([grad]))
    for name, result, truth in zip(NORM.arguments, got, expected, strict=True):
        assert_accurate(result.cpu(), truth, name)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_token(bad, backend, device):
    problem = Problem(2, 9, 17)
    inputs = make_inputs(NORM, problem, torch.float32, device)
    with torch.no_grad():
        inputs[0][1, 4, 16] = bad
    arguments = inputs, *make_cotangents(NORM, problem, inputs)
    truth = true_orders(NORM, *arguments)
    for label, result in three_orders(modulated_layer_norm, *arguments).items():
        lost = ~truth[label].isfinite() & result.cpu().isfinite()
        assert not lost.any(), f"{label}: {int(lost.sum())} values are finite, the truth is not"
        assert result[0].isfinite().all(), label
        if result.dim() == 3:
            assert result[1, torch.arange(9) != 4].isfinite().all(), label


X, G = torch.zeros(2, 5, 6), torch.zeros(2, 6)
REFUSED = {
    "two dimensions": ((X[0], G, G), ValueError, r"x: got shape \[5, 6\], expected \[B, N, D\]"),
    "no tokens": ((X[:, :0], G, G), ValueError, r"x: got shape \[2, 0, 6\], expected at least one token"),
    "integers": ((X.int(), G, G), TypeError, r"x: got dtype torch.int32, expected float32"),
    "gamma of one dimension": ((X, G[0], G), ValueError, r"gamma: got shape \[6\], expected \[B, D\] = \[2, 6\]"),
    "beta of another batch": ((X, G, G[:1]), ValueError, r"beta: got shape \[1, 6\], expected \[B, D\] = \[2, 6\]"),
    "integer gamma": ((X, G.int(), G), TypeError, r"gamma: got dtype torch.int32, expected torch.float32 beside x"),
    "beta wider than gamma": (
        (X.half(), G.half(), G),
        TypeError,
        r"beta: got dtype torch.float32, expected gamma's dtype torch.fl",
    ),
    "gamma elsewhere": ((X, G.to("meta"), G), ValueError, r"gamma: got device meta, expected x's device cpu"),
    "beta elsewhere": ((X, G, G.to("meta")), ValueError, r"beta: got device meta, expected x's device cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        modulated_layer_norm(*arguments)
