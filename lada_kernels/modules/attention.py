"""LadaGAN's linear additive attention as a module (arXiv 2401.09596)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.backends import chosen
from lada_kernels.modules import checks
from lada_kernels.ops import additive_attention, additive_pool, gated_product, gated_projection
from lada_kernels.reference.precision import accumulate_dtype

# Elements of x from which the arithmetic that folding saves outweighs its calls; measured on a CPU.
_WORTH_FOLDING = 2**17
# Up to this dim attention is bound by memory, and one fused kernel takes x to the output.
_TWO_PASS = 128


Layers = tuple[Any, Any, Any]  # to_qkv, q_attn, to_out


class LadaAttention(nn.Module):
    """Additive attention with one global query per head; drop-in for the official ``AdditiveAttention``.

    With q, k, v = to_qkv(x), head size d = dim/heads and softmax over the **tokens** n, per item and head h::

        alpha = softmax_n(d**-0.5 * <q_n, w_h>)      w_h: row h of q_attn.weight, as wide as all of q
        g_h   = sum_n alpha_n q_nh                   the global query, [d]
        out   = to_out(g * k * v)                    the heads' g side by side, [dim]

    Folded, q is never formed over the tokens. alpha sums to one, so the projection W_q commutes with the
    pooling: score x itself with A = w W_q, pool it to P_h = sum_n alpha_n x_n, then project only that,
    g_h = W_q,h P_h + b_q,h. The function and its derivatives are the same up to rounding; a quarter of the
    projections' arithmetic and the memory of q are saved. But that takes more calls: few tokens are faster
    in the order of the equations. ``fold_query=None`` folds an x of 2^17 elements and more, and every one in
    compiled code, where calls cost little; ``True`` every one, ``False`` none. The attribute can be switched
    at any time.

    ``recompute=True`` saves memory in training: k and v, up to ``dim`` 128 g * k * v too, are not kept for the
    gradients but computed again, as one more projection. It always folds; it can be switched at any time as well.

    Up to ``dim`` 128, recomputed or where no gradient is needed on the Triton backend, x is read in two passes,
    one that pools it and one that turns it into the output, and nothing else of its size is written.

    Parameters, named as in the official checkpoints: ``to_qkv`` (dim -> 3 dim), ``q_attn`` (dim -> heads),
    ``to_out`` (dim -> dim). Of a plain `torch.nn.Linear` the parameters may be read in place of a call. Any
    other layer, such as a low-rank adapter or a quantised one, and one with hooks, as of
    `torch.nn.utils.spectral_norm`, is called, in the order of the equations.

    Args:
        dim: channels D of the input.
        heads: number of heads H; must divide ``dim``.
        fold_query: the order of computation, see above.
        recompute: less memory for more arithmetic, see above.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Raises:
        ValueError: ``heads`` does not divide ``dim``; ``recompute`` with ``fold_query=False``; the input is not [B, N, dim].
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        *,
        fold_query: bool | None = None,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.divide(dim, heads)
        if recompute and fold_query is False:
            raise ValueError(f"fold_query: got {fold_query}, expected True or None with recompute={recompute}")
        factory_kwargs = {"device": device, "dtype": dtype}
        self.dim = dim
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.fold_query = fold_query
        self.recompute = recompute
        self.to_qkv = nn.Linear(dim, 3 * dim, **factory_kwargs)
        self.q_attn = nn.Linear(dim, heads, **factory_kwargs)
        self.to_out = nn.Linear(dim, dim, **factory_kwargs)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over the tokens of ``x``.

        Args:
            x: [B, N, dim], N >= 1; float32, float64, bfloat16 or float16.
            mask: bool [B, N], True = the token takes part in the global query. Every token, masked or not,
                gets an output; where a row has no token at all, g is zero and the output ``to_out.bias``.
            return_weights: also return alpha.

        Returns:
            [B, N, dim]; with ``return_weights`` a pair of it and alpha [B, H, N] (not differentiable).
        """
        checks.tokens(x, self.dim)
        layers = self.to_qkv, self.q_attn, self.to_out  # asked for once: an adopted module's are put together when they are
        if not plain(layers[1]):
            return self._in_plain_torch(layers, x, mask, return_weights)
        # Compiled code would be bound to the batch size by a question about it.
        large = torch.compiler.is_compiling() or x.numel() >= _WORTH_FOLDING
        fold = plain(layers[0]) and (self.recompute or (large if self.fold_query is None else self.fold_query))
        attend = self._folded if fold else self._unfolded
        return attend(layers, x, mask, return_weights)

    def _folded(self, layers: Layers, x: Tensor, mask: Tensor | None, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
        dim, heads, (to_qkv, q_attn, to_out) = self.dim, self.heads, layers
        # split_with_sizes is Tensor.split without its Python layer: this path is a dozen small calls.
        w_q, w_kv = to_qkv.weight.split_with_sizes((dim, 2 * dim))  # [D, D], [2D, D]
        b_q, b_kv = to_qkv.bias.split_with_sizes((dim, 2 * dim))
        # Softmax over tokens ignores a per-head constant: beta=0 drops the bias and gives it a zero gradient.
        score_weight = torch.addmm(q_attn.bias.view(heads, 1), q_attn.weight, w_q, beta=0)  # [H, D]
        if x.dtype != score_weight.dtype and torch.is_autocast_enabled(x.device.type):
            # The projection would narrow x anyway; done here, the pooling reads the narrow copy too.
            x = x.to(score_weight.dtype)
        pooled = additive_pool(x, score_weight, per_head=False, scale=self.scale, mask=mask, return_weights=return_weights)
        if return_weights:
            pooled, weights = pooled
        # Heads lead, so that one batched product applies each head's rows of W_q to that head's pooled x.
        w_head, b_head = w_q.view(heads, -1, dim), b_q.view(heads, -1, 1)  # [H, d, D], [H, d, 1]
        g = torch.baddbmm(b_head, w_head, pooled.permute(1, 2, 0))  # [H, d, B]
        g = g.permute(2, 0, 1).reshape(-1, dim)  # [B, D]
        if mask is not None:
            # Without any token alpha sums to zero, not one, and takes b_q with it.
            g = g.masked_fill(~mask.any(dim=1, keepdim=True), 0)
        two_passes = dim <= _TWO_PASS and plain(to_out)
        if two_passes and (self.recompute or _gain_without_gradients(x, g, w_kv, b_kv, to_out.weight, to_out.bias)):
            out = gated_projection(x, g, w_kv, b_kv, to_out.weight, to_out.bias)  # [B, N, D]
        elif self.recompute:
            out = to_out(gated_projection(x, g, w_kv, b_kv))
        else:
            out = to_out(gated_product(g, functional.linear(x, w_kv, b_kv)))  # k and v side by side: [B, N, 2D]
        return (out, weights) if return_weights else out

    def _unfolded(self, layers: Layers, x: Tensor, mask: Tensor | None, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
        to_qkv, q_attn, to_out = layers
        q, k, v = to_qkv(x).chunk(3, dim=-1)  # [B, N, D] each, read in place by the op
        # alpha=0 keeps the bias in the graph without effect, as in _folded.
        score_weight = torch.add(q_attn.weight, q_attn.bias[:, None], alpha=0)  # [H, D]
        out = additive_attention(q, k, v, score_weight, scale=self.scale, mask=mask, return_weights=return_weights)
        if return_weights:
            out, weights = out
            return to_out(out), weights
        return to_out(out)

    def _in_plain_torch(
        self, layers: Layers, x: Tensor, mask: Tensor | None, return_weights: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        to_qkv, q_attn, to_out = layers
        q, k, v = to_qkv(x).chunk(3, dim=-1)  # [B, N, D] each
        g, alpha = self._query_by_calls(q_attn, q, mask)
        out = to_out(gated_product(g, k, v))
        return (out, alpha.detach()) if return_weights else out

    def _query_by_calls(self, q_attn: Any, q: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The global query [B, D] and alpha [B, H, N] of q [B, N, D], whose scores come from a call."""
        if mask is not None:
            q = q.masked_fill(~mask[:, :, None], 0)  # what a masked token holds has no effect, NaN included
        scores = self.scale * q_attn(q)  # [B, N, H]
        scores = scores.to(accumulate_dtype(scores.dtype))
        if mask is None:
            alpha = scores.softmax(1)
        else:
            some = mask.any(1, keepdim=True)  # without any token there is no softmax, and g is zero
            alpha = scores.masked_fill((~mask & some)[:, :, None], -torch.inf).softmax(1).masked_fill(~mask[:, :, None], 0)
        g = torch.einsum("bnh,bnhd->bhd", alpha.to(q.dtype), q.unflatten(2, (self.heads, -1))).flatten(1)
        return g, alpha.mT

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, fold_query={self.fold_query}, recompute={self.recompute}"


class Affine(NamedTuple):
    """Weight and bias in the place of a Linear."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return functional.linear(x, self.weight, self.bias)


def plain(layer: Any, biased: bool = True) -> bool:
    """Whether a call of the layer does no more than apply its weight and bias, parametrised or not."""
    if isinstance(layer, Affine):
        return True
    if not isinstance(layer, nn.Linear) or (biased and layer.bias is None) or "forward" in layer.__dict__:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer).forward is nn.Linear.forward and not any(hooks)


def _gain_without_gradients(x: Tensor, *others: Tensor) -> bool:
    """Whether no gradient is needed and Triton computes; compiled code, which cannot ask who does, takes it that way."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others)):
        return False
    return torch.compiler.is_compiling() or chosen("gated_projection", x) == "triton"
