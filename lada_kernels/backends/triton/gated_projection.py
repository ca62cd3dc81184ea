"""gated_projection in Triton: k and v are tiles of matrix products that meet g in registers and go no further."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ...reference.precision import as_given
from ..arguments import readable
from . import launch
from .tokens import alignment, rows, strides

# The widest D and O for which one program takes whole tokens of r to the output; of float64, Triton 3.6 would stage more than
# the shared memory of a device.
_WIDEST = {2: 128, 4: 128, 8: 64}  # by the size of an element

# (rows, channels of r, channels of x at a time, stages of loads under way, warps), by how x is multiplied and what is
# written: r, an output of up to 64 channels from as many, or a wider one; "odd" where a size is no multiple of 16 or tokens
# do not start at multiples of 16 bytes, so that accesses are narrow. All fit a thread's registers and 99 KiB of shared
# memory, the least of any chip since sm_80.
_TILES = {
    "half": {
        "r": (128, 64, 64, 3, 8),
        "output": (128, 64, 64, 2, 8),
        "wide output": (128, 32, 32, 2, 8),
        "odd r": (128, 64, 32, 3, 8),
        "odd output": (64, 32, 32, 2, 8),
    },
    "tf32": {
        "r": (128, 64, 32, 2, 8),
        "output": (64, 64, 32, 2, 8),
        "wide output": (64, 64, 32, 2, 8),
        "odd r": (64, 64, 32, 2, 8),
        "odd output": (64, 32, 32, 2, 8),
    },
    "ieee": {
        "r": (64, 64, 16, 3, 4),
        "output": (64, 32, 16, 2, 8),
        "wide output": (128, 32, 16, 2, 8),
        "odd r": (64, 32, 16, 2, 8),
        "odd output": (32, 16, 16, 2, 4),
    },
}


def forward(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, out_weight: Tensor | None, out_bias: Tensor | None
) -> Tensor:
    """As `lada_kernels.reference.gated_projection.forward`, with r rounded to x's dtype where it is projected."""
    (batch, tokens, inside), channels = x.shape, g.shape[1]
    outside = channels if out_weight is None else out_weight.shape[0]
    if out_weight is not None and max(channels, outside) > _WIDEST[x.element_size()]:
        r = forward(x, g, weight, bias, None, None)
        with as_given(x.device.type):
            return functional.linear(r, out_weight, out_bias)
    precision = "tf32" if _tf32_allowed() else "ieee"
    x, out, count = readable(x), x.new_empty((batch, tokens, outside)), batch * tokens
    g, weight = g.contiguous(), weight.contiguous()
    bias, out_weight, out_bias = (t if t is None else t.contiguous() for t in (bias, out_weight, out_bias))
    block, width, depth, stages, warps = _tile(x, channels, None if out_weight is None else outside, precision)
    launch.start(
        _forward_kernel,
        (triton.cdiv(count, block) * (triton.cdiv(channels, width) if out_weight is None else 1),),
        x,
        g,
        weight,
        bias,
        out_weight,
        out_bias,
        out,
        count,
        tokens,
        inside,
        *strides(x),
        warps=warps,
        D=channels,
        O=outside,
        ALIGN=alignment(x),
        BM=block,
        BD=width,
        BK=depth,
        BO=_padded(outside),
        STAGES=stages,
        PRECISION=precision,
        WIDEN=launch.INTERPRETED,
        ACC=launch.DTYPES[x.dtype],
    )
    return out


