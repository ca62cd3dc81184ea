"""Layer normalisation with a scale and shift per batch element, differentiable twice."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..reference.precision import accumulate_dtype
from . import checks, library


def modulated_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    r"""LayerNorm over channels without affine, then γ_b and β_b: LadaGAN's self-modulated LayerNorm (arXiv 2401.09596).

    y = γ_b ⊙ (x − mean) / sqrt(var + eps) + β_b, with the biased variance, as `torch.nn.functional.layer_norm`.

    Args:
        x: [B, N, D]; float32, bfloat16, float16 or float64. B may be 0. Read in place if its last dimension is dense.
        gamma, beta: [B, D], in x's dtype or the accumulation dtype (float32; float64 for float64); an expanded [D] will do.
        eps: added to the variance; default 1e-6.

    Returns:
        [B, N, D] in x's dtype.

    Raises:
        ValueError: a shape, a device, or N = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("x", x)
    expected = (x.shape[0], x.shape[2])
    checks.parameter("gamma", gamma, expected, "[B, D]", "x", x)
    checks.parameter("beta", beta, expected, "[B, D]", "x", x)
    if gamma.dtype != beta.dtype:
        raise TypeError(f"beta: got dtype {beta.dtype}, expected gamma's dtype {gamma.dtype}")
    return _Norm.apply(x, gamma, beta, float(eps))[0]


class _Norm(Function):
    @library.positional
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(x, gamma, beta, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, gamma, _, _ = inputs
        _, mean, rstd = output
        ctx.save_for_backward(x, gamma, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
        if grad is None:
            return None, None, None, None
        return *_NormBackward.apply(ctx.needs_input_grad[:3], grad, *ctx.saved_tensors), None


class _NormBackward(Function):
    # Every parameter is named: torch.compile counts them to tell whether a forward takes ctx.
    @library.positional
    def forward(
        needs: tuple[bool, ...], grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor | None, ...]:
        return library.only(needs, _backward(needs, grad, x, gamma, mean, rstd))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 6
        args = (ctx.needs_input_grad[1:4], *cotangents, *ctx.saved_tensors)
        return None, *library.LastOrder.apply("modulated_layer_norm", _double_backward, *args), None, None


def _fake_forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(x.shape[:2], dtype=accumulate_dtype(x.dtype))
    return library.like(x), statistics, library.like(statistics)


def _fake_backward(needs: list[bool], grad: Tensor, x: Tensor, gamma: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(library.like, (x, gamma, gamma)))


def _fake_double_backward(
    needs: list[bool], cot_x: Tensor, cot_gamma: Tensor, cot_beta: Tensor, grad: Tensor, x: Tensor, gamma: Tensor, *_: Tensor
) -> tuple[Tensor, ...]:
    return tuple(map(library.like, (grad, x, gamma)))


_SAVED = "Tensor grad, Tensor x, Tensor gamma, Tensor mean, Tensor rstd"

_forward = library.entry_point(
    "modulated_layer_norm",
    "forward",
    "(Tensor x, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor)",
    0,
    _fake_forward,
)
_backward = library.entry_point(
    "modulated_layer_norm", "backward", f"(bool[] needs, {_SAVED}) -> (Tensor, Tensor, Tensor)", 2, _fake_backward
)
_double_backward = library.entry_point(
    "modulated_layer_norm",
    "double_backward",
    f"(bool[] needs, Tensor? cot_x, Tensor? cot_gamma, Tensor? cot_beta, {_SAVED}) -> (Tensor, Tensor, Tensor)",
    5,
    _fake_double_backward,
)
