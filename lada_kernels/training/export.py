"""Generators as programs that need none of this package: `torch.export`, and ONNX.

The program is the reference's mathematics in torch's own operations. Exporting takes a copy of the model in evaluation mode,
with attention folded, as a choice by size would bound the batch, and with spectral normalisation multiplied into the weights.
"""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from lada_kernels.backends import MAPS, OPS, reference, use_backend
from lada_kernels.modules import LadaAttention


def export_program(generator: nn.Module) -> ExportedProgram:
    """Trace a generator, z [B, noise_dim] -> images [B, 3, S, S] for any B, in the dtype and on the device of its weights.

    It takes no gradients. `torch.export.save` writes it, as ``.pt2``; `torch.export.load(path).module()` needs torch alone.
    """
    model = copy.deepcopy(generator).eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, LadaAttention):
            module.fold_query = True
        if parametrize.is_parametrized(module):
            _keep_values(module)
    weight = next(model.parameters())
    z = torch.zeros(2, model.noise_dim, dtype=weight.dtype, device=weight.device)
    with use_backend("reference"), _PlainOps():
        return torch.export.export(model, (z,), dynamic_shapes=({0: Dim("batch")},), strict=False)


def _keep_values(module: nn.Module) -> None:
    """Make parameters of what parametrisations compute."""
    # Removal changes the class that parametrisation made, which a deep copy shares with the original.
    kind = type(module)
    module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    for name in list(module.parametrizations):
        parametrize.remove_parametrizations(module, name)


class _PlainOps(TorchFunctionMode):
    """Inside, an op's forward is the reference's composition, not one call that a trace takes for whole."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = {getattr(torch.ops.lada_kernels, op).default: _composition(op) for op in OPS + MAPS}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self.plain.get(func, func)(*args, **(kwargs or {}))


def _composition(op: str) -> Callable[..., Any]:
    forward = reference.kernels(op).forward

    def compose(first: Tensor, *others: Any) -> Any:
        results = forward(first, *others[:-1])  # the last is the name of a backend
        if isinstance(results, Tensor):
            return results
        return tuple([first.new_empty(0) if result is None else result for result in results])  # ops return no None

    return compose


def export_onnx(program: ExportedProgram, path: str | Path) -> None:
    """Write `export_program`'s result as an ONNX model with input ``z`` and output ``images``, weights included.

    Raises:
        ImportError: a package of the ``onnx`` extra is not installed.
    """
    import_onnx_extra()
    names = {"input_names": ["z"], "output_names": ["images"], "dynamic_shapes": ({0: "batch"},)}
    torch.onnx.export(program, f=path, **names, dynamo=True, external_data=False, verbose=False)


def import_onnx_extra() -> ModuleType:
    """Import what ONNX takes, and return onnxruntime; ``ImportError`` names the command that installs a missing package."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"{package} is needed for ONNX: pip install 'lada_kernels[onnx]'") from error
    return module
