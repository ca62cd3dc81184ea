"""The conventions in which LadaGAN's two official versions differ, and initialisation under them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lada_kernels.modules import LadaAttention


@dataclass(frozen=True)
class Flavor:
    """Every convention that distinguishes LadaGAN in TensorFlow (the paper's results) from its PyTorch port.

    Mix freely: ``dataclasses.replace(FLAVORS["torch"], pos_init="orthogonal")``.

    Attributes:
        init: all weights of linear layers and convolutions are orthogonal. ``"torch"``: ``to_qkv`` as one
            matrix, so that the singular values of q, k and v are below one; biases keep PyTorch's uniform
            default. ``"tf"``: q, k and v orthogonal each; biases zero.
        pos_init: position embeddings ``"normal"`` (standard normal) or ``"orthogonal"`` (16 to 32 times
            smaller).
        ln_eps: eps of the discriminator's plain LayerNorm; the self-modulated one has 1e-6 in both versions.
        bn_eps: eps of BatchNorm.
        bn_momentum: weight of the new batch in BatchNorm's running statistics (PyTorch's sense; Keras
            counts the old).
        same_pad: pad stride-2 convolutions 0 before and 1 after, TensorFlow's "same", instead of 1 on both
            sides.
    """

    init: Literal["torch", "tf"]
    pos_init: Literal["normal", "orthogonal"]
    ln_eps: float
    bn_eps: float
    bn_momentum: float
    same_pad: bool

    def __post_init__(self) -> None:
        if self.init not in ("torch", "tf"):
            raise ValueError(f"init: got {self.init!r}, expected 'torch' or 'tf'")
        if self.pos_init not in ("normal", "orthogonal"):
            raise ValueError(f"pos_init: got {self.pos_init!r}, expected 'normal' or 'orthogonal'")


FLAVORS = {
    "torch": Flavor("torch", "normal", ln_eps=1e-5, bn_eps=1e-5, bn_momentum=0.1, same_pad=False),
    "tf": Flavor("tf", "orthogonal", ln_eps=1e-6, bn_eps=1e-3, bn_momentum=0.01, same_pad=True),
}


def resolve_flavor(flavor: Flavor | str) -> Flavor:
    """Return ``flavor``, or the preset it names; ValueError for an unknown name."""
    if isinstance(flavor, Flavor):
        return flavor
    if flavor not in FLAVORS:
        raise ValueError(f"flavor: got {flavor!r}, expected a Flavor or one of {sorted(FLAVORS)}")
    return FLAVORS[flavor]


@torch.no_grad()
def init_weights(model: nn.Module, flavor: Flavor | str) -> None:
    """Initialise a freshly built model in place, under ``flavor.init`` and ``flavor.pos_init``.

    Normalisation layers keep the ones and zeros they are built with. Embeddings are the parameters named
    ``pos_*``.
    """
    flavor = resolve_flavor(flavor)
    stacked = {module.to_qkv for module in model.modules() if isinstance(module, LadaAttention)}
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        split = flavor.init == "tf" and module in stacked
        for block in module.weight.chunk(3) if split else (module.weight,):
            _orthogonal(block)
        if flavor.init == "tf" and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2].startswith("pos_"):
            if flavor.pos_init == "orthogonal":
                _orthogonal(parameter[0])  # [N, D]
            else:
                nn.init.normal_(parameter)


def _orthogonal(tensor: Tensor) -> None:
    # torch decomposes no matrix of 16 bits.
    tensor.copy_(nn.init.orthogonal_(tensor.to(torch.promote_types(tensor.dtype, torch.float32))))
