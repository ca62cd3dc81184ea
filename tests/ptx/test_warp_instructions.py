"""Memory, and what the lanes of a warp do together, against numpy; and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from ptx import build
from ptx.instructions import INTS, bits_of, launch, source

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"PTX: {build.unavailable()}")

# ---- memory ----

WIDTHS = [f".v{n}.b{bits}".replace(".v1", "") for bits in (8, 16, 32, 64) for n in (1, 2, 4, 8) if n * bits <= 128]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("space", ["global", "shared", "generic", "local"])
def test_what_is_stored_is_loaded(width, space):
    n, bits = int(width[2]) if "v" in width else 1, int(width.rpartition("b")[2])
    wide = n * bits // 8
    registers = ", ".join(f"%{'h' if bits < 32 else 'r' if bits == 32 else 'l'}{k}" for k in range(n))
    registers = f"{{{registers}}}" if n > 1 else registers
    x = np.random.default_rng(0).integers(0, 256, (32, wide), np.uint8)
    out = np.zeros_like(x)
    start = ".local .align 32 .b8 buffer[256];\nmad.lo.u32 %r9, %lane, 64, %m; cvt.u64.u32 %l9, %r9; cvta.shared.u64 %l9, %l9;"
    place = {"shared": "[%r9]", "generic": "[%l9]", "local": "[buffer+32]"}.get(space)
    middle = f"st{'' if space == 'generic' else '.' + space}{width} {place}, {registers};" if place else ""
    middle += middle.replace("st", "ld", 1).replace(f"{place}, {registers}", f"{registers}, {place}")
    launch(f"{start} ld.global{width} {registers}, [%p1]; {middle} st.global{width} [%p0], {registers};", out, x)
    assert np.array_equal(out, x)


EXTENDED = [
    (kind, to) for kind in ("s8", "u8", "b8", *INTS[:4]) for to in ("b16", "b32", "b64") if int(to[1:]) >= bits_of(kind)[0]
]


@pytest.mark.parametrize(("kind", "to"), EXTENDED)
def test_loads_extend_and_stores_cut(kind, to):
    bits, register = bits_of(kind)[0], int(to[1:])
    x = np.random.default_rng(0).integers(0, 256, (32, bits // 8), np.uint8)
    out, cut = np.zeros(32, f"{'i' if kind[0] == 's' else 'u'}{register // 8}"), np.zeros_like(x)
    name = {16: "%h0", 32: "%r0", 64: "%l0"}[register]
    launch(f"ld.global.{kind} {name}, [%p2]; st.global.{to} [%p0], {name}; st.global.b{bits} [%p1], {name};", out, cut, x)
    assert np.array_equal(out, x.view(out.dtype.kind + str(bits // 8))[:, 0])
    assert np.array_equal(cut, x)


def test_copies_arrive_when_they_are_waited_for():
    """Of 16 bytes, two groups; the second copies 8 bytes and fills with zeros."""
    x = np.arange(1, 32 * 4 + 1, dtype=np.uint32).reshape(32, 4)
    out = np.zeros((32, 6), np.uint32)
    read = "ld.shared.b32 %r0, [%r9]; ld.shared.b32 %r1, [%r9+512]; st.global.v2.b32 [%p0+{}], {{%r0, %r1}};"
    body = f"""mad.lo.u32 %r9, %lane, 16, %m; mov.b32 %r8, 7; mov.b32 %r7, 8;
        st.shared.v4.b32 [%r9], {{%r8, %r8, %r8, %r8}}; st.shared.v4.b32 [%r9+512], {{%r8, %r8, %r8, %r8}};
        cp.async.cg.shared.global [%r9], [%p1], 16; cp.async.commit_group;
        cp.async.ca.shared.global [%r9+512], [%p1], 16, %r7; cp.async.commit_group;
        {read.format(0)} cp.async.wait_group 1; {read.format(8)} cp.async.wait_group 0;
        ld.shared.b32 %r0, [%r9+516]; ld.shared.b32 %r1, [%r9+520]; st.global.v2.b32 [%p0+16], {{%r0, %r1}};"""
    launch(body, out, x)
    seven = np.full(32, 7)
    assert np.array_equal(out, np.stack([seven, seven, x[:, 0], seven, x[:, 1], 0 * seven], 1))


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices(count, trans):
    """Lane 8m + r has the address of row r of matrix m; lane l has elements 2(l%4) and the next of row l/4 of each."""
    x = np.random.default_rng(0).integers(0, 1 << 16, (32, 8), np.uint16)
    fragments, back = np.zeros((32, count, 2), np.uint16), np.zeros((32, 8), np.uint16)
    registers = ", ".join(f"%r{k}" for k in range(count))
    store = f"st.global.v{count}.b32 [%p0], {{{registers}}};" if count > 1 else "st.global.b32 [%p0], %r0;"
    body = f"""mul.lo.u32 %r9, %lane, 5; and.b32 %r9, %r9, 31; mad.lo.u32 %r9, %r9, 16, %m;
        ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%p2]; st.shared.v4.b32 [%r9], {{%r4, %r5, %r6, %r7}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r9]; {store} bar.warp.sync 0xffffffff;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r9+1024], {{{registers}}}; bar.warp.sync 0xffffffff;
        setp.lt.u32 %q0, %lane, {8 * count};
        @%q0 ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r9+1024]; st.global.v4.b32 [%p1], {{%r4, %r5, %r6, %r7}};"""
    launch(body, fragments, back, x)
    matrices = x.reshape(4, 8, 8)[:count]
    matrices = matrices.transpose(0, 2, 1) if trans else matrices
    assert np.array_equal(fragments, matrices.reshape(count, 32, 2).transpose(1, 0, 2))
    assert np.array_equal(back, x)


# ---- lanes together ----


@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode, width):
    x, by = np.arange(100, 132, dtype=np.uint32), np.random.default_rng(width).integers(0, 32, 32).astype(np.uint32)
    if mode == "up":
        by[:4] = 0, 1, 2, 3
    out = np.zeros((32, 2), np.uint32)
    clamp = 32 - width << 8 | (0 if mode == "up" else 31)
    body = f"""ld.global.b32 %r0, [%p1]; ld.global.b32 %r1, [%p2]; shfl.sync.{mode}.b32 %r2|%q0, %r0, %r1, {clamp}, 0xffffffff;
        selp.b32 %r3, 1, 0, %q0; st.global.v2.b32 [%p0], {{%r2, %r3}};"""
    launch(body, out, x, by)
    for lane, b in enumerate(by.tolist()):
        start, place = lane // width * width, lane % width
        source = {"up": place - b, "down": place + b, "bfly": (lane ^ b) - start, "idx": b % width}[mode]
        inside = source < width and (mode != "up" or source >= 0)
        assert out[lane].tolist() == [100 + start + source if inside else 100 + lane, inside], (lane, b)


REDUCED = {"add": np.sum, "min": np.min, "max": np.max, "and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce}


@pytest.mark.parametrize("lanes", [0xFFFFFFFF, 0x0F0F00F0])
def test_votes_and_reductions(lanes):
    on = np.array([lanes >> k & 1 for k in range(32)], bool)
    x = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 32).astype(np.int32)
    few = [f"redux.sync.{name}.{'b' if name in ('and', 'or') else t}32 %r0, %r9, %r8;" for name in REDUCED for t in "us"]
    votes = itertools.product(("all", "any", "uni"), ("%q2", "%q3", "!%q2", "!%q3"))
    few += [f"vote.sync.{how}.pred %q1, {q}, %r8; selp.b32 %r0, 1, 0, %q1;" for how, q in votes]
    few += ["vote.sync.ballot.b32 %r0, %q3, %r8;", "vote.sync.ballot.b32 %r0, !%q3, %r8;", "elect.sync %r0|%q1, %r8;"]
    few += ["elect.sync _|%q1, %r8; selp.b32 %r0, 1, 0, %q1;", "activemask.b32 %r0;", "redux.sync.xor.b32 %r0, %r9, %r8;"]
    out = np.full((32, len(few)), 77, np.uint32)
    body = "".join(f"{line} st.global.b32 [%p0+{4 * k}], %r0;\n" for k, line in enumerate(few))
    body = f"""ld.global.b32 %r9, [%p1]; mov.b32 %r8, {lanes}; shr.u32 %r0, %r8, %lane; and.b32 %r0, %r0, 1;
        setp.eq.u32 %q0, %r0, 0;
        @%q0 bra over; setp.gt.s32 %q3, %r9, 0; setp.ge.u32 %q2, %lane, 0; {body} over: ret;"""
    launch(body, out, x)
    kept = x[on]
    some = [f(kept.astype(np.uint32) if t == "u" else kept) for f in REDUCED.values() for t in "us"]
    holds = [np.ones(len(kept), bool), kept > 0]
    for how in (np.all, np.any, lambda p: p.all() or not p.any()):
        some += [how(p) for p in (*holds, *(~p for p in holds))]
    ballot = sum(1 << int(k) for k in np.flatnonzero(on & (x > 0)))
    some += [ballot, lanes & ~ballot, np.flatnonzero(on)[0], None, lanes, np.bitwise_xor.reduce(kept)]
    want = np.tile(np.array([int(x or 0) & 0xFFFFFFFF for x in some], np.uint32), (32, 1))
    want[:, -3] = np.arange(32) == np.flatnonzero(on)[0]
    assert np.array_equal(out[on], want[on])
    assert (out[~on] == 77).all()


@pytest.mark.parametrize(("name", "want"), [("min", -0.0), ("max", 5.0), ("min.NaN", math.nan), ("max.NaN", math.nan)])
def test_reductions_of_float32(name, want):
    x, out = np.resize(np.float32([0.0, -0.0, math.nan, 0.0, 5.0]), 32), np.zeros(32, np.float32)
    launch(f"ld.global.f32 %r0, [%p1]; redux.sync.{name}.f32 %r1, %r0, 0xffffffff; st.global.f32 [%p0], %r1;", out, x)
    assert [str(y) for y in out] == [str(np.float32(want))] * 32


@pytest.mark.parametrize("generic", [False, True])
def test_blocks_of_a_cluster_read_each_other(generic):
    x, out = np.arange(100, 164, dtype=np.uint32), np.zeros(64, np.uint32)
    meet = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
    read = "mapa.shared::cluster.u32 %r1, %r9, %r8; ld.shared::cluster.b32 %r0, [%r1];"
    if generic:
        read = "cvt.u64.u32 %l0, %r9; cvta.shared.u64 %l0, %l0; mapa.u64 %l0, %l0, %r8; ld.b32 %r0, [%l0];"
    body = f"""ld.global.b32 %r0, [%p1]; mad.lo.u32 %r9, %lane, 4, %m; st.shared.b32 [%r9], %r0; {meet}
        mov.u32 %r8, %cluster_ctarank; xor.b32 %r8, %r8, 1; {read} st.global.b32 [%p0], %r0; {meet}"""
    launch(body, out, x, blocks=2, cluster=2)
    assert np.array_equal(out, np.roll(x, 32))


# Where lane l has element i of a, of b and of c: (row, column), with g = l / 4 and t = l % 4.
PAIRS = (
    lambda g, t, i: (g + 8 * (i // 2 % 2), 2 * t + i % 2 + 8 * (i // 4)),
    lambda g, t, i: (2 * t + i % 2 + 8 * (i // 2), g),
    lambda g, t, i: (g + 8 * (i // 2), 2 * t + i % 2),
)
SINGLES = (lambda g, t, i: (g + 8 * (i % 2), t + 4 * (i // 2)), lambda g, t, i: (t + 4 * i, g), PAIRS[2])


@pytest.mark.parametrize(
    ("shape", "kind", "layout"),
    [((16, 8, 16), "f16", PAIRS), ((16, 8, 16), "bf16", PAIRS), ((16, 8, 8), "f16", PAIRS), ((16, 8, 8), "bf16", PAIRS),
     ((16, 8, 8), "tf32", SINGLES), ((16, 8, 4), "tf32", SINGLES), ((8, 8, 4), "f64", SINGLES)],
    ids=lambda value: "" if isinstance(value, tuple) and callable(value[0]) else str(value),
)  # fmt: skip
def test_products_of_matrices(shape, kind, layout):
    m, n, k = shape
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "f64": torch.float64}[kind]
    draw = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-9, 10, size, generator=draw).to(dtype) for size in ((m, k), (k, n), (m, n)))
    c = c.to(torch.float64 if kind == "f64" else torch.float32) / 2

    def fragments(x, places):
        each = x.numel() // 32
        return torch.stack([torch.stack([x[places(lane // 4, lane % 4, i)] for i in range(each)]) for lane in range(32)])

    given = [fragments(x, places).view(torch.uint8).numpy().copy() for x, places in zip((a, b, c), layout, strict=True)]
    if kind == "tf32":
        given[0].view(np.uint32)[:] |= 0x1ABC  # what lies below tf32 is not looked at
    out, word, register = np.zeros_like(given[2]), 8 if kind == "f64" else 4, "l" if kind == "f64" else "r"
    counts = [x.shape[1] // word for x in (out, *given)]
    pool = iter(f"%{register}{j}" for j in range(16))
    names = [list(itertools.islice(pool, count)) for count in counts]
    body = ""
    for array, few in enumerate(names[1:], 1):
        body += "".join(f"ld.global.b{8 * word} {name}, [%p{array}+{word * j}];" for j, name in enumerate(few))
    total = "f64" if kind == "f64" else "f32"
    lists = ", ".join("{" + ", ".join(few) + "}" for few in names)
    body += f"mma.sync.aligned.m{m}n{n}k{k}.row.col.{total}.{kind}.{kind}.{total} {lists};"
    launch(body + "".join(f"st.global.b{8 * word} [%p0+{word * j}], {name};" for j, name in enumerate(names[0])), out, *given)
    want = a.to(c.dtype) @ b.to(c.dtype) + c
    assert np.array_equal(out, fragments(want, layout[2]).view(torch.uint8).numpy())


# ---- guards and errors ----


GUARDED = "add.u32 %r0, %r0, 5;", "ld.global.b32 %r0, [%p1];", "setp.ne.u32 %q1, %r0, 0;", "st.global.b32 [%p1], %r0;"


@pytest.mark.parametrize("line", GUARDED)
@pytest.mark.parametrize("no", ["", "!"])
def test_guards_leave_other_lanes_alone(line, no):
    out, x = np.zeros((32, 2), np.uint32), np.arange(100, 132, dtype=np.uint32)
    body = f"""and.b32 %r1, %lane, 1; setp.eq.u32 %q0, %r1, 1; mov.b32 %r0, 3; setp.ne.u32 %q1, %lane, %lane; @{no}%q0 {line}
        selp.b32 %r2, 1, 0, %q1; st.global.v2.b32 [%p0], {{%r0, %r2}};"""
    launch(body, out, x)
    on = np.arange(32) % 2 == (0 if no else 1)
    changed = {"add": out[:, 0] == 8, "ld.": out[:, 0] == np.arange(100, 132), "set": out[:, 1] == 1, "st.": x == 3}[line[:3]]
    assert np.array_equal(changed, on)
    assert (out[~on] == (3, 0)).all()


REFUSED = """add.rn.s32 %r0, %r1, %r2
add.ftz.u32 %r0, %r1, %r2|mul.u32 %r0, %r1, %r2|add.b32 %r0, %r1, %r2|min.b32 %r0, %r1, %r2
min.rz.f32 %r0, %r1, %r2|max.sat.f32 %r0, %r1, %r2|add.ftz.f16 %h0, %h1, %h2|add.ftz.f32x2 %l0, %l1, %l2
fma.rz.f32x2 %l0, %l1, %l2, %l3|fma.rz.f16 %h0, %h1, %h2, %h3|add.ftz.f64 %l0, %l1, %l2|div.b32 %r0, %r1, %r2
rem.f32 %r0, %r1, %r2|rcp.approx.sat.f32 %r0, %r1|rcp.approx.rz.f32 %r0, %r1|tanh.full.f32 %r0, %r1|popc.b16 %r0, %h1
shl.f32 %r0, %r1, %r2|lop3.b32 %r0, %r1, %r2, %r3, %r4|prmt.b32.f4e %r0, %r1, %r2, %r3
shf.l.clamp.b32 %r0, %r1, %r2, %r3|setp.lo.s32 %q0, %r0, %r1|setp.lt.b32 %q0, %r0, %r1|selp.pred %q0, %q1, %q2, %q3
mov.b8 %h0, %h1|mov.b64 {%h0, %h1, %h2}, %l0|cvt.s32.f32 %r0, %r1|cvt.rn.s32.f32 %r0, %r1|cvt.f32.s32 %r0, %r1
cvt.f16.f32 %h0, %r1|cvt.rn.f64.f32 %l0, %r1|cvt.rni.s32.s16 %r0, %h1|cvt.rz.f16.f32 %h0, %r1
redux.sync.add.f32 %r0, %r1, %r2|redux.sync.max.NaN.u32 %r0, %r1, %r2|shfl.sync.up.f32 %r0, %r1, 1, 0, 0xffffffff
mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%r6, %r7}, {%r0, %r1, %r2, %r3}
fence.odd.gpu|wgmma.fence.sync.aligned|add.odd.u32 %r0, %r1, %r2|ld.odd.b32 %r0, [%p0]|add.u32 %r0, %r1, %r99
add.u32 %r0, %r1, odd|add.u32 %r0, %l1, %r2|add.u64 %l0, %l1, %r2|add.u32 %q0, %r1, %r2|mov.b32 %r0, %h0
st.global.b64 [%p0], %r0|.odd 3"""


@pytest.mark.parametrize("line", [line for lines in REFUSED.split("\n") for line in lines.split("|")])
def test_what_is_not_known_is_refused(line):
    body = f"mov.b32 %r0, 1;\n{line};\nret;"
    number = source(body).split("\n").index(line + ";") + 1
    with pytest.raises(RuntimeError) as error:
        launch(body)
    assert f"line {number}" in str(error.value)
    assert line in str(error.value)
