"""The public functions: each checks its arguments, then calls its op."""

from .additive_attention import additive_attention
from .additive_pool import additive_pool
from .convolution import no_weight_gradients
from .dot_product_attention import dot_product_attention
from .gated_product import gated_product
from .gated_projection import gated_projection
from .l2_attention import l2_attention
from .modulated_layer_norm import modulated_layer_norm

__all__ = [
    "additive_attention",
    "additive_pool",
    "dot_product_attention",
    "gated_product",
    "gated_projection",
    "l2_attention",
    "modulated_layer_norm",
    "no_weight_gradients",
]
