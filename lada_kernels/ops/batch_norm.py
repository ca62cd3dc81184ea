"""Batch norm, differentiable twice in torch's fused passes."""

import torch
from torch import Tensor

from ..reference.precision import accumulate_dtype
from .define import Op


def batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> Tensor:
    """`torch.nn.functional.batch_norm` in training mode with a lean double backward; the running statistics are updated.

    Args:
        x: [B, C, H, W].
        gamma, beta, running_mean, running_var: [C].
        momentum: the weight of this batch in the running statistics.
        eps: added to the variance.

    Returns:
        [B, C, H, W].

    Raises:
        NotImplementedError: in a third derivative.
    """
    out, _, _, mean, var = _batch_norm(x, gamma, beta, running_mean, running_var, float(eps), float(momentum))
    with torch.no_grad():
        running_mean.copy_(mean)
        running_var.copy_(var)
    return out


def _shapes(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, momentum: float
) -> tuple[Tensor, ...]:
    wide = gamma.dtype if x.device.type == "cpu" else accumulate_dtype(x.dtype)  # as torch has it
    statistics = [x.new_empty(gamma.shape, dtype=wide) for _ in range(2)]
    return torch.empty_like(x), *statistics, torch.empty_like(running_mean), torch.empty_like(running_var)


_batch_norm = Op[tuple[Tensor, ...]](
    "batch_norm",
    _shapes,
    inputs=("x", "gamma", "beta", "running_mean", "running_var"),
    settings=("float eps",),
    options=("float momentum",),
    results=("out", "mean", "rstd", "new_mean", "new_var"),
    gradients=("x", "gamma", "beta"),
    saved=("x", "gamma", "mean", "rstd"),
    like={"beta": "gamma"},
    primary="x",
    empty=torch.empty_like,
    reads_gradients=True,
    wanted=lambda needs: [True] * 3,  # one pass computes all, and the double backward reads them
)
