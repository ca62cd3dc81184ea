"""Instructions with operands and what they make of them, by Python's integers and fractions: (line, kinds, truth)."""

import itertools
import math
import operator
from fractions import Fraction

import numpy as np
from ptx.instructions import FLOATS, INTS, bits_of, rounded, value

# ---- tables: instruction, results = operands, truth ----

MODES = ("rn", "rz", "rm", "rp")


def exact(f):
    """f in rational numbers where these are finite, in float64 where they are not, and for the sign of zero."""

    def truth(*xs):
        if all(map(math.isfinite, xs)) and (x := f(*map(Fraction, xs))):
            return x
        with np.errstate(all="ignore"):
            return float(f(*map(np.float64, xs)))

    return truth


def negative(x):
    return math.copysign(1, x) < 0


def summed(f, mode):
    """Downwards, x - x is -0."""
    terms = (lambda a, b: (a, b)) if f is operator.add else lambda a, b: (a, -b)
    return lambda a, b: -0.0 if (x := exact(f)(a, b)) == 0 and mode == "rm" and any(map(negative, terms(a, b))) else x


def fused(mode):
    def truth(a, b, c):
        if math.isfinite(a) and math.isfinite(b) and not math.isfinite(c):
            return c
        x = exact(lambda a, b, c: a * b + c)(a, b, c)
        return -0.0 if x == 0 and mode == "rm" and (negative(a) != negative(b) or negative(c)) else x

    return truth


def extreme(f, nan):
    def truth(a, b):
        if a != a or b != b:
            return math.nan if nan or (a != a and b != b) else (b if a != a else a)
        return f((a, b), key=lambda x: (x, not negative(x)))

    return truth


def saturated(f):
    return lambda *xs: min(max(x, 0), 1) if (x := f(*xs)) == x and x > 0 else 0.0


def flushed(f):
    return lambda *xs: f(*(math.copysign(0.0, x) if abs(x) < 2.0**-126 else x for x in xs))


