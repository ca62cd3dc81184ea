"""A sequence pooled in chunks is the sequence pooled at once, at every order."""

import math
from functools import partial

import pytest
import torch
from problems import (
    DTYPES,
    HALVES,
    POOL,
    SMALL,
    Problem,
    accumulation,
    assert_accurate,
    assert_orders,
    make_cotangents,
    make_inputs,
    noise,
    three_orders,
    true_orders,
)
from ranks import far_from_zero
from torch.autograd import grad as gradients
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels import PoolState, additive_pool, additive_pool_finalize, additive_pool_update

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

PROBLEMS = (
    Problem(3, 37, 24, 3),
    Problem(2, 37, 6, 9, per_head=False),  # more heads than channels
    Problem(3, 37, 24, 3, mask="random"),
    Problem(3, 37, 10, 2, per_head=False, mask="first_row_masked", scale=0.7),
    Problem(2, 37, 8, 2, mask="one_live"),
    Problem(0, 37, 8, 2),
)
CHUNKS = {"one": (37,), "uneven": (0, 1, 20, 0, 3, 13), "token by token": (1,) * 37}
FINE = (torch.float64, torch.float32, torch.bfloat16)


def stream(x, w, chunks, mask=None, **options):
    """In x's dtype, as additive_pool returns it."""
    state = None
    for i, part in enumerate(x.split(chunks, 1)):
        live = None if mask is None else mask.split(chunks, 1)[i]
        state = additive_pool_update(state, part, w, mask=live, **options)
    return additive_pool_finalize(state).to(x.dtype)


def judge(problem, dtype, chunks, device="cpu"):
    """The weight's gradient is a sum over all chunks: beside 16-bit tokens it stays in float32 here."""
    inputs = make_inputs(POOL, problem, dtype, device, wide_parameters=True)
    judge_inputs(
        inputs, *make_cotangents(POOL, problem, inputs), chunks, problem.mask == "one_live", **POOL.options(problem, device)
    )


def judge_inputs(inputs, grad, cotangents, chunks, cancelling=False, **options):
    """A second gradient is a sum of two, each rounded to its dtype and up to twice as large: of a chunk by itself, and of what
    that is to the others.
    """
    got = three_orders(partial(stream, chunks=chunks, **options), inputs, grad, cotangents)
    truth = true_orders(POOL, inputs, grad, cotangents, **options)
    floor = inputs[1].numel() ** 0.5 if cancelling else 0.0
    assert_orders(got, truth, inputs, roundings=5, condition=POOL.condition(inputs, **options), floor=floor)


