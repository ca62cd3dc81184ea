"""The precision in which sums, softmax and statistics are kept, and what autocast makes of it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# The types of device that autocast knows, asked once: torch.compile cannot trace the question.
_AUTOCASTS = frozenset(
    device
    for device in ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia", "privateuseone")
    if torch.amp.is_autocast_available(device)
)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in the precision that sums over tensors of `dtype` are kept in."""
    wide = accumulate_dtype(dtype)
    return [tensor.to(wide) for tensor in tensors]


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast narrows to on this type of device; None where it is off."""
    if device in _AUTOCASTS and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def as_given(device: str) -> AbstractContextManager[object]:
    """Autocast off: what is computed inside has the precision of the tensors that it is handed."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device, enabled=False)
