"""gated_projection against projections and a product written out in float64, at every order."""

from dataclasses import dataclass, replace

import pytest
import torch
from problems import (
    DEVICES,
    DTYPES,
    HALVES,
    LAYOUTS,
    accumulation,
    assert_accurate,
    doubles,
    lay_out,
    noise,
    three_orders,
    true_gate,
)
from torch.autograd import grad as gradients
from torch.autograd import gradcheck, gradgradcheck

from lada_kernels import available, gated_projection, use_backend

NAMES = ("x", "g", "weight", "bias", "out_weight", "out_bias")


@dataclass(frozen=True)
class Sizes:
    """B, N, C, D, and O where there is an output projection; which projections have a bias."""

    batch: int
    tokens: int
    inside: int
    channels: int
    outside: int | None = None
    bias: bool = True
    out_bias: bool = True

    def __str__(self) -> str:
        parts = [f"B{self.batch}-N{self.tokens}-C{self.inside}-D{self.channels}"]
        parts += [] if self.outside is None else [f"O{self.outside}"]
        parts += [] if self.bias else ["unbiased"]
        parts += [] if self.out_bias or self.outside is None else ["unbiased_out"]
        return "-".join(parts)


WIDEST = Sizes(2, 65, 128, 128, 128)  # that one kernel takes to the output
SIZES = (
    Sizes(3, 37, 24, 40),  # no size is a multiple of a tile
    Sizes(3, 37, 24, 40, 20),
    Sizes(2, 1, 16, 16, 16),  # one token
    Sizes(1, 1, 1, 1, 1),
    Sizes(7, 3, 7, 5, 9),  # odd everywhere: rows of a tile belong to many batch elements
    Sizes(1, 130, 129, 33),  # one past a whole number of steps
    WIDEST,
    Sizes(2, 19, 40, 129, 24),  # one wider, in either direction
    Sizes(2, 19, 40, 24, 129),
    Sizes(1, 9, 512, 260),
    Sizes(0, 5, 8, 8, 8),  # an empty batch
    Sizes(0, 5, 8, 8),
)
PLAIN, ODD = Sizes(2, 9, 32, 16, 24), Sizes(2, 5, 15, 7, 9)
SMALL = Sizes(2, 3, 4, 3, 2)
OPTIONS = (
    Sizes(2, 3, 4, 3),
    Sizes(2, 3, 4, 3, bias=False),
    SMALL,
    replace(SMALL, bias=False),
    replace(SMALL, out_bias=False),
    replace(SMALL, bias=False, out_bias=False),
)
# How often a 16-bit value may be rounded on the way. Value: k, v, r and the result. First: what arrives at r, k, its
# product with g and what arrives, and the result. Second: the cotangent of k's gradient, from x's and from the weight's
# and their sum; k and what arrives at r; the product; its projection, what the weight adds and their sum.
ROUNDINGS = {"value": 4, "first": 4, "second": 9}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_option = pytest.mark.parametrize("sizes", OPTIONS, ids=str)


