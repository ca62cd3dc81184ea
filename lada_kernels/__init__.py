"""Fused kernels, to second order, for the attention of efficient transformer GANs."""

from ._version import __version__ as __version__
from .backends import BackendError, Explanation, FallbackWarning, available, explain, use_backend
from .modules import (
    BatchNorm2d,
    DotProductAttention,
    L2Attention,
    LadaAttention,
    LadaAttention2d,
    Ladaformer,
    OnFeatureMap,
    ReplacementReport,
    SelfModulatedLayerNorm,
    SMLadaformer,
    improved_spectral_norm,
    replace_attention,
)
from .ops import (
    additive_attention,
    additive_pool,
    dot_product_attention,
    gated_product,
    gated_projection,
    l2_attention,
    modulated_layer_norm,
    no_weight_gradients,
)

__all__ = [
    "BackendError",
    "BatchNorm2d",
    "DotProductAttention",
    "Explanation",
    "FallbackWarning",
    "L2Attention",
    "LadaAttention",
    "LadaAttention2d",
    "Ladaformer",
    "OnFeatureMap",
    "ReplacementReport",
    "SMLadaformer",
    "SelfModulatedLayerNorm",
    "additive_attention",
    "additive_pool",
    "available",
    "dot_product_attention",
    "explain",
    "gated_product",
    "gated_projection",
    "improved_spectral_norm",
    "l2_attention",
    "modulated_layer_norm",
    "no_weight_gradients",
    "replace_attention",
    "use_backend",
]
