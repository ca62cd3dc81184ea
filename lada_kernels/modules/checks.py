"""Checks that attention modules share."""

from torch import Tensor


def divide(dim: int, heads: int) -> None:
    """There are heads, and they divide the channels."""
    if dim < 1 or heads < 1 or dim % heads:
        raise ValueError(f"heads must divide dim, got heads={heads} and dim={dim}")


def tokens(x: Tensor, dim: int) -> None:
    """x is [B, N, dim]."""
    if x.dim() != 3 or x.shape[2] != dim:
        raise ValueError(f"x must be [B, N, {dim}] as dim={dim}, got {list(x.shape)}")
