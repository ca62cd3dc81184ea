"""What every op promises, whatever it computes: orders, layouts, partial gradients, and its place among torch's tools."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import (
    DTYPES,
    GATE,
    HALVES,
    LAYOUTS,
    OPS,
    POOL,
    SMALL,
    Op,
    Problem,
    accumulation,
    assert_accurate,
    assert_orders,
    doubles,
    judge,
    make_cotangents,
    make_inputs,
    noise,
    three_orders,
    true_orders,
)
from torch.autograd import grad as gradients
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from lada_kernels import backends, use_backend

ALIGNED, ODD = Problem(3, 9, 32, 4), Problem(2, 5, 15, 3)
TILES = Problem(2, 15, 512, 4)  # several of them for each row of threads
FINE = (torch.float64, torch.float32, torch.bfloat16)
each_op = pytest.mark.parametrize("op", OPS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def small(op: Op, dtype: torch.dtype, device: str, problem: Problem = SMALL):
    """Inputs and cotangents of a small problem, and the op with its options filled in."""
    inputs = make_inputs(op, problem, dtype, device)
    return inputs, *make_cotangents(op, problem, inputs), partial(op, **op.options(problem, device))


@pytest.mark.parametrize("problem", [SMALL, Problem(2, 5, 6, 2, mask="random"), Problem(1, 3, 4, 3, per_head=False)], ids=str)
@pytest.mark.usefixtures("for_gradcheck")
@each_op
def test_gradcheck_and_gradgradcheck(op, problem, backend, device):
    if not (problem == SMALL or (op.pools and problem.per_head) or op is POOL):
        problem = Problem(2, 3, problem.channels + 1)  # the op has no such option: another size instead
    inputs, _, _, function = small(op, torch.float64, device, problem)
    fast = backend == "triton"  # random projections of the Jacobian: an interpreted kernel takes its time
    assert gradcheck(function, inputs, fast_mode=fast)
    assert gradgradcheck(function, inputs, fast_mode=fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", [ALIGNED, ODD], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@each_op
def test_layout_of_inputs(op, layout, problem, dtype, backend, device):
    judge(op, problem, dtype, device, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", [ALIGNED, ODD], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@each_op
def test_layout_of_gradients(op, layout, problem, dtype, backend, device):
    judge(op, problem, dtype, device, grad_layout=layout)


def with_odd_ones(x: torch.Tensor) -> torch.Tensor:
    """Odd strides along dimensions of one, where they lead nowhere."""
    return x.as_strided(x.shape, [stride if size > 1 else 5 for size, stride in zip(x.shape, x.stride(), strict=True)])


@pytest.mark.parametrize("problem", [Problem(1, 9, 32, 4), Problem(3, 1, 32, 4)], ids=str)
@each_op
def test_strides_along_dimensions_of_one(op, problem, backend, device, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "odd_ones", with_odd_ones)
    judge(op, problem, torch.float16, device, layout="odd_ones", grad_layout="odd_ones")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "expanded" not in name])
@each_op
def test_layout_of_several_tiles(op, layout, dtype, backend, device):
    judge(op, TILES, dtype, device, layout=layout, grad_layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_op
def test_results_are_dense_and_own_their_memory(op, layout, backend, device):
    inputs = make_inputs(op, ALIGNED, torch.float32, device, layout)
    grad, cotangents = make_cotangents(op, ALIGNED, inputs, layout)
    arguments = {x.untyped_storage().data_ptr() for x in (*inputs, grad, *cotangents)}
    for label, result in three_orders(op, inputs, grad, cotangents).items():
        assert result.is_contiguous(), label
        assert result.untyped_storage().data_ptr() not in arguments, label


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("problem", [ALIGNED, ODD, TILES], ids=str)
@each_op
def test_float32_parameters_beside_half_tokens(op, problem, dtype, backend, device):
    judge(op, problem, dtype, device, wide_parameters=True)


@pytest.mark.parametrize("dtype", FINE, ids=str)
@each_op
def test_one_input_alone_requires_a_gradient(op, dtype, backend, device):
    inputs, grad, cotangents, _ = small(op, dtype, device)
    for i, x in enumerate(inputs):

        def alone(function, x, i=i, others=tuple(inputs)):
            fixed = [other.detach().to(x) for other in others]
            return function(*fixed[:i], x, *fixed[i + 1 :])

        got = three_orders(partial(alone, op), [x], grad, [cotangents[i]])
        wide_x, wide_grad, wide_cotangent = doubles([x, grad, cotangents[i]])
        truth = three_orders(partial(alone, op.truth), [wide_x], wide_grad, [wide_cotangent])
        assert_orders(got, truth, [x])


@pytest.mark.parametrize("dtype", FINE, ids=str)
@each_op
def test_one_cotangent_alone(op, dtype, backend, device):
    inputs, grad, cotangents, function = small(op, dtype, device)
    for i, cotangent in enumerate(cotangents):
        others_zero = [c if j == i else torch.zeros_like(c) for j, c in enumerate(cotangents)]
        truth = true_orders(op, inputs, grad, others_zero)
        first = gradients(function(*inputs), inputs, grad, create_graph=True)
        second = gradients(first[i], [grad, *inputs], cotangent, allow_unused=True, materialize_grads=True)
        for label, result in zip(["second of grad"] + [f"second {j}" for j in range(len(inputs))], second, strict=True):
            assert_accurate(result, truth[label], f"{label}, cotangent {i}")


@pytest.mark.parametrize("dtype", FINE, ids=str)
@each_op
def test_one_second_gradient_alone(op, dtype, backend, device):
    inputs, grad, cotangents, function = small(op, dtype, device)
    truth = true_orders(op, inputs, grad, cotangents)
    for label, x in [("second of grad", grad)] + [(f"second {i}", x) for i, x in enumerate(inputs)]:
        first = gradients(function(*inputs), inputs, grad, create_graph=True)
        (second,) = gradients(first, [x], cotangents, allow_unused=True, materialize_grads=True)
        assert_accurate(second, truth[label], label)


@each_op
def test_no_cotangent_at_all(op, finest, device):
    inputs, grad, _, function = small(op, finest, device)
    first = gradients(function(*inputs), inputs, grad, create_graph=True)
    unused = [x * 0 for x in first] + [x.sum() for x in inputs]
    second = gradients(unused[-1], inputs, allow_unused=True)
    assert [x is None for x in second] == [True] * (len(inputs) - 1) + [False]


def r1_gradients(function, inputs, direction, index):
    """A discriminator's step: the loss and the penalty on the gradient of its input, then one backward."""
    logits = (function(*inputs) * direction).flatten(1).sum(1)
    (slope,) = gradients(logits.sum(), inputs[index], create_graph=True)
    penalty = slope.flatten(1).square().sum(1).mean()
    (logits.mean() + penalty).backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


