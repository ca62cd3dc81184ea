"""gated_projection by torch's matrix products around the kernel of gated_product."""

from torch import Tensor
from torch.nn import functional

from ...reference.precision import as_given
from . import gated_product
from .addresses import Run


def forward(
    run: Run,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
) -> Tensor:
    """As `lada_kernels.reference.gated_projection.forward`, with k, v and r rounded to x's dtype."""
    with as_given(x.device.type):
        r = gated_product.forward(run, g, functional.linear(x, weight, bias), None)  # [B, N, D]
        return r if out_weight is None else functional.linear(r, out_weight, out_bias)
