"""The three orders of an op as calls through public autograd, and what they must result in."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases import OPS, ORDERS, Call, Op, Shape
from benchmarks.harness import Contestant


def make_inputs(kinds: str, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    batch, tokens, channels, heads = shape
    sizes = {"t": (batch, tokens, channels), "c": (batch, channels), "w": (heads, channels)}
    draw = [torch.randn(sizes[kind], device=device) * (0.05 if kind == "w" else 1.0) for kind in kinds]
    return [x.to(dtype).requires_grad_() for x in draw]


def make_cotangents(op: Op, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One for the result, which requires a gradient, and one for each input's gradient."""
    with torch.no_grad():
        result = op.plain(*(x[:1] if kind != "w" else x for kind, x in zip(op.inputs, inputs, strict=True)))
    grad = result.new_empty((inputs[0].shape[0], *result.shape[1:])).normal_()
    return grad.requires_grad_(), [torch.randn_like(x) for x in inputs]


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


def at_order(
    order: str, function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor, cotangents: list[Tensor]
) -> Contestant:
    """A call that computes one order of the function through public autograd; what comes before is computed here, once."""
    if order == "forward":

        def forward() -> tuple[Tensor]:
            with torch.no_grad():
                return (function(*inputs),)

        return forward
    out = function(*inputs)
    if order == "backward":
        return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)
    first = torch.autograd.grad(out, inputs, grad, create_graph=True)
    # A norm's beta has no second gradient.
    return lambda: torch.autograd.grad(first, [grad, *inputs], cotangents, retain_graph=True, allow_unused=True)


def truth_of(
    op: Op, order: str, inputs: list[Tensor], grad: Tensor, cotangents: list[Tensor], largest: int = 2**25
) -> list[Tensor | None]:
    """One order of an op by its plain twin in float64, on as many batch elements at a time as have `largest` channels in all.

    A gradient of what all of them share is the sum of theirs.
    """
    tokens = inputs[op.inputs.index("t")]
    size = max(1, largest // tokens[0].numel())
    # A result for the output, for every input, or for the cotangent of the output and every input.
    kinds = {"forward": "t", "backward": op.inputs, "double backward": "t" + op.inputs}[order]
    parts = []
    for first in range(0, len(tokens), size):

        def part(tensors: list[Tensor], first: int = first) -> list[Tensor]:
            pairs = zip(op.inputs, tensors, strict=True)
            return [(x if kind == "w" else x[first : first + size]).detach().double() for kind, x in pairs]

        (few,) = widened([grad[first : first + size]])
        parts.append(at_order(order, op.plain, widened(part(inputs)), few, part(cotangents))())
    return [
        None if those[0] is None else torch.cat(those) if kind != "w" else torch.stack(those).sum(0)
        for kind, those in zip(kinds, zip(*parts, strict=True), strict=True)
    ]


class Setting:
    """One order of an op on inputs drawn from a seed, for any function that computes the op."""

    def __init__(self, call: Call, order: str, device: str) -> None:
        name, shape, dtype = call
        self.op, self.order = OPS[name], order
        torch.manual_seed(0)
        self.inputs = make_inputs(self.op.inputs, shape, dtype, device)
        self.grad, self.cotangents = make_cotangents(self.op, self.inputs)

    def calling(self, function: Callable[..., Tensor]) -> Contestant:
        return at_order(self.order, function, self.inputs, self.grad, self.cotangents)

    def truth(self, largest: int) -> list[Tensor | None]:
        return truth_of(self.op, self.order, self.inputs, self.grad, self.cotangents, largest)

    @property
    def bytes_moved(self) -> int:
        """The fewest that the order can move."""
        return self.op.units[ORDERS.index(self.order)] * self.inputs[self.op.inputs.index("t")].nbytes
