"""LadaGAN's additive attention, differentiable twice."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..reference.precision import accumulate_dtype
from . import checks, library
from .additive_pool import default_scale


def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_weight: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""LadaGAN's attention core (arXiv 2401.09596): gated_product(additive_pool(q, score_weight), k, v), in O(N·D).

    One global query per head, g_h = Σ_n α_nh q_n (head h's slice), α = softmax over tokens of scale·⟨q_n, w_h⟩, gates every
    token: out_n = g ⊙ k_n ⊙ v_n.

    Args:
        q, k, v: [B, N, D]; float32, bfloat16, float16 or float64, the same for all. B may be 0. Read in place if their
            last dimension is dense: three thirds of one projection need no copy.
        score_weight: [H, D] with H dividing D, in q's dtype or the accumulation dtype (float32; float64 for float64).
        scale: factor on the scores; default (D/H)^-0.5.
        mask: [B, N] bool, True = the token takes part in the pooling (every token is still gated).
        return_weights: also return α [B, H, N], not differentiable, in the accumulation dtype.

    Returns:
        [B, N, D] in q's dtype; with `return_weights` a pair (out, α).

    Raises:
        ValueError: a shape, a device, or N = 0, or H does not divide D.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("q", q)
    checks.like("k", k, "q", q)
    checks.like("v", v, "q", q)
    checks.score_weight(score_weight, "q", q, True)
    checks.mask(mask, "q", q)
    scale = default_scale(q, score_weight) if scale is None else float(scale)
    out, _, _, alpha = _Attention.apply(q, k, v, score_weight, mask, scale, return_weights)
    return (out, alpha) if return_weights else out


class _Attention(Function):
    @library.positional
    def forward(
        q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _forward(q, k, v, weight, mask, scale, return_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.scale, _ = inputs
        _, pooled, normaliser, alpha = output
        ctx.save_for_backward(*tensors, pooled, normaliser)
        ctx.mark_non_differentiable(pooled, normaliser, alpha)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
        if grad is None:
            return (None,) * 7
        results = _AttentionBackward.apply(ctx.needs_input_grad[:4], grad, *ctx.saved_tensors, ctx.scale)
        return *results[:4], None, None, None


class _AttentionBackward(Function):
    # Every parameter is named: torch.compile counts them to tell whether a forward takes ctx.
    @library.positional
    def forward(
        needs: tuple[bool, ...],
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        pooled: Tensor,
        normaliser: Tensor,
        scale: float,
    ) -> tuple[Tensor | None, ...]:
        *grads, grad_pooled = _backward(needs, grad, q, k, v, weight, mask, pooled, normaliser, scale)
        return *library.only(needs, grads), grad_pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, *tensors, ctx.scale = inputs
        grad_pooled = output[-1]
        ctx.save_for_backward(*tensors, grad_pooled)
        ctx.mark_non_differentiable(grad_pooled)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        cotangents = cotangents[:4]
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 10
        args = (ctx.needs_input_grad[1:6], *cotangents, *ctx.saved_tensors, ctx.scale)
        return None, *library.LastOrder.apply("additive_attention", _double_backward, *args), None, None, None, None


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, tokens, channels), heads, wide = q.shape, weight.shape[0], accumulate_dtype(q.dtype)
    pooled, normaliser = q.new_empty((batch, heads, channels // heads), dtype=wide), q.new_empty((batch, heads, 2), dtype=wide)
    alpha = q.new_empty((batch, heads, tokens), dtype=wide) if return_weights else q.new_empty(0)
    return library.like(q), pooled, normaliser, alpha


def _fake_backward(
    needs: list[bool], grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor, pooled: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return tuple(map(library.like, (q, k, v, weight, pooled)))


def _fake_double_backward(needs: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(map(library.like, args[4:9]))


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor weight, Tensor? mask"

_forward = library.entry_point(
    "additive_attention",
    "forward",
    f"({_INPUTS}, float scale, bool return_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    0,
    _fake_forward,
)
_backward = library.entry_point(
    "additive_attention",
    "backward",
    f"(bool[] needs, Tensor grad, {_INPUTS}, Tensor pooled, Tensor normaliser, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    2,
    _fake_backward,
)
_double_backward = library.entry_point(
    "additive_attention",
    "double_backward",
    "(bool[] needs, Tensor? cot_q, Tensor? cot_k, Tensor? cot_v, Tensor? cot_weight, Tensor grad, "
    f"{_INPUTS}, Tensor pooled, Tensor normaliser, Tensor grad_pooled, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    6,
    _fake_double_backward,
)
