"""How the kernels of csrc/cuda are started: on which device and stream, and with which workspace."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..native import native, why_not_built

# Tests put the same kernels, compiled for the CPU, in the place of these three.
kernels: Any = getattr(native, "cuda", None)
DEVICE = "cuda"


def queue(x: Tensor) -> tuple[int, int]:
    """x's device and torch's current stream there."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def start(kernel: str, x: Tensor, /, **arguments: Any) -> None:
    """Start a kernel on x's device; what it wants of workspace is held until it was started, and is the stream's until then."""
    run, where = getattr(kernels, kernel), queue(x)
    with current(x.device):
        wanted = run((*where, 0, 0), **arguments)
        if wanted:
            workspace = x.new_empty(wanted, dtype=torch.uint8)
            run((*where, workspace.data_ptr(), wanted), **arguments)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device torch's current one, for native code leaves it so; torch's guard gives the former one no context."""
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if elsewhere else nullcontext()


def why_no_kernels() -> str | None:
    """None where the kernels were built and torch finds a device, whether or not that can run them."""
    if kernels is None:
        return why_not_built() or "the native module was built without CUDA: nvcc was not found, or LADA_CUDA_ARCHS was empty"
    if DEVICE == "cuda" and not torch.cuda.is_available():
        return "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
    return None


def why_not(device: torch.device) -> str | None:
    """None where this device, one of DEVICE's, can run the kernels."""
    try:
        with current(device):
            error = kernels.why_not(device.index or 0)
    except RuntimeError as failure:  # torch cannot use CUDA here, as in a forked process
        return str(failure)
    if error is None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    built = ", ".join(f"sm_{architecture}" for architecture in native.build_info()["cuda_architectures"].split(","))
    return (
        f"{device} has compute capability {major}.{minor}, and the kernels were built for {built} and later "
        f"(LADA_CUDA_ARCHS={major}{minor} builds them for it): {error}"
    )


def why_no_device() -> str | None:
    """None where some device can run the kernels."""
    if reason := why_no_kernels():
        return reason
    first = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # who is asked gets a context, which takes memory
    reasons = []
    for index in (first, *(i for i in range(torch.cuda.device_count()) if i != first)):
        reason = why_not(torch.device(DEVICE, index))
        if reason is None:
            return None
        reasons.append(reason)
    return "; ".join(dict.fromkeys(reasons))
