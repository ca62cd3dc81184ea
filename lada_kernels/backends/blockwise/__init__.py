"""Attention over pairs of tokens in torch operations, some rows of queries at a time: memory in O(N) at every order."""

from ..base import Kind
from ..reference import plain
from . import dot_product_attention, l2_attention

KERNELS = {"dot_product_attention": plain(dot_product_attention), "l2_attention": plain(l2_attention)}
kernels = KERNELS.__getitem__


def unavailable() -> str | None:
    """None: torch runs wherever it is."""
    return None


def refuses(op: str, kind: Kind) -> str | None:
    """None for these two ops on every device and in every floating-point dtype, else the reason."""
    return None if op in KERNELS else f"it has no kernel for {op}"
