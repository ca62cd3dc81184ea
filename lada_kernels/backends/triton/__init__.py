"""Fused Triton kernels for GPUs; with TRITON_INTERPRET=1, the same kernels interpreted on the CPU, slowly."""

import functools

from ..base import Kernels, Kind

OPS = ("additive_pool", "gated_product", "additive_attention", "modulated_layer_norm", "gated_projection")


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

    if op not in OPS:
        return f"it has no kernel for {op}"
    if kind.device.type != launch.device_type():
        return f"it computes on {launch.device_type()} tensors, these are on {kind.device.type}"
    if kind.dtype not in launch.DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {kind.dtype}"
    return None


@functools.cache
def kernels(op: str) -> Kernels:
    """The kernels of an op; Triton is imported where one is asked for."""
    from . import additive_attention, additive_pool, gated_product, gated_projection, modulated_layer_norm

    return {
        "additive_pool": Kernels.of(additive_pool),
        "gated_product": Kernels.of(gated_product),
        "additive_attention": Kernels.of(additive_attention),
        "modulated_layer_norm": Kernels.of(modulated_layer_norm),
        "gated_projection": Kernels(gated_projection.forward),
    }[op]
