"""gated_product in Triton: tiles of tokens x channels; lada_kernels/reference/gated_product.py derives every formula."""

import triton
import triton.language as tl
from torch import Tensor

from ..arguments import LikeHalves, dense_like, readable, readable_halves, readable_or_none
from . import launch
from .tokens import alignment, rows, strides

_WARPS = 4
# What a thread reads of every tensor at a time: enough loads under way, and few enough registers for many threads.
_BYTES = {"forward": 32, "backward": 16, "double_backward": 16}


def forward(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    """As `lada_kernels.reference.gated_product.forward`."""
    g, (k, v) = g.contiguous(), readable_halves(k, v)
    out = dense_like(k)
    batch, tokens, channels = k.shape
    block, width, tiles = _tile(k, "forward")
    chunks = triton.cdiv(tokens, block)
    launch.start(
        _forward_kernel,
        (batch * chunks * tiles,),
        g,
        k,
        v,
        out,
        tokens,
        chunks,
        *strides(k),
        *strides(v),
        warps=_WARPS,
        D=channels,
        ALIGN=alignment(k, v),
        BN=block,
        BD=width,
        ACC=launch.DTYPES[k.dtype],
    )
    return out


def backward(
    needs: list[bool], grad: Tensor, g: Tensor, k: Tensor, v: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.backward`."""
    results = LikeHalves(k, v, needs[1:])
    grad, g, (k, v) = readable(grad), g.contiguous(), readable_halves(k, v)
    batch, tokens, channels = k.shape
    block, width, tiles = _tile(k, "backward")
    chunks, size = launch.split(batch * tiles, tokens, block, k.device, launch.MANY)
    parts = launch.parts((batch, chunks, channels), g.dtype, k) if needs[0] else None
    launch.start(
        _backward_kernel,
        (batch * chunks * tiles,),
        grad,
        g,
        k,
        v,
        parts,
        results.k,
        results.v,
        tokens,
        chunks,
        size,
        *strides(grad),
        *strides(k),
        *strides(v),
        *strides(results.k),
        *strides(results.v),
        warps=_WARPS,
        D=channels,
        ALIGN=alignment(grad, k, v, results.k, results.v),
        BN=block,
        BD=width,
        ACC=launch.DTYPES[k.dtype],
    )
    return None if parts is None else launch.add_up(parts, g.dtype), *results.whole


def double_backward(
    needs: list[bool],
    cot_g: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    g: Tensor,
    k: Tensor,
    v: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.gated_product.double_backward`."""
    results = LikeHalves(k, v, needs[2:])
    cot_k, cot_v = (readable_or_none(cot_k), readable_or_none(cot_v)) if v is not None else readable_halves(cot_k, None)
    grad, g, (k, v) = readable(grad), g.contiguous(), readable_halves(k, v)
    cot_g = None if cot_g is None else cot_g.contiguous()
    out_grad = dense_like(grad, needs[0])
    batch, tokens, channels = k.shape
    block, width, tiles = _tile(k, "double_backward")
    chunks, size = launch.split(batch * tiles, tokens, block, k.device, launch.MANY)
    parts = launch.parts((batch, chunks, channels), g.dtype, k) if needs[1] else None
    launch.start(
        _double_backward_kernel,
        (batch * chunks * tiles,),
        grad,
        g,
        k,
        v,
        cot_g,
        cot_k,
        cot_v,
        parts,
        out_grad,
        results.k,
        results.v,
        tokens,
        chunks,
        size,
        *strides(grad),
        *strides(k),
        *strides(v),
        *strides(cot_k),
        *strides(cot_v),
        *strides(out_grad),
        *strides(results.k),
        *strides(results.v),
        warps=_WARPS,
        D=channels,
        ALIGN=alignment(grad, k, v, cot_k, cot_v, out_grad, results.k, results.v),
        BN=block,
        BD=width,
        ACC=launch.DTYPES[k.dtype],
    )
    return out_grad, None if parts is None else launch.add_up(parts, g.dtype), *results.whole


def _tile(k: Tensor, order: str) -> tuple[int, int, int]:
    """(tokens of a tile, channels of a tile, tiles across the channels)."""
    channels, elements = k.shape[2], 32 * _WARPS * _BYTES[order] // min(4, k.element_size())
    # Of the widths that read whole cache lines, the one that leaves the fewest lanes past the last channel.
    width = min((512, 256, 128, 64), key=lambda width: (triton.cdiv(channels, width) * width, -width))
    width = min(width, elements, triton.next_power_of_2(channels))
    return elements // width, width, triton.cdiv(channels, width)


@triton.jit
def _forward_kernel(
    g,
    k,
    v,
    out,
    N,
    chunks,
    k_batch,
    k_token,
    v_batch,
    v_token,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    b, chunk, j = _place(chunks, D, BD)
    n = chunk * BN + tl.arange(0, BN)[:, None]
    inside = (n < N) & (j < D)
    gate = tl.load(g + b * D + j, mask=j < D, other=0.0).to(ACC)
    kn = tl.load(rows(k, b, n, k_batch, k_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
    vn = tl.load(rows(v, b, n, v_batch, v_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
    tl.store(out + (b * N + n) * D + j, gate * kn * vn, mask=inside)


@triton.jit
def _backward_kernel(
    grad,
    g,
    k,
    v,
    parts,
    grad_k,
    grad_v,
    N,
    chunks,
    size,
    grad_batch,
    grad_token,
    k_batch,
    k_token,
    v_batch,
    v_token,
    grad_k_batch,
    grad_k_token,
    grad_v_batch,
    grad_v_token,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    b, chunk, j = _place(chunks, D, BD)
    gate = tl.load(g + b * D + j, mask=j < D, other=0.0).to(ACC)
    total = tl.zeros([BN, BD], ACC)
    for first in range(chunk * size, min(chunk * size + size, N), BN):
        n = first + tl.arange(0, BN)[:, None]
        inside = (n < N) & (j < D)
        r = tl.load(rows(grad, b, n, grad_batch, grad_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        kn = tl.load(rows(k, b, n, k_batch, k_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        vn = tl.load(rows(v, b, n, v_batch, v_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        if grad_k is not None:
            tl.store(rows(grad_k, b, n, grad_k_batch, grad_k_token, ALIGN) + j, r * gate * vn, mask=inside)
        if grad_v is not None:
            tl.store(rows(grad_v, b, n, grad_v_batch, grad_v_token, ALIGN) + j, r * gate * kn, mask=inside)
        if parts is not None:
            total += r * kn * vn
    if parts is not None:
        tl.store(parts + (b * chunks + chunk) * D + j, tl.sum(total, axis=0)[None, :], mask=j < D)


@triton.jit
def _double_backward_kernel(
    grad,
    g,
    k,
    v,
    cot_g,
    cot_k,
    cot_v,
    parts,
    out_grad,
    out_k,
    out_v,
    N,
    chunks,
    size,
    grad_batch,
    grad_token,
    k_batch,
    k_token,
    v_batch,
    v_token,
    cot_k_batch,
    cot_k_token,
    cot_v_batch,
    cot_v_token,
    out_grad_batch,
    out_grad_token,
    out_k_batch,
    out_k_token,
    out_v_batch,
    out_v_token,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    ACC: tl.constexpr,
):
    b, chunk, j = _place(chunks, D, BD)
    gate = tl.load(g + b * D + j, mask=j < D, other=0.0).to(ACC)
    cot_gate = tl.zeros([1, BD], ACC)
    if cot_g is not None:
        cot_gate = tl.load(cot_g + b * D + j, mask=j < D, other=0.0).to(ACC)
    total = tl.zeros([BN, BD], ACC)
    for first in range(chunk * size, min(chunk * size + size, N), BN):
        n = first + tl.arange(0, BN)[:, None]
        inside = (n < N) & (j < D)
        r = tl.load(rows(grad, b, n, grad_batch, grad_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        kn = tl.load(rows(k, b, n, k_batch, k_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        vn = tl.load(rows(v, b, n, v_batch, v_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        K = tl.zeros([BN, BD], ACC)
        if cot_k is not None:
            K = tl.load(rows(cot_k, b, n, cot_k_batch, cot_k_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        V = tl.zeros([BN, BD], ACC)
        if cot_v is not None:
            V = tl.load(rows(cot_v, b, n, cot_v_batch, cot_v_token, ALIGN) + j, mask=inside, other=0.0).to(ACC)
        cross = K * vn + V * kn
        if out_grad is not None:
            at = rows(out_grad, b, n, out_grad_batch, out_grad_token, ALIGN) + j
            tl.store(at, gate * cross + cot_gate * kn * vn, mask=inside)
        if out_k is not None:
            tl.store(rows(out_k, b, n, out_k_batch, out_k_token, ALIGN) + j, r * (gate * V + cot_gate * vn), mask=inside)
        if out_v is not None:
            tl.store(rows(out_v, b, n, out_v_batch, out_v_token, ALIGN) + j, r * (gate * K + cot_gate * kn), mask=inside)
        if parts is not None:
            total += r * cross
    if parts is not None:
        tl.store(parts + (b * chunks + chunk) * D + j, tl.sum(total, axis=0)[None, :], mask=j < D)


@triton.jit
def _place(chunks, D: tl.constexpr, BD: tl.constexpr):
    """This program's batch element, its chunk of the tokens and its channels [1, BD]; neighbours read side by side."""
    TILES: tl.constexpr = (D + BD - 1) // BD
    unit = tl.program_id(0) // TILES
    j = tl.program_id(0) % TILES * BD + tl.arange(0, BD)[None, :]
    return (unit // chunks).to(tl.int64), unit % chunks, j
