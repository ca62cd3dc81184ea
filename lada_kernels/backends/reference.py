"""The reference as a backend: plain torch, on any device and in any floating-point dtype."""

import torch

from .. import reference


def unavailable() -> str | None:
    """None: plain torch runs wherever torch does."""
    return None


def refuses(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None: every op, device and floating-point dtype is taken."""
    return None


class kernels:  # noqa: N801 - called like the other backends' function of this name
    """The three entry points of one op; the reference computes every gradient, asked for or not."""

    def __init__(self, op: str) -> None:
        self._op = getattr(reference, op)
        self.forward = self._op.forward

    def backward(self, needs: list[bool], *args: object) -> object:
        return self._op.backward(*args)

    def double_backward(self, needs: list[bool], *args: object) -> object:
        return self._op.double_backward(*args)
