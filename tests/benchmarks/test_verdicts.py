"""The table of `make gpu STAGES=smoke`, and what fills it."""

import math
import os
import subprocess
import sys

import torch
from gpu import smoke
from problems import GATE, OPS

from benchmarks import gpu, verdicts
from lada_kernels import use_backend
from lada_kernels.backends import LINEAR

PLACES = [
    (backend, op, dtype, order)
    for backend in ("cuda", "triton")
    for op in ("gated_product", "additive_pool")
    for dtype in ("float32", "float64")
    for order in verdicts.ORDERS
    if (backend, dtype) != ("cuda", "float64")
]


def test_there_is_a_verdict_on_everything():
    assert set(verdicts.OPS) == set(LINEAR) == {op.name for op in OPS} | {"gated_projection"}
    assert len(verdicts.places()) == 5 * 3 * (3 + 4)
    (stage,) = gpu.stages(None, False, ["smoke"])
    assert len(stage.commands) == 5 * (3 + 4)
    (stage,) = gpu.stages(None, True, ["smoke"])
    assert len(stage.commands) == 5 * 2


def test_a_table_of_verdicts():
    found = dict.fromkeys(PLACES, 0.5)
    found["cuda", "gated_product", "float32", "backward"] = 1234.5
    found["cuda", "additive_pool", "float32", "forward"] = "AcceleratorError"
    del found["cuda", "additive_pool", "float32", "backward"], found["cuda", "additive_pool", "float32", "double backward"]
    found["triton", "gated_product", "float64", "double backward"] = math.inf
    found |= {place: "there is no GPU" for place in PLACES if place[:2] == ("triton", "additive_pool")}
    log = "\n".join(["something else", *(verdicts.line(place, verdict) for place, verdict in found.items())])
    lines = [line.split("  ") for line in verdicts.table(verdicts.read(["", log]), PLACES).splitlines()]
    lines = [[text.strip() for text in line if text] for line in lines]
    assert lines == [
        ["float32", "float64"],
        ["backend", "op", *["forward", "backward", "double"] * 2],
        ["cuda", "gated_product", "ok", "1.23e+03", "ok", "-", "-", "-"],
        ["cuda", "additive_pool", "AcceleratorError", "not run", "not run", "-", "-", "-"],
        ["triton", "gated_product", "ok", "ok", "ok", "ok", "ok", "inf"],
        ["triton", "additive_pool", "there is no GPU"],
    ]


def test_nothing_that_was_found_is_not_run():
    assert set(verdicts.table({}, PLACES).split()[-3:]) == {"not", "run"}


def judged(capsys, op: str = "gated_product") -> dict[str, float | str]:
    with use_backend("reference"):
        right = smoke.judge("reference", op, "float32", small=True)
    found = {place[3]: verdict for place, verdict in verdicts.read([capsys.readouterr().out]).items()}
    assert right == all(map(verdicts.is_right, found.values()))
    assert list(found) == list(verdicts.ORDERS)
    return found


def test_what_is_right(capsys):
    for op in verdicts.OPS:
        assert all(0 < found < 1 for found in judged(capsys, op).values())


def test_what_is_wrong(capsys, monkeypatch):
    """The last token has its k in the place of what it gives; then it is not a number; then there is no kernel."""

    def stale(self, g, k, v):
        return torch.cat([torch.einsum("bd,bnd,bnd->bnd", g, k, v)[:, :-1], k[:, -1:]], 1)

    def unwritten(self, g, k, v):
        return torch.einsum("bd,bnd,bnd->bnd", g, k, v) * torch.tensor([1.0] * (k.shape[1] - 1) + [math.nan])[:, None]

    def missing(self, g, k, v):
        raise LookupError

    monkeypatch.setattr(type(GATE), "__call__", stale)
    assert all(found > 1000 for found in judged(capsys).values())
    monkeypatch.setattr(type(GATE), "__call__", unwritten)
    assert set(judged(capsys).values()) == {math.inf}
    monkeypatch.setattr(type(GATE), "__call__", missing)
    assert set(judged(capsys).values()) == {"LookupError"}


def test_a_backend_that_cannot_run_says_why(tmp_path):
    """Triton's kernels neither interpreted nor on a GPU."""
    command = [sys.executable, "-m", "gpu.smoke", "--backend", "triton", "--op", "gated_product", "additive_pool"]
    environment = os.environ | gpu.HELPERS | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    for dry, status in ((["--dry"], 0), ([], 1)):
        done = subprocess.run([*command, *dry], cwd=gpu.ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        rows = verdicts.table(verdicts.read([done.stdout]), [place for place in verdicts.places() if place[0] == "triton"])
        said = {row.split()[1]: row.split()[2] for row in rows.splitlines()[2:]}
        assert (said["additive_pool"], said["gated_product"], said["gated_projection"]) == ("triton", "triton", "not")