@each_dtype
@each_op
def test_r1(op, dtype, backend, device):
    inputs, grad, _, function = small(op, dtype, device)
    index = op.kinds.index("tokens")
    got = r1_gradients(function, inputs, grad.detach(), index)
    wide = doubles(inputs)
    truth = r1_gradients(op.truth, wide, grad.detach().double().cpu(), index)
    for x, name, result, expected in zip(inputs, op.arguments, got, truth, strict=True):
        assert result.dtype == x.dtype
        # Rounded on the way: the output's gradient, the slope, its cotangent, the two summands and their sum.
        assert_accurate(result.cpu(), expected, name, roundings=6)


@each_op
def test_third_order_raises(op, finest, device):
    inputs, grad, cotangents, function = small(op, finest, device)
    first = gradients(function(*inputs), inputs, grad, create_graph=True)
    second = gradients(first, [grad, *inputs], cotangents, create_graph=True, allow_unused=True)
    for result in second:
        if result is not None:
            assert result.requires_grad
            with pytest.raises(NotImplementedError, match=f"{op.name} is differentiable twice"):
                gradients(result.sum(), inputs, retain_graph=True, allow_unused=True)


@each_op
def test_keeps_its_inputs_and_little_else(op, backend, device):
    problem = Problem(2, 64, 32, 4)
    inputs = make_inputs(op, problem, torch.float32, device)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        op(*inputs)
    beside = sum(size for pointer, size in kept.items() if pointer not in {x.untyped_storage().data_ptr() for x in inputs})
    rows, statistics = problem.batch * (problem.channels + problem.heads), 2 * problem.batch * problem.tokens
    assert beside <= 4 * max(rows, statistics)


