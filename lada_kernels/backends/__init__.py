"""Which backend computes an op: the choice, its refusal, and the explanation of both."""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from . import blockwise, cpu, cuda, reference, triton
from .base import Availability, Backend, Kernels, Kind

LINEAR = ("additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection")
QUADRATIC = ("dot_product_attention", "l2_attention")  # attention over pairs of tokens
MAPS = ("convolution", "batch_norm")  # torch's own kernels, whichever backend is asked for
OPS = LINEAR + QUADRATIC

_BACKENDS: dict[str, Backend] = {
    "cpu": cpu,
    "cuda": cuda,
    "triton": triton,
    "blockwise": blockwise,
    "reference": reference,
}

# In order of preference; the reference runs anything and comes last. CUDA comes before Triton because it compiles nothing
# when it runs: the two have not been measured against each other.
_ORDER = ("cpu", "cuda", "triton", "blockwise", "reference")
_ORDERS = {"gated_projection": ("cpu", "triton", "cuda", "blockwise", "reference")}  # only Triton's never writes k and v

AUTOMATIC = "automatic"  # no backend was asked for
WHEN_RUN = ""  # compiled code asks when it runs


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run."""


class FallbackWarning(UserWarning):
    """No fused kernel can run an op, so the reference does."""


@dataclass(frozen=True)
class Explanation:
    """Which backend would run an op, and why each of the others would not."""

    op: str
    backend: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        others = "".join(f"\n  not {name}: {reason}" for name, reason in self.reasons.items())
        return f"{self.op} runs on {self.backend}{others}"


def available() -> dict[str, Availability]:
    """Every backend by name: whether it can run on this machine, with the reason if it cannot."""
    return {name: Availability(backend.unavailable()) for name, backend in _BACKENDS.items()}


def explain(op: str, *tensors: torch.Tensor) -> Explanation:
    """Which backend would run `op` on these tensors, and why the others would not.

    Args:
        op: one of "additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection",
            "dot_product_attention", "l2_attention".
        tensors: the op's tensor arguments; the first decides device, dtype and channels.

    Raises:
        ValueError: op is unknown, or no tensor was given.
        BackendError: the backend asked for by `use_backend` or LADA_BACKEND cannot run it.
    """
    if op not in OPS:
        raise ValueError(f"op: got {op!r}, expected one of {', '.join(OPS)}")
    if not tensors:
        raise ValueError("tensors: got none, expected the op's tensor arguments")
    kind = Kind.of(tensors[0])
    chosen = _choose(op, kind, _requested.get())
    reasons = {}
    for name in _BACKENDS:
        if name != chosen:
            reasons[name] = _BACKENDS[name].refuses(op, kind) or _outranked(name, chosen, op)
    return Explanation(op, chosen, reasons)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op on the backend `name` inside the `with` block, in this thread or asynchronous task.

    Gradients run on the backend that ran the op, wherever they are computed. Compiled code chooses when it runs, its gradients
    too.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: the backend cannot run on this machine; later, that it cannot run an op on the tensors given.
    """
    _check_name("name", name)
    reason = _BACKENDS[name].unavailable()
    if reason:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def requested() -> str:
    """What an op is called with: the name of the backend asked for, or AUTOMATIC; in code that is being compiled WHEN_RUN."""
    return WHEN_RUN if torch.compiler.is_compiling() else _requested.get()


def chosen(op: str, tensor: torch.Tensor) -> str:
    """The name of the backend that computes `op` for tensors like this one."""
    return _choose(op, Kind.of(tensor), _requested.get())


def kernels(op: str, tensor: torch.Tensor, requested: str) -> Kernels:
    """The kernels that compute `op` for tensors like this one, on the backend that was `requested` when the op was called."""
    return _kernels(op, tensor.device, tensor.dtype, tensor.size(-1), requested or _requested.get())


@functools.cache
def _kernels(op: str, device: torch.device, dtype: torch.dtype, channels: int, requested: str) -> Kernels:
    kind = Kind(device, dtype, channels)
    chosen = _choose(op, kind, requested)
    if chosen == "reference" and requested == AUTOMATIC and op not in MAPS:
        reasons = "; ".join(f"{name}: {_BACKENDS[name].refuses(op, kind)}" for name in _BACKENDS if name != chosen)
        warnings.warn(f"{op} runs on the reference, without a fused kernel ({reasons})", FallbackWarning, stacklevel=3)
    return _BACKENDS[chosen].kernels(op)


def _choose(op: str, kind: Kind, requested: str) -> str:
    if op in MAPS:
        return "reference"
    if requested != AUTOMATIC:
        reason = _BACKENDS[requested].refuses(op, kind)
        if reason:
            raise BackendError(f"backend {requested!r} cannot run {op}: {reason}")
        return requested
    return next(name for name in _ORDERS.get(op, _ORDER) if _BACKENDS[name].refuses(op, kind) is None)


def _outranked(name: str, chosen: str, op: str) -> str:
    if _requested.get() != AUTOMATIC:
        return "another backend was asked for"
    if {name, chosen} == {"cuda", "triton"} and op not in _ORDERS:
        return f"{chosen} comes first, as it compiles nothing when it runs; the two have not been measured against each other"
    return f"{chosen} comes first"


def _check_name(argument: str, name: str) -> None:
    if name not in _BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, expected one of {', '.join(_BACKENDS)}")


def _from_environment() -> str:
    name = os.environ.get("LADA_BACKEND") or AUTOMATIC
    if name != AUTOMATIC:
        _check_name("environment variable LADA_BACKEND", name)
    return name


_requested: ContextVar[str] = ContextVar("lada_kernels.backend", default=_from_environment())  # noqa: B039
