"""Who computes: the choice of a backend, its refusal, and the explanation of both.

A backend is a module of this package with `unavailable() -> reason | None`, `refuses(op, device, dtype) -> reason | None`
and `kernels(op)`, which returns the op's three entry points, or its forward alone for `gated_projection`, whose
gradients are taken by other ops:

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

from . import cpu, reference, triton

OPS = ("additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection")

# In order of preference; the reference runs anything and comes last.
_BACKENDS: dict[str, types.ModuleType] = {"cpu": cpu, "triton": triton, "reference": reference}


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
        op: one of "additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection".
        tensors: the op's tensor arguments; the first decides device and dtype.

    Raises:
        ValueError: op is unknown, or no tensor was given.
        BackendError: the backend asked for by `use_backend` or LADA_BACKEND cannot run it.
    """
    if op not in OPS:
        raise ValueError(f"op: got {op!r}, expected one of {', '.join(OPS)}")
    if not tensors:
        raise ValueError("tensors: got none, expected the op's tensor arguments")
    device, dtype = tensors[0].device.type, tensors[0].dtype
    chosen = _choose(op, device, dtype, _requested)
    reasons = {}
    for name in _BACKENDS:
        if name != chosen:
            asked = "another backend was asked for" if _requested else f"{chosen} comes first"
            reasons[name] = _reason(name, op, device, dtype) or asked
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


def chosen(op: str, device: str, dtype: torch.dtype) -> str:
    """The name of the backend that computes `op` on this type of device in this dtype."""
    return _choose(op, device, dtype, _requested)


def kernels(op: str, tensor: torch.Tensor) -> Any:
    """The three entry points that compute `op` for tensors on this tensor's device and of its dtype."""
    return _kernels(op, tensor.device.type, tensor.dtype, _requested)


@functools.cache
def _kernels(op: str, device: str, dtype: torch.dtype, requested: str | None) -> Any:
    chosen = _choose(op, device, dtype, requested)
    if chosen == "reference" and not requested:
        reasons = "; ".join(f"{name}: {_reason(name, op, device, dtype)}" for name in _BACKENDS if name != chosen)
        warnings.warn(f"{op} runs on the reference, without a fused kernel ({reasons})", FallbackWarning, stacklevel=3)
    return _BACKENDS[chosen].kernels(op)


def _choose(op: str, device: str, dtype: torch.dtype, requested: str | None) -> str:
    if requested:
        reason = _reason(requested, op, device, dtype)
        if reason:
            raise BackendError(f"backend {requested!r} cannot run {op}: {reason}")
        return requested
    return next(name for name in _BACKENDS if _reason(name, op, device, dtype) is None)


def _reason(name: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    return _BACKENDS[name].unavailable() or _BACKENDS[name].refuses(op, device, dtype)


def _check_name(argument: str, name: str) -> None:
    if name not in _BACKENDS:
        raise ValueError(f"{argument}: got {name!r}, expected one of {', '.join(_BACKENDS)}")


_requested: str | None = os.environ.get("LADA_BACKEND") or None
if _requested:
    _check_name("environment variable LADA_BACKEND", _requested)
