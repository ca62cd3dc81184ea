"""What follows from an op's declaration: what torch's dispatcher, compilers, exporter and function transforms make of it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import compilers
import pytest
import torch
from problems import LAYOUTS, noise
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lada_kernels import (
    additive_attention,
    additive_pool,
    available,
    dot_product_attention,
    gated_product,
    gated_projection,
    l2_attention,
    modulated_layer_norm,
    use_backend,
)
from lada_kernels.ops.batch_norm import batch_norm
from lada_kernels.ops.convolution import convolution

HALF = torch.bfloat16
MASK = torch.tensor([[True, False, True, True, False], [True, True, False, True, True]])


@dataclass(frozen=True)
class Case:
    """A call: its tensors' shapes, all with gradients, and what else it is given."""

    function: Any
    shapes: tuple[tuple[int, ...], ...]
    options: Any = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        out = self.function(*inputs, **(self.options or {}))
        return out[0] if isinstance(out, tuple) else out

    def inputs(self, dtype=torch.float64, layout="dense"):
        made = [noise(shape, seed, dtype) for seed, shape in enumerate(self.shapes)]
        return [(LAYOUTS[layout](x) if x.dim() == 3 else x).detach().requires_grad_() for x in made]


def norm_of_maps(x, gamma, beta):
    return batch_norm(x, gamma, beta, torch.zeros_like(gamma), torch.ones_like(gamma), 0.1, 1e-5)


def side_by_side(g, kv):
    return gated_product(g, kv)


LINEAR = {
    "pool": Case(additive_pool, ((2, 5, 6), (2, 6))),
    "pool of all channels": Case(additive_pool, ((2, 5, 6), (2, 6)), {"per_head": False, "mask": MASK, "return_weights": True}),
    "gate": Case(gated_product, ((2, 6), (2, 5, 6), (2, 5, 6))),
    "gate side by side": Case(side_by_side, ((2, 6), (2, 5, 12))),
    "attention": Case(additive_attention, ((2, 5, 6),) * 3 + ((2, 6),)),
    "masked attention": Case(additive_attention, ((2, 5, 6),) * 3 + ((2, 6),), {"mask": MASK, "return_weights": True}),
    "norm": Case(modulated_layer_norm, ((2, 5, 6), (2, 6), (2, 6))),
    "projection": Case(gated_projection, ((2, 5, 4), (2, 3), (6, 4), (6,))),
    "projection to the output": Case(gated_projection, ((2, 5, 4), (2, 3), (6, 4), (6,), (7, 3), (7,))),
}
OTHERS = {
    "dot product": Case(dot_product_attention, ((2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 6))),
    "distance": Case(l2_attention, ((2, 2, 5, 4), (2, 2, 5, 3))),
    "convolution": Case(convolution, ((2, 3, 5, 4), (4, 3, 3, 3)), {"padding": (1, 1), "stride": (2, 1)}),
    "batch norm": Case(norm_of_maps, ((2, 3, 4, 5), (3,), (3,))),
}
CASES = LINEAR | OTHERS
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def orders(function, inputs):
    """The value, the gradients, and those of a penalty on them."""
    value = function(*inputs)
    slopes = torch.autograd.grad(value.square().sum(), inputs, create_graph=True)
    return [value, *slopes, *torch.autograd.grad(compilers.penalty(slopes), inputs)]


