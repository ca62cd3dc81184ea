"""The double backward of additive pooling in Triton; lada_kernels/reference/additive_pool.py derives it.

With v = u - t and z = c + v a, e = α v and σ = α (z - v ā - Σ α z). A rounded P makes t, and so v, miss their mark by as
much for all tokens: v̄ = Σ α v, which is zero otherwise. Where large a would magnify it, it is taken off again:

    e = α (v - v̄)      σ = α (z - v̄ a - (v - v̄) ā - m)      m = Σ α z - v̄ ā

Gathering reads x and its cotangent X once for every scalar of a token and for the sums that need nothing else; the means
ā, v̄ and m over all tokens are known only then. Scattering reads x again, unless only ∂x is wanted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import dense_like, readable_or_none, wide
from . import launch
from .launch import real
from .pooling import (
    GATHER,
    SCATTER,
    Plan,
    attention,
    heads_at,
    load_group,
    load_heads,
    load_pooled,
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
def _gather_kernel(
    x, cot_x, weight, cot_weight, grad, mask, pooled, normaliser, scalars, sums, means, weight_parts,
    cot_batch_stride, cot_token_stride, batch_stride, token_stride, B, N, rows_each, chunks, tokens, scale,
    FINISH: tl.constexpr, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """α, v, a and z of each token; over a chunk, Σ α Y + Σ α a y, Σ α a, Σ α v, Σ α z and the part Σ e X of ∂w."""
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    scale = real(scale, ACC)
    PH: tl.constexpr = 1 if PER_HEAD else BH
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows_each
    if cot_weight is not None:
        cot_w = load_heads(cot_weight, group, D, H, BH, BD)
    weight_sum = tl.zeros([BH, LANES, BD], ACC)
    for row in range(first_row, tl.minimum(first_row + rows_each, B)):
        b = tl.cast(row, tl.int64)
        w, own, g, t, shift, factor = load_group(weight, grad, pooled, normaliser, b, group, D, H, PER_HEAD, BH, BD)
        a_sum = tl.zeros([BH, LANES], ACC)
        v_sum = tl.zeros([BH, LANES], ACC)
        z_sum = tl.zeros([BH, LANES], ACC)
        pooled_sum = tl.zeros([PH, LANES, BD], ACC)
        for first in range(begin, end, LANES):
            n, there, live = token_tile(first, end, mask, b, N, LANES)
            xt = load_tokens(x, b, n, live, batch_stride, token_stride, D, BD, VEC, ALIGN, ACC)
            alpha = attention(xt, w, live, shift, factor, scale)  # [BH, LANES]
            v = project(xt, g, own, PER_HEAD) - t
            products = tl.zeros([BH, LANES, BD], ACC)
            z = tl.zeros([BH, LANES], ACC)
            if cot_weight is not None:
                products += xt * cot_w
            if cot_x is not None:
                cot = load_tokens(cot_x, b, n, live, cot_batch_stride, cot_token_stride, D, BD, VEC, ALIGN, ACC)
                products += cot * w
                z += project(cot, g, own, PER_HEAD)
                if weight_parts is not None:
                    e = scale * alpha * v
                    weight_sum += e[:, :, None] * cot
            a = scale * tl.sum(products, axis=2)
            z += v * a
            pooled_sum += weights_at(alpha * a, own, PER_HEAD) * xt
            if cot_x is not None:
                pooled_sum += weights_at(alpha, own, PER_HEAD) * cot
            a_sum += alpha * a
            v_sum += alpha * v
            z_sum += alpha * z
            at, inside = token_scalars_at(b, n, there, N, group, H, BH)
            tl.store(scalars + at, alpha, mask=inside)
            tl.store(scalars + at + H, v, mask=inside)
            tl.store(scalars + at + 2 * H, a, mask=inside)
            tl.store(scalars + at + 3 * H, z, mask=inside)
        a_mean, v_mean = tl.sum(a_sum, axis=1, keep_dims=True), tl.sum(v_sum, axis=1, keep_dims=True)  # [BH, 1]
        m = tl.sum(z_sum, axis=1, keep_dims=True)
        total = tl.sum(pooled_sum, axis=1, keep_dims=True)  # [PH, 1, BD]
        if FINISH:
            total -= weights_at(a_mean, own, PER_HEAD) * load_pooled(pooled, b, group, D, H, PER_HEAD, BH, BD)
            m -= v_mean * a_mean
        part = b * chunks + slot % chunks
        at, inside = pooled_at(part, group, D, H, PER_HEAD, BH, BD)
        tl.store(sums + at, total, mask=inside)
        at, inside = scalars_at(part, group, H, BH)
        tl.store(means + 3 * at, a_mean, mask=inside)
        tl.store(means + 3 * at + 1, v_mean, mask=inside)
        tl.store(means + 3 * at + 2, m, mask=inside)
    if weight_parts is not None:
        at, inside = heads_at(group, D, H, BH, BD)
        total = tl.sum(weight_sum, axis=1, keep_dims=True)
        tl.store(weight_parts + tl.cast(slot, tl.int64) * H * D + at, total, mask=inside)


@triton.jit
def token_scalars_at(b, n, there, N, group, H: tl.constexpr, BH: tl.constexpr):
    """Where the first of a token's scalars lie in [B,N,4,H], the others H further each, and which places there are."""
    h = (group * BH + tl.arange(0, BH))[:, None]
    return (b * N + n)[None] * 4 * H + h, (h < H) & there[None]


