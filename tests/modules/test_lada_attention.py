"""LadaAttention against the paper's equations written out in plain torch, at every order that a GAN needs."""

import copy
from dataclasses import replace

import pytest
import torch
from problems import DEVICES
from torch.func import functional_call

from lada_kernels import available, backends, use_backend
from lada_kernels.modules import LadaAttention

SHAPES = [(2, 7, 12, 3), (1, 1, 8, 1), (3, 33, 16, 4)]  # B, N, D, H


@pytest.fixture(params=[True, False], ids=["folded", "unfolded"])
def fold_query(request):
    return request.param


def make(dim, heads, fold_query=True, **options):
    """Folded if not told otherwise, though what is tested is small."""
    torch.manual_seed(dim + heads)
    return LadaAttention(dim, heads, fold_query=fold_query, **options).double()


def published(attention, x):
    """The equations of arXiv 2401.09596 in the official order of computation, bias of the scores included."""
    batch, tokens, dim = x.shape
    heads = attention.heads
    q, k, v = attention.to_qkv(x).chunk(3, dim=-1)
    alpha = (attention.q_attn(q) * (dim // heads) ** -0.5).softmax(dim=1)  # [B, N, H]
    q, k, v = (t.view(batch, tokens, heads, dim // heads) for t in (q, k, v))
    g = torch.einsum("bnh,bnhd->bhd", alpha, q)
    return attention.to_out((g[:, None] * k * v).flatten(2)), alpha.transpose(1, 2)


def three_orders(function, parameters, x):
    """The output, its gradients, and the gradients of an R1-shaped penalty on x."""
    x = x.clone().requires_grad_()
    out = function(x)
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).cos()
    first = torch.autograd.grad(out, [x, *parameters], cotangent, create_graph=True)
    penalty = first[0].square().sum()
    second = torch.autograd.grad(penalty, [x, *parameters], allow_unused=True)
    return [out, *first, *(torch.zeros_like(x) if g is None else g for g in second)]


@pytest.mark.parametrize(("batch", "tokens", "dim", "heads"), SHAPES)
def test_equals_published_equations_at_three_orders(backend, fold_query, batch, tokens, dim, heads):
    attention = make(dim, heads, fold_query=fold_query)
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    parameters = [p for name, p in attention.named_parameters() if name != "q_attn.bias"]
    ours = three_orders(attention, parameters, x)
    truth = three_orders(lambda t: published(attention, t)[0], parameters, x)
    for value, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_folding_changes_nothing_at_three_orders(backend):
    attention = make(24, 4)
    x = torch.randn(2, 19, 24, dtype=torch.float64)
    parameters = list(attention.parameters())
    folded = three_orders(attention, parameters, x)
    attention.fold_query = False
    for value, expected in zip(folded, three_orders(attention, parameters, x), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elements", [2 * 19 * 24, 2 * 19 * 24 + 1])
def test_few_tokens_are_left_unfolded(backend, elements, monkeypatch):
    monkeypatch.setattr("lada_kernels.modules.attention._WORTH_FOLDING", elements)
    attention, x = make(24, 4, fold_query=None), torch.randn(2, 19, 24, dtype=torch.float64)
    out = attention(x)
    attention.fold_query = elements == x.numel()
    assert torch.equal(out, attention(x))
    attention.fold_query = not attention.fold_query
    assert not torch.equal(out, attention(x))  # they differ in rounding


def test_gradcheck_and_gradgradcheck(backend, fold_query):
    attention = make(6, 2, fold_query=fold_query)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weights = {n: p.detach().clone().requires_grad_() for n, p in attention.named_parameters()}

    def function(x, *values):
        return functional_call(attention, dict(zip(weights, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *weights.values()))
    assert torch.autograd.gradgradcheck(function, (x, *weights.values()))


def test_score_bias_gets_exactly_zero_gradient(backend, fold_query):
    attention = make(8, 2, fold_query=fold_query)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    out = attention(x)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (out.sum() + slope.square().sum()).backward()
    assert all(p.grad is not None for p in attention.parameters())
    assert torch.equal(attention.q_attn.bias.grad, torch.zeros(2, dtype=torch.float64))
    before = attention(x)
    with torch.no_grad():
        attention.q_attn.bias += 3
    assert torch.equal(attention(x), before)


def test_weights_are_the_softmax_over_tokens(backend, fold_query):
    attention = make(12, 3, fold_query=fold_query)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    out, weights = attention(x, return_weights=True)
    expected, alpha = published(attention, x)
    assert weights.shape == (2, 3, 9)
    torch.testing.assert_close(weights, alpha, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(out, attention(x))


def test_mask_equals_leaving_tokens_out(backend, fold_query):
    attention = make(12, 3, fold_query=fold_query)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 4 + [False] * 5, [False] * 3 + [True] * 6])
    out, weights = attention(x, mask=mask, return_weights=True)
    assert weights[~mask[:, None].expand_as(weights)].eq(0).all()
    for row in range(2):
        alone = attention(x[row : row + 1, mask[row]])
        torch.testing.assert_close(out[row : row + 1, mask[row]], alone, rtol=1e-12, atol=1e-12)


def test_row_without_tokens_has_a_zero_query(backend, fold_query):
    attention = make(12, 3, fold_query=fold_query)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False] * 5, [True] * 5])
    out = attention(x, mask=mask)
    torch.testing.assert_close(out[0], attention.to_out.bias.expand(5, 12))
    torch.testing.assert_close(out[1:], attention(x[1:]), rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(out[0].sum(), x)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_nan_in_a_masked_token_stays_there(backend, fold_query):
    attention = make(8, 2, fold_query=fold_query)
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False]])
    clean = attention(x, mask=mask)[:, :5]
    x[:, 5] = float("nan")
    assert torch.equal(attention(x, mask=mask)[:, :5], clean)


