"""Multiply-adds of matrix products and convolutions, as torch counts them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import lada_kernels.flops  # noqa: F401 - its formulas
from lada_kernels import reference
from lada_kernels.backends import OPS, use_backend


def multiply_adds(call: Callable[[], Any], within: bool = False) -> tuple[Any, float]:
    """What the call returns, and its multiply-adds; `within`: those of our ops' forwards, which the counter cannot see, too."""
    ops = {getattr(torch.ops.lada_kernels, name): _of_reference(name) for name in OPS} if within else {}
    with use_backend("reference"), FlopCounterMode(display=False, custom_mapping=ops) as counter:
        result = call()
    return result, counter.get_total_flops() / 2


def _of_reference(op: str) -> Callable[..., int]:
    """What the op's reference takes for arguments of such shapes."""

    def flops(*args: Any, out_shape: Any) -> int:
        *args, _ = args  # the last is the name of a backend
        tensors = [torch.empty(arg, device="meta") if isinstance(arg, torch.Size) else arg for arg in args]
        return round(2 * multiply_adds(lambda: getattr(reference, op).forward(*tensors))[1])

    return flops
