"""Fused C++ kernels for the CPU: OpenMP, and AVX-512, AVX2 or baseline instructions chosen when they run."""

from typing import Any

from torch import Tensor

from ...native import native, why_not_built
from ..arguments import Kind
from ..compiled.addresses import DTYPES
from ..compiled.runner import entry_points


def unavailable() -> str | None:
    """None where the compiled module is there, else why it is not."""
    return why_not_built()


def refuses(op: str, kind: Kind) -> str | None:
    """None for CPU tensors of a supported dtype, else the reason."""
    if reason := unavailable():
        return reason
    if kind.device.type != "cpu":
        return f"it computes on CPU tensors, these are on {kind.device.type}"
    if kind.dtype not in DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {kind.dtype}"
    return None


def kernels(op: str) -> Any:
    """The op's entry points."""
    return entry_points(op, run, __name__) if op == "additive_attention" else entry_points(op, run)


def run(kernel: str, x: Tensor, *args: Any) -> None:
    """Run a kernel of csrc/cpu."""
    getattr(native, kernel)(*args)
