"""Kernels that were compiled when the package was built: what is the same for the CPU and for CUDA."""

from functools import partial

from ..base import Kernels, Orders
from .addresses import Run


def orders(run: Run, module: Orders) -> Kernels:
    """The three orders of a module whose functions take `run` first."""
    return Kernels(partial(module.forward, run), partial(module.backward, run), partial(module.double_backward, run))