@pytest.mark.parametrize("dtype", FINE, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_orders(problem, dtype):
    judge(problem, dtype, CHUNKS["uneven"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_head", [True, False])
def test_backends(per_head, dtype, backend, device):
    judge(Problem(2, 5, 6, 2, per_head=per_head, mask="random"), dtype, (2, 0, 3), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks(chunks, dtype):
    judge(PROBLEMS[2], dtype, CHUNKS[chunks])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weight_in_16_bits(dtype):
    problem = Problem(3, 37, 24, 3)
    inputs = make_inputs(POOL, problem, dtype)
    judge_inputs(inputs, *make_cotangents(POOL, problem, inputs), (20, 17))


@pytest.mark.parametrize("per_head", [True, False])
def test_gradcheck_and_gradgradcheck(per_head):
    inputs = make_inputs(POOL, SMALL)
    function = partial(stream, chunks=(2, 3), per_head=per_head)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_cut_gives_the_same(data):
    cuts = sorted(data.draw(st.lists(st.integers(0, 37), max_size=6)))
    chunks = tuple(b - a for a, b in zip([0, *cuts], [*cuts, 37], strict=True))
    x, w = make_inputs(POOL, PROBLEMS[0])
    torch.testing.assert_close(stream(x, w, chunks), additive_pool(x, w), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("far", [160, -160])
def test_large_logits(far, dtype):
    problem = Problem(2, 33, 8, 2)
    inputs = [t.requires_grad_() for t in far_from_zero(problem, far, dtype)]
    judge_inputs(inputs, *make_cotangents(POOL, problem, inputs), (10, 20, 3), scale=1.0)


def test_logits_far_apart_pick_one_token():
    x = torch.zeros(1, 9, 4)
    x[0, :, 0] = torch.arange(-4, 5)
    x[0, :, 1] = torch.arange(9)
    w = torch.tensor([[2500.0, 0, 0, 0], [-2500.0, 0, 0, 0]])
    pooled = stream(x, w, (1,) * 9, scale=1.0, per_head=False)
    assert pooled.tolist() == [[[4.0, 8.0, 0.0, 0.0], [-4.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("zero", ["weight", "grad", "both"])
def test_where_only_the_mass_of_a_chunk_has_a_gradient(zero, dtype):
    """In the second order P's gradient can be zero, or far smaller than Z's: no direction for the kernel to take that along."""
    x, w = make_inputs(POOL, SMALL, dtype)
    grad, cotangents = make_cotangents(POOL, SMALL, [x, w])
    with torch.no_grad():
        if zero != "grad":  # as many start to train: no score differs, and no cotangent of x reaches one
            w.zero_()
            cotangents[1].zero_()
        if zero != "weight":
            grad[0, 0] *= 0.0
            grad[1, 1] *= 1e-30
    judge_inputs([x, w], grad, cotangents, (2, 3), cancelling=True)


def test_many_chunks_in_float32():
    problem = Problem(1, 4000, 16, 2)
    inputs = make_inputs(POOL, problem, torch.float32)
    with torch.no_grad():
        truth = additive_pool(*(t.double() for t in inputs))
        assert_accurate(stream(*inputs, (4,) * 1000), truth, roundings=10, condition=POOL.condition(inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_chunk_is_the_op_to_the_bit(dtype):
    problem = Problem(3, 37, 24, 3, mask="random")
    inputs = make_inputs(POOL, problem, dtype)
    options = POOL.options(problem)
    x, w = inputs
    nothing = additive_pool_update(None, x[:, :0], w, mask=options["mask"][:, :0])
    once = additive_pool_update(nothing, x, w, mask=options["mask"])
    again = additive_pool_update(once, x[:, :0], w)
    alone = additive_pool_update(None, x, w, mask=options["mask"])
    expected = additive_pool(*inputs, **options)
    for state in (alone, once, again):
        assert torch.equal(additive_pool_finalize(state).to(dtype), expected)
    grad = noise((3, 3, 8), 5, dtype)
    first = gradients(additive_pool_finalize(alone).to(dtype), inputs, grad)
    for got, want in zip(first, gradients(expected, inputs, grad), strict=True):
        assert torch.equal(got, want)


def test_nothing_pooled_is_zero_with_zero_gradients():
    x, w = make_inputs(POOL, Problem(2, 3, 8, 2))
    masked = torch.zeros(2, 3, dtype=torch.bool)
    state = additive_pool_update(additive_pool_update(None, x[:, :0], w), x, w, mask=masked)
    pooled = additive_pool_finalize(state)
    assert (pooled == 0).all()
    assert (state.largest == -math.inf).all()
    assert (state.total == 0).all()
    first = gradients(pooled, (x, w), noise(pooled.shape, 1), create_graph=True)
    second = gradients(sum(f.square().sum() + f.sum() for f in first), (x, w))
    assert all((g == 0).all() for g in (*first, *second))


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_masked_tokens_hold_leaks_at_no_order(junk):
    problem = Problem(3, 37, 24, 3, mask="first_row_masked")
    options = POOL.options(problem)
    inputs = make_inputs(POOL, problem)
    grad, cotangents = make_cotangents(POOL, problem, inputs)
    with torch.no_grad():
        inputs[0][~options["mask"]] = junk
        cotangents[0][~options["mask"]] = junk
    judge_inputs(inputs, grad, cotangents, CHUNKS["uneven"], **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 4])
def test_what_is_not_finite_in_a_chunk_reaches_the_result(where, bad):
    x, w = make_inputs(POOL, SMALL)
    with torch.no_grad():
        x[1, where, 0] = bad
    pooled = stream(x, w, (2, 3))
    assert not pooled[1, 0].isfinite().all()
    assert pooled[0].isfinite().all()
    (slope,) = gradients(pooled.sum(), x)
    assert not slope[1, :, 0].isfinite().any()
    assert slope[0].isfinite().all()


@pytest.mark.parametrize("wanted", ["x", "score_weight", "grad"])
def test_third_derivative_raises(wanted):
    inputs = make_inputs(POOL, SMALL)
    grad, cotangents = make_cotangents(POOL, SMALL, inputs)
    first = gradients(stream(*inputs, (2, 3)), inputs, grad, create_graph=True)
    second = gradients(first, [*inputs, grad], cotangents, create_graph=True)
    with pytest.raises(NotImplementedError, match="additive_pool is differentiable twice; a third derivative was asked for"):
        gradients(sum(s.sum() for s in second), dict(zip(("x", "score_weight", "grad"), [*inputs, grad], strict=True))[wanted])


def test_one_input_alone_requires_a_gradient():
    inputs = make_inputs(POOL, SMALL)
    grad, cotangents = make_cotangents(POOL, SMALL, inputs)
    whole = partial(stream, chunks=(2, 3))
    for i in range(2):
        fixed = [t.detach() for t in inputs]

        def alone(function, leaf, i=i, fixed=fixed):
            return function(*fixed[:i], leaf, *fixed[i + 1 :])

        got = three_orders(partial(alone, whole), [inputs[i]], grad, [cotangents[i]])
        truth = three_orders(partial(alone, POOL.truth), [inputs[i]], grad, [cotangents[i]])
        assert_orders(got, truth, [inputs[i]], roundings=3)


def test_state_is_as_large_after_any_number_of_tokens_and_never_written_to():
    x, w = (t.detach() for t in make_inputs(POOL, Problem(2, 1000, 8, 2)))
    first = additive_pool_update(None, x[:, :1], w)
    kept = PoolState(*(t.clone() for t in first))
    state = additive_pool_update(first, x[:, 1:], w)
    assert [t.shape for t in state] == [t.shape for t in first] == [(2, 2, 4), (2, 2), (2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert not any(t.requires_grad for t in state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_the_state(dtype):
    x, w = make_inputs(POOL, SMALL, dtype)
    state = additive_pool_update(None, x, w)
    assert {t.dtype for t in (*state, additive_pool_finalize(state))} == {accumulation(dtype)}
    if dtype in HALVES:  # chunks may differ, as long as sums over them are kept alike
        assert additive_pool_update(state, x.float(), w.float()).pooled.dtype == torch.float32


def test_under_autocast():
    inputs = make_inputs(POOL, SMALL, torch.float32)
    arguments = inputs, *make_cotangents(POOL, SMALL, inputs)
    plain = three_orders(partial(stream, chunks=(2, 3)), *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        narrowing = three_orders(partial(stream, chunks=(2, 3)), *arguments)
    assert all(torch.equal(narrowing[label], result) for label, result in plain.items())


X, W = torch.zeros(2, 5, 6), torch.zeros(2, 6)
STATE = PoolState(torch.zeros(2, 2, 3), torch.zeros(2, 2), torch.zeros(2, 2))
REFUSED = {
    "a tensor as state": ((X, X, W), {}, TypeError, "state: got Tensor, expected a PoolState from additive_pool_update"),
    "other batch": ((STATE, X[:1], W), {}, ValueError, r"state.pooled: got shape \[2, 2, 3\], expected .* shape \[1, 2, 3\]"),
    "other heads": ((STATE, X, W[:1]), {}, ValueError, r"state.pooled: got shape \[2, 2, 3\], expected .* shape \[2, 1, 6\]"),
    "other pooling": (
        (STATE, X, W),
        {"per_head": False},
        ValueError,
        r"state.pooled: got shape \[2, 2, 3\], expected .* shape \[2, 2, 6\]",
    ),
    "other precision": (
        (STATE, X.double(), W.double()),
        {},
        TypeError,
        "state.pooled: got dtype torch.float32, expected .* dtype torch.float64",
    ),
    "elsewhere": (
        (PoolState(*(t.to("meta") for t in STATE)), X, W),
        {},
        ValueError,
        "state.pooled: got device meta, expected .* device cpu",
    ),
    "two dimensions": ((None, X[0], W), {}, ValueError, r"x: got shape \[5, 6\], expected \[B, N, D\]"),
    "no channels": ((None, X[:, :0, :0], W[:, :0]), {}, ValueError, "expected at least one token and one channel"),
    "integers": ((None, X[:, :0].long(), W), {}, TypeError, "x: got dtype torch.int64"),
    "other channels": ((None, X[:, :0], W[:, :5]), {}, ValueError, r"score_weight: got shape \[2, 5\]"),
    "a mask of other tokens": (
        (None, X[:, :0], W),
        {"mask": torch.ones(2, 1, dtype=torch.bool)},
        ValueError,
        r"mask: got shape \[2, 1\], expected \[B, N\] = \[2, 0\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        additive_pool_update(*arguments, **options)


def test_finalize_refuses_what_is_no_state():
    with pytest.raises(TypeError, match="state: got NoneType, expected a PoolState from additive_pool_update"):
        additive_pool_finalize(None)
