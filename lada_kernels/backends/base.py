"""What a backend is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

Results = Tensor | tuple[Tensor | None, ...]


class Kind(NamedTuple):
    """What the choice of a backend looks at in a tensor."""

    device: torch.device
    dtype: torch.dtype
    channels: int

    @classmethod
    def of(cls, x: Tensor) -> "Kind":
        """That of x, whose last dimension are its channels."""
        return cls(x.device, x.dtype, x.shape[-1])


def _no_kernel(*_: object) -> NoReturn:
    raise NotImplementedError("the gradients of this op are taken by other ops")


class Orders(Protocol):
    """A module with the three orders of an op."""

    @property
    def forward(self) -> Callable[..., Results]:
        """The op's results."""

    @property
    def backward(self) -> Callable[..., Results]:
        """Gradients of the inputs."""

    @property
    def double_backward(self) -> Callable[..., Results]:
        """Gradients of what the backward takes."""


@dataclass(frozen=True)
class Kernels:
    """An op's three orders on one backend; `lada_kernels.ops.define.Op` says what they take and return."""

    forward: Callable[..., Results]
    backward: Callable[..., Results] = _no_kernel
    double_backward: Callable[..., Results] = _no_kernel

    @classmethod
    def of(cls, module: Orders) -> "Kernels":
        """Those of a module."""
        return cls(module.forward, module.backward, module.double_backward)


class Backend(Protocol):
    """A module of this package that computes ops."""

    def unavailable(self) -> str | None:
        """None where it can run on this machine, else the reason."""

    def refuses(self, op: str, kind: Kind) -> str | None:
        """None where it computes this op for such tensors on their device, else the reason."""

    def kernels(self, op: str) -> Kernels:
        """The kernels of an op that it does not refuse."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on this machine: true where it can; `reason` says why it cannot."""

    reason: str | None

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return "available" if self else f"not available: {self.reason}"
