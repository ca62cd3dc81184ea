"""Entry points of the ops in torch's dispatcher, so that `torch.compile` and fake tensors see them as opaque calls."""

import inspect
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from .. import backends

_LIBRARY = torch.library.Library("lada_kernels", "DEF")


def entry_point(op: str, order: str, schema: str, primary: int, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register `op`'s entry point `order` ("forward", "backward" or "double_backward") and return the callable.

    `schema` is what follows the name; `primary` is the position of the tensor that decides the backend; `fake` gives
    the results' shapes. The dispatcher knows no None: a result that is absent, or that the first argument of a backward
    (`needs`) does not ask for, travels through it as an empty tensor.
    """
    name = op if order == "forward" else f"{op}_{order}"
    select = backends.kernels

    def present(results: Any, args: tuple) -> Any:
        if isinstance(results, Tensor):
            return results
        if order != "forward":
            results = only(chain(args[0], repeat(True)), results)
        return tuple([args[primary].new_empty(0) if result is None else result for result in results])

    def run(*args: Any) -> Any:
        return present(getattr(select(op, args[primary]), order)(*args), args)

    return register(name, schema, run, lambda *args: present(fake(*args), args))


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Put `run` into the dispatcher; `schema` is what follows the name there, and `fake` gives the results' shapes."""
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lada_kernels::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.lada_kernels, name).default


def like(tensor: Tensor) -> Tensor:
    """A dense result shaped and typed like `tensor`."""
    return tensor.new_empty(tensor.shape)


def only(needs: Iterable[bool], results: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The results that were asked for, None in place of the others."""
    return tuple([result if needed else None for result, needed in zip(results, needs, strict=False)])


class _Bound:
    """Arguments that came by position, all of them: what `Function.apply` asks of its bound arguments."""

    __slots__ = ("args",)
    kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """There are none to apply."""


class _Positional(inspect.Signature):
    """A signature that binds by taking every argument as it comes; the general rules cost more than a small kernel."""

    def bind(self, *args: Any) -> _Bound:
        """Bind one argument to every parameter."""
        return _Bound(args)


def positional(forward: Callable[..., Any]) -> staticmethod:
    """Mark a Function's `forward` as called by position only: `Function.apply` binds its arguments on every call."""
    forward.__signature__ = _Positional(list(inspect.signature(forward).parameters.values()))
    return staticmethod(forward)


class LastOrder(Function):
    """The end of every op's autograd chain: runs its double backward and refuses to be differentiated."""

    @staticmethod
    def forward(op: str, double_backward: Callable[..., Any], needs: tuple[bool, ...], *args: Any) -> tuple[Tensor | None, ...]:
        """The results of `double_backward(needs, *args)` that `needs` asks for."""
        return only(needs, double_backward(needs, *args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keep the op's name for the refusal."""
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> None:
        """Refuse: this would be the third derivative."""
        raise NotImplementedError(f"{ctx.op} is differentiable twice; a third derivative was asked for")