def test_reads_transposed_and_empty_input(backend, fold_query):
    attention = make(8, 2, fold_query=fold_query)
    feature_map = torch.randn(2, 8, 5, dtype=torch.float64)  # [B, D, N]
    x = feature_map.transpose(1, 2)
    torch.testing.assert_close(attention(x), attention(x.contiguous()), rtol=1e-13, atol=1e-13)
    empty = attention(x[:0])
    assert empty.shape == (0, 5, 8)
    empty.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision(backend, fold_query, dtype):
    attention = make(32, 4, fold_query=fold_query)
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    expected = attention(x).detach()
    out = attention.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error < {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 1e-6}[dtype]


def test_autocast(backend, fold_query):
    attention = make(32, 4, fold_query=fold_query).float()
    x = torch.randn(2, 20, 32, requires_grad=True)
    expected = attention(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(x)
        loss = out.float().square().mean()
    loss.backward()
    assert out.dtype == torch.bfloat16
    assert ((out.float() - expected).norm() / expected.norm()).item() < 3e-2
    for parameter in (x, *attention.parameters()):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def saved_bytes(attention, x):
    """What is kept for the gradients, parameters and x aside."""
    known = {t.untyped_storage().data_ptr() for t in (x, *attention.parameters())}
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        attention(x)
    return sum(size for pointer, size in kept.items() if pointer not in known)


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize(("batch", "tokens", "dim", "heads"), [*SHAPES, (2, 3, 132, 4)])
def test_recomputing_changes_nothing_at_three_orders(backend, batch, tokens, dim, heads, masked):
    attention = make(dim, heads)
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    mask = (torch.arange(tokens) % 3 < 2).expand(batch, -1) if masked else None
    parameters = list(attention.parameters())
    kept = three_orders(lambda t: attention(t, mask=mask), parameters, x)
    attention.recompute = True
    for value, expected in zip(three_orders(lambda t: attention(t, mask=mask), parameters, x), kept, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_recomputing_gradcheck_and_gradgradcheck(backend):
    attention = make(4, 2, recompute=True)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = {n: p.detach().clone().requires_grad_() for n, p in attention.named_parameters()}

    def function(x, *values):
        return functional_call(attention, dict(zip(weights, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *weights.values()))
    assert torch.autograd.gradgradcheck(function, (x, *weights.values()))


@pytest.mark.parametrize(("dim", "tensors"), [(32, 3), (136, 2)])
def test_recomputing_keeps_fewer_bytes(backend, dim, tensors):
    """k, v and, up to 128 channels, what to_out reads: so many times the size of x."""
    attention, x = make(dim, 4).float(), torch.randn(2, 64, dim, requires_grad=True)
    kept = saved_bytes(attention, x)
    attention.recompute = True
    spared = tensors * x.nbytes
    assert kept - spared <= saved_bytes(attention, x) <= kept - 0.9 * spared


@pytest.mark.parametrize("dim", [32, 136])
def test_recomputing_under_autocast(backend, dim):
    attention = make(dim, 4).float()
    x = torch.randn(2, 20, dim, requires_grad=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            out = attention(x)
            loss = out.float().square().mean()
        return [out, *torch.autograd.grad(loss, (x, *attention.parameters()))]

    expected = step()
    attention.recompute = True
    for value, other in zip(step(), expected, strict=True):
        assert value.dtype == other.dtype
        assert (value - other).norm() <= 2e-2 * other.norm()


def test_recomputing_maps_are_the_same(backend):
    attention = make(12, 3)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    _, expected = attention(x, return_weights=True)
    attention.recompute = True
    out, weights = attention(x, return_weights=True)
    assert torch.equal(weights, expected)
    assert torch.equal(out, attention(x))


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_with_and_without_gradients(backend, recompute):
    attention = make(8, 2, recompute=recompute).float()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 8, requires_grad=True)
    results = [torch.autograd.grad(f(x).square().sum(), (x, *attention.parameters())) for f in (compiled, attention)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), attention(x))
    torch.compiler.reset()


def test_recompute_needs_folding():
    with pytest.raises(ValueError, match="fold_query: got False, expected True or None with recompute=True"):
        LadaAttention(8, 2, fold_query=False, recompute=True)


needs_triton = pytest.mark.skipif(not available()["triton"], reason=f"backend 'triton': {available()['triton']}")


@pytest.fixture
def fused(monkeypatch):
    """The outputs of Triton's gated_projection so far."""
    outputs, kernels = [], backends.kernels

    def noting(op, tensor, requested):
        found = kernels(op, tensor, requested)
        if op != "gated_projection":
            return found
        return replace(found, forward=lambda *args: outputs.append(found.forward(*args)) or outputs[-1])

    monkeypatch.setattr(backends, "kernels", noting)
    with use_backend("triton"):
        yield outputs


@needs_triton
@pytest.mark.parametrize("dim", [32, 128, 132])
def test_inference_in_two_passes(fused, dim):
    """On Triton, without gradients: x is read to be pooled and once more to become the output."""
    attention, x = make(dim, 4), torch.randn(2, 9, dim, dtype=torch.float64)
    expected = published(attention, x)[0].detach()
    attention, x = attention.float().to(DEVICES["triton"]), x.float().to(DEVICES["triton"])
    assert attention(x).requires_grad
    assert not fused
    with torch.no_grad():
        out = attention(x)
    assert len(fused) == (dim <= 128)
    assert dim > 128 or torch.equal(out, fused[0])
    for parameter in attention.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(attention(x), out)
    assert len(fused) == 2 * (dim <= 128)
    torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@needs_triton
def test_recomputing_in_two_passes(fused):
    attention = make(8, 2).float().to(DEVICES["triton"])
    x = torch.randn(2, 5, 8, device=DEVICES["triton"])
    parameters = list(attention.parameters())
    kept = three_orders(attention, parameters, x)
    assert not fused
    attention.recompute = True
    for value, expected in zip(three_orders(attention, parameters, x), kept, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert len(fused) == 1


def test_official_constructor_and_keys():
    attention = LadaAttention(32)
    assert attention.heads == 8
    assert {name: tuple(value.shape) for name, value in attention.state_dict().items()} == {
        "to_qkv.weight": (96, 32),
        "to_qkv.bias": (96,),
        "q_attn.weight": (8, 32),
        "q_attn.bias": (8,),
        "to_out.weight": (32, 32),
        "to_out.bias": (32,),
    }


def test_deepcopy_after_a_backward(backend):
    attention = make(8, 2)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    attention(x).sum().backward()
    twin = copy.deepcopy(attention)
    assert torch.equal(twin(x), attention(x))
    assert all(a is not b for a, b in zip(twin.parameters(), attention.parameters(), strict=True))


@pytest.mark.parametrize(
    ("dim", "heads", "message"),
    [
        (10, 4, "heads: got 4, expected a divisor of dim = 10"),
        (8, 16, "heads: got 16, expected a divisor of dim = 8"),
        (8, 0, "heads: got 0, expected 1 or more"),
        (0, 1, "dim: got 0, expected 1 or more"),
    ],
)
def test_refuses_heads_that_do_not_divide(dim, heads, message):
    with pytest.raises(ValueError, match=message):
        LadaAttention(dim, heads)


@pytest.mark.parametrize("shape", [(2, 5, 9), (5, 8), (2, 8, 4, 4)])
def test_refuses_other_shapes(fold_query, shape):
    with pytest.raises(ValueError, match=r"x: got shape \[.*, expected \[B, N, dim\] with dim = 8"):
        LadaAttention(8, 2, fold_query=fold_query)(torch.randn(shape))


def test_refuses_no_tokens(backend, fold_query):
    with pytest.raises(ValueError, match="at least one token"):
        LadaAttention(8, 2, fold_query=fold_query)(torch.randn(2, 0, 8))
