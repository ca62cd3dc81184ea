"""Softmax attention by distance, with tied queries and keys, differentiable twice."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..reference.precision import accumulate_dtype
from . import checks, library


def l2_attention(
    qk: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""softmax_j(-scale·‖x_i − x_j‖²) v_j, x the tied queries and keys, differentiable twice in O(N) memory.

    The attention of ViTGAN's discriminator (arXiv 2107.04589; Kim et al. 2021): unlike that by products it is
    Lipschitz continuous. It runs as dot-product attention with a bias of each key, which is kept in float32 beside 16-bit
    tokens: see `lada_kernels.reference.l2_attention`.

    Args:
        qk: [B, H, N, d]; float32, bfloat16, float16 or float64. B may be 0.
        v: [B, H, N, e] in qk's dtype.
        scale: factor on the squared distances; default d^-0.5.
        return_weights: also return the weights [B, H, N, N], not differentiable, in the accumulation dtype (float32; float64
            for float64); they, and other matrices of their size on the way, are then held as a whole.

    Returns:
        [B, H, N, e] in qk's dtype; with `return_weights` a pair (out, weights).

    Raises:
        ValueError: a shape, a device, or N, d or e = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.by_heads("qk", qk, "[B, H, N, d]")
    checks.by_heads("v", v, "[B, H, N, e]", ("qk", qk))
    if v.shape[2] != qk.shape[2]:
        raise ValueError(f"v: got {v.shape[2]} tokens, expected qk's N = {qk.shape[2]}")
    scale = qk.shape[3] ** -0.5 if scale is None else float(scale)
    out, weights = _Attention.apply(qk, v, scale, return_weights)
    return (out, weights) if return_weights else out


class _Attention(Function):
    @library.positional
    def forward(qk: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor]:
        return _forward(qk, v, scale, return_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.scale, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
        if grad is None:
            return (None,) * 4
        return *_AttentionBackward.apply(ctx.needs_input_grad[:2], grad, *ctx.saved_tensors, ctx.scale), None, None


class _AttentionBackward(Function):
    # Every parameter is named: torch.compile counts them to tell whether a forward takes ctx.
    @library.positional
    def forward(needs: tuple[bool, ...], grad: Tensor, qk: Tensor, v: Tensor, scale: float) -> tuple[Tensor | None, ...]:
        return library.only(needs, _backward(needs, grad, qk, v, scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 5
        args = (ctx.needs_input_grad[1:4], *cotangents, *ctx.saved_tensors, ctx.scale)
        return None, *library.LastOrder.apply("l2_attention", _double_backward, *args), None


def _fake_forward(qk: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(qk.dtype)
    weights = qk.new_empty((*qk.shape[:3], qk.shape[2]), dtype=wide) if return_weights else qk.new_empty(0)
    return library.like(v), weights


def _fake_backward(needs: list[bool], grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(library.like, args[:2]))


def _fake_double_backward(needs: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(library.like, args[2:5]))


_INPUTS = "Tensor qk, Tensor v"

_forward = library.entry_point(
    "l2_attention", "forward", f"({_INPUTS}, float scale, bool return_weights) -> (Tensor, Tensor)", 0, _fake_forward
)
_backward = library.entry_point(
    "l2_attention",
    "backward",
    f"(bool[] needs, Tensor grad, {_INPUTS}, float scale) -> (Tensor, Tensor)",
    2,
    _fake_backward,
)
_double_backward = library.entry_point(
    "l2_attention",
    "double_backward",
    f"(bool[] needs, Tensor? cot_qk, Tensor? cot_v, Tensor grad, {_INPUTS}, float scale) -> (Tensor, Tensor, Tensor)",
    4,
    _fake_double_backward,
)