@triton.jit
def _combine_kernel(
    part_sums, part_means, pooled, out_grad, means, chunks,
    H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """∂ḡ = Σ α Y + Σ α a y - ā P, ā, v̄ and m out of the sums of the chunks, for one batch element and head."""
    row = tl.program_id(0).to(tl.int64)
    first = row // H * chunks * H + row % H  # chunk c of this head lies H rows after the one before
    e = tl.arange(0, BE)
    sums = tl.zeros([BC, BE], ACC)
    a_sum, v_sum, z_sum = tl.zeros([BC], ACC), tl.zeros([BC], ACC), tl.zeros([BC], ACC)
    for begin in range(0, chunks, BC):
        c = begin + tl.arange(0, BC)
        at = first + c * H
        sums += tl.load(part_sums + at[:, None] * E + e[None, :], mask=(c < chunks)[:, None] & (e < E)[None, :], other=0.0)
        a_sum += tl.load(part_means + 3 * at, mask=c < chunks, other=0.0)
        v_sum += tl.load(part_means + 3 * at + 1, mask=c < chunks, other=0.0)
        z_sum += tl.load(part_means + 3 * at + 2, mask=c < chunks, other=0.0)
    a_mean, v_mean = tl.sum(a_sum, axis=0), tl.sum(v_sum, axis=0)
    p = tl.load(pooled + row * E + e, mask=e < E, other=0.0)
    tl.store(out_grad + row * E + e, tl.sum(sums, axis=0) - a_mean * p, mask=e < E)
    tl.store(means + 3 * row, a_mean)
    tl.store(means + 3 * row + 1, v_mean)
    tl.store(means + 3 * row + 2, tl.sum(z_sum, axis=0) - v_mean * a_mean)


@triton.jit
def _scatter_kernel(
    x, grad, extra, weight, cot_weight, mask, pooled, scalars, means,
    batch_stride, token_stride, B, N, rows_each, chunks, tokens, scale,
    out_x, out_batch_stride, out_token_stride, weight_parts,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr, LOOPED: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """∂x of a chunk of tokens, and the part Σ σ x of ∂w; with LOOPED > 1 groups of heads, loaded for each tile, only ∂x.

    `extra` is a gradient of the pooled vectors from elsewhere: its backward is added to both.
    """
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    scale = real(scale, ACC)
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows_each
    weight_sum = tl.zeros([BH, LANES, BD], ACC)
    for row in range(first_row, tl.minimum(first_row + rows_each, B)):
        b = tl.cast(row, tl.int64)
        if LOOPED == 1:
            w, cot_w, own, g, more, more_t, a_mean, v_mean, m = load_second_group(
                weight, cot_weight, grad, extra, pooled, means, b, group, D, H, PER_HEAD, BH, BD
            )
        for first in range(begin, end, LANES):
            n, there, live = token_tile(first, end, mask, b, N, LANES)
            if weight_parts is not None or extra is not None:
                xt = load_tokens(x, b, n, live, batch_stride, token_stride, D, BD, VEC, ALIGN, ACC)
            out = tl.zeros([1, LANES, BD], ACC)
            for i in range(LOOPED):
                if LOOPED > 1:
                    w, cot_w, own, g, more, more_t, a_mean, v_mean, m = load_second_group(
                        weight, cot_weight, grad, extra, pooled, means, b, i, D, H, PER_HEAD, BH, BD
                    )
                at, inside = token_scalars_at(b, n, there, N, group + i, H, BH)
                alpha = tl.load(scalars + at, mask=inside, other=0.0)  # [BH, LANES]
                v = tl.load(scalars + at + H, mask=inside, other=0.0) - v_mean
                a = tl.load(scalars + at + 2 * H, mask=inside, other=0.0)
                inner = tl.load(scalars + at + 3 * H, mask=inside, other=0.0) - v_mean * a - v * a_mean - m
                if extra is not None:
                    inner += project(xt, more, own, PER_HEAD) - more_t
                sigma = (scale * alpha * inner)[:, :, None]
                if out_x is not None:
                    out += scatter(alpha * (a - a_mean), g, own, PER_HEAD) + tl.sum(sigma * w, axis=0, keep_dims=True)
                    if cot_weight is not None:
                        e = scale * alpha * v
                        out += tl.sum(e[:, :, None] * cot_w, axis=0, keep_dims=True)
                    if extra is not None:
                        out += scatter(alpha, more, own, PER_HEAD)
                if weight_parts is not None:
                    weight_sum += sigma * xt
            if out_x is not None:
                at, inside = tokens_at(out_x, b, n, there, out_batch_stride, out_token_stride, D, BD, VEC, ALIGN)
                tl.store(at, out, mask=inside)
    if weight_parts is not None:
        at, inside = heads_at(group, D, H, BH, BD)
        total = tl.sum(weight_sum, axis=1, keep_dims=True)
        tl.store(weight_parts + tl.cast(slot, tl.int64) * H * D + at, total, mask=inside)


@triton.jit
def load_second_group(
    weight, cot_weight, grad, extra, pooled, means, b, group,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """For a group of heads w, W, the channels that a head owns, ḡ, `extra` with its t, ā, v̄ and m."""
    own = own_channels(group, D, H, PER_HEAD, BH, BD)
    w = load_heads(weight, group, D, H, BH, BD)
    cot_w = w if cot_weight is None else load_heads(cot_weight, group, D, H, BH, BD)
    p = load_pooled(pooled, b, group, D, H, PER_HEAD, BH, BD)
    g = load_pooled(grad, b, group, D, H, PER_HEAD, BH, BD)
    more = g if extra is None else load_pooled(extra, b, group, D, H, PER_HEAD, BH, BD)
    at, inside = scalars_at(b, group, H, BH)
    a_mean = tl.load(means + 3 * at, mask=inside, other=0.0)
    v_mean = tl.load(means + 3 * at + 1, mask=inside, other=0.0)
    m = tl.load(means + 3 * at + 2, mask=inside, other=0.0)
    return w, cot_w, own, g, more, project(p, more, own, PER_HEAD), a_mean, v_mean, m


class DoubleBackward:
    """The two stages; between them a caller may use what the first returns for what it adds to the second."""

    def __init__(
        self,
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
    ) -> None:
        self.needs, self.weight_dtype = needs, weight.dtype
        self.x, self.weight, self.mask = operands(x, weight, mask)
        self.cot_x, self.cot_weight, self.grad = readable_or_none(cot_x), wide(cot_weight, x), wide(grad, x)
        self.pooled, self.normaliser, self.scale = pooled, normaliser, scale
        self.gathering = Plan(self.x, weight.shape[0], per_head, GATHER)
        self.scattering = Plan(self.x, weight.shape[0], per_head, SCATTER)
        batch, count, heads = *x.shape[:2], weight.shape[0]
        self.scalars = self.weight.new_empty((batch, count, 4, heads))
        self.means = self.weight.new_empty((batch, heads, 3))
        # One sum over what either stage adds to ∂w; Σ e X is one only where X is there.
        slots = [self.gathering.slots * (cot_x is not None), self.scattering.slots]
        self.weight_parts = launch.parts((1, sum(slots), *weight.shape), weight.dtype, x) if needs[1] else None
        self.parts_of_stages = (None, None) if self.weight_parts is None else torch.split(self.weight_parts, slots, 1)

    def gather(self) -> Tensor:
        """∂ḡ, kept wide."""
        plan, out_grad = self.gathering, dense_like(self.pooled)
        parts = plan.parts(self.weight, 3) if plan.chunks > 1 else (out_grad, self.means)
        plan.start(
            _gather_kernel,
            *(self.x, self.cot_x, self.weight, self.cot_weight, self.grad, self.mask, self.pooled, self.normaliser),
            self.scalars,
            *parts,
            None if self.cot_x is None else self.parts_of_stages[0],
            *strides(self.cot_x),
            *strides(self.x),
            *plan.share(),
            self.scale,
            FINISH=plan.chunks == 1,
            ALIGN=alignment(self.x, self.cot_x),
        )
        if plan.chunks > 1:
            plan.combine(_combine_kernel, *parts, self.pooled, out_grad, self.means)
        return out_grad

    def scatter(self, extra: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """∂x and ∂w, with the backward of `extra`, a gradient of the pooled vectors."""
        plan, out_x = self.scattering, dense_like(self.x, self.needs[0])
        plan.start_to_tokens(
            _scatter_kernel,
            *(self.x, self.grad, extra, self.weight, self.cot_weight, self.mask, self.pooled, self.scalars, self.means),
            *strides(self.x),
            *plan.share(),
            self.scale,
            result=out_x,
            parts=self.parts_of_stages[1],
            ALIGN=alignment(self.x, out_x),
        )
        return out_x, None if self.weight_parts is None else launch.add_up(self.weight_parts, self.weight_dtype)[0]
