"""modulated_layer_norm by csrc/cpu/modulated_layer_norm.cpp or csrc/cuda/modulated_layer_norm.cu."""

from torch import Tensor

from ...reference.precision import accumulate_dtype
from ..arguments import dense_like, narrowed, readable, readable_or_none, wide, wide_like
from .addresses import Run, address, shape, tokens


def forward(run: Run, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `lada_kernels.reference.modulated_layer_norm.forward`."""
    x, gamma, beta = readable(x), wide(gamma, x), wide(beta, x)
    out = dense_like(x)
    mean = x.new_empty(x.shape[:2], dtype=accumulate_dtype(x.dtype))
    rstd = dense_like(mean)
    run(
        "modulated_layer_norm_forward",
        x,
        shape=shape(x),
        eps=eps,
        x=tokens(x),
        gamma=address(gamma),
        beta=address(beta),
        out=tokens(out),
        mean=address(mean),
        rstd=address(rstd),
    )
    return out, mean, rstd


def backward(
    run: Run, needs: list[bool], grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.modulated_layer_norm.backward`."""
    gamma_dtype = gamma.dtype
    grad, x, gamma = readable(grad), readable(x), wide(gamma, x)
    grad_x, grad_gamma, grad_beta = dense_like(x, needs[0]), wide_like(gamma, x, needs[1]), wide_like(gamma, x, needs[2])
    run(
        "modulated_layer_norm_backward",
        x,
        shape=shape(x),
        grad=tokens(grad),
        x=tokens(x),
        gamma=address(gamma),
        mean=address(mean),
        rstd=address(rstd),
        grad_x=tokens(grad_x),
        grad_gamma=address(grad_gamma),
        grad_beta=address(grad_beta),
    )
    return grad_x, narrowed(grad_gamma, gamma_dtype), narrowed(grad_beta, gamma_dtype)


def double_backward(
    run: Run,
    needs: list[bool],
    cot_x: Tensor | None,
    cot_gamma: Tensor | None,
    cot_beta: Tensor | None,
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.modulated_layer_norm.double_backward`."""
    gamma_dtype = gamma.dtype
    grad, x, gamma = readable(grad), readable(x), wide(gamma, x)
    cot_x, cot_gamma, cot_beta = readable_or_none(cot_x), wide(cot_gamma, x), wide(cot_beta, x)
    out_grad, out_x, out_gamma = dense_like(grad, needs[0]), dense_like(x, needs[1]), wide_like(gamma, x, needs[2])
    run(
        "modulated_layer_norm_double_backward",
        x,
        shape=shape(x),
        grad=tokens(grad),
        x=tokens(x),
        gamma=address(gamma),
        mean=address(mean),
        rstd=address(rstd),
        cot_x=tokens(cot_x),
        cot_gamma=address(cot_gamma),
        cot_beta=address(cot_beta),
        out_grad=tokens(out_grad),
        out_x=tokens(out_x),
        out_gamma=address(out_gamma),
    )
    return out_grad, out_x, narrowed(out_gamma, gamma_dtype)
