"""modulated_layer_norm in Triton; lada_kernels/reference/modulated_layer_norm.py derives every formula and names every letter.

A program keeps whole tokens in registers, as tiles [piece, token, channel]: the pieces of a token follow each other in a
thread's registers, so that a narrow token is one warp's alone and its means need no barrier.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...reference.precision import accumulate_dtype
from ..arguments import dense_like, readable, readable_or_none
from . import launch
from .tokens import alignment, rows, strides

# What a thread holds of every tensor: enough loads under way, and few enough registers for many threads.
_ELEMENTS = {"forward": 16, "backward": 8, "double_backward": 8}


def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `lada_kernels.reference.modulated_layer_norm.forward`."""
    x, gamma, beta = readable(x), gamma.contiguous(), beta.contiguous()
    out = dense_like(x)
    mean = x.new_empty(x.shape[:2], dtype=accumulate_dtype(x.dtype))
    rstd = dense_like(mean)
    batch, tokens, channels = x.shape
    warps, tile = _tile(x, "forward")
    chunks, size = launch.split(batch, tokens, tile["BN"], x.device, launch.MANY)
    launch.start(
        _forward_kernel,
        (batch * chunks,),
        x,
        gamma,
        beta,
        out,
        mean,
        rstd,
        tokens,
        chunks,
        size,
        *strides(x),
        warps=warps,
        D=channels,
        EPS=eps,
        ALIGN=alignment(x),
        ACC=launch.DTYPES[x.dtype],
        **tile,
    )
    return out, mean, rstd


def backward(
    needs: list[bool], grad: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor | None, ...]:
    """As `lada_kernels.reference.modulated_layer_norm.backward`."""
    grad, x, gamma = readable(grad), readable(x), gamma.contiguous()
    grad_x = dense_like(x, needs[0])
    batch, tokens, channels = x.shape
    warps, tile = _tile(x, "backward")
    chunks, size = launch.split(batch, tokens, tile["BN"], x.device, launch.MANY)
    gamma_parts, beta_parts = (
        launch.parts((batch, chunks, channels), gamma.dtype, x) if needed else None for needed in needs[1:]
    )
    launch.start(
        _backward_kernel,
        (batch * chunks,),
        grad,
        x,
        gamma,
        mean,
        rstd,
        gamma_parts,
        beta_parts,
        grad_x,
        tokens,
        chunks,
        size,
        *strides(grad),
        *strides(x),
        warps=warps,
        D=channels,
        ALIGN=alignment(grad, x),
        ACC=launch.DTYPES[x.dtype],
        **tile,
    )
    return grad_x, *(None if parts is None else launch.add_up(parts, gamma.dtype) for parts in (gamma_parts, beta_parts))


