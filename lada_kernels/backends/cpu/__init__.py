"""Fused C++ kernels for the CPU: OpenMP, and AVX-512, AVX2 or baseline instructions chosen when they run."""

from functools import partial
from typing import Any

from torch import Tensor

from ..base import Kernels, Kind
from ..compiled import additive_pool, gated_product, gated_projection, modulated_layer_norm, orders
from ..compiled.addresses import DTYPES
from ..native import native, why_not_built
from . import additive_attention


def run(kernel: str, like: Tensor, /, **arguments: Any) -> None:
    """Run a kernel of csrc/cpu."""
    getattr(native, kernel)(**arguments)


KERNELS = {
    "additive_pool": orders(run, additive_pool),
    "gated_product": orders(run, gated_product),
    "additive_attention": orders(run, additive_attention),
    "modulated_layer_norm": orders(run, modulated_layer_norm),
    "gated_projection": Kernels(partial(gated_projection.forward, run)),
}
kernels = KERNELS.__getitem__


def unavailable() -> str | None:
    """None where the compiled module is there, else why it is not."""
    return why_not_built()


def refuses(op: str, kind: Kind) -> str | None:
    """None for CPU tensors of a supported dtype, else the reason."""
    if reason := unavailable():
        return reason
    if op not in KERNELS:
        return f"it has no kernel for {op}"
    if kind.device.type != "cpu":
        return f"it computes on CPU tensors, these are on {kind.device.type}"
    if kind.dtype not in DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {kind.dtype}"
    return None
