"""Types that signatures share."""

from typing import TypeVar

from torch import Tensor

# What gives a tensor for a tensor, and None for None.
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)
