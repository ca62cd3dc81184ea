"""Single instructions against an independent truth: every row of truths.py on edge cases and at random."""

import itertools
import math
import random

import numpy as np
import pytest
from ptx import build
from ptx.instructions import bits_of, edges, launch, load, rounded, stored, value
from ptx.truths import MODES, TABLE, negative

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}")


def cases(line, kinds):
    """Bits of operands: many pairs or triples of edges."""
    draw = random.Random(0)
    if len(kinds) < 3:
        found = list(itertools.product(*map(edges, kinds)))
        return found if len(found) < 400 or line.startswith(("div", "rem")) else draw.sample(found, 400)
    found = [tuple(draw.choice(edges(kind)) for kind in kinds) for _ in range(512)]
    if line.startswith("fma"):  # products amid two numbers of f16 or bf16, from which the smallest number moves the sum away
        for a, b, c in ((3, 683 / 2048, 2**-24), (3, 683 / 2048, -(2**-24)), (7, 37 / 256, 2**-133), (7, 37 / 256, -(2**-133))):
            found += [tuple(rounded(kind, x) for kind, x in zip(kinds, (a, b, c), strict=True))] * 2
    return found


def execute(line, kinds, given):
    """Bits of the results for these bits of the operands."""
    results, operands = (side.split() for side in kinds.split("="))
    names = dict(zip([*"defg"[: len(results)], *"abck"[: len(operands)]], results + operands, strict=True))
    if "%" not in line:
        line = f"{line} {', '.join(f'%{name}' for name in names)};"
    body, arrays = [], []
    for place, (name, kind) in enumerate(names.items()):
        element, each = bits_of(kind)[1], 2 if kind.endswith("x2") else 1
        bits, pred = element * each, kind == "pred"
        column = [x[place - len(results)] for x in given] if place >= len(results) else [0]
        arrays.append(np.resize(np.array(column, f"u{element // 8}"), -(-len(given) // 64) * 64))
        body.append(f".reg .{'pred' if pred else f'b{bits}'} %{name};")
        if place >= len(results):
            body.append(f"ld.global.b{bits} {'%s' if pred else f'%{name}'}, [%p{place}];")
            body += [f"setp.ne.b32 %{name}, %s, 0;"] * pred
    body.append(line)
    for place, (name, kind) in enumerate(list(names.items())[: len(results)]):
        bits = bits_of(kind)[1] * (2 if kind.endswith("x2") else 1)
        body += [f"selp.b32 %s, 1, 0, %{name}; st.global.b32 [%p{place}], %s;"] * (kind == "pred")
        body += [f"st.global.b{bits} [%p{place}], %{name};"] * (kind != "pred")
    packs = 2 if kinds.endswith("x2") else 1
    launch("\n".join(body), *arrays, blocks=arrays[0].size // packs // 32)
    return list(zip(*(array[: len(given)].tolist() for array in arrays[: len(results)]), strict=True))


def family(row):
    return ".".join(row[0].split()[0].split(".")[:2])


FAMILIES = {name: list(rows) for name, rows in itertools.groupby(sorted(TABLE, key=family), family)}


@pytest.mark.parametrize("name", FAMILIES)
def test_instructions(name):
    for line, kinds, truth in FAMILIES[name]:
        check(line, kinds, truth)


def check(line, kinds, truth):
    results, operands = ([kind.removesuffix("x2") for kind in side.split()] for side in kinds.split("="))
    given = cases(line, operands)
    mode = next((mode for mode in MODES if mode in line.split(".")), "rn")
    for bits, got in zip(given, execute(line, kinds, given), strict=True):
        values = [value(kind, x) for kind, x in zip(operands, bits, strict=True)]
        wanted = truth(*values)
        for kind, x, has in zip(results, wanted if isinstance(wanted, tuple) else (wanted,), got, strict=True):
            if x is None:
                continue
            want = stored(kind, x, mode, ".ftz" in line)
            same = has == want if want is not None else math.isnan(value(kind, has))
            assert same, f"{line} of {values} gives {has:#x} = {value(kind, has)}, not {x}: {want and hex(want)}"


@pytest.mark.parametrize(("kind", "canonical"), [("f32", 0x7FFFFFFF), ("f16", 0x7FFF), ("bf16", 0x7FFF)])
def test_extremes_make_the_canonical_nan(kind, canonical):
    nan = rounded(kind, math.inf) + 1
    assert execute(f"min.{kind}", f"{kind} = {kind} {kind}", [(nan, nan)]) == [(canonical,)]
    assert execute(f"max.NaN.{kind}", f"{kind} = {kind} {kind}", [(nan, 0), (0, nan)]) == [(canonical,)] * 2


# ---- approximations: error, the greatest that the manual allows ----


def relative(got, want):
    return np.abs(got - want) / np.abs(want)


def in_ulps(got, want):
    return np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))


APPROXIMATE = {
    "rcp.approx.f32": (lambda a: 1 / a, in_ulps, 1),
    "sqrt.approx.f32": (np.sqrt, relative, 2**-23),
    "rsqrt.approx.f32": (lambda a: 1 / np.sqrt(a), relative, 2**-22.9),
    "ex2.approx.ftz.f32": (lambda a: np.exp2(a), relative, 2**-22),
    "lg2.approx.f32": (np.log2, lambda got, want: np.abs(got - want) / np.maximum(1, np.abs(want)), 2**-22),
    "tanh.approx.f32": (np.tanh, relative, 2**-10.987),
    "div.approx.f32": (lambda a, b: a / b, in_ulps, 2),
    "div.full.f32": (lambda a, b: a / b, in_ulps, 2),
}
SPECIAL = [
    ("rcp.approx.f32", (0.0,), math.inf), ("rcp.approx.f32", (-math.inf,), -0.0), ("rcp.approx.ftz.f32", (1e-39,), math.inf),
    ("sqrt.approx.f32", (-0.0,), -0.0), ("sqrt.approx.f32", (-1.0,), math.nan), ("rsqrt.approx.f32", (-0.0,), -math.inf),
    ("rsqrt.approx.f32", (math.inf,), 0.0), ("ex2.approx.f32", (-math.inf,), 0.0), ("ex2.approx.f32", (-0.0,), 1.0),
    ("ex2.approx.ftz.f32", (-130.0,), 0.0), ("ex2.approx.f32", (-130.0,), 2.0**-130), ("lg2.approx.f32", (0.0,), -math.inf),
    ("lg2.approx.f32", (-1.0,), math.nan), ("tanh.approx.f32", (-math.inf,), -1.0), ("div.approx.f32", (3.0, 2.0**127), 0.0),
    ("div.approx.f32", (math.inf, 2.0**127), math.nan), ("div.full.f32", (3.0, 2.0**127), 3 * 2.0**-127),
]  # fmt: skip


@pytest.mark.parametrize("line", APPROXIMATE)
def test_approximations_err_as_much_as_they_may(line):
    truth, error, most = APPROXIMATE[line]
    operands = truth.__code__.co_argcount if hasattr(truth, "__code__") else 1
    draw = np.random.default_rng(0)
    given = (draw.uniform(1, 2, (4096, operands)) * 2.0 ** draw.integers(-3, 4, (4096, operands))).astype(np.float32)
    want, found = truth(*given.T.astype(np.float64)), {}
    for blur in (False, True):
        load().configure(blur=blur)
        got = execute(line, "f32 =" + " f32" * operands, given.view(np.uint32).tolist())
        load().configure(blur=False)
        found[blur] = np.array(got, np.uint32).view(np.float32)[:, 0].astype(np.float64)
        assert error(found[blur], want).max() <= most
    assert (found[True] != found[False]).mean() > 0.1
    assert error(found[True], want).max() > 0.5 * most


@pytest.mark.parametrize(("line", "given", "want"), SPECIAL, ids=str)
@pytest.mark.parametrize("blur", [False, True])
def test_approximations_of_what_is_special(line, given, want, blur):
    load().configure(blur=blur)
    ((got,),) = execute(line, "f32 =" + " f32" * len(given), [[rounded("f32", x) for x in given]])
    load().configure(blur=False)
    got = value("f32", got)
    exact = math.isinf(want) or want == 0
    assert (got, negative(got)) == (want, negative(want)) if exact else got == pytest.approx(want, rel=2**-10, nan_ok=True)
