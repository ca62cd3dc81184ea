"""The gated product of two projections, differentiable twice, without keeping them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..reference.precision import as_given, autocast_dtype
from ..reference.types import MaybeTensor
from . import checks
from .define import Op, check_storage
from .gated_product import GATED_PRODUCT


def gated_projection(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    out_weight: Tensor | None = None,
    out_bias: Tensor | None = None,
) -> Tensor:
    r"""g ⊙ k_n ⊙ v_n with k_n = W_k x_n + b_k, v_n = W_v x_n + b_v: LadaGAN's attention once its global query is known.

    Fused kernels never write k and v, and only the arguments are kept for the gradients, which compute both again: an extra
    projection buys the memory of k, v and, with `out_weight`, of their product. Under autocast every argument but g is
    narrowed, as by `torch.nn.functional.linear`.

    Args:
        x: [B, N, C]; float32, bfloat16, float16 or float64. B may be 0. Read in place if its last dimension is dense.
        g: [B, D], in x's dtype or the accumulation dtype (float32; float64 for float64).
        weight: [2D, C] in x's dtype, W_k over W_v, as `torch.nn.Linear` lays a packed projection out.
        bias: [2D], b_k before b_v; or None.
        out_weight: [O, D]; the result is then its projection, W_o r_n + b_o. Fused into the same kernel where D and O are at
            most 128, in float64 64.
        out_bias: [O], or None; given only beside `out_weight`.

    Returns:
        [B, N, D], or [B, N, O] with `out_weight`, in x's dtype.

    Raises:
        ValueError: a shape, a device, or N = 0, or `out_bias` without `out_weight`.
        TypeError: a dtype.
        NotImplementedError: in a third derivative, by the name of `gated_product`.
    """
    dtype = autocast_dtype(x.device.type)
    if dtype is not None:
        x, weight = _narrowed(x, dtype), _narrowed(weight, dtype)
        bias, out_weight, out_bias = (_narrowed(t, dtype) for t in (bias, out_weight, out_bias))
    checks.tokens("x", x)
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] % 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {checks.shape(weight)}, expected [2D, C] with C = {channels} and D > 0")
    rows = weight.shape[0]
    checks.projection("weight", weight, (rows, channels), "[2D, C]", "x", x)
    checks.parameter("g", g, (batch, rows // 2), "[B, D]", "x", x)
    if bias is not None:
        checks.projection("bias", bias, (rows,), "[2D]", "x", x)
    if out_weight is not None:
        if out_weight.dim() != 2 or out_weight.shape[0] == 0:
            raise ValueError(
                f"out_weight: got shape {checks.shape(out_weight)}, expected [O, D] with D = {rows // 2} and O > 0"
            )
        checks.projection("out_weight", out_weight, (out_weight.shape[0], rows // 2), "[O, D]", "x", x)
    if out_bias is not None:
        if out_weight is None:
            raise ValueError(f"out_bias: got shape {checks.shape(out_bias)}, expected None as out_weight is not given")
        checks.projection("out_bias", out_bias, (out_weight.shape[0],), "[O]", "x", x)
    return _gated_projection(x, g, weight, bias, out_weight, out_bias)


def _narrowed(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor  # what autocast leaves alone
    return tensor.to(dtype)


def _gradients(
    needs: Sequence[bool],
    grad: Tensor,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_weight: Tensor | None,
    backend: str,
) -> tuple[Tensor | None, ...]:
    """By operations that are themselves differentiable: a second gradient is the gradient of these."""
    needs_x, needs_g, needs_weight, needs_bias, needs_out_weight, needs_out_bias = needs
    needs_kv = needs_x or needs_weight or needs_bias
    for name, saved in (("x", x), ("weight", weight), ("bias", bias), ("out_weight", out_weight)):
        if saved is not None:
            check_storage(name, saved)
    grad_x = grad_g = grad_weight = grad_bias = grad_out_weight = grad_out_bias = None
    with as_given(grad.device.type):
        if needs_g or needs_kv or needs_out_weight:
            kv = functional.linear(x, weight, bias)  # [B, N, 2D]
        if needs_out_weight:
            grad_out_weight = _by_row(grad, GATED_PRODUCT.forward(g, kv, None, backend))  # [O, D]
        if needs_g or needs_kv:
            grad_r = grad if out_weight is None else grad @ out_weight  # [B, N, D]
            grad_g, grad_kv, _ = GATED_PRODUCT.backward([needs_g, needs_kv, False], grad_r, g, kv, None, backend)
            del kv, grad_r  # memory for what follows
        if needs_x:
            grad_x = grad_kv @ weight  # [B, N, C]
        if needs_weight:
            grad_weight = _by_row(grad_kv, x)  # [2D, C]
        if needs_bias:
            grad_bias = grad_kv.sum((0, 1))  # [2D]
        if needs_out_bias:
            grad_out_bias = grad.sum((0, 1))  # [O]
    return grad_x, grad_g, grad_weight, grad_bias, grad_out_weight, grad_out_bias


def _by_row(grad: Tensor, x: Tensor) -> Tensor:
    """Σ_bn grad_bni x_bnj: a projection's gradient of its weight."""
    return grad.reshape(-1, grad.shape[2]).T @ x.reshape(-1, x.shape[2])


def _shapes(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, out_weight: Tensor | None, out_bias: Tensor | None
) -> Tensor:
    return x.new_empty((*x.shape[:2], (g if out_weight is None else out_weight.T).shape[1]))


_gated_projection = Op[Tensor](
    "gated_projection",
    _shapes,
    inputs=("x", "g", "weight", "bias?", "out_weight?", "out_bias?"),
    results=("out",),
    gradients=("x", "g", "weight", "bias", "out_weight", "out_bias"),
    saved=("x", "g", "weight", "bias", "out_weight"),
    primary="x",
    gradient=_gradients,
)