def truth(x, g, weight, bias=None, out_weight=None, out_bias=None):
    w_k, w_v = weight[: len(weight) // 2], weight[len(weight) // 2 :]
    k, v = torch.einsum("bnc,dc->bnd", x, w_k), torch.einsum("bnc,dc->bnd", x, w_v)
    if bias is not None:
        k, v = k + bias[: len(w_k)], v + bias[len(w_k) :]
    r = true_gate(g, k, v)
    if out_weight is not None:
        r = torch.einsum("bnd,od->bno", r, out_weight)
    return r if out_bias is None else r + out_bias


def make_inputs(sizes, dtype, device, *, wide_gate=False, layout="dense"):
    """The tensors that there are, by name, as leaves; projections scaled so that they keep the size of what they project."""
    s, rows = sizes, 2 * sizes.channels
    shapes = {"x": (s.batch, s.tokens, s.inside), "g": (s.batch, s.channels), "weight": (rows, s.inside)}
    if s.bias:
        shapes["bias"] = (rows,)
    if s.outside is not None:
        shapes["out_weight"] = (s.outside, s.channels)
        if s.out_bias:
            shapes["out_bias"] = (s.outside,)
    inputs = {}
    for name, shape in shapes.items():
        wide = wide_gate and name == "g"
        tensor = noise(shape, NAMES.index(name)) / (shape[1] ** 0.5 if "weight" in name else 1)
        tensor = tensor.to(dtype=accumulation(dtype) if wide else dtype, device=device)
        inputs[name] = (lay_out(tensor, layout) if name == "x" else tensor).detach().requires_grad_()
    return inputs


def make_cotangents(sizes, inputs, layout="dense"):
    """One for the result, which requires a gradient, and one for each input's gradient."""
    x = inputs["x"]
    shape = (sizes.batch, sizes.tokens, sizes.channels if sizes.outside is None else sizes.outside)
    grad = lay_out(noise(shape, 100, x.dtype, x.device), layout).requires_grad_()
    return grad, [noise(t.shape, 101 + i, t.dtype, t.device) for i, t in enumerate(inputs.values())]


def by_name(function, inputs):
    """`function` of the tensors in the order of `inputs`."""
    return lambda *tensors: function(**dict(zip(inputs, tensors, strict=True)))


def judge(inputs, grad, cotangents, function=gated_projection, truth=truth):
    """Run one problem through all three orders and hold every result against the truth."""
    tensors = list(inputs.values())
    before = [t.detach().clone() for t in (*tensors, grad, *cotangents)]
    got = three_orders(by_name(function, inputs), tensors, grad, cotangents)
    for t, kept in zip((*tensors, grad, *cotangents), before, strict=True):
        assert torch.equal(t.detach(), kept), "an argument was written to"
    expected = three_orders(by_name(truth, inputs), doubles(tensors), *doubles([grad]), doubles(cotangents))
    for label, out in got.items():
        like = tensors[int(label.split()[-1])] if label[-1].isdigit() else grad
        assert (out.dtype, out.device) == (like.dtype, like.device), label
        roundings = ROUNDINGS[label.split()[0]] if grad.dtype in HALVES else 1
        # A wide gate's gradient is no better than k and v, which are computed again in the tokens' dtype.
        assert_accurate(out.to("cpu", grad.dtype), expected[label], label, roundings=roundings)
    return got


@each_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_orders(sizes, dtype, backend, device):
    inputs = make_inputs(sizes, dtype, device)
    for label, result in judge(inputs, *make_cotangents(sizes, inputs)).items():
        assert result.is_contiguous() or label != "value"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_option
def test_optional_tensors(sizes, dtype, backend, device):
    inputs = make_inputs(sizes, dtype, device)
    judge(inputs, *make_cotangents(sizes, inputs))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_gate_beside_half_tokens(dtype, backend, device):
    inputs = make_inputs(ODD, dtype, device, wide_gate=True)
    judge(inputs, *make_cotangents(ODD, inputs))


@pytest.mark.parametrize("sizes", [PLAIN, replace(ODD, outside=None)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_tokens_and_of_gradients(layout, sizes, backend, device):
    for of_tokens, of_gradients in ((layout, "dense"), ("dense", layout)):
        inputs = make_inputs(sizes, torch.float32, device, layout=of_tokens)
        judge(inputs, *make_cotangents(sizes, inputs, of_gradients))


def test_layout_of_the_other_arguments(backend, device):
    """Weights transposed, sliced and misaligned; a gate for all batch elements."""
    inputs = make_inputs(PLAIN, torch.float32, device)
    for name, layout in {"g": "expanded_batch", "weight": "transposed", "out_weight": "third", "bias": "misaligned"}.items():
        tensor = inputs[name].detach()
        inputs[name] = lay_out(tensor[None], layout)[0] if tensor.dim() == 1 else lay_out(tensor, layout)
        inputs[name] = (inputs[name][0].expand(tensor.shape) if name == "g" else inputs[name]).requires_grad_()
    judge(inputs, *make_cotangents(PLAIN, inputs))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "token"])
def test_strides_beyond_32_bits(dim, backend, device, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # it would commit the memory between
    inputs = make_inputs(replace(SMALL, batch=2, tokens=2), torch.float32, device)
    expected = truth(*doubles(inputs.values()))
    x, far, stride = inputs["x"], 2**31 + 8, [8, 4, 1]
    stride[dim] = far
    inputs["x"] = torch.empty(far + 16, dtype=x.dtype, device=device).as_strided(x.shape, stride).copy_(x.detach())
    assert_accurate(gated_projection(**inputs).cpu(), expected)


@pytest.mark.usefixtures("for_gradcheck")
@each_option
def test_gradcheck_and_gradgradcheck(sizes, backend, device):
    inputs = make_inputs(sizes, torch.float64, device)
    function, tensors = by_name(gated_projection, inputs), tuple(inputs.values())
    interpreted = backend == "triton" and device == "cpu"  # slowly: along random directions, not element by element
    assert gradcheck(function, tensors, fast_mode=interpreted)
    assert gradgradcheck(function, tensors, fast_mode=interpreted)


@pytest.mark.parametrize("name", NAMES)
def test_one_input_alone_requires_a_gradient(name, finest, device):
    inputs = make_inputs(SMALL, finest, device)
    grad, cotangents = make_cotangents(SMALL, inputs)
    fixed = {other: tensor.detach() for other, tensor in inputs.items()}

    def alone(function):
        return lambda **one: function(**{other: tensor.to(one[name]) for other, tensor in fixed.items()} | one)

    judge({name: inputs[name]}, grad, [cotangents[NAMES.index(name)]], alone(gated_projection), alone(truth))


def test_arguments_that_depend_on_each_other(finest, device):
    """As in LadaAttention, where g comes from x: a gradient goes to each argument by its own way alone."""
    inputs = make_inputs(Sizes(2, 3, 4, 4, 4), finest, device)
    inputs = {name: inputs[name] for name in ("x", "weight")}

    def tied(function):
        def call(x, weight):
            g = x.mean(1) * weight[:4, 0]
            return function(x, g, weight * g.sum(), weight[:, 1] * x[0, 0, 0], weight[:4] * g[0], g[1])

        return call

    grad = noise(inputs["x"].shape, 100, finest, device).requires_grad_()
    cotangents = [noise(t.shape, 101, finest, device) for t in inputs.values()]
    judge(inputs, grad, cotangents, tied(gated_projection), tied(truth))


@each_dtype
def test_r1(dtype, backend, device):
    """A discriminator's step: the loss and the penalty on the gradient of its input, then one backward."""
    inputs = make_inputs(PLAIN, dtype, device)
    direction = noise((2, 9, 24), 7, dtype, device)

    def step(function, inputs, direction):
        logits = (function(**inputs) * direction).flatten(1).sum(1)
        (slope,) = gradients(logits.sum(), inputs["x"], create_graph=True)
        (logits.mean() + slope.flatten(1).square().sum(1).mean()).backward()
        return {name: t.grad for name, t in inputs.items()}

    wide = dict(zip(inputs, doubles(inputs.values()), strict=True))
    expected = step(truth, wide, direction.double().cpu())
    for name, got in step(gated_projection, inputs, direction).items():
        assert got.dtype == dtype
        # Beside those of a second gradient: the slope, its cotangent, the loss's own share and the sum of the two.
        assert_accurate(got.cpu(), expected[name], name, roundings=ROUNDINGS["second"] + 4)


@each_option
def test_third_order_raises(sizes, finest, device):
    inputs = make_inputs(sizes, finest, device)
    grad, cotangents = make_cotangents(sizes, inputs)
    tensors = list(inputs.values())
    first = gradients(gated_projection(**inputs), tensors, grad, create_graph=True)
    second = gradients(first, [grad, *tensors], cotangents, create_graph=True, allow_unused=True)
    for result, name in zip(second, ["grad", *inputs], strict=True):
        if result is not None:
            assert result.requires_grad, name
            with pytest.raises(NotImplementedError, match="gated_product is differentiable twice"):
                gradients(result.sum(), tensors, retain_graph=True, allow_unused=True)


@each_option
def test_keeps_its_arguments_alone(sizes, backend, device):
    inputs = make_inputs(sizes, torch.float32, device)
    kept = set()

    def pack(x):
        kept.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        gated_projection(**inputs)
    assert kept <= {t.untyped_storage().data_ptr() for t in inputs.values()}


def test_without_gradients(backend, device):
    inputs = make_inputs(PLAIN, torch.float32, device)
    expected = gated_projection(**inputs).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = gated_projection(**inputs)
        assert not result.requires_grad
        assert torch.equal(result, expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_token(bad, backend, device):
    for sizes in (PLAIN, replace(PLAIN, outside=None)):
        inputs = {name: t.detach() for name, t in make_inputs(sizes, torch.float32, device).items()}
        inputs["x"][1, 4, 6] = bad
        finite = gated_projection(**inputs).isfinite().cpu()
        assert torch.equal(finite, truth(**{name: t.cpu() for name, t in inputs.items()}).isfinite())
        assert finite.all(-1).sum() == 17


def test_func_grad(finest, device):
    inputs = make_inputs(SMALL, finest, device)
    grad, _ = make_cotangents(SMALL, inputs)
    tensors = list(inputs.values())
    got = torch.func.grad(lambda *t: (gated_projection(*t) * grad.detach()).sum(), argnums=tuple(range(6)))(*tensors)
    for name, result, expected in zip(inputs, got, gradients(gated_projection(*tensors), tensors, grad), strict=True):
        assert torch.equal(result, expected), name


@pytest.mark.skipif(not available()["triton"], reason=f"backend 'triton': {available()['triton']}")
def test_tf32_only_where_torch_allows_it(monkeypatch):
    """What is asked of Triton, which the interpreter does not look at."""
    started, inputs = [], make_inputs(PLAIN, torch.float32, DEVICES["triton"])
    monkeypatch.setattr(
        "lada_kernels.backends.triton.launch.start", lambda *args, **constants: started.append(constants["PRECISION"])
    )
    before = torch.get_float32_matmul_precision()
    try:
        with use_backend("triton"), torch.no_grad():
            for setting in ("highest", "high", "medium"):
                torch.set_float32_matmul_precision(setting)
                gated_projection(**inputs)
    finally:
        torch.set_float32_matmul_precision(before)
    assert started == ["ieee", "tf32", "tf32"]


@pytest.mark.skipif(not available()["triton"], reason=f"backend 'triton': {available()['triton']}")
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has the older setting alone")
def test_tf32_by_the_newer_setting(monkeypatch):
    """After it was set, torch refuses to tell the older one."""
    started, inputs = [], make_inputs(PLAIN, torch.float32, DEVICES["triton"])
    monkeypatch.setattr(
        "lada_kernels.backends.triton.launch.start", lambda *args, **constants: started.append(constants["PRECISION"])
    )
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        with use_backend("triton"), torch.no_grad():
            for setting in ("ieee", "tf32"):
                torch.backends.cuda.matmul.fp32_precision = setting
                gated_projection(**inputs)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert started == ["ieee", "tf32"]


def first_order(function, inputs, grad, **autocast):
    """The value and the gradients, with autocast around the forward."""
    with torch.autocast(inputs["x"].device.type, **autocast) if autocast else torch.enable_grad():
        out = function(**inputs)
    return [out, *gradients(out, list(inputs.values()), grad.to(out.dtype))]


@pytest.mark.parametrize("narrow", HALVES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_narrows_as_linear_does(dtype, narrow, backend, device):
    """All but float64; the gradients come in the arguments' own dtype."""
    if dtype == torch.bfloat16 and narrow == torch.float16:
        pytest.skip("a gate in one 16-bit type beside tokens in another")
    inputs = make_inputs(PLAIN, dtype, device)
    grad, _ = make_cotangents(PLAIN, inputs)
    got = first_order(gated_projection, inputs, grad, dtype=narrow)
    target = dtype if dtype == torch.float64 else narrow
    assert got[0].dtype == target
    cast = {name: t.detach().to(t.dtype if name == "g" else target).requires_grad_() for name, t in inputs.items()}
    expected = first_order(gated_projection, cast, grad)
    for one, other, t in zip(got, expected, [got[0], *inputs.values()], strict=True):
        assert one.dtype == t.dtype
        assert torch.equal(one, other.to(one.dtype))


def test_gradients_under_autocast(backend, device):
    """Nothing is narrowed by the region that the backward happens to run in."""
    inputs = make_inputs(PLAIN, torch.float32, device)
    grad, _ = make_cotangents(PLAIN, inputs)
    expected = first_order(gated_projection, inputs, grad)
    out = gated_projection(**inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = gradients(out, list(inputs.values()), grad)
    for one, other in zip(got, expected[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fixed", [(), ("x", "out_bias"), ("g", "weight", "bias")], ids=str)
def test_compile_at_first_order(fixed, backend, device):
    compiled = torch.compile(lambda **t: gated_projection(**t), fullgraph=True, backend="aot_eager")
    for sizes in (SMALL, replace(SMALL, outside=None)):
        inputs = {name: t.detach() if name in fixed else t for name, t in make_inputs(sizes, torch.float32, device).items()}
        grad, _ = make_cotangents(sizes, inputs)
        leaves = [t for t in inputs.values() if t.requires_grad]
        if leaves:
            results = [(out, *gradients(out, leaves, grad)) for out in (compiled(**inputs), gated_projection(**inputs))]
            for one, other in zip(*results, strict=True):
                assert torch.equal(one, other)
    torch.compiler.reset()


def test_compile_under_autocast(backend, device):
    inputs = make_inputs(SMALL, torch.float32, device)
    grad, _ = make_cotangents(SMALL, inputs)
    expected = first_order(gated_projection, inputs, grad, dtype=torch.bfloat16)

    def call(**t):
        with torch.autocast(device, dtype=torch.bfloat16):
            return gated_projection(**t)

    got = first_order(torch.compile(call, fullgraph=True, backend="aot_eager"), inputs, grad)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    torch.compiler.reset()


X, G, W, W_O = torch.zeros(2, 5, 4), torch.zeros(2, 3), torch.zeros(6, 4), torch.zeros(7, 3)
B6, B7 = torch.zeros(6), torch.zeros(7)
REFUSED = {
    "x of two dimensions": ((X[0], G, W), ValueError, r"x: got shape \[5, 4\], expected \[B, N, D\]"),
    "no tokens": ((X[:, :0], G, W), ValueError, r"x: got shape \[2, 0, 4\], expected at least one token"),
    "integers": ((X.int(), G, W), TypeError, r"x: got dtype torch.int32, expected float32"),
    "an odd weight": ((X, G, W[:5]), ValueError, r"weight: got shape \[5, 4\], expected \[2D, C\] with C = 4 and D > 0"),
    "an empty weight": ((X, G, W[:0]), ValueError, r"weight: got shape \[0, 4\], expected \[2D, C\] with C = 4 and D > 0"),
    "weight of one dimension": ((X, G, B6), ValueError, r"weight: got shape \[6\], expected \[2D, C\]"),
    "a narrow weight": ((X, G, W[:, :3]), ValueError, r"weight: got shape \[6, 3\], expected \[2D, C\] = \[6, 4\]"),
    "half weight": ((X, G, W.half()), TypeError, r"weight: got dtype torch.float16, expected x's dtype torch.float32"),
    "wide weight": ((X.half(), G, W), TypeError, r"weight: got dtype torch.float32, expected x's dtype torch.float16"),
    "weight elsewhere": ((X, G, W.to("meta")), ValueError, r"weight: got device meta, expected x's device cpu"),
    "a wide gate": ((X, torch.zeros(2, 6), W), ValueError, r"g: got shape \[2, 6\], expected \[B, D\] = \[2, 3\]"),
    "integer gate": ((X, G.long(), W), TypeError, r"g: got dtype torch.int64, expected torch.float32 beside x"),
    "half a bias": ((X, G, W, B6[:3]), ValueError, r"bias: got shape \[3\], expected \[2D\] = \[6\]"),
    "half bias": ((X, G, W, B6.half()), TypeError, r"bias: got dtype torch.float16, expected x's dtype torch.float32"),
    "a wide out_weight": ((X, G, W, B6, W_O.T), ValueError, r"out_weight: got shape \[3, 7\], expected \[O, D\] = \[3, 3\]"),
    "an empty out_weight": ((X, G, W, B6, W_O[:0]), ValueError, r"out_weight: got shape \[0, 3\], expected \[O, D\] with"),
    "out_weight of one dimension": ((X, G, W, B6, B7), ValueError, r"out_weight: got shape \[7\], expected \[O, D\]"),
    "double out_weight": ((X, G, W, B6, W_O.double()), TypeError, r"out_weight: got dtype torch.float64, expected x's"),
    "a short out_bias": ((X, G, W, None, W_O, B6), ValueError, r"out_bias: got shape \[6\], expected \[O\] = \[7\]"),
    "half out_bias": ((X, G, W, None, W_O, B7.half()), TypeError, r"out_bias: got dtype torch.float16, expected x's dtype"),
    "out_bias alone": ((X, G, W, None, None, B7), ValueError, r"out_bias: got shape \[7\], expected None as out_weight is not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        gated_projection(*arguments)
