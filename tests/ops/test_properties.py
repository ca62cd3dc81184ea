"""What holds for any input, searched for counter-examples."""

import pytest
import torch
from problems import ATTENTION, NORM, POOL, Problem, assert_accurate, cancelling, make_inputs, noise

from lada_kernels import additive_attention, additive_pool, gated_product, modulated_layer_norm

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
given, st = hypothesis.given, hypothesis.strategies

# The backend fixture is meant to stay the same over the examples of one test.
search = hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@st.composite
def problems(draw):
    heads = draw(st.integers(1, 5))
    return Problem(draw(st.integers(1, 4)), draw(st.integers(1, 70)), heads * draw(st.integers(1, 20)), heads)


def assert_close(got, expected, *, rtol=1e-11, atol=1e-12, **bounds):
    """Equal but for roundoff, which both have; `rtol` and `atol` are for float64."""
    assert_accurate(got.cpu(), expected.detach().cpu(), roundings=2, **bounds)
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@search
@given(problem=problems(), per_head=st.booleans())
def test_pool_ignores_the_order_of_tokens(finest, device, problem, per_head):
    x, w = make_inputs(POOL, problem, finest, device)
    order = torch.randperm(problem.tokens, generator=torch.Generator().manual_seed(0)).to(device)
    pooled, alpha = additive_pool(x, w, per_head=per_head, return_weights=True)
    shuffled, shuffled_alpha = additive_pool(x[:, order], w, per_head=per_head, return_weights=True)
    condition = POOL.condition([x, w])
    assert_close(shuffled, pooled, condition=condition)
    assert_close(shuffled_alpha, alpha[:, :, order], condition=condition)


@search
@given(problem=problems())
def test_attention_follows_the_order_of_tokens(finest, device, problem):
    q, k, v, w = make_inputs(ATTENTION, problem, finest, device)
    order = torch.randperm(problem.tokens, generator=torch.Generator().manual_seed(0)).to(device)
    shuffled, result = additive_attention(q[:, order], k[:, order], v[:, order], w), additive_attention(q, k, v, w)
    assert_close(shuffled, result[:, order], condition=ATTENTION.condition([q, w]))


@search
@given(problem=problems(), masked=st.booleans())
def test_attention_is_its_two_parts(finest, device, problem, masked):
    q, k, v, w = inputs = make_inputs(ATTENTION, problem, finest, device)
    mask = noise((problem.batch, problem.tokens), 7, finest, device) > 0 if masked else None
    whole = additive_attention(q, k, v, w, mask=mask)
    parts = gated_product(additive_pool(q, w, mask=mask).flatten(1), k, v)
    bounds = {"condition": ATTENTION.condition(inputs)}
    assert_close(whole, parts, **bounds)
    grad = noise(whole.shape, 8, finest, device)
    for got, expected in zip(torch.autograd.grad(whole, inputs, grad), torch.autograd.grad(parts, inputs, grad), strict=True):
        assert_close(got, expected, floor=cancelling(ATTENTION, problem), **bounds)


@search
@given(problem=problems(), shift=st.floats(-100, 100))
def test_pool_follows_a_shift_of_all_tokens(finest, device, problem, shift):
    """α does not change, for the scores of a head all move alike; what is pooled moves along."""
    x, w = make_inputs(POOL, problem, finest, device)
    pooled, alpha = additive_pool(x, w, return_weights=True)
    moved, moved_alpha = additive_pool(x + shift, w, return_weights=True)
    condition = POOL.condition([x + shift, w])
    assert_close(moved_alpha, alpha, rtol=1e-8, condition=condition)
    assert_close(moved, pooled + shift, rtol=1e-8, atol=1e-9, condition=condition)


@search
@given(problem=problems())
def test_a_mask_is_the_same_as_leaving_tokens_out(finest, device, problem):
    x, w = make_inputs(POOL, problem, finest, device)
    kept = max(1, problem.tokens // 2)
    mask = (torch.arange(problem.tokens, device=device) < kept).expand(problem.batch, -1)
    assert_close(additive_pool(x, w, mask=mask), additive_pool(x[:, :kept], w), condition=POOL.condition([x, w]))


@search
@given(problem=problems())
def test_pool_lies_between_its_tokens(finest, device, problem):
    x, w = make_inputs(POOL, problem, torch.float32, device=device)
    pooled = additive_pool(x, w, per_head=False)  # [B, H, D]
    slack = 1e-5
    assert (pooled <= x.amax(1, keepdim=True) + slack).all()
    assert (pooled >= x.amin(1, keepdim=True) - slack).all()


@search
@given(problem=problems(), shift=st.floats(-100, 100), factor=st.floats(0.1, 10))
def test_norm_ignores_shift_and_size_of_tokens(finest, device, problem, shift, factor):
    x, gamma, beta = make_inputs(NORM, problem, finest, device)
    if problem.channels > 1:
        expected = modulated_layer_norm(x, gamma, beta, 0.0)
        elsewhere = x * factor + shift
        moved = modulated_layer_norm(elsewhere, gamma, beta, 0.0)
        assert_close(moved, expected, rtol=1e-6, atol=1e-8, condition=NORM.condition([elsewhere, gamma, beta], eps=0.0))
