"""The double backward of additive pooling in Triton; lada_kernels/reference/additive_pool.py derives it.

Gathering reads x and its cotangent X once for every scalar of a token and for the sums that need nothing else; the means ā
and m over all tokens are known only then. Scattering reads x again, unless only ∂x is wanted.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..arguments import dense_like, readable_or_none, wide
from .pooling import (
    GATHER,
    SCATTER,
    Plan,
    attention,
    heads_at,
    load_group,
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


@triton.jit
def _gather_kernel(
    x, cot_x, weight, cot_weight, grad, mask, pooled, normaliser, scalars, sums, means, weight_parts,
    cot_row_stride, cot_token_stride, row_stride, token_stride, B, N, rows, chunks, tokens, scale,
    FINISH: tl.constexpr, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """α, u, a and z = c + u a of each token; over a chunk, Σ α Y + Σ α a y, Σ α a, Σ α z and the part Σ e X of ∂w."""
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    PH: tl.constexpr = 1 if PER_HEAD else BH
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows
    heads, heads_there = heads_at(group, D, H, BH, BD)
    if cot_weight is not None:
        cot_w = tl.load(cot_weight + heads, mask=heads_there, other=0.0)
    weight_sum = tl.zeros([BH, 1, LANES, BD], ACC)
    for row in range(first_row, tl.minimum(first_row + rows, B)):
        b = tl.cast(row, tl.int64)
        w, own, g, t, shift, factor = load_group(weight, grad, pooled, normaliser, b, group, D, H, PER_HEAD, BH, BD)
        a_sum = tl.zeros([BH, 1, LANES], ACC)
        z_sum = tl.zeros([BH, 1, LANES], ACC)
        pooled_sum = tl.zeros([PH, 1, LANES, BD], ACC)
        for first in range(begin, end, RUN * LANES):
            n, there, live = token_tile(first, end, mask, b, N, RUN, LANES)
            at, inside = tokens_at(b * row_stride, token_stride, n, live, D, BD)
            xt = tl.load(x + at, mask=inside, other=0.0).to(ACC)
            alpha = attention(xt, w, live, shift, factor, scale)  # [BH, RUN, LANES]
            u = project(xt, g, own, PER_HEAD)
            products = tl.zeros([BH, RUN, LANES, BD], ACC)
            z = tl.zeros([BH, RUN, LANES], ACC)
            if cot_weight is not None:
                products += xt * cot_w
            if cot_x is not None:
                at, inside = tokens_at(b * cot_row_stride, cot_token_stride, n, live, D, BD)
                cot = tl.load(cot_x + at, mask=inside, other=0.0).to(ACC)
                products += cot * w
                z += project(cot, g, own, PER_HEAD)
                pooled_sum += tl.sum(weights_at(alpha, own, PER_HEAD) * cot, axis=1, keep_dims=True)
                if weight_parts is not None:
                    e = scale * alpha * (u - t)
                    weight_sum += tl.sum(e[:, :, :, None] * cot, axis=1, keep_dims=True)
            a = scale * tl.sum(products, axis=3)
            z += u * a
            pooled_sum += tl.sum(weights_at(alpha * a, own, PER_HEAD) * xt, axis=1, keep_dims=True)
            a_sum += tl.sum(alpha * a, axis=1, keep_dims=True)
            z_sum += tl.sum(alpha * z, axis=1, keep_dims=True)
            at, inside = token_scalars_at(b, n, there, N, group, H, BH)
            tl.store(scalars + at, alpha, mask=inside)
            tl.store(scalars + at + H, u, mask=inside)
            tl.store(scalars + at + 2 * H, a, mask=inside)
            tl.store(scalars + at + 3 * H, z, mask=inside)
        a_mean, z_mean = tl.sum(a_sum, axis=2, keep_dims=True), tl.sum(z_sum, axis=2, keep_dims=True)  # [BH, 1, 1]
        total = tl.sum(pooled_sum, axis=2, keep_dims=True)  # [PH, 1, 1, BD]
        if FINISH:
            at, inside = pooled_at(b, group, D, H, PER_HEAD, BH, BD)
            total -= weights_at(a_mean, own, PER_HEAD) * tl.load(pooled + at, mask=inside, other=0.0)
            z_mean -= 2 * t * a_mean
        part = b * chunks + slot % chunks
        at, inside = pooled_at(part, group, D, H, PER_HEAD, BH, BD)
        tl.store(sums + at, total, mask=inside)
        at, inside = scalars_at(part, group, H, BH)
        tl.store(means + 2 * at, a_mean, mask=inside)
        tl.store(means + 2 * at + 1, z_mean, mask=inside)
    if weight_parts is not None:
        total = tl.sum(weight_sum, axis=2, keep_dims=True)
        tl.store(weight_parts + tl.cast(slot, tl.int64) * H * D + heads, total, mask=heads_there)


@triton.jit
def token_scalars_at(b, n, there, N, group, H: tl.constexpr, BH: tl.constexpr):
    """Where the first of a token's scalars lie in [B,N,4,H], the others H further each, and which places there are."""
    h = (group * BH + tl.arange(0, BH))[:, None, None]
    return (b * N + n)[None] * 4 * H + h, (h < H) & there[None]


