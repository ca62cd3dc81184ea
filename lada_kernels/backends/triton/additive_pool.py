"""additive_pool in Triton; lada_kernels/reference/additive_pool.py derives every formula and names every letter."""

import triton
import triton.language as tl
from torch import Tensor

from ...reference.additive_pool import attention as softmax
from ..arguments import dense_like, narrowed, wide
from . import launch
from .additive_pool_double_backward import DoubleBackward
from .launch import real
from .pooling import (
    BACKWARD,
    FORWARD,
    Plan,
    attention,
    finite,
    heads_at,
    inverse,
    load_group,
    load_heads,
    load_tokens,
    operands,
    own_channels,
    pooled_at,
    project,
    scalars_at,
    scatter,
    token_tile,
    tokens_at,
    weights_at,
)
from .tokens import alignment, strides


@triton.jit
def _forward_kernel(
    x, weight, mask, scores, pooled, normaliser, batch_stride, token_stride, B, N, rows_each, chunks, tokens, scale,
    FINISH: tl.constexpr, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Online softmax over a chunk of tokens, for a group of heads."""
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    scale = real(scale, ACC)
    PH: tl.constexpr = 1 if PER_HEAD else BH
    own = own_channels(group, D, H, PER_HEAD, BH, BD)
    w = load_heads(weight, group, D, H, BH, BD)
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows_each
    for row in range(first_row, tl.minimum(first_row + rows_each, B)):
        b = tl.cast(row, tl.int64)
        largest = tl.full([BH, LANES], float("-inf"), ACC)
        total = tl.zeros([BH, LANES], ACC)
        sums = tl.zeros([PH, LANES, BD], ACC)
        for first in range(begin, end, LANES):
            n, there, live = token_tile(first, end, mask, b, N, LANES)
            xt = load_tokens(x, b, n, live, batch_stride, token_stride, D, BD, VEC, ALIGN, ACC)
            s = tl.where(live[None], tl.sum(xt * w, axis=2) * scale, float("-inf"))  # [BH, LANES]
            if scores is not None:
                at, inside = scalars_at(b, group, H, BH)
                tl.store(scores + at * N + n[None], s, mask=inside & there[None])
            highest = tl.maximum(largest, s)
            factor = tl.exp(largest - finite(highest))
            p = tl.exp(s - finite(highest))
            total = total * factor + p
            sums = sums * weights_at(factor, own, PER_HEAD) + weights_at(p, own, PER_HEAD) * xt
            largest = highest
        highest = tl.max(largest, axis=1, keep_dims=True)  # [BH, 1]
        factor = tl.exp(largest - finite(highest))
        total = tl.sum(total * factor, axis=1, keep_dims=True)
        sums = tl.sum(sums * weights_at(factor, own, PER_HEAD), axis=1, keep_dims=True)  # [PH, 1, BD]
        if FINISH:
            sums *= weights_at(inverse(total), own, PER_HEAD)
        part = b * chunks + slot % chunks
        at, inside = pooled_at(part, group, D, H, PER_HEAD, BH, BD)
        tl.store(pooled + at, sums, mask=inside)
        at, inside = scalars_at(part, group, H, BH)
        tl.store(normaliser + 2 * at, highest, mask=inside)
        tl.store(normaliser + 2 * at + 1, total, mask=inside)


@triton.jit
def _combine_kernel(
    part_pooled, part_normaliser, pooled, normaliser, chunks,
    H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One softmax and one pooled vector out of those of the chunks, for one batch element and head."""
    row = tl.program_id(0).to(tl.int64)
    first = row // H * chunks * H + row % H  # chunk c of this head lies H rows after the one before
    e, m = tl.arange(0, BE), tl.arange(0, BM)
    at = (first + m * H) * 2
    maxima = tl.load(part_normaliser + at, mask=m < chunks, other=float("-inf"))
    highest = tl.max(maxima, axis=0)
    totals = tl.load(part_normaliser + at + 1, mask=m < chunks, other=0.0)
    # Without the condition, product and sum would be fused in some threads of those that hold the same sum, and differ there.
    total = tl.sum(tl.where(m < chunks, tl.exp(maxima - finite(highest)) * totals, 0.0), axis=0)
    sums = tl.zeros([BC, BE], ACC)
    for begin in range(0, chunks, BC):
        c = begin + tl.arange(0, BC)
        part = first + c * H
        factor = tl.exp(tl.load(part_normaliser + part * 2, mask=c < chunks, other=float("-inf")) - finite(highest))
        inside = (c < chunks)[:, None] & (e < E)[None, :]
        sums += factor[:, None] * tl.load(part_pooled + part[:, None] * E + e[None, :], mask=inside, other=0.0)
    tl.store(pooled + row * E + e, tl.sum(sums, axis=0) * inverse(total), mask=e < E)
    tl.store(normaliser + row * 2, highest)
    tl.store(normaliser + row * 2 + 1, total)


@triton.jit
def _backward_kernel(
    x, grad, weight, mask, pooled, normaliser, batch_stride, token_stride, B, N, rows_each, chunks, tokens, scale,
    grad_x, grad_x_batch_stride, grad_x_token_stride, weight_parts,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr,
    LOOPED: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x̄ of a chunk of tokens, and its part of w̄; with LOOPED > 1 groups of heads, which are loaded for each tile, only x̄."""
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    scale = real(scale, ACC)
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows_each
    weight_sum = tl.zeros([BH, LANES, BD], ACC)
    for row in range(first_row, tl.minimum(first_row + rows_each, B)):
        b = tl.cast(row, tl.int64)
        if LOOPED == 1:
            w, own, g, t, shift, factor = load_group(weight, grad, pooled, normaliser, b, group, D, H, PER_HEAD, BH, BD)
        for first in range(begin, end, LANES):
            n, there, live = token_tile(first, end, mask, b, N, LANES)
            xt = load_tokens(x, b, n, live, batch_stride, token_stride, D, BD, VEC, ALIGN, ACC)
            out = tl.zeros([1, LANES, BD], ACC)
            for i in range(LOOPED):
                if LOOPED > 1:
                    w, own, g, t, shift, factor = load_group(weight, grad, pooled, normaliser, b, i, D, H, PER_HEAD, BH, BD)
                alpha = attention(xt, w, live, shift, factor, scale)
                e = scale * alpha * (project(xt, g, own, PER_HEAD) - t)  # [BH, LANES]
                if grad_x is not None:
                    out += scatter(alpha, g, own, PER_HEAD) + tl.sum(e[:, :, None] * w, axis=0, keep_dims=True)
                if weight_parts is not None:
                    weight_sum += e[:, :, None] * xt
            if grad_x is not None:
                at, inside = tokens_at(grad_x, b, n, there, grad_x_batch_stride, grad_x_token_stride, D, BD, VEC, ALIGN)
                tl.store(at, out, mask=inside)
    if weight_parts is not None:
        at, inside = heads_at(group, D, H, BH, BD)
        tl.store(weight_parts + slot.to(tl.int64) * H * D + at, tl.sum(weight_sum, axis=1, keep_dims=True), mask=inside)


def forward(
    x: Tensor, weight: Tensor, mask: Tensor | None, scale: float, per_head: bool, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.forward`."""
    x, weight, mask = operands(x, weight, mask)
    (batch, count, _), heads = x.shape, weight.shape[0]
    plan = Plan(x, heads, per_head, FORWARD)
    scores = weight.new_empty((batch, heads, count)) if return_weights else None
    parts = plan.parts(weight, 2)
    plan.start(
        _forward_kernel,
        x,
        weight,
        mask,
        scores,
        *parts,
        *strides(x),
        *plan.share(),
        scale,
        FINISH=plan.chunks == 1,
        ALIGN=alignment(x),
    )
    pooled, normaliser = (part[:, 0] for part in parts)
    if plan.chunks > 1:
        pooled, normaliser = dense_like(pooled), dense_like(normaliser)
        plan.combine(_combine_kernel, *parts, pooled, normaliser, BM=triton.next_power_of_2(plan.chunks))
    return pooled, normaliser, None if scores is None else softmax(scores, normaliser)


def backward(
    needs: list[bool],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.backward`."""
    weight_dtype = weight.dtype
    x, weight, mask = operands(x, weight, mask)
    plan = Plan(x, weight.shape[0], per_head, BACKWARD)
    grad_x = dense_like(x, needs[0])
    weight_parts = launch.parts((1, plan.slots, *weight.shape), weight_dtype, x) if needs[1] else None
    plan.start_to_tokens(
        _backward_kernel,
        *(x, wide(grad, x), weight, mask, pooled, normaliser),
        *strides(x),
        *plan.share(),
        scale,
        result=grad_x,
        parts=weight_parts,
        ALIGN=alignment(x, grad_x),
    )
    return grad_x, None if weight_parts is None else launch.add_up(weight_parts, weight_dtype)[0]


def double_backward(
    needs: list[bool],
    cot_x: Tensor | None,
    cot_weight: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    pooled: Tensor,
    normaliser: Tensor,
    scale: float,
    per_head: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `lada_kernels.reference.additive_pool.double_backward`."""
    stages = DoubleBackward(needs[1:], cot_x, cot_weight, grad, x, weight, mask, pooled, normaliser, scale, per_head)
    out_grad = stages.gather()
    return narrowed(out_grad, grad.dtype), *stages.scatter(None)
