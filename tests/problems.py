"""What every op is judged by: shapes, dtypes, layouts, the independent truth in float64, and the one table of tolerances."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import lada_kernels
from lada_kernels import backends

# The device on which each backend is tested. A backend that is missing here fails tests/backends.
# Without a GPU, Triton's kernels are interpreted, and the PTX of CUDA's is executed.
_GPU = "cuda" if torch.cuda.is_available() else "cpu"
DEVICES = {"reference": "cpu", "cpu": "cpu", "cuda": _GPU, "triton": _GPU, "blockwise": "cpu"}


def _target(name: str) -> Any:
    reason = backends.available()[name].reason
    marks = [pytest.mark.skipif(reason is not None, reason=f"backend {name!r}: {reason}")]
    return pytest.param(name, marks=marks + [pytest.mark.gpu] * (DEVICES[name] != "cpu"))


def skip_interpreted(backend: str, dtype: Any) -> None:
    """End the test where Triton's interpreter would compute in another dtype than float32, which takes minutes in all."""
    if (backend, DEVICES[backend]) == ("triton", "cpu") and dtype in set(DTYPES) - {torch.float32}:
        pytest.skip("Triton's interpreter judges float32, and truncates bfloat16; tests/ptx judges all on compiled kernels")


# Those that have the kernels of the ops below.
TARGETS = [_target(name) for name in backends.available() if name != "blockwise"]

