"""Checks that attention modules share."""

from torch import Tensor


def positive(**values: int) -> None:
    """Each is 1 or more."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected 1 or more")


def divide(dim: int, heads: int) -> None:
    """There are heads, and they divide the channels."""
    positive(dim=dim, heads=heads)
    if dim % heads:
        raise ValueError(f"heads: got {heads}, expected a divisor of dim = {dim}")


def tokens(x: Tensor, dim: int) -> None:
    """x is [B, N, dim]."""
    if x.dim() != 3 or x.shape[2] != dim:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, N, dim] with dim = {dim}")
