"""additive_attention's forward by csrc/cpu/additive_attention.cpp or csrc/cuda/additive_attention.cu."""

from torch import Tensor

from ...reference.precision import accumulate_dtype
from ..arguments import dense_like, readable
from .additive_pool import operands, pool
from .addresses import Run, address, shape, tokens


def forward(
    run: Run, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None, scale: float, return_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `lada_kernels.reference.additive_attention.forward`."""
    q, weight, mask = operands(q, weight, mask)
    k, v = readable(k), readable(v)
    (batch, count, channels), heads, dtype = q.shape, weight.shape[0], accumulate_dtype(q.dtype)
    out = dense_like(q)
    pooled = q.new_empty((batch, heads, channels // heads), dtype=dtype)
    normaliser = q.new_empty((batch, heads, 2), dtype=dtype)
    alpha = q.new_empty((batch, heads, count), dtype=dtype) if return_weights else None
    run(
        "additive_attention_forward",
        q,
        shape=shape(q, heads),
        pool=pool(q, weight, mask, pooled, normaliser, scale, True),
        alpha=address(alpha),
        k=tokens(k),
        v=tokens(v),
        out=tokens(out),
    )
    return out, pooled, normaliser, alpha
