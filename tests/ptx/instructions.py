"""A kernel of a few statements, and numbers of every format by exact arithmetic: what the tests of instructions share."""

import functools
import math
import random
import struct
from fractions import Fraction

from ptx import build

# ---- a kernel of a few statements ----


@functools.cache
def load():
    machine = build.load()
    machine.configure(**build.DEVICES["sm_90"], seed=0, blur=False)
    return machine


def source(body, arrays=0):
    """%p0, %p1, ... point to the thread's row of each array, whose bytes are s0, s1, ...; `memory` is shared."""
    pointers = [
        f"ld.param.u64 %p{k}, [p{k}]; ld.param.u32 %s, [s{k}]; mad.wide.u32 %p{k}, %i, %s, %p{k};" for k in range(arrays)
    ]
    parameters = ", ".join(f".param .u64 p{k}, .param .u32 s{k}" for k in range(arrays))
    return f"""
.version 8.6
.target sm_90
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel({parameters})
{{
.reg .pred %q<8>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %l<16>; .reg .b64 %p<8>; .reg .b32 %i, %s, %lane, %m;
mov.u32 %i, %ctaid.x; mov.u32 %s, %ntid.x; mov.u32 %lane, %tid.x; mad.lo.u32 %i, %i, %s, %lane; mov.b32 %m, memory;
{" ".join(pointers)}
{body}
}}"""


def launch(body, *arrays, blocks=1, threads=32, shared=4096, cluster=1):
    machine = load()
    machine.forget()
    parameters = b""
    for array in arrays:
        machine.allow(array.ctypes.data, array.nbytes, False)
        parameters += struct.pack("QIxxxx", array.ctypes.data, array.nbytes // (blocks * threads))
    machine.Module(source(body, len(arrays))).launch("kernel", (blocks, 1, 1), threads, shared, parameters, cluster)


# ---- numbers ----

FLOATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}  # bits of the exponent and of the fraction
INTS = ("u16", "s16", "u32", "s32", "u64", "s64")


@functools.cache
def bits_of(kind):
    """Of a number of the kind, and of its register: "s8:32" has one wider than it must be."""
    kind, _, register = kind.removesuffix("x2").partition(":")
    bits = 32 if kind == "pred" else int(kind.lstrip("bfsu"))
    return bits, int(register or max(16, bits))


@functools.cache
def value(kind, bits):
    """The bool, integer or float (each is a float64 as well) of these bits; what lies above them is nothing."""
    kind = kind.partition(":")[0]
    width = bits_of(kind)[0]
    sign = bits >> (width - 1) & 1
    if kind == "pred":
        return bool(bits)
    if kind not in FLOATS:
        return (bits & (1 << width) - 1) - (sign << width if kind[0] == "s" else 0)
    exponents, fractions = FLOATS[kind]
    exponent, fraction = bits >> fractions & (1 << exponents) - 1, bits & (1 << fractions) - 1
    if exponent == (1 << exponents) - 1:
        return math.nan if fraction else (-math.inf if sign else math.inf)
    size = math.ldexp(fraction + ((exponent > 0) << fractions), max(exponent, 1) - (1 << exponents - 1) + 1 - fractions)
    return -size if sign else size


def rounded(kind, x, mode="rn", ftz=False):
    """The bits of the number of this kind that is next to x; None for NaN, which has many."""
    exponents, fractions = FLOATS[kind]
    infinity = (1 << exponents) - 1 << fractions
    negative = math.copysign(1, x) < 0 if isinstance(x, float) else x < 0
    up = {"rz": False, "rm": negative, "rp": not negative}.get(mode)  # away from zero, if it is not the nearest
    if x != x:
        return None
    if x in (math.inf, -math.inf):
        bits = infinity
    elif x == 0:
        bits = 0
    else:
        size, least = abs(Fraction(x)), 2 - (1 << exponents - 1)
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        exponent = max(least, exponent - (size < Fraction(2) ** exponent))
        quotient = size / Fraction(2) ** (exponent - fractions)
        whole, rest = divmod(quotient, 1)
        away = (
            (rest > 0 if up else False) if up is not None else rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2)
        )
        bits = int(whole) + away + (exponent - least << fractions)
        if bits >= infinity:
            bits = infinity if up in (True, None) else infinity - 1
    if ftz and bits >> fractions == 0:
        bits = 0
    return bits | negative << exponents + fractions


def stored(kind, x, mode="rn", ftz=False):
    """The bits of the register that x is put in."""
    kind, register = kind.partition(":")[0], bits_of(kind)[1]
    return rounded(kind, x, mode, ftz) if kind in FLOATS else int(x) & (1 << register) - 1


# The last three are near ties of bf16, f16 and f32; the one before is subnormal in float32.
FEW = (0.5, 1.5, 2, 2.5, 3, 255.5, 2.0**-130, 1 + 2**-8 + 2**-40, 1 + 2**-11 + 2**-40, 1 + 2**-24 + 2**-50)


@functools.cache
def edges(kind):
    """Bits of numbers of which any two or three are worth trying."""
    width, register = bits_of(kind)
    draw = random.Random(0).getrandbits
    if kind == "pred":
        return [0, 1]
    if kind not in FLOATS:
        ends = [1 << width - 1, (1 << width - 1) - 1, (1 << width) - 1, (1 << width) - 2, (1 << width - 1) + 1]
        few = [0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 255, 0x1010001]  # the last: near a tie of bf16
        return [x & (1 << register) - 1 for x in few + ends] + [draw(register) for _ in range(4)]
    infinity, one = rounded(kind, math.inf), rounded(kind, 1)
    least, nearby = 1 << FLOATS[kind][1], 1 << FLOATS[kind][1] // 2
    some = [0, 1, 2, infinity, infinity - 1, infinity | least >> 1, one, one + 1, one - 1, one + nearby, least - 1, least]
    some += [*(rounded(kind, x) for x in FEW), *(draw(width - 1) for _ in range(4))]
    return [x | draw(1) << width - 1 for x in some] + [0, 1 << width - 1, one, infinity]
