"""Who computes: the choice of a backend, its refusal, and the explanation of both.

A backend is a module of this package with `unavailable() -> reason | None`, about this machine, `refuses(op, kind) ->
reason | None`, about tensors and the device that they are on, and `kernels(op)`, which returns the op's three entry points, or
its forward alone for `gated_projection`, whose gradients are taken by other ops:

    forward(...)                  what the reference's forward takes and returns
    backward(needs, ...)          the reference's backward; a result whose flag in `needs` is False may come as None
    double_backward(needs, ...)   likewise
"""

import functools
import os
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from . import blockwise, cpu, cuda, reference, triton
from .arguments import Kind

LINEAR = ("additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection")
QUADRATIC = ("dot_product_attention", "l2_attention")  # attention over pairs of tokens
OPS = LINEAR + QUADRATIC

_BACKENDS: dict[str, types.ModuleType] = {
    "cpu": cpu,
    "cuda": cuda,
    "triton": triton,
    "blockwise": blockwise,
    "reference": reference,
}
# The ops that each has kernels for.
_KERNELS = {"cpu": LINEAR, "cuda": LINEAR, "triton": LINEAR, "blockwise": QUADRATIC, "reference": OPS}

# In order of preference; the reference runs anything and comes last. CUDA comes before Triton because it compiles nothing
# when it runs: the two have not been measured against each other.
_ORDER = ("cpu", "cuda", "triton", "blockwise", "reference")
_ORDERS = {"gated_projection": ("cpu", "triton", "cuda", "blockwise", "reference")}  # only Triton's never writes k and v


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


def available() -> dict[str, str | None]:
    """Every backend by name: None when it can run on this machine, else the reason why not."""
    return {name: backend.unavailable() for name, backend in _BACKENDS.items()}


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
    chosen = _choose(op, kind, _requested)
    reasons = {}
    for name in _BACKENDS:
        if name != chosen:
            reasons[name] = _reason(name, op, kind) or _outranked(name, chosen, op)
    return Explanation(op, chosen, reasons)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op on the backend `name` inside the `with` block, in this process (backward threads included).

    Raises:
        ValueError: there is no backend of that name.
        BackendError: the backend cannot run on this machine; later, that it cannot run an op on the tensors given.
    """
    global _requested
    _check_name("name", name)
    reason = _BACKENDS[name].unavailable()
    if reason:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def chosen(op: str, tensor: torch.Tensor) -> str:
    """The name of the backend that computes `op` for tensors like this one."""
    return _choose(op, Kind.of(tensor), _requested)


def kernels(op: str, tensor: torch.Tensor) -> Any:
    """The three entry points that compute `op` for tensors on this tensor's device, of its dtype and channels."""
    return _kernels(op, tensor.device, tensor.dtype, tensor.size(-1), _requested)


@functools.cache
def _kernels(op: str, device: torch.device, dtype: torch.dtype, channels: int, requested: str | None) -> Any:
    kind = Kind(device, dtype, channels)
    chosen = _choose(op, kind, requested)
    if chosen == "reference" and not requested:
        reasons = "; ".join(f"{name}: {_reason(name, op, kind)}" for name in _BACKENDS if name != chosen)
        warnings.warn(f"{op} runs on the reference, without a fused kernel ({reasons})", FallbackWarning, stacklevel=3)
    return _BACKENDS[chosen].kernels(op)


def _choose(op: str, kind: Kind, requested: str | None) -> str:
    if requested:
        reason = _reason(requested, op, kind)
        if reason:
            raise BackendError(f"backend {requested!r} cannot run {op}: {reason}")
        return requested
    return next(name for name in _ORDERS.get(op, _ORDER) if _reason(name, op, kind) is None)


def _reason(name: str, op: str, kind: Kind) -> str | None:
    if op not in _KERNELS[name]:
        return f"it has no kernel for {op}"
    return _BACKENDS[name].refuses(op, kind)


def _outranked(name: str, chosen: str, op: str) -> str:
    if _requested:
        return "another backend was asked for"
    if {name, chosen} == {"cuda", "triton"} and op not in _ORDERS:
        return f"{chosen} comes first, as it compiles nothing when it runs; the two have not been measured against each other"
    return f"{chosen} comes first"


def _check_name(argument: str, name: str) -> None:
    if name not in _BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, expected one of {', '.join(_BACKENDS)}")


_requested: str | None = os.environ.get("LADA_BACKEND") or None
if _requested:
    _check_name("environment variable LADA_BACKEND", _requested)
