import math
from dataclasses import replace

import pytest
import torch
from problems import (
    ATTENTION,
    DTYPES,
    LONG,
    MASKS,
    SHAPES,
    Problem,
    assert_accurate,
    assert_orders,
    doubles,
    judge,
    judge_inputs,
    make_cotangents,
    make_inputs,
    noise,
    three_orders,
    true_orders,
)

from lada_kernels import additive_attention, additive_pool

FINE = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(ATTENTION, problem, dtype, device)


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, dtype, backend, device):
    judge(ATTENTION, replace(LONG, mask=mask), dtype, device)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.5])
def test_scale(scale, finest, device):
    judge(ATTENTION, Problem(2, 9, 12, 3, scale=scale), finest, device)


@pytest.mark.parametrize("dtype", FINE, ids=str)
def test_thirds_of_one_projection(dtype, backend, device):
    """As a module calls it: one tensor holds q, k and v, and takes their gradients together."""
    projection, w = noise((2, 9, 36), 0, dtype, device).requires_grad_(), noise((3, 12), 1, dtype, device).requires_grad_()
    grad = noise((2, 9, 12), 2, dtype, device).requires_grad_()
    cotangents = [noise(x.shape, 3, dtype, device) for x in (projection, w)]
    got = three_orders(lambda p, w: additive_attention(*p.chunk(3, -1), w), [projection, w], grad, cotangents)
    truth = three_orders(
        lambda p, w: ATTENTION.truth(*p.chunk(3, -1), w), doubles([projection, w]), *doubles([grad]), doubles(cotangents)
    )
    assert_orders(got, truth, [projection, w], roundings=2)  # gradients of the thirds are rounded, then joined


def test_one_tensor_as_q_k_and_v(finest, device):
    x, w = noise((2, 9, 12), 0, finest, device).requires_grad_(), noise((3, 12), 1, finest, device).requires_grad_()
    grad, cotangents = noise((2, 9, 12), 2, finest, device).requires_grad_(), [noise((2, 9, 12), 3, finest, device), w.detach()]
    got = three_orders(lambda x, w: additive_attention(x, x, x, w), [x, w], grad, cotangents)
    truth = three_orders(lambda x, w: ATTENTION.truth(x, x, x, w), doubles([x, w]), *doubles([grad]), doubles(cotangents))
    assert_orders(got, truth, [x, w])


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("mask", ["random", "first_row_masked", "all_masked"])
def test_what_masked_queries_hold_leaks_at_no_order(mask, dtype, backend, device):
    problem = replace(LONG, mask=mask)
    options = ATTENTION.options(problem, device)
    inputs = make_inputs(ATTENTION, problem, dtype, device)
    grad, cotangents = make_cotangents(ATTENTION, problem, inputs)
    with torch.no_grad():
        inputs[0][~options["mask"]] = math.nan
        cotangents[0][~options["mask"]] = math.nan
    judge_inputs(ATTENTION, inputs, grad, cotangents, **options)


@pytest.mark.parametrize("argument", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_propagates(bad, argument, backend, device):
    problem = Problem(3, 37, 24, 3)
    inputs = make_inputs(ATTENTION, problem, torch.float32, device)
    with torch.no_grad():
        inputs[ATTENTION.arguments.index(argument)][1, 17, 20] = bad
    arguments = inputs, *make_cotangents(ATTENTION, problem, inputs)
    truth = true_orders(ATTENTION, *arguments)
    for label, result in three_orders(additive_attention, *arguments).items():
        lost = ~truth[label].isfinite() & result.cpu().isfinite()
        assert not lost.any(), f"{label}: {int(lost.sum())} values are finite, the truth is not"
        if label not in ("first 3", "second 3"):
            for row in (0, 2):
                assert_accurate(result[row].cpu(), truth[label][row], label)


@pytest.mark.parametrize("mask", [None, "random"])
def test_weights_are_those_of_the_pool(mask, backend, device):
    problem = Problem(3, 37, 24, 3, mask=mask)
    q, k, v, w = make_inputs(ATTENTION, problem, torch.float32, device)
    options = ATTENTION.options(problem, device)
    out, alpha = additive_attention(q, k, v, w, return_weights=True, **options)
    assert torch.equal(out, additive_attention(q, k, v, w, **options))
    assert not alpha.requires_grad
    assert torch.equal(alpha, additive_pool(q, w, return_weights=True, **options)[1])


X, W = torch.zeros(2, 5, 6), torch.zeros(2, 6)
REFUSED = {
    "q of two dimensions": ((X[0], X, X, W), {}, ValueError, r"q: got shape \[5, 6\], expected \[B, N, D\]"),
    "no tokens": ((X[:, :0],) * 3 + (W,), {}, ValueError, r"q: got shape \[2, 0, 6\], expected at least one token"),
    "integers": ((X.long(), X, X, W), {}, TypeError, r"q: got dtype torch.int64, expected float32"),
    "fewer tokens in k": ((X, X[:, 1:], X, W), {}, ValueError, r"k: got shape \[2, 4, 6\], expected q's shape \[2, 5, 6\]"),
    "fewer channels in v": ((X, X, X[:, :, 1:], W), {}, ValueError, r"v: got shape \[2, 5, 5\], expected q's shape"),
    "k in another dtype": (
        (X, X.double(), X, W),
        {},
        TypeError,
        r"k: got dtype torch.float64, expected q's dtype torch.float32",
    ),
    "k elsewhere": ((X, X.to("meta"), X, W), {}, ValueError, r"k: got device meta, expected q's device cpu"),
    "weight elsewhere": ((X, X, X, W.to("meta")), {}, ValueError, r"score_weight: got device meta, expected q's device cpu"),
    "heads that do not divide": (
        (X, X, X, torch.zeros(4, 6)),
        {},
        ValueError,
        r"score_weight: got H = 4 heads, expected a div",
    ),
    "other channels": ((X, X, X, W[:, :5]), {}, ValueError, r"score_weight: got shape \[2, 5\], expected \[H, D\] = \[2, 6\]"),
    "integer mask": (
        (X, X, X, W),
        {"mask": torch.ones(2, 5).int()},
        TypeError,
        r"mask: got dtype torch.int32, expected torch.b",
    ),
    "short mask": ((X, X, X, W), {"mask": torch.ones(2, 4) > 0}, ValueError, r"mask: got shape \[2, 4\], expected \[B, N\] = "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        additive_attention(*arguments, **options)
