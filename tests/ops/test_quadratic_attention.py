"""Attention over pairs of tokens, by products and by distance: three orders against the N x N formula, in O(N) memory."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from problems import DTYPES, assert_accurate, doubles, noise, three_orders
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import peak_bytes
from lada_kernels import backends, dot_product_attention, explain, l2_attention
from lada_kernels.backends.blockwise import dot_product_attention as blocks


@dataclass(frozen=True)
class Problem:
    batch: int
    heads: int
    queries: int
    keys: int
    channels: int
    values: int
    scale: float | None = None

    def __str__(self) -> str:
        return "x".join(map(str, (self.batch, self.heads, self.queries, self.keys, self.channels, self.values)))


PROBLEMS = (
    Problem(2, 3, 8, 8, 16, 16),
    Problem(2, 1, 5, 11, 3, 7),  # more keys than queries; no size is a multiple of anything
    Problem(1, 2, 13, 13, 5, 2, scale=0.7),
    Problem(1, 3, 1, 1, 4, 4),
    Problem(1, 1, 33, 33, 70, 9, scale=0.02),
    Problem(0, 2, 3, 3, 4, 4),
)
OPS = (dot_product_attention, l2_attention)
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)


@pytest.fixture(params=["blockwise", "reference"])
def backend(request, monkeypatch):
    """Run on this backend, blocks of rows so small that there are several."""
    monkeypatch.setattr(blocks, "ELEMENTS", 50)
    with backends.use_backend(request.param):
        yield request.param


def true_products(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    weights = torch.einsum("bhnd,bhmd->bhnm", q, k).mul(q.shape[3] ** -0.5 if scale is None else scale).exp()
    return torch.einsum("bhnm,bhme->bhne", weights / weights.sum(-1, keepdim=True), v)


def true_distances(x: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    distances = (x[:, :, :, None] - x[:, :, None]).square().sum(-1)  # [B, H, N, N]
    weights = distances.mul(-(x.shape[3] ** -0.5) if scale is None else -scale).exp()
    return torch.einsum("bhnm,bhme->bhne", weights / weights.sum(-1, keepdim=True), v)


TRUTHS = {dot_product_attention: true_products, l2_attention: true_distances}


def make(op, problem: Problem, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Inputs, a gradient of the result, and a cotangent of each input's gradient."""
    p = problem
    queries = p.queries if op is dot_product_attention else p.keys
    shapes = [(p.batch, p.heads, p.keys, p.channels), (p.batch, p.heads, p.keys, p.values)]
    if op is dot_product_attention:
        shapes.insert(0, (p.batch, p.heads, queries, p.channels))
    inputs = [noise(shape, seed, dtype).requires_grad_() for seed, shape in enumerate(shapes)]
    grad = noise((p.batch, p.heads, queries, p.values), 100, dtype).requires_grad_()
    return inputs, grad, [noise(shape, 101 + i, dtype) for i, shape in enumerate(shapes)]


def largest_logit(op, inputs: list[Tensor], scale: float | None) -> float:
    """What a rounding error of a score is magnified by."""
    if inputs[0].numel() == 0:
        return 0.0
    x = [t.detach().double() for t in inputs]
    scale = x[0].shape[3] ** -0.5 if scale is None else scale
    if op is dot_product_attention:
        return (scale * x[0] @ x[1].mT).abs().max().item()
    return 2 * scale * x[0].square().sum(-1).max().item()


