"""Fused C++ kernels for the CPU: OpenMP, and AVX-512, AVX2 or baseline instructions chosen when they run."""

import importlib
from typing import Any

import torch

from ...native import why_not_built
from .arguments import DTYPES


def unavailable() -> str | None:
    """None where the compiled module is there, else why it is not."""
    return why_not_built()


def refuses(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None for CPU tensors of a supported dtype, else the reason."""
    if device != "cpu":
        return f"it computes on CPU tensors, these are on {device}"
    if dtype not in DTYPES:
        return f"it computes in float32, bfloat16, float16 and float64, not {dtype}"
    return None


def kernels(op: str) -> Any:
    """The op's entry points: the module of its name in this package."""
    return importlib.import_module(f".{op}", __name__)