# The most accurate dtype that a backend computes in; gradcheck and gradgradcheck take float64.
FINEST = dict.fromkeys(DEVICES, torch.float64) | {"cuda": torch.float32}


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the error against float64: ‖out − ref‖ / ‖ref‖; and for each element |out − ref| / (|ref| + rms(ref)),
    where rms(ref) is the larger of its row's and that of all.
    """

    norm: float
    element: float


TOLERANCES = {
    # A chain of sums, each of up to some thousand terms: 40 units of roundoff (1.1e-16), and as many in the truth itself.
    torch.float64: Tolerance(norm=1e-14, element=1e-13),
    # The same 40 units of roundoff (6e-8), and the truth exact; an element may suffer ten times the mean.
    torch.float32: Tolerance(norm=2.5e-6, element=2.5e-5),
    # Computed in float32 and rounded once: the unit roundoff 2^-8 bounds the norm; a sum of two rounded parts, an element.
    torch.bfloat16: Tolerance(norm=2**-8, element=2**-7),
    # Likewise; its unit roundoff is 2^-11.
    torch.float16: Tolerance(norm=2**-11, element=2**-10),
}
DTYPES = tuple(TOLERANCES)
HALVES = (torch.bfloat16, torch.float16)


def roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def relative_error(out: Tensor, truth: Tensor) -> float:
    """‖out − truth‖ / ‖truth‖ in float64."""
    return ((out.double() - truth).norm() / truth.norm()).item()


def errors(
    out: Tensor, truth: Tensor, *, roundings: int = 1, condition: float = 0.0, floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """How far `out` is from the float64 `truth`, in units of what is allowed: its rms error, and each element's.

    `roundings`: how often a value was rounded to its dtype on the way. `condition`: by how much the problem magnifies a
    relative error in what it accumulates (see `Op.condition`). `floor`: the size of terms that cancel where the truth is
    zero, as with softmax over one token.
    """
    tolerance = TOLERANCES[out.dtype]
    extra = 4 * condition * roundoff(accumulation(out.dtype))  # α enters a second gradient up to three times
    absolute = 32 * floor * roundoff(accumulation(out.dtype)) + torch.finfo(out.dtype).smallest_normal * roundoff(out.dtype)
    error, rms = (out.double() - truth).abs(), truth.square().mean().sqrt()
    row_rms = truth.square().mean(-1, keepdim=True).sqrt().clamp_min(rms)
    whole = (roundings * tolerance.norm + extra) * rms + absolute
    each = (roundings * tolerance.element + 10 * extra) * (truth.abs() + row_rms) + 8 * absolute
    ratios = error.square().mean().sqrt() / whole.clamp_min(1e-300), error / each.clamp_min(1e-300)
    return tuple(ratio.nan_to_num(math.inf, math.inf) for ratio in ratios)


def worst_error(out: Tensor, truth: Tensor, **bounds: Any) -> float:
    """The larger of `errors`, by norm and by element: right is at most 1."""
    return max(ratio.max().item() for ratio in errors(out.detach(), truth.double(), **bounds)) if out.numel() else 0.0


def assert_accurate(out: Tensor, truth: Tensor, label: str = "", **bounds: Any) -> None:
    """Hold `out` against the float64 `truth`, by norm and by element, at the tolerance of its dtype; `bounds`: see `errors`."""
    truth = truth.double()
    assert out.shape == truth.shape, f"{label}: shape {list(out.shape)}, expected {list(truth.shape)}"
    if out.numel() == 0:
        return
    out = out.detach().cpu()
    assert out.isfinite().all(), f"{label}: {int((~out.isfinite()).sum())} of {out.numel()} values are not finite"
    whole, each = errors(out, truth, **bounds)
    rms = truth.square().mean().sqrt()
    assert whole <= 1, f"{label}: an rms error of {whole:.3g} times its bound (rms of the truth {rms:.3g})"
    assert each.max() <= 1, f"{label}: an element off by {each.max():.3g} times its bound at {_where(each)}"


def _where(worst: Tensor) -> list[int]:
    return [int(index) for index in torch.unravel_index(worst.argmax(), worst.shape)]


@dataclass(frozen=True)
class Problem:
    """The sizes and options of one call; `mask` names an entry of MASKS."""

    batch: int
    tokens: int
    channels: int
    heads: int = 1
    per_head: bool = True
    scale: float | None = None
    mask: str | None = None

    def __str__(self) -> str:
        parts = [f"B{self.batch}-N{self.tokens}-D{self.channels}-H{self.heads}"]
        parts += [] if self.per_head else ["whole"]
        parts += [] if self.scale is None else [f"scale{self.scale}"]
        parts += [] if self.mask is None else [self.mask]
        return "-".join(parts)


SHAPES = (
    Problem(3, 37, 24, 3),  # no size is a multiple of a block
    Problem(2, 1, 16, 4),  # one token: softmax is constant
    Problem(1, 4099, 16, 8),  # one batch element: the threads share its tokens
    Problem(7, 3, 8, 1),  # a batch that no number of threads divides
    Problem(2, 33, 15, 3),  # odd D with odd H
    Problem(2, 9, 7, 1),  # below any vector's width
    Problem(2, 6, 8, 8),  # one channel a head
    Problem(1, 2, 1, 1),  # one channel in all
    Problem(4, 65, 64, 8),
    Problem(2, 130, 257, 1),  # one past a whole number of vectors
    Problem(1, 40, 520, 8),  # D/H = 65
    Problem(2, 19, 1024, 4),  # the widest of LadaGAN
    Problem(1, 5, 48, 16),  # more heads than tokens
    Problem(0, 5, 8, 2),  # an empty batch
    # A row of threads comes to its fourth tile of tokens and beyond, which were asked for while it worked on others:
    Problem(1, 253, 64, 4),  # up to four heads
    Problem(1, 125, 40, 8),  # up to eight, none of whole vectors
    Problem(1, 15, 1024, 8),  # rows of a whole block
    Problem(1, 253, 48, 16),  # more than eight heads
)
LONG = Problem(2, 125, 24, 3)  # several tiles again, for options of all kinds
SMALL = Problem(2, 5, 6, 2)  # for checks that cost a run per element

MASKS = {
    "random": lambda b, n: torch.arange(b * n).mul(7).remainder(5).lt(3).view(b, n),
    "all_live": lambda b, n: torch.ones(b, n, dtype=torch.bool),
    "one_live": lambda b, n: torch.arange(n).expand(b, n) == n // 2,
    "head_masked": lambda b, n: (torch.arange(n) >= n // 2).expand(b, n),
    "first_row_masked": lambda b, n: (torch.arange(b) > 0)[:, None].expand(b, n).clone(),
    "all_masked": lambda b, n: torch.zeros(b, n, dtype=torch.bool),
}

# Each takes a dense 3-d tensor and returns one laid out otherwise; only the expanded ones change the values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "third": lambda x: torch.cat([x + 1, x, x - 1], -1).tensor_split(3, -1)[1],
    "every_second_batch": lambda x: x.repeat_interleave(2, 0)[::2],
    "every_second_token": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "tokens_first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every_second_channel": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "odd_rows": lambda x: torch.cat([x[:, :, :1], x], -1)[:, :, 1:],
    "expanded_batch": lambda x: x[:1].expand(x.shape),
    "expanded_tokens": lambda x: x[:, :1].expand(x.shape),
    "expanded_channels": lambda x: x[:, :, :1].expand(x.shape),
    "expanded_scalar": lambda x: x[:1, :1, :1].expand(x.shape),
}


def lay_out(x: Tensor, layout: str) -> Tensor:
    return LAYOUTS[layout](x) if x.dim() == 3 else LAYOUTS[layout](x[None])[0]


def true_pool(x: Tensor, w: Tensor, *, per_head: bool = True, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    heads, channels = w.shape
    scale = (channels / heads) ** -0.5 if scale is None else scale
    width = channels // heads if per_head else channels
    rows = [torch.einsum("bnd,hd->bh", x[:0], w)[:, :, None].expand(0, heads, width)]  # keeps an empty batch differentiable
    for b, tokens in enumerate(x):
        live = tokens if mask is None else tokens[mask[b]]  # [n, D]
        alpha = (scale * live @ w.T).softmax(dim=0)  # [n, H]
        parts = live.unflatten(1, (heads, -1)) if per_head else live[:, None].expand(-1, heads, -1)  # [n, H, E]
        rows.append((alpha[:, :, None] * parts).sum(0, keepdim=True))
    return torch.cat(rows)  # [B, H, E]


def true_gate(g: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bd,bnd,bnd->bnd", g, k, v)


def true_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, **options: Any) -> Tensor:
    return true_gate(true_pool(q, w, **options).flatten(1), k, v)


def true_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return gamma[:, None] * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() + beta[:, None]


@dataclass(frozen=True)
class Op:
    """A public op with its independent truth; `kinds` says, for each argument, if it is tokens, a weight or a row."""

    name: str
    arguments: tuple[str, ...]
    kinds: tuple[str, ...]
    truth: Callable[..., Tensor]
    pools: bool  # knows heads, scale and mask

    def __call__(self, *inputs: Tensor, **options: Any) -> Any:
        return getattr(lada_kernels, self.name)(*inputs, **options)

    def __str__(self) -> str:
        return self.name

    def shapes(self, problem: Problem) -> list[tuple[int, ...]]:
        b, n, d, h = problem.batch, problem.tokens, problem.channels, problem.heads
        return [{"tokens": (b, n, d), "weight": (h, d), "row": (b, d)}[kind] for kind in self.kinds]

    def result_shape(self, problem: Problem) -> tuple[int, ...]:
        b, n, d, h = problem.batch, problem.tokens, problem.channels, problem.heads
        return (b, h, d // h if problem.per_head else d) if self is POOL else (b, n, d)

    def options(self, problem: Problem, device: str = "cpu") -> dict[str, Any]:
        if not self.pools:
            return {}
        mask = problem.mask and MASKS[problem.mask](problem.batch, problem.tokens).to(device)
        return {"scale": problem.scale, "mask": mask} | ({"per_head": problem.per_head} if self is POOL else {})

    def condition(self, inputs: Sequence[Tensor], *, scale: float | None = None, eps: float = 1e-6, **_: Any) -> float:
        """By how much a rounding error in a sum is magnified.

        The largest logit (a score s is known to |s| units of roundoff, and α moves as much), or the largest mean of a token
        in standard deviations (known to |mean| units, and what remains is divided by the deviation).
        """
        if not inputs[0].numel() or self is GATE:
            return 0.0
        x, w = inputs[0].detach().double(), inputs[-1].detach().double()
        if self.pools:
            return (x @ w.T * ((w.shape[0] / w.shape[1]) ** 0.5 if scale is None else scale)).nan_to_num().abs().max().item()
        return (x.mean(-1).abs() / (x.var(-1, correction=0) + eps).sqrt()).max().item()


POOL = Op("additive_pool", ("x", "score_weight"), ("tokens", "weight"), true_pool, True)
GATE = Op("gated_product", ("g", "k", "v"), ("row", "tokens", "tokens"), true_gate, False)
ATTENTION = Op("additive_attention", ("q", "k", "v", "score_weight"), ("tokens",) * 3 + ("weight",), true_attention, True)
NORM = Op("modulated_layer_norm", ("x", "gamma", "beta"), ("tokens", "row", "row"), true_norm, False)
OPS = (POOL, GATE, ATTENTION, NORM)


@contextmanager
def poisoned() -> Iterator[None]:
    """Every tensor starts as NaN, so that an element that no kernel writes is seen."""
    # What torch asks for before it multiplies matrices on a GPU in this mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def noise(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Standard normal numbers: the same for a seed on every device and, up to rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def make_inputs(
    op: Op,
    problem: Problem,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    layout: str = "dense",
    wide_parameters: bool = False,
) -> list[Tensor]:
    """Leaves that require gradients; tokens in `layout`, weights and rows in the accumulation dtype if `wide_parameters`."""
    inputs = []
    for seed, (kind, shape) in enumerate(zip(op.kinds, op.shapes(problem), strict=True)):
        wide = wide_parameters and kind != "tokens"
        x = noise(shape, seed, accumulation(dtype) if wide else dtype, device)
        inputs.append((lay_out(x, layout) if kind == "tokens" else x).detach().requires_grad_())
    return inputs


def make_cotangents(op: Op, problem: Problem, inputs: Sequence[Tensor], layout: str = "dense") -> tuple[Tensor, list[Tensor]]:
    """One for the result, which requires a gradient, and one for each input's gradient."""
    first = inputs[op.kinds.index("tokens")]
    grad = lay_out(noise(op.result_shape(problem), 100, first.dtype, first.device), layout).requires_grad_()
    return grad, [lay_out(noise(x.shape, 101 + i, x.dtype, x.device), layout) for i, x in enumerate(inputs)]


