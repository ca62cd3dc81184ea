"""Fused Triton kernels for GPUs; with TRITON_INTERPRET=1, the same kernels interpreted on the CPU, slowly."""

import functools
import importlib
from typing import Any

from ..arguments import Kind


@functools.cache
def unavailable() -> str | None:
    """None where Triton can start a kernel, else why not."""
    try:
        from . import launch
    except ImportError as error:
        return f"triton could not be imported ({error})"
    return launch.why_no_device()


def refuses(op: str, kind: Kind) -> str | None:
    """None for tensors on Triton's device in a supported dtype, else the reason."""
    if reason := unavailable():
        return reason
    from . import launch

    if kind.device.type != launch.device_type():
        return f"it computes on {launch.device_type()} tensors, these are on {kind.device.type}"
    if kind.dtype not in launch.DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {kind.dtype}"
    return None


def kernels(op: str) -> Any:
    """The op's entry points: the module of its name in this package."""
    return importlib.import_module(f".{op}", __name__)
