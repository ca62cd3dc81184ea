"""Attention over pairs of tokens in torch operations, some rows of queries at a time: memory in O(N) at every order."""

import importlib
from functools import partial
from types import SimpleNamespace
from typing import Any

from ..arguments import Kind
from ..reference import run


def unavailable() -> str | None:
    """None: torch runs wherever it is."""
    return None


def refuses(op: str, kind: Kind) -> str | None:
    """None: every device and floating-point dtype is taken."""
    return None


def kernels(op: str) -> Any:
    """The op's entry points: those of the module of its name in this package, run as the reference's are."""
    module = importlib.import_module(f".{op}", __name__)
    orders = ("forward", "backward", "double_backward")
    return SimpleNamespace(**{order: partial(run, getattr(module, order)) for order in orders})
