"""Entry points of the ops in torch's dispatcher, so that `torch.compile` and fake tensors see them as opaque calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import backends

_LIBRARY = torch.library.Library("lada_kernels", "DEF")


def entry_point(op: str, order: str, schema: str, primary: int, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register `op`'s entry point `order` ("forward", "backward" or "double_backward") and return the callable.

    `schema` is what follows the name; `primary` is the position of the tensor that decides the backend; `fake` gives
    the results' shapes. An optional result travels through the dispatcher, which knows none, as an empty tensor.
    """
    name = op if order == "forward" else f"{op}_{order}"
    _LIBRARY.define(name + schema)
    select = backends.kernels

    def run(*args: Any) -> Any:
        tensor = args[primary]
        results = getattr(select(op, tensor), order)(*args)
        if isinstance(results, Tensor):
            return results
        return tuple([tensor.new_empty(0) if result is None else result for result in results])

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lada_kernels::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.lada_kernels, name).default


def like(tensor: Tensor, needed: bool = True) -> Tensor:
    """A dense result shaped and typed like `tensor`, empty when it is not needed."""
    return tensor.new_empty(tensor.shape if needed else (0,))


def only(needs: tuple[bool, ...], results: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The results that were asked for, None in place of the others."""
    return tuple([result if needed else None for needed, result in zip(needs, results, strict=True)])


class LastOrder(Function):
    """The end of every op's autograd chain: runs its double backward and refuses to be differentiated."""

    @staticmethod
    def forward(op: str, double_backward: Callable[..., Any], needs: tuple[bool, ...], *args: Any) -> tuple[Tensor | None, ...]:
        return only(needs, double_backward(needs, *args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> None:
        raise NotImplementedError(f"{ctx.op} is differentiable twice; a third derivative was asked for")
