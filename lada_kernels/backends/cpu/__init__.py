"""Fused C++ kernels for the CPU: OpenMP, and AVX-512, AVX2 or baseline instructions chosen when they run."""

import torch

from ...native import native, why_not_built

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def unavailable() -> str | None:
    """None where the compiled module is there, else why it is not."""
    return why_not_built()


def refuses(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None for CPU tensors of a supported dtype, else the reason."""
    if device != "cpu":
        return f"it computes on CPU tensors, these are on {device}"
    if dtype not in _DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {dtype}"
    return None