def divided(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def fields(width, signed):
    def bfe(a, b, c):
        position, length = b & 255, c & 255
        kept = min(length, max(width - position, 0))
        x = (a & (1 << width) - 1) >> position & (1 << kept) - 1
        top = a >> min(position + length - 1, width - 1) & 1 if signed and length else 0
        return x | (-1 << kept if top else 0)

    return bfe


def inserted(a, b, c, k):
    position, mask = c & 255, (1 << min(k & 255, 32)) - 1
    return b & ~(mask << position) | (a & mask) << position


def permuted(a, b, c):
    def byte(k):
        x = (b << 32 | a) >> 8 * (c >> 4 * k & 7) & 255
        return 255 * (x >> 7) if c >> 4 * k & 8 else x

    return sum(byte(k) << 8 * k for k in range(4))


def integers():
    for t in INTS:
        n = bits_of(t)[0]
        for name, f in {"add": operator.add, "sub": operator.sub, "mul.lo": operator.mul, "min": min, "max": max}.items():
            yield f"{name}.{t}", f"{t} = {t} {t}", f
        yield f"mul.hi.{t}", f"{t} = {t} {t}", lambda a, b, n=n: a * b >> n
        yield f"mad.lo.{t}", f"{t} = {t} {t} {t}", lambda a, b, c: a * b + c
        yield f"mad.hi.{t}", f"{t} = {t} {t} {t}", lambda a, b, c, n=n: (a * b >> n) + c
        yield f"div.{t}", f"{t} = {t} {t}", lambda a, b: divided(a, b) if b else None
        yield f"rem.{t}", f"{t} = {t} {t}", lambda a, b: a - divided(a, b) * b if b else None
        yield f"shr.{t}", f"{t} = {t} u32", operator.rshift
        if n < 64:
            wide = f"{t[0]}{2 * n}"
            yield f"mul.wide.{t}", f"{wide} = {t} {t}", operator.mul
            yield f"mad.wide.{t}", f"{wide} = {t} {t} {wide}", lambda a, b, c: a * b + c
        if t[0] == "s":
            yield from ((f"{name}.{t}", f"{t} = {t}", f) for name, f in {"neg": operator.neg, "abs": abs}.items())
        if n > 16:
            yield f"bfe.{t}", f"{t} = {t} u32 u32", fields(n, t[0] == "s")
    for t in ("b16", "b32", "b64", "pred"):
        for name, f in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
            yield f"{name}.{t}", f"{t} = {t} {t}", f
        yield f"not.{t}", f"{t} = {t}", operator.not_ if t == "pred" else operator.invert
        if t != "pred":
            yield f"shl.{t}", f"{t} = {t} u32", lambda a, b: a << min(b, 64)
            yield f"shr.{t}", f"{t} = {t} u32", operator.rshift
            yield f"selp.{t}", f"{t} = {t} {t} pred", lambda a, b, c: a if c else b
            yield f"mov.{t}", f"{t} = {t}", lambda a: a
    for n in (32, 64):
        yield f"popc.b{n}", f"u32 = b{n}", int.bit_count
        yield f"clz.b{n}", f"u32 = b{n}", lambda a, n=n: n - a.bit_length()
    yield "shf.l.wrap.b32", "b32 = b32 b32 u32", lambda a, b, c: (b << 32 | a) << c % 32 >> 32
    yield "shf.r.wrap.b32", "b32 = b32 b32 u32", lambda a, b, c: (b << 32 | a) >> c % 32
    yield "bfi.b32", "b32 = b32 b32 u32 u32", inserted
    yield "prmt.b32", "b32 = b32 b32 b32", permuted
    for f in (
        lambda a, b, c: a & b & c,
        lambda a, b, c: (a ^ b) | ~c,
        lambda a, b, c: (a & b) | (~a & c),
        lambda a, b, c: a | b,
    ):
        yield f"lop3.b32 %d, %a, %b, %c, {f(0xF0, 0xCC, 0xAA) & 255};", "b32 = b32 b32 b32", f
    yield "mov.b32 %d, {%a, %b};", "b32 = b16 b16", lambda a, b: b << 16 | a
    yield "mov.b64 %d, {%a, %b};", "b64 = b32 b32", lambda a, b: b << 32 | a
    yield "mov.b64 %d, {%a, %b, %c, %k};", "b64 = b16 b16 b16 b16", lambda *x: sum(x << 16 * k for k, x in enumerate(x))
    yield "mov.b32 {%d, %e}, %a;", "b16 b16 = b32", lambda a: (a, a >> 16)
    yield "mov.b64 {%d, %e}, %a;", "b32 b32 = b64", lambda a: (a, a >> 32)
    yield "mov.b64 {_, %d}, %a;", "b32 = b64", lambda a: a >> 32
    yield "mov.b64 {%d, %e, %f, %g}, %a;", "b16 b16 b16 b16 = b64", lambda a: (a, a >> 16, a >> 32, a >> 48)


def reals():
    sums = {"add": operator.add, "sub": operator.sub}
    forms = [(t, m, "") for t in ("f32", "f64") for m in MODES] + [("f32", m, ".ftz") for m in MODES]
    forms += [("f32", "rn", ".sat"), ("f32", "rz", ".sat"), ("f32", "rn", ".ftz.sat")]
    forms += [(t, "rn", "") for t in ("f16", "bf16", "f16x2", "bf16x2", "f32x2")]
    for t, mode, more in forms:
        truths = {name: summed(f, mode) for name, f in sums.items()} | {"mul": exact(operator.mul), "fma": fused(mode)}
        for name, f in truths.items():
            f = flushed(f) if "ftz" in more else f
            f = saturated(f) if "sat" in more else f
            yield f"{name}.{mode}{more}.{t}", f"{t} = {t} {t}" + f" {t}" * (name == "fma"), f
    for t in ("f16", "bf16"):  # what is narrower than the sum
        for name, f in sums.items():
            yield f"{name}.rn.f32.{t}", f"f32 = {t} f32", summed(f, "rn")
        yield f"fma.rn.f32.{t}", f"f32 = {t} {t} f32", fused("rn")
    for t in ("f32", "f64"):
        yield f"div.rn.{t}", f"{t} = {t} {t}", quotient
        yield f"rcp.rn.{t}", f"{t} = {t}", lambda a: quotient(1.0, a)
        yield f"sqrt.rn.{t}", f"{t} = {t}", lambda a: a if a == 0 or a != a else math.sqrt(a) if a > 0 else math.nan
    for t in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2"):
        yield f"neg.{t}", f"{t} = {t}", operator.neg
        yield f"abs.{t}", f"{t} = {t}", abs
        yield f"mov.{t}", f"{t} = {t}", lambda a: a
    for (name, f), more in itertools.product({"min": min, "max": max}.items(), ("", ".NaN", ".ftz", ".ftz.NaN")):
        for t in (
            ("f32",) if "ftz" in more else ("f32", "f16", "bf16", "f16x2", "bf16x2") if more else ("f32", "f64", "f16", "bf16")
        ):
            truth = extreme(f, "NaN" in more)
            yield f"{name}{more}.{t}", f"{t} = {t} {t}", flushed(truth) if "ftz" in more else truth


def quotient(a, b):
    if b == 0 or not (math.isfinite(a) and math.isfinite(b)):
        with np.errstate(all="ignore"):
            return float(np.float64(a) / np.float64(b))
    return Fraction(a) / Fraction(b) if a else math.copysign(0.0, a) * math.copysign(1, b)


ORDERS = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
COMBINED = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def comparisons():
    tests = [(name, t, f) for name, f in ORDERS.items() for t in INTS]
    tests += [
        (name, t, ORDERS[same]) for name, same in {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.items() for t in INTS[::2]
    ]
    tests += [("eq", "b32", operator.eq), ("ne", "b16", operator.ne)]
    for t in FLOATS:
        for name, f in ORDERS.items():
            tests.append((name, t, lambda a, b, f=f: a == a and b == b and f(a, b)))
            tests.append((name + "u", t, lambda a, b, f=f: a != a or b != b or f(a, b)))
        tests += [("num", t, lambda a, b: a == a and b == b), ("nan", t, lambda a, b: a != a or b != b)]
    for name, t, f in tests:
        yield f"setp.{name}.{t}", f"pred = {t} {t}", f
    for (name, t, f), (how, g) in itertools.product(tests[::7], COMBINED.items()):
        truth = lambda a, b, c, f=f, g=g: (g(f(a, b), c), g(not f(a, b), c))  # noqa: E731
        yield f"setp.{name}.{how}.{t} %d|%e, %a, %b, %c;", f"pred pred = {t} {t} pred", truth
    yield "setp.lt.f32 %d|%e, %a, %b;", "pred pred = f32 f32", lambda a, b: (a < b, not a < b)


ROUNDED = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def clamped(t, x):
    n = bits_of(t)[0]
    low, high = (-(1 << n - 1), (1 << n - 1) - 1) if t[0] == "s" else (0, (1 << n) - 1)
    return low if x < low else min(x, high)


def to_integer(f, to, t):
    def truth(a):
        if a != a:
            return value(to, 1 << bits_of(to)[0] - 1) if t == "f64" or "64" in to else 0
        return clamped(to, f(a) if math.isfinite(a) else a)

    return truth


def conversions():
    whole = ("u8", "s8", *INTS)
    for to, t in itertools.product(whole, whole):
        yield f"cvt.{to}.{t}", f"{to} = {t}", lambda a, to=to: value(to, a & (1 << bits_of(to)[0]) - 1)
        yield f"cvt.sat.{to}.{t}", f"{to} = {t}", lambda a, to=to: clamped(to, a)
    for to, t in itertools.product(("s8", "u8", "s16", "u16", "s32", "u32"), ("s8:32", "u8:64", "s16:64", "u16:32", "s32:64")):
        yield f"cvt.{to}.{t.partition(':')[0]}", f"{to}:64 = {t}", lambda a, to=to: value(to, a & (1 << bits_of(to)[0]) - 1)
    for t, to, mode in itertools.product(whole, FLOATS, MODES):
        if mode == "rn" or to in ("f32", "f64"):
            yield f"cvt.{mode}.{to}.{t}", f"{to} = {t}", lambda a: a
    yield "cvt.rn.sat.f32.s32", "f32 = s32", saturated(lambda a: a)
    for t, to, (mode, f) in itertools.product(FLOATS, whole, ROUNDED.items()):
        yield f"cvt.{mode}.{to}.{t}", f"{to} = {t}", to_integer(f, to, t)
    yield "cvt.rpi.ftz.s32.f32", "s32 = f32", flushed(to_integer(math.ceil, "s32", "f32"))
    yield "cvt.rzi.u8.f32", "u8:32 = f32", to_integer(math.trunc, "u8", "f32")
    for to, t in itertools.permutations(FLOATS, 2):
        if bits_of(to)[0] > bits_of(t)[0]:
            yield f"cvt.{to}.{t}", f"{to} = {t}", lambda a: a
        for mode in MODES if to == "f32" and t == "f64" else ("rn",) if bits_of(to)[0] <= bits_of(t)[0] else ():
            yield f"cvt.{mode}.{to}.{t}", f"{to} = {t}", lambda a: a
    for (mode, f), t in itertools.product(ROUNDED.items(), ("f32", "f64", "f16")):
        truth = lambda a, f=f: math.copysign(float(f(a)), a) if math.isfinite(a) else a  # noqa: E731
        yield f"cvt.{mode}.{t}.{t}", f"{t} = {t}", truth
    yield "cvt.sat.f32.f32", "f32 = f32", saturated(lambda a: a)
    yield "cvt.ftz.f32.f32", "f32 = f32", flushed(lambda a: a)
    yield "cvt.rn.ftz.f32.f64", "f32 = f64", lambda a: a
    for t in ("f16", "bf16"):
        pair = lambda a, b, t=t: (rounded(t, a) or 0) << 16 | (rounded(t, b) or 0) if a == a and b == b else None  # noqa: E731
        yield f"cvt.rn.{t}x2.f32", "b32 = f32 f32", pair
    yield "cvt.rna.tf32.f32", "f32 = f32", ties_away


def ties_away(a):  # 10 bits of fraction
    if not math.isfinite(a):
        return a
    step = math.ldexp(1, max(math.frexp(a)[1] - 1, -126) - 10)
    return math.copysign(math.floor(abs(a) / step + 0.5) * step, a)


TABLE = [*integers(), *reals(), *comparisons(), *conversions()]
