"""How an op's entry points, written once for the CPU and CUDA, come to run on one of them."""

import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

# Run a kernel of csrc/lada.h, by name, for tensors like the given one: run(kernel, x, *arguments).
Run = Callable[..., None]


def entry_points(op: str, run: Run, package: str = __package__) -> Any:
    """The op's entry points, of the module of its name in `package`, on the backend whose kernels `run` runs."""
    module = importlib.import_module(f"{package}.{op}")
    orders = [order for order in ("forward", "backward", "double_backward") if hasattr(module, order)]
    return SimpleNamespace(**{order: partial(getattr(module, order), run) for order in orders})
