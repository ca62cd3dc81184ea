"""Improved spectral normalisation (ViTGAN, arXiv 2107.04589), as a parametrisation."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from lada_kernels.reference.precision import as_given

_FIRST = 20  # power iterations at the start


class ImprovedSpectralNorm(nn.Module):
    """W -> sigma(W_init) W / sigma(W): the largest singular value stays what it was when training began.

    Plain spectral normalisation would make it 1, which lets a transformer learn very slowly. sigma(W) comes from power
    iteration, u^T W v, whose vectors are buffers: saved, loaded and copied with the module, never trained, and advanced once by
    every forward in training mode. Gradients, second ones too, flow through W / (u^T W v) with u and v held fixed.

    Args:
        weight: [out, in, ...], the initial weight; all dimensions but the first count as one.
        eps: smallest length that a vector is divided by.

    Raises:
        ValueError: ``weight`` has fewer than two dimensions, or is zero.
    """

    def __init__(self, weight: Tensor, eps: float = 1e-12) -> None:
        super().__init__()
        if weight.dim() < 2:
            raise ValueError(f"weight: got shape {list(weight.shape)}, expected at least two dimensions")
        self.eps = eps
        matrix = weight.detach().flatten(1)
        # torch decomposes no matrix of 16 bits.
        precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        sigma = torch.linalg.matrix_norm(precise, 2).to(matrix.dtype)
        if not sigma.is_meta and sigma == 0:
            raise ValueError("weight: got zeros, expected a matrix that has a largest singular value above 0")
        self.register_buffer("initial_sigma", sigma)
        self.register_buffer("u", normalize(torch.randn(matrix.shape[0], dtype=matrix.dtype, device=matrix.device), dim=0))
        self.register_buffer("v", normalize(torch.randn(matrix.shape[1], dtype=matrix.dtype, device=matrix.device), dim=0))
        for _ in range(_FIRST):
            self._iterate(matrix)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.v.copy_(normalize(matrix.T @ self.u, dim=0, eps=self.eps))
        self.u.copy_(normalize(matrix @ self.v, dim=0, eps=self.eps))

    def sigma(self, weight: Tensor) -> Tensor:
        """The largest singular value of ``weight`` as the vectors have it so far, a scalar."""
        # Averaged over time, as by an EMA of the model, unit vectors become shorter. And a later forward advances them before
        # the gradient of this one is taken: they may not be used in place.
        return normalize(self.u, dim=0, eps=self.eps) @ weight.flatten(1) @ normalize(self.v, dim=0, eps=self.eps)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight, shaped like ``weight``."""
        # In 16 bits the norm would be off by thousandths, and another in a step that autocast leaves alone.
        with as_given(weight.device.type):
            if self.training:
                self._iterate(weight.detach().flatten(1))
            return weight * (self.initial_sigma / self.sigma(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is assigned to the parameter becomes the weight before normalisation."""
        return weight


def improved_spectral_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Normalise a parameter of ``module`` from now on; returns the module.

    The trained values move to ``module.parametrizations.<name>.original``; ``module.<name>`` is what they are normalised to, at
    first what it was. `torch.nn.utils.parametrize.remove_parametrizations` ends it.
    """
    parametrize.register_parametrization(module, name, ImprovedSpectralNorm(getattr(module, name)))
    return module