@triton.jit
def _combine_kernel(
    part_sums, part_means, grad, pooled, out_grad, means, chunks,
    H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """∂ḡ = Σ α Y + Σ α a y - ā P, ā and m out of the sums of the chunks, for one batch element and head."""
    row = tl.program_id(0).to(tl.int64)
    first = row // H * chunks * H + row % H  # chunk c of this head lies H rows after the one before
    e = tl.arange(0, BE)
    sums, a_sum, z_sum = tl.zeros([BC, BE], ACC), tl.zeros([BC], ACC), tl.zeros([BC], ACC)
    for begin in range(0, chunks, BC):
        c = begin + tl.arange(0, BC)
        at = first + c * H
        sums += tl.load(part_sums + at[:, None] * E + e[None, :], mask=(c < chunks)[:, None] & (e < E)[None, :], other=0.0)
        a_sum += tl.load(part_means + 2 * at, mask=c < chunks, other=0.0)
        z_sum += tl.load(part_means + 2 * at + 1, mask=c < chunks, other=0.0)
    a_mean = tl.sum(a_sum, axis=0)
    p = tl.load(pooled + row * E + e, mask=e < E, other=0.0)
    t = tl.sum(p * tl.load(grad + row * E + e, mask=e < E, other=0.0), axis=0)
    tl.store(out_grad + row * E + e, tl.sum(sums, axis=0) - a_mean * p, mask=e < E)
    tl.store(means + 2 * row, a_mean)
    tl.store(means + 2 * row + 1, tl.sum(z_sum, axis=0) - 2 * t * a_mean)


@triton.jit
def _scatter_kernel(
    x, grad, extra, weight, cot_weight, mask, pooled, scalars, means,
    row_stride, token_stride, B, N, rows, chunks, tokens, scale, out_x, weight_parts,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, GROUPS: tl.constexpr, LOOPED: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """∂x of a chunk of tokens, and the part Σ σ x of ∂w; with LOOPED > 1 groups of heads, loaded for each tile, only ∂x.

    `extra` is a gradient of the pooled vectors from elsewhere: its backward is added to both.
    """
    group, slot = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    begin = slot % chunks * tokens
    end = tl.minimum(begin + tokens, N)
    first_row = slot // chunks * rows
    weight_sum = tl.zeros([BH, 1, LANES, BD], ACC)
    for row in range(first_row, tl.minimum(first_row + rows, B)):
        b = tl.cast(row, tl.int64)
        if LOOPED == 1:
            w, cot_w, own, g, t, more, more_t, a_mean, m = load_second_group(
                weight, cot_weight, grad, extra, pooled, means, b, group, D, H, PER_HEAD, BH, BD
            )
        for first in range(begin, end, RUN * LANES):
            n, there, live = token_tile(first, end, mask, b, N, RUN, LANES)
            if weight_parts is not None or extra is not None:
                at, inside = tokens_at(b * row_stride, token_stride, n, live, D, BD)
                xt = tl.load(x + at, mask=inside, other=0.0).to(ACC)
            out = tl.zeros([1, RUN, LANES, BD], ACC)
            for i in range(LOOPED):
                if LOOPED > 1:
                    w, cot_w, own, g, t, more, more_t, a_mean, m = load_second_group(
                        weight, cot_weight, grad, extra, pooled, means, b, i, D, H, PER_HEAD, BH, BD
                    )
                at, inside = token_scalars_at(b, n, there, N, group + i, H, BH)
                alpha = tl.load(scalars + at, mask=inside, other=0.0)  # [BH, RUN, LANES]
                u = tl.load(scalars + at + H, mask=inside, other=0.0)
                a = tl.load(scalars + at + 2 * H, mask=inside, other=0.0)
                inner = tl.load(scalars + at + 3 * H, mask=inside, other=0.0) - u * a_mean - t * a - m
                if extra is not None:
                    inner += project(xt, more, own, PER_HEAD) - more_t
                sigma = (scale * alpha * inner)[:, :, :, None]
                if out_x is not None:
                    out += scatter(alpha * (a - a_mean), g, own, PER_HEAD) + tl.sum(sigma * w, axis=0, keep_dims=True)
                    if cot_weight is not None:
                        e = scale * alpha * (u - t)
                        out += tl.sum(e[:, :, :, None] * cot_w, axis=0, keep_dims=True)
                    if extra is not None:
                        out += scatter(alpha, more, own, PER_HEAD)
                if weight_parts is not None:
                    weight_sum += tl.sum(sigma * xt, axis=1, keep_dims=True)
            if out_x is not None:
                at, inside = tokens_at(b * N * D, D, n, there, D, BD)
                tl.store(out_x + at, out, mask=inside)
    if weight_parts is not None:
        at, inside = heads_at(group, D, H, BH, BD)
        total = tl.sum(weight_sum, axis=2, keep_dims=True)
        tl.store(weight_parts + tl.cast(slot, tl.int64) * H * D + at, total, mask=inside)


@triton.jit
def load_second_group(
    weight, cot_weight, grad, extra, pooled, means, b, group,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """For a group of heads w, W, the channels that a head owns, ḡ, t = ⟨P, ḡ⟩, `extra` with its t, ā and m."""
    own = own_channels(group, D, H, PER_HEAD, BH, BD)
    at, inside = heads_at(group, D, H, BH, BD)
    w = tl.load(weight + at, mask=inside, other=0.0)
    cot_w = w if cot_weight is None else tl.load(cot_weight + at, mask=inside, other=0.0)
    at, inside = pooled_at(b, group, D, H, PER_HEAD, BH, BD)
    p, g = tl.load(pooled + at, mask=inside, other=0.0), tl.load(grad + at, mask=inside, other=0.0)
    more = g if extra is None else tl.load(extra + at, mask=inside, other=0.0)
    at, inside = scalars_at(b, group, H, BH)
    a_mean, m = tl.load(means + 2 * at, mask=inside, other=0.0), tl.load(means + 2 * at + 1, mask=inside, other=0.0)
    return w, cot_w, own, g, project(p, g, own, PER_HEAD), more, project(p, more, own, PER_HEAD), a_mean, m


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
        self.means = self.weight.new_empty((batch, heads, 2))
        # One sum over what either stage adds to ∂w; Σ e X is one only where X is there.
        slots = [self.gathering.slots * (cot_x is not None), self.scattering.slots]
        self.weight_parts = self.weight.new_empty((1, sum(slots), *weight.shape)) if needs[1] else None
        self.parts_of_stages = (None, None) if not needs[1] else self.weight_parts.split(slots, 1)

    def gather(self) -> Tensor:
        """∂ḡ, kept wide."""
        plan, cot_strides = self.gathering, (0, 0) if self.cot_x is None else self.cot_x.stride()[:2]
        out_grad = dense_like(self.pooled)
        parts = plan.parts(self.weight) if plan.chunks > 1 else (out_grad, self.means)
        plan.start(
            _gather_kernel,
            *(self.x, self.cot_x, self.weight, self.cot_weight, self.grad, self.mask, self.pooled, self.normaliser),
            self.scalars,
            *parts,
            None if self.cot_x is None else self.parts_of_stages[0],
            *cot_strides,
            *plan.geometry(self.x),
            self.scale,
            FINISH=plan.chunks == 1,
        )
        if plan.chunks > 1:
            plan.combine(_combine_kernel, *parts, self.grad, self.pooled, out_grad, self.means)
        return out_grad

    def scatter(self, extra: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """∂x and ∂w, with the backward of `extra`, a gradient of the pooled vectors."""
        plan, out_x = self.scattering, dense_like(self.x, self.needs[0])
        plan.start_to_tokens(
            _scatter_kernel,
            *(self.x, self.grad, extra, self.weight, self.cot_weight, self.mask, self.pooled, self.scalars, self.means),
            *plan.geometry(self.x),
            self.scale,
            result=out_x,
            weight_parts=self.parts_of_stages[1],
        )
        return out_x, plan.weight_gradient(self.weight_parts, self.weight_dtype)
