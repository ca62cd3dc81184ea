"""Hand-written CUDA C++ kernels, compiled when the package was built: nothing is compiled when they run."""

from typing import Any

import torch

from ..arguments import Kind
from ..compiled.runner import entry_points
from . import launch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_CHANNELS = 4096


def unavailable() -> str | None:
    """None where the kernels were built and some device can run them, else why not."""
    return launch.why_no_device()


def refuses(op: str, kind: Kind) -> str | None:
    """None for tensors in a supported dtype on a CUDA device that can run the kernels, else the reason."""
    if reason := launch.why_no_kernels():
        return reason
    if kind.device.type != launch.DEVICE:
        return f"it computes on {launch.DEVICE} tensors, these are on {kind.device.type}"
    if kind.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, not {kind.dtype}"
    if not op.startswith("gated") and kind.channels > _MOST_CHANNELS:
        return f"it takes up to {_MOST_CHANNELS} channels, these are {kind.channels}"
    return launch.why_not(kind.device)


def kernels(op: str) -> Any:
    """The op's entry points."""
    return entry_points(op, launch.start, __name__) if op == "additive_attention" else entry_points(op, launch.start)
