"""A loss and R1 in one compiled function, differentiated: ours against the plain composition, compiled and not."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks import peers
from benchmarks.cases import LADAGAN_SHAPES, TINY_SHAPE, Plan, Shape
from benchmarks.harness import Contestant
from benchmarks.orders import widened
from benchmarks.record import Row
from benchmarks.trial import Case, Trial
from lada_kernels import additive_attention
from lada_kernels.modules import LadaAttention

TOLERANCE, PEER_TOLERANCE = 1e-4, 1e-3
Function = Callable[..., Tensor]


def cases(plan: Plan) -> Iterator[Case]:
    for shape in (TINY_SHAPE,) if plan.rehearsal else LADAGAN_SHAPES:
        for name in ("additive_attention", "LadaAttention"):
            about = {"call": name, "shape": list(shape), "task": "loss + R1"}
            yield Case(
                "compiled", about, tuple(plan.backends), ("plain", "compiled"), partial(time_r1, plan, name, shape, about)
            )


def time_r1(plan: Plan, name: str, shape: Shape, about: dict[str, object], repeats: int = 11) -> Row:
    ours, plain, inputs = CALLS[name](shape, plan.device)
    leaves = [x.requires_grad_() for x in inputs]
    truth = differentiated(penalised(plain), widened(leaves))()
    trial = Trial(plan, "compiled", about, TOLERANCE, PEER_TOLERANCE)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compiler.reset()
        for who in plan.backends:
            trial.enter(who, lambda: differentiated(torch.compile(penalised(ours), fullgraph=True), leaves), truth)
        trial.enter("plain", lambda: differentiated(penalised(plain), leaves), truth)
        trial.enter("compiled", lambda: differentiated(torch.compile(penalised(plain), fullgraph=True), leaves), truth)
        row = trial.race(repeats)
    trial.speedups()
    if row.times:
        trial.peaks()
    return row


def penalised(function: Function) -> Function:
    """A discriminator's loss on real images with R1 by the first input."""

    def loss(x: Tensor, *others: Tensor) -> Tensor:
        out = function(x, *others).mean((1, 2))  # [B]
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return softplus(-out).mean() + slope.square().sum((1, 2)).mean()

    return loss


def differentiated(loss: Function, inputs: Sequence[Tensor]) -> Contestant:
    return lambda: torch.autograd.grad(loss(*inputs), inputs)


def of_the_op(shape: Shape, device: str) -> tuple[Function, Function, list[Tensor]]:
    batch, tokens, channels, heads = shape
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, tokens, channels, device=device) for _ in range(3))
    return additive_attention, peers.plain_attention, [q, k, v, torch.randn(heads, channels, device=device)]


def of_the_layer(shape: Shape, device: str) -> tuple[Function, Function, list[Tensor]]:
    """The layers as functions of x and their parameters."""
    batch, tokens, channels, heads = shape
    torch.manual_seed(0)
    ours = LadaAttention(channels, heads).to(device)
    names = [name for name, _ in ours.named_parameters()]

    def calling(layer: torch.nn.Module) -> Function:
        def call(x: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

        return call

    parameters = [parameter.detach() for parameter in ours.parameters()]
    return (
        calling(ours),
        calling(peers.PlainAttention(ours)),
        [torch.randn(batch, tokens, channels, device=device), *parameters],
    )


CALLS = {"additive_attention": of_the_op, "LadaAttention": of_the_layer}
