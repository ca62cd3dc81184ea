"""`LadaAttention` on the layers of another codebase's module: what `replace_attention` puts in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lada_kernels.modules.attention import Affine, LadaAttention, plain
from lada_kernels.ops import additive_pool, gated_product


@dataclass(frozen=True)
class Layout:
    """How a module spells LadaGAN's attention; the defaults are the official spelling.

    Attributes:
        projections: names of the Linears whose results, side by side, are q, k and v.
        score: name of the Linear D -> H that scores.
        out: name of the Linear D -> D at the end.
        inputs: names of forward's arguments: the tokens, or what q, k and v are projected from.
        returns_weights: forward returns a pair of the result and alpha [B, H, N].
    """

    projections: tuple[str, ...] = ("to_qkv",)
    score: str = "q_attn"
    out: str = "to_out"
    inputs: tuple[str, ...] = ("x",)
    returns_weights: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all Linears."""
        return *self.projections, self.score, self.out


class AdoptedLadaAttention(LadaAttention):
    """`LadaAttention` under the names of another module's layers, with that module's arguments and results.

    Projections that are apart are stacked in every forward, a missing bias is zero. alpha, where the other module returned it,
    is differentiable, as it was there. Made by `adopt`; the layers' names, not these properties, are in the state dict.
    """

    @property
    def to_qkv(self) -> "nn.Module | Affine | _SideBySide":
        """D -> 3D."""
        return self._affine(*self._layout.projections)

    @property
    def q_attn(self) -> "nn.Module | Affine | _SideBySide":
        """D -> H."""
        return self._affine(self._layout.score)

    @property
    def to_out(self) -> "nn.Module | Affine | _SideBySide":
        """D -> D."""
        return self._affine(self._layout.out)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the module took, by position or name: x, or q, k, v, [B, N, D] each; k and v may have their own N.

        Returns:
            [B, N, D], and alpha [B, H, N] where the module returned it.
        """
        x, *others = _bind(self._layout.inputs, args, kwargs)
        out = super().forward(x) if all(other is x for other in others) else self._across(x, *others)
        return (out, self._weights(x)) if self._layout.returns_weights else out

    def _across(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        to_qkv, q_attn = self.to_qkv, self.q_attn
        if plain(to_qkv):
            rows = zip((q, k, v), to_qkv.weight.chunk(3), to_qkv.bias.chunk(3), strict=True)
            q, k, v = (functional.linear(*row) for row in rows)
        else:
            q, k, v = (to_qkv(x).chunk(3, -1)[i] for i, x in enumerate((q, k, v)))
        if plain(q_attn):
            # alpha=0 keeps the bias in the graph without effect, as in LadaAttention.
            score_weight = torch.add(q_attn.weight, q_attn.bias[:, None], alpha=0)  # [H, D]
            g = additive_pool(q, score_weight, scale=self.scale).flatten(1)  # [B, D]
        else:
            g, _ = self._query_by_calls(q_attn, q, None)
        return self.to_out(gated_product(g, k, v))

    def _weights(self, x: Tensor) -> Tensor:
        to_qkv, q_attn = self.to_qkv, self.q_attn
        if not (plain(to_qkv) and plain(q_attn)):
            return self._query_by_calls(q_attn, to_qkv(x).chunk(3, -1)[0], None)[1]
        w_q = to_qkv.weight.chunk(3)[0]
        scores = functional.linear(x, q_attn.weight @ w_q) * self.scale  # [B, N, H], biases aside: softmax ignores them
        return scores.softmax(dim=1).transpose(1, 2)

    def _affine(self, *names: str) -> "nn.Module | Affine | _SideBySide":
        # By getattr, a layer named like one of the properties above would be that property again.
        children = dict(self.named_children())
        layers = [children[name] for name in names]
        affine = all(plain(layer, biased=False) for layer in layers)
        if len(layers) == 1 and (layers[0].bias is not None or not affine):
            return layers[0]
        if not affine:
            return _SideBySide(layers)
        weights = [layer.weight for layer in layers]  # each read once: a parametrisation computes whenever it is read
        biases = [w.new_zeros(len(w)) if layer.bias is None else layer.bias for layer, w in zip(layers, weights, strict=True)]
        return Affine(torch.cat(weights), torch.cat(biases))


class _SideBySide(NamedTuple):
    """Layers that are called, as they do more than apply their weights."""

    layers: list[nn.Module]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], -1)


def _bind(names: tuple[str, ...], args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) + len(kwargs) != len(names) or given.keys() != set(names):
        came = f"{len(args)} by position" + (f" and {', '.join(kwargs)} by name" if kwargs else "")
        raise TypeError(f"forward: got {came}, expected {', '.join(names)}")
    return [given[name] for name in names]


def adopt(module: nn.Module, layout: Layout) -> LadaAttention:
    """A `LadaAttention` that shares with ``module`` its layers, in their order, its hooks and its other attributes.

    Args:
        module: has the Linears that ``layout`` names as direct children; must compute what ``layout`` says.
        layout: their roles, and how ``module`` is called.

    Returns:
        A `LadaAttention` where that has the same names, arguments and result, else an `AdoptedLadaAttention`.
    """
    children: dict[str, Any] = dict(module.named_children())
    layers = [children[name] for name in layout.layers]
    dim, heads = children[layout.out].out_features, children[layout.score].out_features
    official = layout == Layout() and all(layer.bias is not None for layer in layers)
    # A parametrised weight, as by spectral norm, is to be computed once in a forward; folded, that of to_out is read twice.
    fold_query = False if any(map(parametrize.is_parametrized, layers)) else None
    # On the meta device, as its layers are not used; there they draw no random numbers.
    settings = vars(LadaAttention(dim, heads, fold_query=fold_query, device="meta"))
    twin = LadaAttention.__new__(LadaAttention if official else AdoptedLadaAttention)
    vars(twin).update(vars(module))
    vars(twin).update({name: value for name, value in settings.items() if name not in vars(nn.Module())})
    if not official:
        vars(twin)["_layout"] = layout
    return twin
