"""dot_product_attention: torch's fused forward where it takes the tensors; gradients by the reference, in blocks of rows."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from ...reference import dot_product_attention as reference
from ...reference.precision import accumulate_dtype, widen
from ..arguments import readable

# Elements of the [B, H, R, M] matrices that a block of R rows computes with: some of them stay in a CPU's caches.
ELEMENTS = 2**21
GROUP = 8  # fused kernels take whole groups of so many channels
UNIT = 2.0**8  # of the bias, the square of a length, so that float16 holds a large one


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, return_weights: bool) -> tuple[Tensor, Tensor | None]:
    """As `lada_kernels.reference.dot_product_attention.forward`; only `return_weights` has it hold the whole matrix."""
    if return_weights:
        return reference.forward(q, k, v, scale, True)
    return attend(q, k, v, None, scale), None


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """As the reference's."""
    return reference.backward(grad, q, k, v, scale, gradients)


def double_backward(
    cot_q: Tensor | None,
    cot_k: Tensor | None,
    cot_v: Tensor | None,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """As the reference's."""
    return reference.double_backward(cot_q, cot_k, cot_v, grad, q, k, v, scale, second_gradients)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: reference.Bias, scale: float) -> Tensor:
    """[B,H,N,e] in q's dtype: by torch's fused kernels, else in blocks of rows."""
    fused = _fused(q, k, v, bias, scale)
    if fused is not None:
        return fused
    dtype = q.dtype
    q, k, v = widen(dtype, q, k, v)
    return torch.cat([reference.attention(q[..., rows, :], k, bias, scale) @ v for rows in _blocks(q, k)], -2).to(dtype)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: reference.Bias, scale: float) -> tuple[Tensor, ...]:
    """As the reference's, for all queries."""

    def few(rows: slice) -> tuple[Tensor, ...]:
        return reference.gradients(grad[..., rows, :], q[..., rows, :], k, v, bias, scale)

    return _gathered(few, _blocks(q, k), 1)


def second_gradients(
    cot_q: Tensor,
    cot_k: Tensor,
    cot_v: Tensor,
    cot_bias: reference.Bias,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: reference.Bias,
    scale: float,
) -> tuple[Tensor, ...]:
    """As the reference's, for all queries."""

    def few(rows: slice) -> tuple[Tensor, ...]:
        of_rows = cot_q[..., rows, :], cot_k, cot_v, cot_bias, grad[..., rows, :], q[..., rows, :]
        return reference.second_gradients(*of_rows, k, v, bias, scale)

    return _gathered(few, _blocks(q, k), 2)


def _gathered(few: Callable[[slice], tuple[Tensor, ...]], blocks: Iterator[slice], count: int) -> tuple[Tensor, ...]:
    """The results of all blocks: of the first `count`, rows side by side; of the others, terms added up."""
    rows: list[list[Tensor]] = [[] for _ in range(count)]
    sums: list[Tensor] = []
    for block in blocks:
        results = few(block)
        for parts, part in zip(rows, results[:count], strict=True):
            parts.append(part)
        sums = [total.add_(term) for total, term in zip(sums, results[count:], strict=True)] if sums else list(results[count:])
    return *(torch.cat(parts, -2) for parts in rows), *sums


def _blocks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Rows of q, so few at a time that their weights have at most ELEMENTS elements; at least one."""
    heads, tokens, keys = q.shape[:2].numel(), q.shape[2], k.shape[2]
    count = max(1, ELEMENTS // max(1, heads * keys))
    for first in range(0, tokens, count):
        yield slice(first, first + count)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: reference.Bias, scale: float) -> Tensor | None:
    """The result by torch's fused kernels, or None where they do not take these tensors.

    They take no bias of a key. A product does: one more channel of the queries holds a constant, that of the keys the bias.
    """
    if q.numel() == 0 or (bias is not None and scale == 0):
        return None
    size = v.shape[3]
    extra = [] if bias is None else _parts(bias / scale, q.dtype)
    if extra:
        q = torch.cat((q, q.new_full((*q.shape[:3], len(extra)), UNIT)), -1)
        k = torch.cat((k, torch.stack(extra, -1)), -1)
    width = -(-max(q.shape[3], size) // GROUP) * GROUP
    q, k, v = (readable(pad(x, (0, width - x.shape[3]))) for x in (q, k, v))
    if q.device.type == "cuda":
        params = SDPAParams(q, k, v, None, 0.0, False, False)
        if not (can_use_flash_attention(params) or can_use_efficient_attention(params)):
            return None
    elif q.device.type != "cpu":
        return None
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        return scaled_dot_product_attention(q, k, v, scale=scale)[..., :size]


def _parts(bias: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of a dtype whose sum, times UNIT, is the bias: in 16 bits three, each what those before it have left."""
    rest, parts = bias / UNIT, []
    for _ in range(1 if accumulate_dtype(dtype) == dtype else 3):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(rest.dtype)
    return parts
