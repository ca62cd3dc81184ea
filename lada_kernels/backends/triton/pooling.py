"""What the orders of additive pooling share: tiles, scores, and the maps between tokens and pooled vectors.

A program works on tiles [head, lane, channel] of as many tokens as it has lanes. Sums over tokens are kept for each lane by
itself, so that threads exchange nothing but the scores while they read. A pooled tile has PH rows: one for per_head, whose
heads lie side by side in [D], else one a head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import readable, wide
from . import launch
from .tokens import rows, strides


@triton.jit
def own_channels(group, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    """Which channels each head of a group owns, for per_head: [BH,1,BD]."""
    E: tl.constexpr = D // H if PER_HEAD else D
    h, d = group * BH + tl.arange(0, BH), tl.arange(0, BD)
    return ((d[None, :] // E) == h[:, None])[:, None, :]


@triton.jit
def heads_at(group, D: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    """Where a group's heads lie in [H,D], and which places there are: [BH,1,BD]."""
    h, d = group * BH + tl.arange(0, BH), tl.arange(0, BD)
    return (h[:, None] * D + d[None, :])[:, None, :], ((h < H)[:, None] & (d < D)[None, :])[:, None, :]


@triton.jit
def pooled_at(b, group, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    """Where a group's pooled vectors lie in [B,H,D/H] or [B,H,D], and which places there are: [PH,1,BD]."""
    if PER_HEAD:
        d = tl.arange(0, BD)[None, None, :]
        at, inside = b * D + d, (d < D) & (d // (D // H) // BH == group)
    else:
        at, inside = heads_at(group, D, H, BH, BD)
        at += b * H * D
    return at, inside


@triton.jit
def load_heads(weight, group, D: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    """A group's rows of [H,D], zeros for heads that are not there: [BH,1,BD]."""
    at, inside = heads_at(group, D, H, BH, BD)
    return tl.load(weight + at, mask=inside, other=0.0)


@triton.jit
def load_pooled(
    vectors, b, group, D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr
):
    """A group's pooled vectors: [PH,1,BD]."""
    at, inside = pooled_at(b, group, D, H, PER_HEAD, BH, BD)
    return tl.load(vectors + at, mask=inside, other=0.0)


@triton.jit
def load_tokens(
    x, b, n, live, batch_stride, token_stride,
    D: tl.constexpr, BD: tl.constexpr, VEC: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What live tokens hold, zeros for the others: [1,LANES,BD]."""
    at, inside = tokens_at(x, b, n, live, batch_stride, token_stride, D, BD, VEC, ALIGN)
    return tl.load(at, mask=inside, other=0.0).to(ACC)


@triton.jit
def scalars_at(b, group, H: tl.constexpr, BH: tl.constexpr):
    """Where a group's heads lie in [B,H], and which places there are: [BH,1]."""
    h = (group * BH + tl.arange(0, BH))[:, None]
    return b * H + h, h < H


@triton.jit
def token_tile(first, end, mask, b, N, LANES: tl.constexpr):
    """The tokens from `first` on, which there are and which take part: [LANES] each."""
    n = first + tl.arange(0, LANES)
    there = n < end
    live = there
    if mask is not None:
        live = there & (tl.load(mask + b * N + n, mask=there, other=0) != 0)
    return n, there, live


@triton.jit
def tokens_at(
    x, b, n, which, batch_stride, token_stride, D: tl.constexpr, BD: tl.constexpr, VEC: tl.constexpr, ALIGN: tl.constexpr
):
    """Addresses of the tokens n of a [B,N,D], and the places of those that `which` picks: [1,LANES,BD]."""
    d = tl.max_contiguous(tl.arange(0, BD), VEC)[None, None, :]  # the width of an access
    at = rows(x, b, n[None, :, None], batch_stride, token_stride, ALIGN) + d
    return at, which[None, :, None] & (d < D)


@triton.jit
def weights_at(p, own, PER_HEAD: tl.constexpr):
    """Weights p [BH,LANES] beside pooled parts: [1,LANES,BD], each channel its head's, or [BH,LANES,1]."""
    return tl.sum(tl.where(own, p[:, :, None], 0.0), axis=0, keep_dims=True) if PER_HEAD else p[:, :, None]


@triton.jit
def project(y, vectors, own, PER_HEAD: tl.constexpr):
    """⟨y_n, vectors_h⟩ of pooled parts: [1,LANES,BD] and [PH,1,BD] -> [BH,LANES]."""
    products = y * vectors
    if PER_HEAD:
        products = tl.where(own, products, 0.0)
    return tl.sum(products, axis=2)


@triton.jit
def scatter(p, vectors, own, PER_HEAD: tl.constexpr):
    """Σ_h p_nh vectors_h, each into the part that its head pools: [1,LANES,BD]."""
    return tl.sum(weights_at(p, own, PER_HEAD) * vectors, axis=0, keep_dims=True)


@triton.jit
def finite(largest):
    """The largest scores, but 0 for rows without tokens."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def inverse(total):
    """1 / total, but 0 for rows without tokens."""
    return tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total))


@triton.jit
def load_softmax(normaliser, b, group, H: tl.constexpr, BH: tl.constexpr):
    """Of a group's softmax, what α = exp(s - shift) · factor takes: [BH,1] each; heads that are not there weigh 0."""
    at, inside = scalars_at(b, group, H, BH)
    largest = tl.load(normaliser + 2 * at, mask=inside, other=0.0)
    total = tl.load(normaliser + 2 * at + 1, mask=inside, other=0.0)
    return finite(largest), inverse(total)


@triton.jit
def attention(xt, w, live, shift, factor, scale):
    """α of a tile of tokens: [BH,LANES]."""
    s = tl.where(live[None], tl.sum(xt * w, axis=2) * scale, float("-inf"))
    return tl.exp(s - shift) * factor


@triton.jit
def load_group(
    weight, grad, pooled, normaliser, b, group,
    D: tl.constexpr, H: tl.constexpr, PER_HEAD: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """w, the channels that a head owns, ḡ, t = ⟨P, ḡ⟩ and what `attention` takes of the softmax, for a group of heads."""
    own = own_channels(group, D, H, PER_HEAD, BH, BD)
    g = load_pooled(grad, b, group, D, H, PER_HEAD, BH, BD)
    t = project(load_pooled(pooled, b, group, D, H, PER_HEAD, BH, BD), g, own, PER_HEAD)
    shift, factor = load_softmax(normaliser, b, group, H, BH)
    return load_heads(weight, group, D, H, BH, BD), own, g, t, shift, factor


FORWARD, BACKWARD, GATHER, SCATTER = range(4)  # the passes, each with its own tiles

# Places [head, channel] of a thread that ptxas finds registers for, by pass: with per_head and without.
_BUDGETS = {FORWARD: (64, 32), BACKWARD: (32, 32), GATHER: (32, 16), SCATTER: (16, 16)}

# A sum runs over so many tiles at most, which bounds its rounding error; further tokens are other programs'.
_LONGEST = 512


def _tile(channels: int, heads: int, itemsize: int, per_head: bool, order: int) -> tuple[int, dict[str, int]]:
    """Warps and tile sizes of a pass: each channel of a thread costs it registers for every head of its tile."""
    places = _BUDGETS[order][not per_head]
    block_channels, block_heads = max(16, triton.next_power_of_2(channels)), triton.next_power_of_2(heads)
    while block_heads > 1 and block_heads * block_channels > 8 * 32 * places:
        block_heads //= 2
    warps = 4 if block_heads * block_channels <= 4 * 32 * places else 8
    each = max(1, min(16 // itemsize, places // block_heads))  # channels of a token for a thread, one access wide
    lanes = min(64, max(1, warps * 32 * each // block_channels))
    return warps, {"BH": block_heads, "BD": block_channels, "LANES": lanes, "VEC": min(each, 16 // itemsize)}


class Plan:
    """Tiles, and who works on what: groups of heads, chunks of tokens, and rows (batch elements) for each program."""

    def __init__(self, x: Tensor, heads: int, per_head: bool, order: int) -> None:
        batch, count, channels = x.shape
        self.batch, self.count, self.width = batch, count, channels // heads if per_head else channels
        self.warps, tile = _tile(channels, heads, x.element_size(), per_head, order)
        self.groups, block = triton.cdiv(heads, tile["BH"]), tile["LANES"]
        self.chunks, self.tokens = launch.split(batch, count, block, x.device)
        if self.tokens > _LONGEST * block:
            self.tokens = _LONGEST * block
            self.chunks = triton.cdiv(count, self.tokens)
        # Fewer, longer programs leave fewer sums for the weight's gradient.
        self.rows_each = (
            max(1, triton.cdiv(batch, 8 * launch.processors(x.device))) if self.chunks == 1 and order != FORWARD else 1
        )
        self.slots = max(1, triton.cdiv(batch, self.rows_each)) * self.chunks  # without rows, one that writes zeros
        self.constants = {
            "D": channels,
            "H": heads,
            "PER_HEAD": per_head,
            **tile,
            "ACC": launch.DTYPES[x.dtype],
        }

    def share(self) -> tuple[int, ...]:
        """What every kernel is told of its share: B, N, and the batch elements, chunks and tokens of a program."""
        return self.batch, self.count, self.rows_each, self.chunks, self.tokens

    def parts(self, weight: Tensor, scalars: int) -> tuple[Tensor, Tensor]:
        """Room for each chunk's pooled vectors [B,chunks,H,E] and for so many `scalars` of each [B,chunks,H,scalars]."""
        sizes = self.batch, self.chunks, weight.shape[0]
        return weight.new_empty((*sizes, self.width)), weight.new_empty((*sizes, scalars))

    def combine(self, kernel: Any, *args: Any, **constants: Any) -> None:
        """Start `kernel` for every batch element and head, to join its chunks."""
        block = triton.next_power_of_2(self.width)
        heads, wide = self.constants["H"], self.constants["ACC"]
        sizes = {"H": heads, "E": self.width, "BE": block, "BC": max(1, 4096 // block), "ACC": wide}
        launch.start(kernel, (self.batch * heads,), *args, self.chunks, **sizes, **constants)

    def start(self, kernel: Any, *args: Any, **constants: Any) -> None:
        """Start `kernel` for every slot and group of heads."""
        programs = self.slots * self.groups
        launch.start(kernel, (programs,), *args, warps=self.warps, GROUPS=self.groups, **constants, **self.constants)

    def start_to_tokens(self, kernel: Any, *args: Any, result: Tensor | None, parts: Tensor | None, **constants: Any) -> None:
        """Start `kernel`: all groups of heads meet in each token of `result` [B,N,D], none in `parts`."""
        launches = [(result, parts, 1)] if self.groups == 1 else [(result, None, self.groups), (None, parts, 1)]
        for tokens, sums, looped in launches:
            if tokens is not None or sums is not None:
                groups = {"GROUPS": self.groups // looped, "LOOPED": looped}
                programs = self.slots * groups["GROUPS"]
                results = tokens, *strides(tokens), sums
                launch.start(kernel, (programs,), *args, *results, warps=self.warps, **groups, **constants, **self.constants)


def operands(x: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and mask in the layouts that the kernels read."""
    return readable(x), wide(weight, x), None if mask is None else mask.contiguous().view(torch.uint8)
