"""The reference as a backend: plain torch, on any device and in any floating-point dtype."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import reference
from ..reference.precision import as_given
from .arguments import Kind


def unavailable() -> str | None:
    """None: plain torch runs wherever torch does."""
    return None


def refuses(op: str, kind: Kind) -> str | None:
    """None: every op, device and floating-point dtype is taken."""
    return None


class kernels:  # noqa: N801 - called like the other backends' function of this name
    """The three entry points of one op; the reference computes every gradient, asked for or not."""

    def __init__(self, op: str) -> None:
        self._op = getattr(reference, op)

    def forward(self, *args: Any) -> Any:
        """The reference's forward."""
        return run(self._op.forward, *args)

    def backward(self, needs: list[bool], *args: Any) -> Any:
        """The reference's backward."""
        return run(self._op.backward, *args)

    def double_backward(self, needs: list[bool], *args: Any) -> Any:
        """The reference's double backward."""
        return run(self._op.double_backward, *args)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """Call with autocast off; the results are dense."""
    device = next(arg for arg in args if isinstance(arg, Tensor)).device.type
    with as_given(device):  # the sums are in float32 because they need it
        return _dense(function(*args))


def _dense(results: Any) -> Any:
    """Torch's elementwise operations keep the strides of their arguments; an op's results are dense."""
    if isinstance(results, Tensor):
        return results.contiguous()
    return tuple([None if result is None else result.contiguous() for result in results])
