"""Hand-written CUDA C++ kernels, compiled when the package was built: nothing is compiled when they run."""

from functools import partial

import torch

from ..base import Kernels, Kind
from ..compiled import additive_pool, gated_product, gated_projection, modulated_layer_norm, orders
from . import additive_attention, launch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_CHANNELS = 4096

KERNELS = {
    "additive_pool": orders(launch.start, additive_pool),
    "gated_product": orders(launch.start, gated_product),
    "additive_attention": orders(launch.start, additive_attention),
    "modulated_layer_norm": orders(launch.start, modulated_layer_norm),
    "gated_projection": Kernels(partial(gated_projection.forward, launch.start)),
}
kernels = KERNELS.__getitem__


def unavailable() -> str | None:
    """None where the kernels were built and some device can run them, else why not."""
    return launch.why_no_device()


def refuses(op: str, kind: Kind) -> str | None:
    """None for tensors in a supported dtype on a CUDA device that can run the kernels, else the reason."""
    if reason := launch.why_no_kernels():
        return reason
    if op not in KERNELS:
        return f"it has no kernel for {op}"
    if kind.device.type != launch.DEVICE:
        return f"it computes on {launch.DEVICE} tensors, these are on {kind.device.type}"
    if kind.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, not {kind.dtype}"
    if not op.startswith("gated") and kind.channels > _MOST_CHANNELS:
        return f"it takes up to {_MOST_CHANNELS} channels, these are {kind.channels}"
    return launch.why_not(kind.device)
