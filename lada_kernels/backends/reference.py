"""The reference as a backend: plain torch, on any device and in any floating-point dtype."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..reference import (
    additive_attention,
    additive_pool,
    batch_norm,
    convolution,
    dot_product_attention,
    gated_product,
    gated_projection,
    l2_attention,
    modulated_layer_norm,
)
from ..reference.precision import as_given
from .base import Kernels, Kind, Orders, Results


def plain(module: Orders) -> Kernels:
    """The three orders of a module in torch's operations, which computes every gradient, asked for or not."""
    backward, double_backward = _run(module.backward), _run(module.double_backward)
    return Kernels(_run(module.forward), lambda needs, *args: backward(*args), lambda needs, *args: double_backward(*args))


def _run(function: Callable[..., Results]) -> Callable[..., Results]:
    """The function with autocast off, as sums in float32 need it; its results are dense."""

    def run(*args: Any) -> Results:
        device = next(arg for arg in args if isinstance(arg, Tensor)).device.type
        with as_given(device):
            results = function(*args)
        if isinstance(results, Tensor):
            return results.contiguous()
        return tuple([None if result is None else result.contiguous() for result in results])

    return run


KERNELS = {
    "additive_pool": plain(additive_pool),
    "gated_product": plain(gated_product),
    "additive_attention": plain(additive_attention),
    "modulated_layer_norm": plain(modulated_layer_norm),
    "gated_projection": Kernels(_run(gated_projection.forward)),
    "dot_product_attention": plain(dot_product_attention),
    "l2_attention": plain(l2_attention),
    "convolution": Kernels.of(convolution),
    "batch_norm": Kernels(
        batch_norm.forward,
        lambda needs, *args: batch_norm.backward(*args),
        lambda needs, *args: batch_norm.double_backward(*args),
    ),
}
kernels = KERNELS.__getitem__


def unavailable() -> str | None:
    """None: plain torch runs wherever torch does."""
    return None


def refuses(op: str, kind: Kind) -> str | None:
    """None: every op, device and floating-point dtype is taken."""
    return None
