"""The mathematics of every op in plain torch: forward, backward and double backward, with their derivations.

The single source of truth: every other backend is judged against it, and it is itself a backend. It never calls a kernel.
"""

from . import (
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

__all__ = [
    "additive_attention",
    "additive_pool",
    "batch_norm",
    "convolution",
    "dot_product_attention",
    "gated_product",
    "gated_projection",
    "l2_attention",
    "modulated_layer_norm",
]