def judge(op, problem: Problem, inputs: list[Tensor], grad: Tensor, cotangents: list[Tensor]) -> None:
    got = three_orders(partial(op, scale=problem.scale), inputs, grad, cotangents)
    truth = three_orders(partial(TRUTHS[op], scale=problem.scale), doubles(inputs), *doubles([grad]), doubles(cotangents))
    one = problem.keys == 1  # nothing moves the softmax
    for label, out in got.items():
        assert out.dtype == inputs[0].dtype, label
        floor = problem.channels * problem.values if one else 0.0
        assert_accurate(out.cpu(), truth[label], label, condition=largest_logit(op, inputs, problem.scale), floor=floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@each_op
def test_orders(op, problem, dtype, backend):
    judge(op, problem, *make(op, problem, dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@each_op
def test_orders_on_a_gpu(op, problem, dtype, backend):
    inputs, grad, cotangents = make(op, problem, dtype)
    leaves = [x.detach().cuda().requires_grad_() for x in (*inputs, grad)]
    judge(op, problem, leaves[:-1], leaves[-1], [x.cuda() for x in cotangents])


@each_op
def test_gradcheck_and_gradgradcheck(op, backend):
    inputs, _, _ = make(op, Problem(2, 2, 4, 5, 3, 2))
    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)


@pytest.mark.parametrize("order", ["value", "first 0", "first 2", "second of grad", "second 0", "second 1", "second 2"])
def test_products_agree_with_torch(order, backend):
    inputs, grad, cotangents = make(dot_product_attention, Problem(2, 3, 9, 9, 8, 8))
    ours = three_orders(dot_product_attention, inputs, grad, cotangents)[order]
    with sdpa_kernel(SDPBackend.MATH):
        theirs = three_orders(scaled_dot_product_attention, inputs, grad, cotangents)[order]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_op
def test_layouts(op, dtype, backend):
    """Heads as slices of a projection, as modules make them; gradients that were expanded."""
    problem = Problem(2, 3, 6, 6, 8, 8)
    inputs, grad, cotangents = make(op, problem, dtype)
    by_heads = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    expanded = [grad[:1, :, :1].detach().expand(grad.shape).requires_grad_(), *(c[:, :1].expand(c.shape) for c in cotangents)]
    judge(op, problem, by_heads, expanded[0], expanded[1:])


STRIDES = {
    "permuted": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "tokens last": lambda x: x.mT.contiguous().mT,
    "expanded batch": lambda x: x[:1].expand(x.shape),
    "expanded heads": lambda x: x[:, :1].expand(x.shape),
    "expanded channels": lambda x: x[..., :1].expand(x.shape),
    "every second channel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "every second token": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "past the first": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("argument", range(3))
@each_op
def test_any_strides(op, argument, strides, backend):
    """Of one argument after the other; a leaf keeps the strides that it is made of."""
    problem = Problem(2, 3, 6, 6, 8, 8)
    inputs, grad, cotangents = make(op, problem, torch.float32)
    tensors = [x.detach() for x in (*inputs, grad)]
    tensors[argument] = STRIDES[strides](tensors[argument])
    leaves = [x.requires_grad_() for x in tensors]
    judge(op, problem, leaves[:-1], leaves[-1], [STRIDES[strides](c) for c in cotangents])


@each_op
def test_the_third_order_is_refused(op, backend):
    inputs, grad, cotangents = make(op, PROBLEMS[0])
    first = torch.autograd.grad(op(*inputs), inputs, grad, create_graph=True)
    second = torch.autograd.grad(first, inputs, cotangents, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{op.__name__} is differentiable twice"):
        torch.autograd.grad(second[0].sum(), inputs)


@each_op
def test_gradients_that_nobody_asks_for(op, backend):
    inputs, grad, cotangents = make(op, PROBLEMS[0])
    wanted = inputs[0]
    for x in inputs[1:]:
        x.requires_grad_(False)
    (first,) = torch.autograd.grad(op(*inputs), wanted, grad, create_graph=True)
    (second,) = torch.autograd.grad(first, wanted, cotangents[0])
    leaves = doubles(inputs)
    (true_first,) = torch.autograd.grad(TRUTHS[op](*leaves), leaves[0], *doubles([grad]), create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(true_first, leaves[0], cotangents[0])[0], rtol=1e-10, atol=1e-12)


@each_op
def test_weights(op, backend):
    inputs, _, _ = make(op, PROBLEMS[2], torch.float32)
    out, weights = op(*inputs, scale=0.7, return_weights=True)
    assert (weights.dtype, weights.requires_grad, weights.shape) == (torch.float32, False, (1, 2, 13, 13))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 13))
    torch.testing.assert_close(weights @ inputs[-1], out)
    torch.testing.assert_close(out, op(*inputs, scale=0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_distances_far_from_the_origin(dtype, backend):
    """What all tokens have in common moves no distance, and costs no precision: the truth is that of the numbers given."""
    inputs, grad, cotangents = make(l2_attention, Problem(2, 2, 24, 24, 16, 16), dtype)
    x = (inputs[0].detach() + 20).requires_grad_()
    truth = three_orders(true_distances, doubles([x, inputs[1]]), *doubles([grad]), doubles(cotangents))
    for label, out in three_orders(l2_attention, [x, inputs[1]], grad, cotangents).items():
        assert_accurate(out, truth[label], label, condition=largest_logit(l2_attention, [x], None))


def test_a_long_key_leaves_float16_finite(backend):
    inputs, _, _ = make(l2_attention, Problem(1, 1, 6, 6, 16, 4), torch.float16)
    x = inputs[0].detach() * 200  # squares of 640,000 in all, ten times what float16 holds
    out = l2_attention(x, inputs[1])
    torch.testing.assert_close(out, inputs[1])  # every token is next to itself alone


def r1(op, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a gradient penalty."""
    first = torch.autograd.grad(op(*inputs).square().sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in first), inputs)


@each_op
def test_memory_grows_with_the_tokens(op, monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS", 2**17)
    sizes = {}
    for tokens in (512, 4096):
        inputs = [noise((1, 1, tokens, 4), seed, torch.float32).requires_grad_() for seed in range(3)]
        sizes[tokens] = peak_bytes(partial(r1, op, inputs[: 3 if op is dot_product_attention else 2]), "cpu")
    exponent = math.log(sizes[4096] / sizes[512]) / math.log(8)
    assert exponent < 1.1, sizes
    assert sizes[4096] < 4096**2 * 4 / 5, "a matrix of all weights was held"


@each_op
def test_autocast_leaves_it_as_it_was_given(op, backend):
    inputs, grad, cotangents = make(op, PROBLEMS[0], torch.float32)
    plain = three_orders(op, inputs, grad, cotangents)
    with torch.autocast("cpu", torch.bfloat16):
        for label, out in three_orders(op, inputs, grad, cotangents).items():
            assert torch.equal(out, plain[label]), label


def test_who_computes():
    q = torch.ones(1, 1, 2, 2)
    explanation = explain("l2_attention", q)
    assert explanation.backend == "blockwise"
    assert explanation.reasons["cpu"] == "it has no kernel for l2_attention"
    assert explain("gated_product", torch.ones(1, 2)).reasons["blockwise"] == "it has no kernel for gated_product"
    if backends.available()["cpu"]:
        with backends.use_backend("cpu"), pytest.raises(backends.BackendError, match="no kernel for dot_product_attention"):
            dot_product_attention(q, q, q)


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (dot_product_attention, [(2, 3, 4), (2, 3, 4), (2, 3, 4)], r"q: got shape \[2, 3, 4\], expected \[B, H, N, d\]"),
        (dot_product_attention, [(2, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)], r"k: got shape .* expected q's B and H, \[2, 1\]"),
        (dot_product_attention, [(1, 1, 3, 4), (1, 1, 3, 5), (1, 1, 3, 4)], "k: got 5 channels, expected q's d = 4"),
        (dot_product_attention, [(1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 2, 4)], "v: got 2 tokens, expected k's M = 3"),
        (dot_product_attention, [(1, 1, 0, 4), (1, 1, 3, 4), (1, 1, 3, 4)], "q: .* expected at least one head, token"),
        (l2_attention, [(1, 1, 3, 4), (1, 1, 2, 4)], "v: got 2 tokens, expected qk's N = 3"),
        (l2_attention, [(1, 1, 3, 4), (1, 2, 3, 4)], r"v: got shape .* expected qk's B and H"),
    ],
)
def test_errors_name_the_argument(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        op(*(torch.ones(shape) for shape in shapes))


def test_dtypes_are_checked():
    x = torch.ones(1, 1, 3, 4)
    with pytest.raises(TypeError, match=r"k: got dtype torch.float64, expected q's dtype torch.float32"):
        dot_product_attention(x, x.double(), x)
    with pytest.raises(TypeError, match=r"qk: got dtype torch.int64, expected float32"):
        l2_attention(x.long(), x)
