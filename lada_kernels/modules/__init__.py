"""Modules for efficient transformer GANs, built on the ops; LadaGAN's keep the official parameter names."""

from lada_kernels.modules.attention import LadaAttention
from lada_kernels.modules.batch_norm import BatchNorm2d
from lada_kernels.modules.feature_map import OnFeatureMap
from lada_kernels.modules.ladaformer import Ladaformer, SMLadaformer
from lada_kernels.modules.norm import SelfModulatedLayerNorm

__all__ = ["BatchNorm2d", "LadaAttention", "Ladaformer", "OnFeatureMap", "SMLadaformer", "SelfModulatedLayerNorm"]
