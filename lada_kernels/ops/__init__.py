"""The public functions: each checks its arguments, then enters its autograd chain of three orders."""

from .additive_attention import additive_attention
from .additive_pool import additive_pool
from .gated_product import gated_product
from .gated_projection import gated_projection
from .modulated_layer_norm import modulated_layer_norm

__all__ = ["additive_attention", "additive_pool", "gated_product", "gated_projection", "modulated_layer_norm"]
