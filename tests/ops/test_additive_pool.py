import math
from dataclasses import replace

import pytest
import torch
from problems import (
    DTYPES,
    HALVES,
    LONG,
    MASKS,
    POOL,
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

from lada_kernels import additive_pool

FINE = (torch.float64, torch.float32, torch.bfloat16)
WHOLE = (
    Problem(3, 37, 24, 3, per_head=False),
    Problem(2, 11, 6, 9, per_head=False),  # more heads than channels, and no divisor of them
    Problem(1, 1031, 16, 8, per_head=False),
    Problem(2, 9, 257, 2, per_head=False),
    Problem(0, 4, 8, 3, per_head=False),
    Problem(1, 125, 64, 4, per_head=False),  # several tiles of tokens, as in SHAPES
    Problem(1, 15, 1024, 8, per_head=False),
    Problem(1, 253, 48, 16, per_head=False),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", SHAPES + WHOLE, ids=str)
def test_orders(problem, dtype, backend, device):
    judge(POOL, problem, dtype, device)


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, per_head, dtype, backend, device):
    judge(POOL, replace(LONG, per_head=per_head, mask=mask), dtype, device)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.5])
def test_scale(scale, finest, device):
    judge(POOL, Problem(2, 9, 12, 3, scale=scale), finest, device)


