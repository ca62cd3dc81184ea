"""Fused kernels, to second order, for the attention of efficient transformer GANs."""

from .backends import available, explain, use_backend
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
)
from .version import VERSION

__version__ = VERSION

__all__ = [
    "BatchNorm2d",
    "DotProductAttention",
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
    "replace_attention",
    "use_backend",
]