def _tf32_allowed() -> bool:
    """Whether torch lets products of float32 be rounded on the way: its newer setting, which follows the older one."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _tile(x: Tensor, channels: int, outside: int | None, precision: str) -> tuple[int, int, int, int, int]:
    """The entry of `_TILES`, cut down to the sizes at hand."""
    sizes = [x.shape[2], channels, outside or channels]
    form = "r" if outside is None else "output"
    if any(size % 16 for size in sizes) or alignment(x) * x.element_size() < 16:
        form = f"odd {form}"
    elif outside is not None and max(channels, outside) > 64:
        form = "wide output"
    block, width, depth, stages, warps = _TILES["half" if x.element_size() == 2 else precision][form]
    return block, min(width, _padded(channels)), min(depth, _padded(x.shape[2])), stages, warps


def _padded(size: int) -> int:
    """The smallest side of a tile that `tl.dot` takes and that holds `size`."""
    return max(16, int(triton.next_power_of_2(size)))


@triton.jit
def _forward_kernel(
    x,
    g,
    weight,
    bias,
    out_weight,
    out_bias,
    out,
    count,
    N,
    C,
    batch_stride,
    token_stride,
    D: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    ALIGN: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    BO: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ACC: tl.constexpr,
):
    """BM of x's rows, [B*N,C], to BD channels of r or, by all of its channels, to the whole output."""
    TILES: tl.constexpr = (D + BD - 1) // BD if out_weight is None else 1  # neighbours share x's rows
    row = (tl.program_id(0) // TILES).to(tl.int64) * BM + tl.arange(0, BM)
    live = row < count
    b = row // N
    x_at = rows(x, b, row % N, batch_stride, token_stride, ALIGN)  # [BM]
    if out_weight is None:
        d = tl.program_id(0) % TILES * BD + tl.arange(0, BD)
        r = _gated(x_at, live, g + b * D, weight, bias, d, C, D, BM, BD, BK, STAGES, PRECISION, WIDEN, ACC)
        tl.store(out + row[:, None] * D + d[None, :], r, mask=live[:, None] & (d[None, :] < D))
    else:
        o = tl.arange(0, BO)
        result = tl.zeros([BM, BO], ACC)
        for first in range(0, D, BD):
            d = first + tl.arange(0, BD)
            r = _gated(x_at, live, g + b * D, weight, bias, d, C, D, BM, BD, BK, STAGES, PRECISION, WIDEN, ACC)
            inside = (d[:, None] < D) & (o[None, :] < O)
            w = tl.load(out_weight + o[None, :] * D + d[:, None], mask=inside, other=0.0)  # [BD, BO]
            result = _product(r.to(w.dtype), w, result, PRECISION, WIDEN)
        if out_bias is not None:
            result += tl.load(out_bias + o, mask=o < O, other=0.0).to(ACC)[None, :]
        tl.store(out + row[:, None] * O + o[None, :], result, mask=live[:, None] & (o[None, :] < O))


@triton.jit
def _gated(
    x_at,
    live,
    g_at,
    weight,
    bias,
    d,
    C,
    D: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ACC: tl.constexpr,
):
    """r [BM,BD] of the live rows at x_at [BM] in channels d [BD]; g_at [BM] is where each row's gate starts."""
    # k and v as one product, a channel of v beside its channel of k, so that both end up in one thread's registers.
    packed = tl.reshape(tl.join(d, d + D), [2 * BD])
    w_at, w_live = weight + packed.to(tl.int64) * C, tl.reshape(tl.join(d < D, d < D), [2 * BD])
    kv = tl.zeros([BM, 2 * BD], ACC)
    for first in tl.range(0, C, BK, num_stages=STAGES):
        c = first + tl.arange(0, BK)
        xt = tl.load(x_at[:, None] + c[None, :], mask=live[:, None] & (c[None, :] < C), other=0.0)  # [BM, BK]
        w = tl.load(w_at[None, :] + c[:, None], mask=w_live[None, :] & (c[:, None] < C), other=0.0)  # [BK, 2 BD]
        kv = _product(xt, w, kv, PRECISION, WIDEN)
    if bias is not None:
        kv += tl.load(bias + packed, mask=w_live, other=0.0).to(ACC)[None, :]
    k, v = tl.split(tl.reshape(kv, [BM, BD, 2]))
    return k * v * tl.load(g_at[:, None] + d[None, :], mask=live[:, None] & (d[None, :] < D), other=0.0).to(ACC)


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + a b; the interpreter knows no product of bfloat16."""
    if WIDEN:
        a, b = a.to(total.dtype), b.to(total.dtype)
    if total.dtype == tl.float64:  # where tl.dot may know none either
        total += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
