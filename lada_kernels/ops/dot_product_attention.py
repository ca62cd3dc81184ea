"""Softmax attention over pairs of tokens, differentiable twice."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..reference.precision import accumulate_dtype
from . import checks, library


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, return_weights: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""softmax_j(scale·⟨q_i, k_j⟩) v_j (Vaswani et al. 2017, equation 1), differentiable twice in O(N) memory.

    What `torch.nn.functional.scaled_dot_product_attention` computes without mask and dropout; its fused kernels have no second
    derivative, and without them it keeps N x N matrices. Here no order keeps one: gradients compute the weights again, for some
    rows at a time.

    Args:
        q: [B, H, N, d]; float32, bfloat16, float16 or float64. B may be 0.
        k: [B, H, M, d] in q's dtype.
        v: [B, H, M, e] in q's dtype.
        scale: factor on the products; default d^-0.5.
        return_weights: also return the weights [B, H, N, M], not differentiable, in the accumulation dtype (float32; float64
            for float64); they, and other matrices of their size on the way, are then held as a whole.

    Returns:
        [B, H, N, e] in q's dtype; with `return_weights` a pair (out, weights).

    Raises:
        ValueError: a shape, a device, or N, M, d or e = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.by_heads("q", q, "[B, H, N, d]")
    checks.by_heads("k", k, "[B, H, M, d]", ("q", q))
    checks.by_heads("v", v, "[B, H, M, e]", ("q", q))
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k: got {k.shape[3]} channels, expected q's d = {q.shape[3]}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"v: got {v.shape[2]} tokens, expected k's M = {k.shape[2]}")
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    out, weights = _Attention.apply(q, k, v, scale, return_weights)
    return (out, weights) if return_weights else out


class _Attention(Function):
    @library.positional
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor]:
        return _forward(q, k, v, scale, return_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.scale, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
        if grad is None:
            return (None,) * 5
        results = _AttentionBackward.apply(ctx.needs_input_grad[:3], grad, *ctx.saved_tensors, ctx.scale)
        return *results, None, None


class _AttentionBackward(Function):
    # Every parameter is named: torch.compile counts them to tell whether a forward takes ctx.
    @library.positional
    def forward(
        needs: tuple[bool, ...], grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
    ) -> tuple[Tensor | None, ...]:
        return library.only(needs, _backward(needs, grad, q, k, v, scale))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 6
        args = (ctx.needs_input_grad[1:5], *cotangents, *ctx.saved_tensors, ctx.scale)
        return None, *library.LastOrder.apply("dot_product_attention", _double_backward, *args), None


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor]:
    wide = accumulate_dtype(q.dtype)
    weights = q.new_empty((*q.shape[:3], k.shape[2]), dtype=wide) if return_weights else q.new_empty(0)
    return q.new_empty((*q.shape[:3], v.shape[3])), weights


def _fake_backward(needs: list[bool], grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(library.like, args[:3]))


def _fake_double_backward(needs: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(library.like, args[3:7]))


_INPUTS = "Tensor q, Tensor k, Tensor v"

_forward = library.entry_point(
    "dot_product_attention", "forward", f"({_INPUTS}, float scale, bool return_weights) -> (Tensor, Tensor)", 0, _fake_forward
)
_backward = library.entry_point(
    "dot_product_attention",
    "backward",
    f"(bool[] needs, Tensor grad, {_INPUTS}, float scale) -> (Tensor, Tensor, Tensor)",
    2,
    _fake_backward,
)
_double_backward = library.entry_point(
    "dot_product_attention",
    "double_backward",
    "(bool[] needs, Tensor? cot_q, Tensor? cot_k, Tensor? cot_v, Tensor grad, "
    f"{_INPUTS}, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
    5,
    _fake_double_backward,
)