@each_op
def test_without_gradients(op, backend, device):
    inputs, _, _, function = small(op, torch.float32, device)
    expected = function(*inputs).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = function(*inputs)
        assert not result.requires_grad
        assert torch.equal(result, expected)


@each_op
def test_func_grad(op, finest, device):
    inputs, grad, _, function = small(op, finest, device)
    weight = grad.detach()
    got = torch.func.grad(lambda *x: (function(*x) * weight).sum(), argnums=tuple(range(len(inputs))))(*inputs)
    truth = true_orders(op, inputs, grad, inputs)
    for i, result in enumerate(got):
        assert_accurate(result.cpu(), truth[f"first {i}"], op.arguments[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_op
def test_autocast_leaves_the_op_as_it_is(op, dtype, backend, device):
    """Norms and projections hand over float32 or 16-bit under autocast: each is computed in the dtype it comes in."""
    inputs = make_inputs(op, ODD, dtype, device, wide_parameters=True)
    grad, cotangents = make_cotangents(op, ODD, inputs)
    expected = three_orders(op, inputs, grad, cotangents)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = three_orders(op, inputs, grad, cotangents)
    for label, result in got.items():
        assert result.dtype == expected[label].dtype, label
        assert torch.equal(result, expected[label]), label


@each_op
def test_checkpoint(op, finest, device):
    """Recomputed activations, at first and at second order."""
    inputs, grad, cotangents, function = small(op, finest, device)
    expected = three_orders(function, inputs, grad, cotangents)
    got = three_orders(lambda *x: checkpoint(function, *x, use_reentrant=False), inputs, grad, cotangents)
    for label, result in got.items():
        assert torch.equal(result, expected[label]), label


@each_op
def test_compile_at_first_order(op, backend, device):
    inputs, grad, _, function = small(op, torch.float32, device)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for argument in ("dense", "third"):
        inputs = make_inputs(op, SMALL, torch.float32, device, layout=argument)
        result = compiled(*inputs)
        assert torch.equal(result, function(*inputs))
        expected = gradients(function(*inputs), inputs, grad)
        for name, got, want in zip(op.arguments, gradients(result, inputs, grad), expected, strict=True):
            assert torch.equal(got, want), name
    torch.compiler.reset()


@each_op
def test_compile_when_some_inputs_need_no_gradient(op, backend, device):
    inputs, grad, _, function = small(op, torch.float32, device)
    inputs = [x.detach() for x in inputs[:-1]] + [inputs[-1]]
    result = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    expected = gradients(function(*inputs), inputs[-1], grad)[0]
    assert torch.equal(gradients(result, inputs[-1], grad)[0], expected)
    torch.compiler.reset()


@each_dtype
def test_poison_fills_every_kind_of_empty_tensor(dtype, backend, device):
    x = torch.zeros(2, 3, dtype=dtype, device=device)
    made = (
        torch.empty(5, dtype=dtype, device=device),
        torch.empty_like(x),
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_strided((2, 3), (1, 2), dtype=dtype, device=device),
        x.new_empty(4),
        x.new_empty(4, dtype=accumulation(dtype)),
    )
    assert all(y.isnan().all() for y in made)


def test_poison_shows_what_a_kernel_leaves_unwritten(monkeypatch):
    whole = backends.reference.KERNELS["gated_product"]

    def leaves_the_last_token(*args):
        grad_g, *tokens = whole.backward(*args)
        holes = [torch.empty_like(x) for x in tokens]
        for hole, x in zip(holes, tokens, strict=True):
            hole[:, :-1] = x[:, :-1]
        return grad_g, *holes

    broken = replace(whole, backward=leaves_the_last_token)
    monkeypatch.setattr(backends, "kernels", lambda *_: broken)
    with use_backend("reference"), pytest.raises(AssertionError, match=r"first 1: .* of .* values are not finite"):
        judge(GATE, ODD, torch.float32)


def test_judge_sees_a_wrong_element():
    """The measure itself is measured: an error of a hundredth of a percent in one element does not pass."""
    truth = noise((3, 4), 0)
    assert_accurate(truth.float(), truth)
    wrong = truth.float()
    wrong[1, 2] *= 1.0001
    with pytest.raises(AssertionError, match=r"off by|rms error"):
        assert_accurate(wrong, truth)
    with pytest.raises(AssertionError, match="not finite"):
        assert_accurate(torch.full((3, 4), torch.nan), truth)
