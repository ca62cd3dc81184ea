"""The gated product, differentiable twice."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from . import checks, library


def gated_product(g: Tensor, k: Tensor, v: Tensor | None = None) -> Tensor:
    r"""g_i · k_ni · v_ni for every token n and channel i: the second half of LadaGAN's attention (arXiv 2401.09596).

    Args:
        g: [B, D], in k's dtype or the accumulation dtype (float32; float64 for float64).
        k, v: [B, N, D]; float32, bfloat16, float16 or float64, the same for both. Read in place if their last dimension is
            dense: the two halves of one projection need no copy. Without v, k is [B, N, 2D] and holds both side by side;
            its gradients then come in one piece too, where those of two halves would be copied together.

    Returns:
        [B, N, D] in k's dtype.

    Raises:
        ValueError: a shape, a device, or N = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("k", k)
    channels = k.shape[2]
    if v is not None:
        checks.like("v", v, "k", k)
    elif channels % 2:
        raise ValueError(f"k: got shape {checks.shape(k)}, expected [B, N, 2D] as v is not given")
    else:
        channels //= 2
    checks.parameter("g", g, (k.shape[0], channels), "[B, D]", "k", k)
    return _Gate.apply(g, k, v)


def gate_gradients(needs: tuple[bool, ...], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None) -> tuple[Tensor | None, ...]:
    """Those of g, k and v that `needs` asks for, given the result's; differentiable once more."""
    return _GateBackward.apply(needs, grad, g, k, v)


class _Gate(Function):
    @library.positional
    def forward(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
        return _forward(g, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return None, None, None
        return gate_gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors)


class _GateBackward(Function):
    # Every parameter is named: torch.compile counts them to tell whether a forward takes ctx.
    @library.positional
    def forward(needs: tuple[bool, ...], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None) -> tuple[Tensor | None, ...]:
        return library.only(needs, _backward(needs, grad, g, k, v))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 5
        args = (ctx.needs_input_grad[1:], *cotangents, *ctx.saved_tensors)
        return None, *library.LastOrder.apply("gated_product", _double_backward, *args)


def _fake_forward(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    return k.new_empty((*k.shape[:2], g.shape[1]))


def _fake_backward(needs: list[bool], grad: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple([tensor if tensor is None else library.like(tensor) for tensor in inputs])


def _fake_double_backward(
    needs: list[bool], cot_g: Tensor | None, cot_k: Tensor | None, cot_v: Tensor | None, *args: Tensor | None
) -> tuple[Tensor | None, ...]:
    return _fake_backward(needs, args[0], *args)


_forward = library.entry_point("gated_product", "forward", "(Tensor g, Tensor k, Tensor? v) -> Tensor", 1, _fake_forward)
_backward = library.entry_point(
    "gated_product",
    "backward",
    "(bool[] needs, Tensor grad, Tensor g, Tensor k, Tensor? v) -> (Tensor, Tensor, Tensor)",
    3,
    _fake_backward,
)
_double_backward = library.entry_point(
    "gated_product",
    "double_backward",
    "(bool[] needs, Tensor? cot_g, Tensor? cot_k, Tensor? cot_v, Tensor grad, Tensor g, Tensor k, Tensor? v)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    6,
    _fake_double_backward,
)
