"""Self-modulated LayerNorm as a module (arXiv 2401.09596; modulation from the latent: arXiv 1810.01365)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lada_kernels.modules.equalized import linear_kind
from lada_kernels.ops import modulated_layer_norm
from lada_kernels.reference.precision import autocast_dtype


def unpack_condition(x: Tensor | Sequence[Tensor], z: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (x, z), given as two arguments or, the official calling convention, as one pair."""
    if z is None:
        if isinstance(x, Tensor) or len(x) != 2:
            raise ValueError("z: got none, expected module(x, z) or module([x, z])")
        x, z = x
    elif not isinstance(x, Tensor):
        raise ValueError("x: got a pair and z as well, expected module(x, z) or module([x, z])")
    return x, z


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the channels of [B, N, dim] by the fused kernels, which R1 differentiates twice.

    Under autocast, where torch widens a LayerNorm and no R1 is taken, it is torch's own.

    Args:
        dim: channels D of x.
        eps: added to the variance.
        device, dtype: of the parameters, as in `torch.nn.Linear`.
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, N, dim] in x's dtype."""
        if autocast_dtype(x.device.type) is not None:
            return super().forward(x)
        batch = x.shape[0]
        return modulated_layer_norm(x, self.weight.expand(batch, -1), self.bias.expand(batch, -1), self.eps)


class SelfModulatedLayerNorm(nn.Module):
    """LayerNorm over channels whose scale and shift are computed from a condition z.

    ::

        c   = relu(h(z))
        out = (gamma_offset + mlp_gamma(c)) * (x - mean) / sqrt(var + eps) + mlp_beta(c)

    Parameters, named as in the official LadaGAN checkpoints: ``h.0`` (cond_dim -> dim), ``mlp_gamma`` and
    ``mlp_beta`` (dim -> dim). ViTGAN (arXiv 2107.04589) has no ``h``: with ``hidden=False`` c is z itself, and the
    other two go cond_dim -> dim.

    Args:
        dim: channels D of x.
        cond_dim: values per condition.
        eps: added to the variance. LadaGAN uses 1e-6, in both of its official versions.
        gamma_offset: 0 in LadaGAN, where gamma is used as it comes; ViTGAN's code modulates around 1.
        hidden: compute gamma and beta from relu(h(z)), as LadaGAN does, or from z itself.
        equalized: `EqualizedLinear` in place of `torch.nn.Linear`, as in ViTGAN.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: x is not [B, N, dim], or z does not hold B times ``cond_dim`` values.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        *,
        eps: float = 1e-6,
        gamma_offset: float = 0.0,
        hidden: bool = True,
        equalized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory_kwargs = {"device": device, "dtype": dtype}
        linear = linear_kind(equalized)
        self.dim = dim
        self.cond_dim = cond_dim
        self.eps = eps
        self.gamma_offset = gamma_offset
        self.h = nn.Sequential(linear(cond_dim, dim, **factory_kwargs), nn.ReLU()) if hidden else nn.Identity()
        self.mlp_gamma = linear(dim if hidden else cond_dim, dim, **factory_kwargs)
        self.mlp_beta = linear(dim if hidden else cond_dim, dim, **factory_kwargs)

    def forward(self, x: Tensor | Sequence[Tensor], z: Tensor | None = None) -> Tensor:
        """Map x [B, N, dim] under z [B, cond_dim], or [B, ...] of as many values, to [B, N, dim].

        The official calling convention, one pair ``[x, z]`` in place of x, works as well.
        """
        x, z = unpack_condition(x, z)
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, N, dim] with dim = {self.dim}")
        flat = z.flatten(1) if z.dim() > 2 else z
        if flat.shape != (x.shape[0], self.cond_dim):
            raise ValueError(f"z: got shape {list(z.shape)}, expected [B, cond_dim] = [{x.shape[0]}, {self.cond_dim}]")
        condition = self.h(flat)  # [B, D]
        # Autocast narrows gamma and beta; the norm works in x's dtype.
        gamma = self.mlp_gamma(condition).to(x.dtype)
        beta = self.mlp_beta(condition).to(x.dtype)
        if self.gamma_offset:
            gamma = gamma + self.gamma_offset
        return modulated_layer_norm(x, gamma, beta, self.eps)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, cond_dim={self.cond_dim}, eps={self.eps}, gamma_offset={self.gamma_offset}"