def doubles(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers as dense float64 leaves on the CPU."""
    return [x.detach().double().cpu().contiguous().requires_grad_() for x in tensors]


ORDERS = ("forward", "backward", "double backward")


def each_order(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor]
) -> Iterator[dict[str, Tensor]]:
    """What each of ORDERS gives, one after the other: the value; the gradient of every input; the second gradients."""
    value = function(*inputs)
    yield {"value": value}
    first = torch.autograd.grad(value, inputs, grad, create_graph=True)
    yield {f"first {i}": x for i, x in enumerate(first)}
    second = torch.autograd.grad(first, [grad, *inputs], cotangents, allow_unused=True, materialize_grads=True)
    yield {"second of grad": second[0], **{f"second {i}": x for i, x in enumerate(second[1:])}}


def three_orders(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The value, the gradient of every input, and the second gradients of `grad` and every input, by label."""
    return {label: x for results in each_order(function, inputs, grad, cotangents) for label, x in results.items()}


def true_orders(
    op: Op, inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor], **options: Any
) -> dict[str, Tensor]:
    """`three_orders` of the op's truth, on the CPU in float64."""
    options = {name: option.cpu() if isinstance(option, Tensor) else option for name, option in options.items()}
    function = partial(op.truth, **options)
    return three_orders(function, doubles(inputs), *doubles([grad]), doubles(cotangents))