class Calls(TorchDispatchMode):
    """The calls of our operators that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lada_kernels":
            self.found.append((func, tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, args)))
        return func(*args, **(kwargs or {}))


def with_gradient(x):
    return x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def judge_calls(case, dtype, layout):
    with Calls() as calls:
        orders(case, case.inputs(dtype, layout))
        x, *others = case.inputs(dtype, layout)
        (slope,) = torch.autograd.grad(case(x, *(other.detach() for other in others)).sum(), x, create_graph=True)
        slope.sum().backward()  # fewer needs, fewer cotangents
    names = {func.overloadpacket.__name__ for func, _ in calls.found}
    assert len(names) >= (1 if case.function is gated_projection else 3)
    for func, args in calls.found:
        opcheck(func, args)
        args = tree_map(with_gradient, args)
        if func.overloadpacket.__name__.endswith("_double_backward"):
            opcheck(func, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
            with pytest.raises(NotImplementedError, match="is differentiable twice; a third derivative was asked for"):
                compilers.penalty(func(*args)).backward()
        else:
            opcheck(func, args)


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "dense"), (torch.bfloat16, "third")], ids=str)
@pytest.mark.parametrize("case", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("backend", [name for name in ("cpu", "reference") if available()[name]])
def test_torch_knows_the_operators(case, dtype, layout, backend):
    with use_backend(backend):
        judge_calls(case, dtype, layout)


# A sum of batch norm's results is zero but for rounding, which torch's check of gradients takes for an error in 16 bits.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in OTHERS), ("dot product", HALF), ("distance", HALF), ("convolution", HALF)],
    ids=str,
)
def test_torch_knows_the_other_operators(name, dtype):
    judge_calls(OTHERS[name], dtype, "dense")


@pytest.mark.parametrize("compiler", compilers.COMPILERS)
@each_case
@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_r1_is_right_or_refused_by_compilers(case, compiler):
    compilers.judge(case, case.inputs(torch.float32), [], compiler)


class AsModule(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, *inputs):
        return self.case(*inputs)


@pytest.mark.parametrize("strict", [True, False])
@each_case
def test_exported_programs_train(case, strict):
    inputs = case.inputs()
    program = torch.export.export(AsModule(case), tuple(inputs), strict=strict)
    for got, expected in zip(orders(program.module(), inputs), orders(case, inputs), strict=True):
        torch.testing.assert_close(got, expected)


@each_case
def test_function_transforms(case):
    inputs = case.inputs()
    everything = tuple(range(len(inputs)))

    def gradients(*xs):
        return torch.func.grad(lambda *xs: case(*xs).square().sum(), argnums=everything)(*xs)

    def second(*xs):
        return torch.func.grad(lambda *xs: compilers.penalty(gradients(*xs)), argnums=everything)(*xs)

    _, *expected = orders(case, inputs)
    for got, truth in zip((*gradients(*inputs), *second(*inputs)), expected, strict=True):
        torch.testing.assert_close(got, truth)
    several = [torch.stack((x, x + 1, -x)).detach() for x in inputs]
    for function in (gradients, second):
        mapped = torch.vmap(function)(*several)
        for i in range(3):
            for got, truth in zip(mapped, function(*(x[i] for x in several)), strict=True):
                torch.testing.assert_close(got[i], truth)


@each_case
def test_calls_inside_a_transform_that_it_does_not_reach(case):
    """torch.func is at work, and none of the op's tensors are its own."""
    inputs = case.inputs()
    expected = orders(case, inputs)
    value = torch.vmap(lambda t: t * case(*inputs))(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(value[1], expected[0])
    for got, truth in zip(torch.autograd.grad(value[0].square().sum(), inputs), expected[1:], strict=False):
        torch.testing.assert_close(got, truth)


@each_case
def test_batched_gradients(case):
    inputs = case.inputs()
    assert torch.autograd.gradcheck(case, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(case, inputs, check_batched_grad=True)


# What our operators say, and torch's own that gated_projection's gradients are made of.
NOTHING_THERE = "got a storage of 0 bytes|its data is not allocated yet|out of bounds for storage of size 0"


@each_case
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_freed_storage_is_refused(case, order):
    """As FSDP frees those of its parameters; shifts are not read for the gradients."""
    shifts = {modulated_layer_norm: [2], norm_of_maps: [2], gated_projection: [5]}.get(case.function, [])
    for index in range(len(case.shapes)):
        inputs = case.inputs(torch.float32)
        slopes = [] if order == 1 else case(*inputs)
        if order == 3:
            slopes = torch.autograd.grad(slopes.square().sum(), inputs, create_graph=True)
        inputs[index].untyped_storage().resize_(0)
        if order == 1:
            with pytest.raises(RuntimeError, match=r"got a storage of 0 bytes, expected \d+ for shape"):
                case(*inputs)
        else:
            loss = compilers.penalty(slopes) if order == 3 else slopes.square().sum()
            with nullcontext() if index in shifts else pytest.raises(RuntimeError, match=NOTHING_THERE):
                torch.autograd.grad(loss, [x for i, x in enumerate(inputs) if i != index])


def test_a_storage_cut_short_is_refused():
    x, w = torch.zeros(2, 5, 6)[:, :, ::2], torch.zeros(1, 3)
    additive_pool(x, w)
    x.untyped_storage().resize_(4 * (59 - 1))
    with pytest.raises(RuntimeError, match=r"x: got a storage of 232 bytes, expected 236 for shape \[2, 5, 3\]"):
        additive_pool(x, w)
