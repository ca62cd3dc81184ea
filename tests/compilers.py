"""What R1 is under torch's compilers: right, or an error; never a wrong gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COMPILERS = ("eager", "aot_eager", "inductor")
Function = Callable[..., Tensor]


def penalty(slopes: Sequence[Tensor]) -> Tensor:
    return sum(slope.square().sum() for slope in slopes)


def by_autograd(function: Function) -> Function:
    """The penalty on the gradients by the inputs."""

    def penalised(*inputs: Tensor) -> Tensor:
        return penalty(torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True))

    return penalised


def by_func(function: Function) -> Function:
    def penalised(*inputs: Tensor) -> Tensor:
        everything = tuple(range(len(inputs)))
        return penalty(torch.func.grad(lambda *xs: function(*xs).square().sum(), argnums=everything)(*inputs))

    return penalised


WAYS = {
    "autograd.grad inside": lambda function, compiled: compiled(by_autograd(function)),
    "func.grad inside": lambda function, compiled: compiled(by_func(function)),
    "differentiated outside": lambda function, compiled: by_autograd(compiled(function)),
}


def judge(function: Function, inputs: Sequence[Tensor], parameters: Sequence[Tensor], compiler: str) -> dict[str, str]:
    """Hold R1's gradients by inputs and parameters against the eager ones, each way, within 1e-5; an error is none.

    `torch.autograd.grad` inside has to be right, and so has what is differentiated outside where torch permits that.
    """
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        outcomes = {way: _outcome(way, function, inputs, parameters, compiler) for way in WAYS}
    assert outcomes["autograd.grad inside"] == "right", outcomes
    assert outcomes["differentiated outside"] == ("right" if compiler == "eager" else "raised RuntimeError"), outcomes
    return outcomes


def _outcome(way: str, function: Function, inputs: Sequence[Tensor], parameters: Sequence[Tensor], compiler: str) -> str:
    torch.compiler.reset()
    everything = [*inputs, *parameters]
    expected = torch.autograd.grad(by_autograd(function)(*inputs), everything, materialize_grads=True)
    try:
        loss = WAYS[way](function, lambda f: torch.compile(f, fullgraph=True, backend=compiler))(*inputs)
        got = torch.autograd.grad(loss, everything, materialize_grads=True)
    except Exception as error:
        return f"raised {type(error).__name__}"
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm().clamp_min(1e-3), f"{way}, {compiler}: silently wrong"
    return "right"