def test_default_scale(finest, device):
    x, w = make_inputs(POOL, Problem(2, 5, 12, 3), finest, device)
    assert torch.equal(additive_pool(x, w), additive_pool(x, w, scale=4**-0.5))
    assert torch.equal(additive_pool(x, w, per_head=False), additive_pool(x, w, per_head=False, scale=4**-0.5))


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("per_head", [True, False])
def test_all_masked_rows_are_zero_with_zero_gradients(per_head, dtype, backend, device):
    problem = Problem(3, 5, 8, 2, per_head=per_head, mask="first_row_masked")
    inputs = make_inputs(POOL, problem, dtype, device)
    results = three_orders(
        lambda *x: additive_pool(*x, **POOL.options(problem, device)), inputs, *make_cotangents(POOL, problem, inputs)
    )
    for label in ("value", "first 0", "second of grad", "second 0"):
        assert (results[label][0] == 0).all(), label
        assert (results[label][1:] != 0).any(), label


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("mask", ["random", "first_row_masked", "all_masked"])
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_masked_tokens_hold_leaks_at_no_order(junk, mask, per_head, dtype, backend, device):
    problem = replace(LONG, per_head=per_head, mask=mask)
    options = POOL.options(problem, device)
    x, w = make_inputs(POOL, problem, dtype, device)
    grad, (cot_x, cot_w) = make_cotangents(POOL, problem, [x, w])
    with torch.no_grad():
        x[~options["mask"]] = junk
        cot_x[~options["mask"]] = junk
    judge_inputs(POOL, [x, w], grad, [cot_x, cot_w], **options)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("where", [(0, 0), (17, 20), (36, 23)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_live_tokens_propagates(bad, where, per_head, backend, device):
    problem = Problem(3, 37, 24, 3, per_head=per_head)
    inputs = make_inputs(POOL, problem, torch.float32, device)
    with torch.no_grad():
        inputs[0][1, where[0], where[1]] = bad
    arguments = inputs, *make_cotangents(POOL, problem, inputs)
    got = three_orders(lambda *x: additive_pool(*x, per_head=per_head), *arguments)
    truth = true_orders(POOL, *arguments, per_head=per_head)
    for label, result in got.items():
        lost = ~truth[label].isfinite() & result.cpu().isfinite()
        assert not lost.any(), f"{label}: {int(lost.sum())} values are finite, the truth is not"
        if label not in ("first 1", "second 1"):
            for row in (0, 2):  # the other batch elements know nothing of it
                assert_accurate(result[row].cpu(), truth[label][row], label)


def exact_large_logits(tops, dtype, device):
    """Small integers whose scores are exact in every dtype: near `tops` (about ±10^4), some units apart."""
    x = torch.arange(2 * 33 * 8).mul(37).remainder(7).sub(3).view(2, 33, 8).to(dtype)
    w = torch.arange(2 * 8).mul(5).remainder(3).sub(1).view(2, 8).to(dtype)
    x[:, :, 0] = 64
    w[:, 0] = torch.tensor(tops, dtype=dtype)
    return [x.to(device).requires_grad_(), w.to(device).requires_grad_()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tops", [(160.0, 160.0), (-160.0, -160.0), (160.0, -160.0)])
def test_large_logits(tops, dtype, backend, device):
    inputs = exact_large_logits(tops, dtype, device)
    assert abs(POOL.condition(inputs, scale=1.0) - 64 * 160) < 32
    grad, cotangents = make_cotangents(POOL, Problem(2, 33, 8, 2), inputs)
    judge_inputs(POOL, inputs, grad, cotangents, scale=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_far_apart_pick_one_token(dtype, backend, device):
    """Scores from -10^4 to 10^4: exp overflows and underflows without care."""
    x = torch.zeros(1, 9, 4, dtype=dtype)
    x[0, :, 0] = torch.arange(-4, 5)
    x[0, :, 1] = torch.arange(9)
    w = torch.tensor([[2500.0, 0, 0, 0], [-2500.0, 0, 0, 0]], dtype=dtype)
    pooled = additive_pool(x.to(device), w.to(device), scale=1.0, per_head=False)
    assert pooled.tolist() == [[[4.0, 8.0, 0.0, 0.0], [-4.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", [None, "random", "first_row_masked"])
def test_weights(mask, dtype, backend, device):
    problem = Problem(3, 37, 24, 3, mask=mask)
    x, w = make_inputs(POOL, problem, dtype, device)
    options = POOL.options(problem, device)
    pooled, alpha = additive_pool(x, w, return_weights=True, **options)
    assert torch.equal(pooled, additive_pool(x, w, **options))
    assert alpha.shape == (3, 3, 37)
    assert alpha.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not alpha.requires_grad
    wide_x, wide_w = doubles([x, w])
    scores = (wide_x @ wide_w.T * 8**-0.5).mT  # [B, H, N]
    live = torch.ones(3, 37, dtype=torch.bool) if mask is None else options["mask"].cpu()
    truth = scores.masked_fill(~live[:, None], -math.inf).softmax(-1).nan_to_num()
    assert_accurate(alpha.cpu(), truth, condition=POOL.condition([x, w]))
    assert (alpha.cpu()[~live[:, None].expand_as(alpha)] == 0).all()
    sums = live.any(1).double()[:, None].expand(3, 3)
    torch.testing.assert_close(alpha.cpu().double().sum(-1), sums, rtol=0, atol=1e-5)


def test_weights_with_gradients(finest, device):
    x, w = make_inputs(POOL, Problem(2, 5, 6, 2), finest, device)
    grad = noise((2, 2, 3), 5, finest, device)
    pooled, _ = additive_pool(x, w, return_weights=True)
    expected = torch.autograd.grad(additive_pool(x, w), (x, w), grad)
    for got, want in zip(torch.autograd.grad(pooled, (x, w), grad), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("mask", [None, "random"])
def test_float32_weight_beside_half_tokens(mask, dtype, backend, device):
    judge(POOL, replace(LONG, mask=mask, per_head=False), dtype, device, wide_parameters=True)


def test_mask_in_any_layout(finest, device):
    problem = Problem(4, 10, 8, 2)
    x, w = make_inputs(POOL, problem, finest, device)
    mask = MASKS["random"](4, 10).to(device)
    expected = additive_pool(x, w, mask=mask)
    assert torch.equal(additive_pool(x, w, mask=mask.T.contiguous().T), expected)
    assert torch.equal(additive_pool(x, w, mask=mask.repeat_interleave(2, 1)[:, ::2]), expected)
    expanded = mask[:1].expand(4, 10)
    assert torch.equal(additive_pool(x, w, mask=expanded), additive_pool(x, w, mask=expanded.contiguous()))


X, W = torch.zeros(2, 5, 6), torch.zeros(2, 6)
REFUSED = {
    "two dimensions": ((X[0], W), {}, ValueError, r"x: got shape \[5, 6\], expected \[B, N, D\]"),
    "no tokens": ((X[:, :0], W), {}, ValueError, r"x: got shape \[2, 0, 6\], expected at least one token"),
    "no channels": (
        (X[:, :, :0], W[:, :0]),
        {},
        ValueError,
        r"x: got shape \[2, 5, 0\], expected at least one token and one channel",
    ),
    "integers": ((X.long(), W), {}, TypeError, r"x: got dtype torch.int64, expected float32, bfloat16, float16 or float64"),
    "complex": ((X.to(torch.complex64), W), {}, TypeError, r"x: got dtype torch.complex64, expected float32"),
    "weight of one dimension": ((X, W[0]), {}, ValueError, r"score_weight: got shape \[6\], expected \[H, D\] with D = 6"),
    "no heads": ((X, W[:0]), {}, ValueError, r"score_weight: got shape \[0, 6\], expected \[H, D\] with D = 6 and H > 0"),
    "other channels": ((X, W[:, :5]), {}, ValueError, r"score_weight: got shape \[2, 5\], expected \[H, D\] = \[2, 6\]"),
    "heads that do not divide": (
        (X, torch.zeros(4, 6)),
        {},
        ValueError,
        r"score_weight: got H = 4 heads, expected a divisor of D",
    ),
    "integer weight": ((X, W.int()), {}, TypeError, r"score_weight: got dtype torch.int32, expected torch.float32 beside x"),
    "wider weight": ((X, W.double()), {}, TypeError, r"score_weight: got dtype torch.float64, expected torch.float32 beside x"),
    "other half": (
        (X.half(), W.bfloat16()),
        {},
        TypeError,
        r"expected torch.float16 or torch.float32 beside x in",
    ),
    "weight elsewhere": ((X, W.to("meta")), {}, ValueError, r"score_weight: got device meta, expected x's device cpu"),
    "float mask": ((X, W), {"mask": torch.ones(2, 5)}, TypeError, r"mask: got dtype torch.float32, expected torch.bool"),
    "transposed mask": (
        (X, W),
        {"mask": torch.ones(5, 2, dtype=torch.bool)},
        ValueError,
        r"mask: got shape \[5, 2\], expected \[B, N\] = \[2, 5\]",
    ),
    "mask elsewhere": (
        (X, W),
        {"mask": torch.ones(2, 5, dtype=torch.bool, device="meta")},
        ValueError,
        r"mask: got device meta, expected x's device cpu",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        additive_pool(*arguments, **options)