def assert_orders(got: dict[str, Tensor], truth: dict[str, Tensor], inputs: Sequence[Tensor], **bounds: Any) -> None:
    """Every result of every order accurate, in the dtype and on the device that its tensor has."""
    for label, out in got.items():
        if label[-1].isdigit():
            x = inputs[int(label.split()[-1])]
            assert (out.dtype, out.device) == (x.dtype, x.device), f"{label}: {out.dtype} on {out.device}"
        assert_accurate(out.cpu(), truth[label], label, **bounds)


def cancelling(op: Op, problem: Problem, *layouts: str) -> float:
    """The size of what cancels where the truth is zero: 0 in most problems.

    Over equal tokens nothing moves the softmax, and inner products of D unit normals cancel; over equal channels nothing
    is left of a token once its mean is taken off.
    """
    if op.pools and (problem.tokens == 1 or problem.mask == "one_live" or {"expanded_tokens", "expanded_scalar"} & {*layouts}):
        return (problem.channels * problem.heads) ** 0.5
    if op is NORM and (problem.channels == 1 or {"expanded_channels", "expanded_scalar"} & {*layouts}):
        return 1e3 * problem.tokens**0.5  # divided by the deviation: eps^-1/2
    return 0.0


def judge(
    op: Op,
    problem: Problem,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    layout: str = "dense",
    grad_layout: str = "dense",
    wide_parameters: bool = False,
) -> None:
    """Run one problem through all three orders and hold every result against the truth."""
    inputs = make_inputs(op, problem, dtype, device, layout, wide_parameters)
    grad, cotangents = make_cotangents(op, problem, inputs, grad_layout)
    options = op.options(problem, device)
    if op is NORM and layout in ("expanded_channels", "expanded_scalar"):
        options["eps"] = 1.0  # the variance is zero: a default eps would divide rounding errors by 10^-6
    floor = cancelling(op, problem, layout, grad_layout)
    judge_inputs(op, inputs, grad, cotangents, floor=floor, **options)


def judge_inputs(
    op: Op, inputs: Sequence[Tensor], grad: Tensor, cotangents: Sequence[Tensor], *, floor: float = 0.0, **options: Any
) -> None:
    """Likewise, for these tensors and options of the op; and no argument may be written to."""
    before = [x.detach().clone() for x in (*inputs, grad, *cotangents)]
    got = three_orders(partial(op, **options), inputs, grad, cotangents)
    for x, kept in zip((*inputs, grad, *cotangents), before, strict=True):
        assert torch.equal(x.detach().nan_to_num(), kept.nan_to_num()), "an argument was written to"
    truth = true_orders(op, inputs, grad, cotangents, **options)
    assert_orders(got, truth, inputs, condition=op.condition(inputs, **options), floor=floor)
