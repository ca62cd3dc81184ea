"""The compiled module `lada_kernels._native`, or the reason why it is not there."""

# torch first: its OpenMP runtime must be the one that the kernels find and share.
import torch  # noqa: F401

__all__ = ["native", "why_not_built"]

try:
    import lada_kernels._native as native
except ImportError as error:
    native = None
    cure = "" if "LADA_CPU_ISA" in str(error) else "; reinstall with `pip install .`"
    _REASON = f"the native module could not be imported ({error}){cure}"


def why_not_built() -> str | None:
    """None when the native module was imported, else the reason."""
    return None if native else _REASON
