"""replace_attention: other codebases' attention, before and after, to the second order."""

import ast
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from codebases import AdditiveAttention, Discriminator, Generator, PortedAttention
from problems import TOLERANCES, relative_error
from spellings import DIM, HEADS, SPELLINGS, Holder, assert_same, orders, set_folding
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from lada_kernels import LadaAttention, improved_spectral_norm, replace_attention
from lada_kernels.modules.replacement.adopted import AdoptedLadaAttention

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "ladagan_32.npz"


@pytest.fixture(params=[None, True, False], ids=["by size", "folded", "unfolded"])
def fold_query(request):
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def golden():
    with np.load(GOLDEN) as archive:
        values = {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files if name != "config"}
        config = ast.literal_eval(str(archive["config"]))
    generator = Generator(config["img_size"], config["dim"], config["noise_dim"], config["heads"], config["mlp_dim"])
    discriminator = Discriminator(config["enc"], config["out"], config["dheads"], config["dmlp"])
    for model, prefix in ((generator, "G/"), (discriminator, "D/")):
        weights = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        assert list(model.state_dict()) == list(weights)
        model.load_state_dict(weights)
        model.double()
    return values, generator, discriminator


def training_step(generator, discriminator, z, real):
    """What the official script computes: images, logits, penalty, and all gradients of D's loss with R1 and of G's."""
    real = real.clone().requires_grad_()
    fake = generator(z)
    logits = discriminator(real)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    penalty = slope.square().sum((1, 2, 3)).mean()
    d_loss = functional.softplus(-logits).mean() + functional.softplus(discriminator(fake.detach())).mean() + 0.01 * penalty
    d_gradients = torch.autograd.grad(d_loss, list(discriminator.parameters()))
    g_loss = functional.softplus(-discriminator(fake)).mean()
    g_gradients = torch.autograd.grad(g_loss, list(generator.parameters()))
    return {"img": fake, "logits_real": logits, "r1_penalty": penalty, "d_loss": d_loss, "g_loss": g_loss}, [
        *d_gradients,
        *g_gradients,
    ]


def test_official_models_before_and_after(backend, fold_query):
    values, generator, discriminator = golden()
    z, real = values["in/z"], values["in/x"]
    before, gradients = training_step(generator, discriminator, z, real)
    for model, count in ((generator, 3), (discriminator, 1)):
        report = replace_attention(model)
        assert len(report.replaced) == count
        assert not report.left
        set_folding(model, fold_query)
    after, new_gradients = training_step(generator, discriminator, z, real)
    for name, value in after.items():
        assert relative_error(value, values[f"out/{name}"]) < 1e-9, name  # what the official code itself computed
    assert_same(after.values(), before.values())
    assert_same(new_gradients, gradients)


def test_float32_before_and_after(backend, fold_query):
    model = Holder(AdditiveAttention(64, 4))
    x = torch.randn(2, 37, 64)
    truth = orders(copy.deepcopy(model).double(), x)
    replace_attention(model)
    set_folding(model, fold_query)
    for value, expected in zip(orders(model, x, dtype=torch.float32), truth, strict=True):
        if expected.norm() > 1e-9:  # the score's bias has no gradient but rounding
            assert relative_error(value, expected) < TOLERANCES[torch.float32].norm
        else:
            assert value.norm() == 0


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_before_and_after(backend, fold_query, spelling):
    model = Holder(SPELLINGS[spelling]()).double()
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    inputs = (x, x, x) if spelling == "ported" else (x,)
    keys, parameters, before = list(model.state_dict()), list(model.parameters()), orders(model, *inputs)
    report = replace_attention(model)
    assert [entry.paths for entry in report.replaced] == [("attn",)]
    assert type(model.attn) is (LadaAttention if spelling == "official" else AdoptedLadaAttention)
    set_folding(model, fold_query)
    assert_same(orders(model, *inputs), before)
    assert list(model.state_dict()) == keys
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))


def test_ported_attention_across_sequences(backend):
    """Queries of one sequence, keys and values of others, which may be of another length."""
    model = Holder(PortedAttention(DIM, HEADS)).double()
    q, k, v = (torch.randn(2, n, DIM, dtype=torch.float64) for n in (5, 7, 7))
    before = orders(model, q, k, v)
    replace_attention(model)
    assert_same(orders(model, q, k, v), before)


def test_ported_attention_by_name():
    model = Holder(PortedAttention(DIM, HEADS))
    x = torch.randn(2, 7, DIM)
    before = model(x, v=x, k=x)
    replace_attention(model)
    torch.testing.assert_close(model(x, v=x, k=x), before)
    for args, kwargs in (((x,), {}), ((x, x, x, x), {}), ((x, x, x), {"mask": None}), ((x, x), {"k": x})):
        with pytest.raises(TypeError, match=r"forward: got .*, expected q, k, v"):
            model(*args, **kwargs)


def test_halves_and_autocast_keep_their_dtype():
    for spelling in SPELLINGS:
        model = Holder(SPELLINGS[spelling]())
        x = torch.randn(2, 7, DIM)
        inputs = (x, x, x) if spelling == "ported" else (x,)
        replaced = copy.deepcopy(model)
        replace_attention(replaced)
        with torch.autocast("cpu", torch.bfloat16):
            results = model(*inputs), replaced(*inputs)
        halves = model.bfloat16()(*(t.bfloat16() for t in inputs)), replaced.bfloat16()(*(t.bfloat16() for t in inputs))
        for one, other in (results, halves):
            pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
            for expected, value in pairs:
                assert value.dtype == expected.dtype
                assert (value - expected).norm() <= 3e-2 * expected.norm()


@pytest.mark.parametrize(("spelling", "recompute"), [("ported", False), ("one projection each", True)])
def test_adopted_attention_compiles_and_recomputes(spelling, recompute):
    model = Holder(SPELLINGS[spelling]())
    x = torch.randn(2, 7, DIM, requires_grad=True)
    inputs = (x, x, x) if spelling == "ported" else (x,)
    replace_attention(model)
    model.attn.fold_query = True
    expected = model(*inputs)
    model.attn.recompute = recompute
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("norm", [spectral_norm, improved_spectral_norm])
@pytest.mark.parametrize("spelling", ["official", "one projection each"])
def test_parametrised_layers_keep_working(backend, norm, spelling, monkeypatch):
    """Power iterations included: as many in a forward as before, in training mode and in evaluation."""
    monkeypatch.setattr("lada_kernels.modules.attention._WORTH_FOLDING", 0)
    model = Holder(SPELLINGS[spelling]()).double()
    for layer in list(model.attn.children()):
        norm(layer)
    twin = copy.deepcopy(model)
    report = replace_attention(twin)
    assert [entry.paths for entry in report.replaced] == [("attn",)]
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    for training in (True, True, False):
        assert_same(orders(twin.train(training), x), orders(model.train(training), x))
        assert_same(dict(twin.named_buffers()).values(), dict(model.named_buffers()).values())
    assert list(twin.state_dict()) == list(model.state_dict())
