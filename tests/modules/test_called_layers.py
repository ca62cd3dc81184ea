"""Layers inside LadaAttention that are more than their weights are called, folded or not, at every order."""

import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations, prune

from lada_kernels.modules import LadaAttention
from lada_kernels.modules.replacement.adopted import Layout, adopt

DIM, HEADS = 8, 2
NAMES = ("to_qkv", "q_attn", "to_out")


class Adapted(nn.Module):
    """A low-rank adapter around a layer, whose weight it shows."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(layer):
    other = Doubling(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    other.load_state_dict(layer.state_dict())
    return other


def hooked(layer):
    layer.register_forward_hook(lambda module, args, out: 3 * out)
    return layer


def overridden(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x).sin()
    return layer


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


CHANGES = {
    "adapter": Adapted,
    "subclass": doubled,
    "hook": hooked,
    "forward of its own": overridden,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "weight norm by hooks": old_weight_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrised": parametrizations.weight_norm,
    "without bias": lambda layer: nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype),
}


def make(change, names, **options):
    torch.manual_seed(0)
    attention = LadaAttention(DIM, HEADS, **options).double()
    for name in names:
        setattr(attention, name, CHANGES[change](getattr(attention, name)))
    return attention


def published(attention, x):
    """The equations of arXiv 2401.09596 in the official order, every layer called."""
    q, k, v = attention.to_qkv(x).chunk(3, dim=-1)
    alpha = (attention.q_attn(q) * (DIM // HEADS) ** -0.5).softmax(dim=1)
    q, k, v = (t.unflatten(2, (HEADS, -1)) for t in (q, k, v))
    return attention.to_out((torch.einsum("bnh,bnhd->bhd", alpha, q)[:, None] * k * v).flatten(2))


def orders(attention, function, x):
    x = x.clone().requires_grad_()
    parameters = [p for name, p in attention.named_parameters() if "q_attn.bias" not in name and p.requires_grad]
    out = function(x)
    slope, *first = torch.autograd.grad(out.square().sum(), [x, *parameters], create_graph=True, allow_unused=True)
    second = torch.autograd.grad(slope.square().sum(), [x, *parameters], allow_unused=True)
    return [out, slope, *first, *second]


@pytest.mark.parametrize("options", [{"fold_query": True}, {"fold_query": False}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_called(change, name, options):
    attention = make(change, [name], **options)
    twin = make(change, [name], **options)  # power iteration moves on with every call
    x = torch.randn(3, 5, DIM, dtype=torch.float64)
    got, expected = orders(attention, attention, x), orders(twin, lambda x: published(twin, x), x)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


class Fork(nn.Module):
    """The attention as another codebase spells it: three projections, alpha returned."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM, bias=i == 3) for i in range(4))
        self.score = nn.Linear(DIM, HEADS)

    def forward(self, q, k, v):
        q, k, v = self.q(q), self.k(k), self.v(v)
        alpha = (self.score(q) * (DIM // HEADS) ** -0.5).softmax(dim=1)
        q, k, v = (t.unflatten(2, (HEADS, -1)) for t in (q, k, v))
        out = self.out((torch.einsum("bnh,bnhd->bhd", alpha, q)[:, None] * k * v).flatten(2))
        return out, alpha.mT


@pytest.mark.parametrize("name", ["q", "k", "score", "out"])
@pytest.mark.parametrize("same", [True, False])
def test_layers_of_an_adopted_module_are_called(name, same):
    torch.manual_seed(0)
    fork = Fork().double()
    layout = Layout(("q", "k", "v"), score="score", out="out", inputs=("q", "k", "v"), returns_weights=True)
    setattr(fork, name, Adapted(getattr(fork, name)))
    adopted = adopt(Fork().double(), layout)
    adopted.load_state_dict({key.replace(".base.", "."): x for key, x in fork.state_dict().items()}, strict=False)
    setattr(adopted, name, getattr(fork, name))
    inputs = [torch.randn(3, 5, DIM, dtype=torch.float64)] * 3 if same else list(torch.randn(3, 3, 5, DIM, dtype=torch.float64))
    for one, other in zip(adopted(*inputs), fork(*inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_spectral_norm_by_hooks_trains():
    attention = make("spectral norm by hooks", NAMES, fold_query=True)
    u = attention.to_qkv.weight_u.clone()
    attention(torch.randn(2, 5, DIM, dtype=torch.float64)).sum().backward()
    assert not torch.equal(attention.to_qkv.weight_u, u)
    assert attention.to_qkv.weight_orig.grad is not None


def test_quantised_layers_are_called():
    attention = LadaAttention(DIM, HEADS, fold_query=True)
    x = torch.randn(2, 5, DIM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantised = torch.ao.quantization.quantize_dynamic(attention, {nn.Linear})
    assert quantised.to_qkv is not attention.to_qkv
    torch.testing.assert_close(quantised(x), published(quantised, x))


def test_masks_where_the_scores_are_called():
    """A masked token has no effect, NaN included; without any, g is zero."""
    plain, called = make("hook", []), make("adapter", ["q_attn"])
    with torch.no_grad():
        called.q_attn.up.zero_()
    x = torch.randn(3, 5, DIM, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    expected, weights = plain(x, mask=mask, return_weights=True)
    got, found = called(x, mask=mask, return_weights=True)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found, weights)
    x[0, 1] = torch.nan
    seen = called(x, mask=mask)
    torch.testing.assert_close(seen[mask], expected[mask])


@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_layer_is_called(name):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        attention = LadaAttention(DIM, HEADS, fold_query=True)
        x = torch.randn(2, 5, DIM)
        expected = attention(x)
        fsdp.fully_shard(getattr(attention, name), mesh=mesh)
        out = attention(x)
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        assert getattr(attention, name).weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("fold_query", [None, True, False])
def test_one_program_takes_every_batch(fold_query):
    attention = LadaAttention(DIM, HEADS, fold_query=fold_query)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(attention, (torch.randn(4, 5, DIM),), dynamic_shapes=shapes).module()
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(attention, backend=counter, dynamic=True, fullgraph=True)
    for batch in (2, 3, 70_000):
        x = torch.randn(batch, 5, DIM)
        torch.testing.assert_close(program(x), attention(x))
        torch.testing.assert_close(compiled(x), attention(x))
    assert counter.frame_count == 1
