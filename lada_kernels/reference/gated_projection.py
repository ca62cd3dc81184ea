r"""The gated product of two projections in plain torch.

Per token, with W_k over W_v the rows of one packed weight, and likewise b_k and b_v:

    k_n = W_k x_n + b_k      v_n = W_v x_n + b_v      r_n = g ⊙ k_n ⊙ v_n      o_n = W_o r_n + b_o

The result is o, or r where there is no W_o; k, v and r are not rounded on the way. The derivatives are those of
`gated_product` and of the projections, so that this op has a forward alone.
"""

from torch import Tensor
from torch.nn import functional

from . import gated_product
from .precision import widen


def forward(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, out_weight: Tensor | None, out_bias: Tensor | None
) -> Tensor:
    """x [B,N,C], g [B,D], weight [2D,C], bias [2D], out_weight [O,D], out_bias [O] -> [B,N,O] or [B,N,D] in x's dtype."""
    (result,) = widen(x.dtype, x)
    result = gated_product.forward(g, _project(result, weight, bias), None)  # [B, N, D]
    if out_weight is not None:
        result = _project(result, out_weight, out_bias)  # [B, N, O]
    return result.to(x.dtype)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