def double_backward(
    needs: list[bool],
    cot_x: Tensor | None,
    cot_gamma: Tensor | None,
    cot_beta: Tensor | None,
    grad: Tensor,
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.modulated_layer_norm.double_backward`."""
    grad, x, gamma, cot_x = readable(grad), readable(x), gamma.contiguous(), readable_or_none(cot_x)
    cot_gamma, cot_beta = (None if cot is None else cot.contiguous() for cot in (cot_gamma, cot_beta))
    out_grad, out_x = dense_like(grad, needs[0]), dense_like(x, needs[1])
    batch, tokens, channels = x.shape
    warps, tile = _tile(x, "double_backward")
    chunks, size = launch.split(batch, tokens, tile["BN"], x.device, launch.MANY)
    parts = launch.parts((batch, chunks, channels), gamma.dtype, x) if needs[2] else None
    launch.start(
        _double_backward_kernel,
        (batch * chunks,),
        grad,
        x,
        gamma,
        mean,
        rstd,
        cot_x,
        cot_gamma,
        cot_beta,
        parts,
        out_grad,
        out_x,
        tokens,
        chunks,
        size,
        *strides(grad),
        *strides(x),
        *strides(cot_x),
        warps=warps,
        D=channels,
        ALIGN=alignment(grad, x, cot_x),
        ACC=launch.DTYPES[x.dtype],
        **tile,
    )
    return out_grad, out_x, None if parts is None else launch.add_up(parts, gamma.dtype)


def _tile(x: Tensor, order: str) -> tuple[int, dict[str, int]]:
    """Warps, and a tile's sizes: R pieces of BN tokens, C channels each."""
    wide, lanes = triton.next_power_of_2(x.shape[2]), 32 * 16 // x.element_size()  # channels that a warp reads at a time
    warps = min(32, max(4, wide // (32 * _ELEMENTS[order])))
    block = max(1, 32 * warps * _ELEMENTS[order] // wide)
    across = min(wide, max(1, warps // block) * lanes)
    return warps, {"R": wide // across, "BN": block, "C": across}


@triton.jit
def _forward_kernel(
    x,
    gamma,
    beta,
    out,
    mean,
    rstd,
    N,
    chunks,
    size,
    x_batch,
    x_token,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    BN: tl.constexpr,
    C: tl.constexpr,
):
    b, chunk, j = _place(chunks, R, C)
    for first in range(chunk * size, min(chunk * size + size, N), BN):
        n = first + tl.arange(0, BN)[None, :, None]
        inside = (n < N) & (j < D)
        xn = tl.load(rows(x, b, n, x_batch, x_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        total = _sum(xn)
        # `/` may be off by a unit, which a token of equal channels shows divided by its tiny deviation.
        mu = total / D if total.dtype == tl.float64 else tl.div_rn(total, D)
        centred = tl.where(j < D, xn - mu, 0.0)
        r = tl.rsqrt(_mean(centred * centred, D) + EPS)
        y = _channels(gamma, b, j, n, D, ACC) * (centred * r) + _channels(beta, b, j, n, D, ACC)
        tl.store(out + (b * N + n) * D + j, y, mask=inside)
        # Last, for registers are scarcer before.
        tl.store(mean + b * N + n, mu, mask=n < N)
        tl.store(rstd + b * N + n, r, mask=n < N)


@triton.jit
def _backward_kernel(
    grad,
    x,
    gamma,
    mean,
    rstd,
    gamma_parts,
    beta_parts,
    grad_x,
    N,
    chunks,
    size,
    grad_batch,
    grad_token,
    x_batch,
    x_token,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    BN: tl.constexpr,
    C: tl.constexpr,
):
    b, chunk, j = _place(chunks, R, C)
    gamma_sum, beta_sum = tl.zeros([R, BN, C], ACC), tl.zeros([R, BN, C], ACC)
    for first in range(chunk * size, min(chunk * size + size, N), BN):
        n = first + tl.arange(0, BN)[None, :, None]
        inside = (n < N) & (j < D)
        y = tl.load(rows(grad, b, n, grad_batch, grad_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        xn = tl.load(rows(x, b, n, x_batch, x_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        r = tl.load(rstd + b * N + n, mask=n < N, other=0.0)
        normal = (xn - tl.load(mean + b * N + n, mask=n < N, other=0.0)) * r
        if grad_x is not None:
            g_hat = _channels(gamma, b, j, n, D, ACC) * y
            projected = g_hat - _mean(g_hat, D) - normal * _mean(g_hat * normal, D)
            tl.store(grad_x + (b * N + n) * D + j, r * projected, mask=inside)
        if gamma_parts is not None:
            gamma_sum += y * normal
        if beta_parts is not None:
            beta_sum += y
    if gamma_parts is not None:
        _store_part(gamma_parts, b * chunks + chunk, j, gamma_sum, D)
    if beta_parts is not None:
        _store_part(beta_parts, b * chunks + chunk, j, beta_sum, D)


@triton.jit
def _double_backward_kernel(
    grad,
    x,
    gamma,
    mean,
    rstd,
    cot_x,
    cot_gamma,
    cot_beta,
    gamma_parts,
    out_grad,
    out_x,
    N,
    chunks,
    size,
    grad_batch,
    grad_token,
    x_batch,
    x_token,
    cot_batch,
    cot_token,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    R: tl.constexpr,
    BN: tl.constexpr,
    C: tl.constexpr,
):
    b, chunk, j = _place(chunks, R, C)
    gamma_sum = tl.zeros([R, BN, C], ACC)
    for first in range(chunk * size, min(chunk * size + size, N), BN):
        n = first + tl.arange(0, BN)[None, :, None]
        inside = (n < N) & (j < D)
        y = tl.load(rows(grad, b, n, grad_batch, grad_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        xn = tl.load(rows(x, b, n, x_batch, x_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        X = tl.zeros([R, BN, C], ACC)
        if cot_x is not None:
            X = tl.load(rows(cot_x, b, n, cot_batch, cot_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        G = tl.zeros([R, BN, C], ACC)
        if cot_gamma is not None:
            G = _channels(cot_gamma, b, j, n, D, ACC)
        r = tl.load(rstd + b * N + n, mask=n < N, other=0.0)
        normal = (xn - tl.load(mean + b * N + n, mask=n < N, other=0.0)) * r
        gate = _channels(gamma, b, j, n, D, ACC)
        g_hat = gate * y
        X_mean, X_normal = _mean(X, D), _mean(X * normal, D)
        projected = X - X_mean - normal * X_normal  # P X
        if out_x is not None:
            g_normal = _mean(g_hat * normal, D)
            h = G * y - r * (g_hat * X_normal + X * g_normal)
            # ∂x = r (P h − r ⟨ĝ P X⟩ x̂): both terms along x̂ in one.
            h_normal = _mean(h * normal, D) + r * _mean(g_hat * projected, D)
            tl.store(out_x + (b * N + n) * D + j, r * (h - _mean(h, D) - normal * h_normal), mask=inside)
        if out_grad is not None:
            result = r * gate * projected + G * normal
            if cot_beta is not None:
                result += _channels(cot_beta, b, j, n, D, ACC)
            tl.store(out_grad + (b * N + n) * D + j, result, mask=inside)
        if gamma_parts is not None:
            gamma_sum += y * (r * projected)
    if gamma_parts is not None:
        _store_part(gamma_parts, b * chunks + chunk, j, gamma_sum, D)


@triton.jit
def _place(chunks, R: tl.constexpr, C: tl.constexpr):
    """This program's batch element, its chunk of the tokens and the channels [R,1,C]."""
    j = tl.arange(0, R)[:, None, None] * C + tl.arange(0, C)[None, None, :]
    return (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks, j


@triton.jit
def _channels(values, b, j, n, D: tl.constexpr, ACC: tl.constexpr):
    """Row b of values [B,D] beside the tokens n [1,BN,1]; read anew for every tile, from a cache, to spare registers."""
    # Addresses of a whole tile, so that every thread reads its own channels and none has to be told by another.
    at, _ = tl.broadcast(b * D + j, n)
    return tl.load(values + at, mask=j < D, other=0.0).to(ACC)


@triton.jit
def _sum(z):
    return tl.sum(tl.sum(z, axis=0, keep_dims=True), axis=2, keep_dims=True)  # [1, BN, 1]


@triton.jit
def _mean(z, D: tl.constexpr):
    return _sum(z) * (1.0 / D)  # [1, BN, 1]


@triton.jit
def _store_part(parts, slot, j, sums, D: tl.constexpr):
    """Write the sum over the tokens of `sums` [R,BN,C] to its slot."""
    tl.store(parts + slot * D + j, tl.sum(sums, axis=1, keep_dims=True), mask=j < D)
