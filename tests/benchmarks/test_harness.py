import dataclasses
import math

import pytest
import torch

from benchmarks import cases, floors, foundation, harness, orders, peers, sanitized
from lada_kernels import additive_attention, backends, explain

SHAPE = (2, 8, 16, 4)
PLAN = cases.tiny_plan("cpu")
TWO = dataclasses.replace(PLAN, backends={"cpu": "cpu", "reference": "reference"})
MISSING = backends.available()["cpu"]
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"backend 'cpu': {MISSING}")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def wrong_op(monkeypatch):
    def wrong(q, k, v, w):
        return additive_attention(q, k, v, w) + 1e-4 * q  # right shape and dtype, differentiable, and not the op

    monkeypatch.setitem(cases.OPS, "wrong", cases.Op(wrong, peers.plain_attention, "tttw", (4, 7, 11)))


def run_rows(monkeypatch, path, section):
    monkeypatch.setattr(foundation, "SECTIONS", {"ops": section})
    return foundation.run(out=path, only="ops", repeats=1, default_allocator=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(cases.OPS))
def test_the_gate_lets_every_op_pass(name, dtype):
    rows = list(foundation.time_op(name, SHAPE, dtype, repeats=2, plan=PLAN))
    assert [row.case["order"] for row in rows] == ["forward", "backward", "double backward"]
    for row in rows:
        assert row.refused is None
        assert set(row.times) == {"ours", "plain", "copy"}


def test_the_gate_refuses_a_wrong_op(wrong_op, monkeypatch, tmp_path):
    status = run_rows(
        monkeypatch,
        tmp_path / "out.json",
        lambda plan, repeats: foundation.time_op("wrong", SHAPE, torch.float32, repeats, plan),
    )
    assert status == 1
    forward = harness.load(tmp_path / "out.json").rows[0]
    assert forward.error > forward.tolerance
    assert "wrong result" in forward.refused
    assert not forward.times
    assert not forward.figures


def test_right_results_end_in_status_zero(monkeypatch, tmp_path):
    section = lambda plan, repeats: foundation.time_op("gated_product", SHAPE, torch.float32, repeats, plan)  # noqa: E731
    assert run_rows(monkeypatch, tmp_path / "out.json", section) == 0
    assert harness.load(tmp_path / "out.json").sections == ["ops"]


def test_an_interrupted_section_leaves_its_rows(monkeypatch, tmp_path):
    def section(plan, repeats):
        yield harness.Row("ops", {"op": "first"}, 0.0, 1e-5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rows(monkeypatch, tmp_path / "out.json", section)
    report = harness.load(tmp_path / "out.json")
    assert [row.case for row in report.rows] == [{"op": "first"}]
    assert report.sections == []


def test_an_unknown_section_is_named(tmp_path):
    with pytest.raises(SystemExit, match="'opps'"):
        foundation.run(out=tmp_path / "out.json", only="ops,opps")


def test_worst_error():
    truth = torch.tensor([3.0, 4.0])
    assert harness.worst_error([truth + torch.tensor([0.0, 0.5])], [truth]) == pytest.approx(0.1)
    assert harness.worst_error([truth, None], [truth, torch.zeros(2)]) == 0  # None counts as zeros
    assert harness.worst_error([truth, None], [truth, truth]) == pytest.approx(1)
    assert harness.worst_error([truth, torch.full((1,), 1e-3)], [truth, torch.zeros(1)]) == pytest.approx(1e-3 / 5)
    assert harness.worst_error([truth[:1]], [truth]) == math.inf
    assert harness.worst_error([truth * math.nan], [truth]) == math.inf
    assert harness.worst_error([truth * math.nan, truth], [truth, truth]) == math.inf
    with pytest.raises(ValueError, match="zip"):
        harness.worst_error([truth], [truth, truth])


def test_a_result_that_is_not_finite_is_refused_and_can_be_written(tmp_path):
    report = harness.start_report("a test", "as it is")
    report.rows = [harness.trial("ops", {}, {"ours": lambda: pytest.fail("timed")}, {"ours": math.inf}, 1e-5, repeats=1)]
    assert report.rows[0].refused
    harness.save(report, tmp_path / "out.json")
    assert harness.load(tmp_path / "out.json") == report


@pytest.mark.parametrize("size", [8, 64, 1024 * 12])
def test_the_copy_moves_exactly_so_many_bytes(size):
    target = harness.copying(size)()
    assert 2 * target.nbytes == size  # as much is read as written
    assert target.eq(1).all()


def test_the_copy_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match="12 bytes"):
        harness.copying(12)


def test_bytes_of_the_bound():
    batch, tokens, channels, _ = SHAPE
    tensor = batch * tokens * channels * 4
    # q, k, v -> out; grad, q, k, v -> three gradients; cotangents of three, grad, q, k, v -> second gradients of four
    moved = [(3 + 1) * tensor, (4 + 3) * tensor, (7 + 4) * tensor]
    rows = list(foundation.time_op("additive_attention", SHAPE, torch.float32, repeats=1, plan=PLAN))
    assert [row.figures["bytes"] for row in rows] == moved


def test_contestants_run_in_turn():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = harness.race(contestants, repeats=3, warmup=1)
    assert "".join(calls) == "ab" + "ababab"
    for timing in times.values():
        assert 0 <= timing.p20 <= timing.median <= timing.p80
        assert timing.repeats == 3


def test_the_report_survives_json(tmp_path):
    report = harness.start_report("a test", "as it is")
    report.rows = list(foundation.time_module((2, 8, 16), 2, PLAN))
    report.sections = ["modules"]
    harness.save(report, tmp_path / "new" / "out.json")
    assert harness.load(tmp_path / "new" / "out.json") == report
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]
    assert {"versions", "devices", "backends"} <= set(report.machine)
    assert all(row.refused is None for row in report.rows)
    assert all(harness.describe(row) for row in report.rows)


def test_saved_bytes_are_those_of_activations():
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert foundation.saved_bytes(torch.nn.Linear(4, 4), x) == x.nbytes  # the weight is saved too, and is a parameter


def test_the_official_step_and_ours_agree():
    (row,) = foundation.time_step(PLAN, repeats=1)
    assert row.refused is None
    assert row.figures["error float32"] < 1e-4
    assert row.figures["better in bfloat16"].startswith("bfloat16")


def test_tiny_calls_pass_the_gate():
    rows = list(foundation.overhead(PLAN, repeats=2))
    assert [row.refused for row in rows] == [None] * len(rows)


def test_two_backends_race_in_one_row():
    (row, *_) = foundation.time_op("gated_product", SHAPE, torch.float32, 2, TWO)
    assert list(row.times) == ["cpu", "reference", "plain", "copy"]
    assert {"share cpu", "share reference", "speedup cpu", "speedup reference", "plain/bound"} <= set(row.figures)
    (row, _) = foundation.time_module((2, 8, 16), 1, TWO)
    assert {"speedup cpu", "saved cpu", "saved reference"} <= set(row.figures)
    (row,) = foundation.time_step(TWO, repeats=1)
    assert row.refused is None
    assert {"speedup cpu float32", "speedup reference bfloat16 channels_last", "better in cpu float32"} <= set(row.figures)


def test_each_contestant_is_on_its_backend(monkeypatch):
    seen = {"cpu": set(), "reference": set()}

    def spying(q, k, v, w):
        for who in seen:
            if backends.chosen("additive_attention", q) == who:
                seen[who].add(len(seen[who]))
        return additive_attention(q, k, v, w)

    monkeypatch.setitem(cases.OPS, "spying", cases.Op(spying, peers.plain_attention, "tttw", (4, 7, 11)))
    list(foundation.time_op("spying", SHAPE, torch.float32, 3, TWO))
    assert len(seen["cpu"]) == len(seen["reference"]) > 3
    assert explain("gated_product", torch.ones(1, 1, 1)).backend == "cpu"  # as before


def test_who_is_wrong_is_refused_a_time_and_the_others_race():
    calls = {name: lambda: None for name in ("good", "bad", "plain")}
    row = harness.trial("ops", {}, calls, {"good": 1e-7, "bad": 0.5}, 1e-5, repeats=1)
    assert set(row.times) == {"good", "plain"}
    assert "0.5 of bad" in row.refused
    assert row.error == 0.5
    assert "REFUSED" in harness.describe(row)


def test_the_floors_are_multiples_of_what_starts_nothing():
    rows = list(floors.floors(TWO, repeats=2))
    assert [row.case["order"] for row in rows] == ["forward", "backward"]
    for row in rows:
        assert row.refused is None
        assert list(row.times) == ["cpu", "reference", "plain", "copy", "empty"]
        assert row.figures["floors cpu"] == row.times["cpu"].median / row.times["empty"].median


@pytest.mark.parametrize("order", cases.ORDERS)
@pytest.mark.parametrize("name", list(cases.OPS))
def test_the_truth_by_parts_is_the_truth(name, order):
    op = cases.OPS[name]
    inputs = orders.make_inputs(op.inputs, (5, 8, 16, 4), torch.float32)
    grad, cotangents = orders.make_cotangents(op, inputs)
    whole, parts = (orders.truth_of(op, order, inputs, grad, cotangents, largest) for largest in (2**25, 2 * 8 * 16))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_case_that_fails_takes_nothing_from_the_next():
    def rows(name, shape, dtype, note):
        if name == "second":
            raise torch.OutOfMemoryError("no memory is left")
        yield harness.Row("ops", {"op": name, "note": note}, 0.0, 1e-5)

    three = [(name, SHAPE, torch.float32) for name in ("first", "second", "third")]
    first, second, third = orders.over(three, "ops", rows, "a note")
    assert (first.refused, third.refused) == (None, None)
    assert second.refused == "OutOfMemoryError: no memory is left"
    assert second.case == {"op": "second", "shape": list(SHAPE), "dtype": "float32"}


def test_backends_are_chosen():
    assert foundation.choose_backends("cpu", None) == {"ours": "cpu"}
    assert foundation.choose_backends("cpu", "reference") == {"ours": "reference"}
    assert foundation.choose_backends("cpu", "cpu,reference") == {"cpu": "cpu", "reference": "reference"}
    with pytest.raises(SystemExit, match="'cpuu'"):
        foundation.choose_backends("cpu", "cpuu")


@pytest.mark.parametrize("plan", cases.PLANS)
def test_a_plan_names_what_there_is(plan):
    plan = cases.PLANS[plan](plan)
    assert {name for name, *_ in plan.ops + plan.floors} <= set(cases.OPS)


def test_the_gpu_is_measured_beyond_its_caches():
    sizes = {(name, math.prod(shape[:3])) for name, shape, dtype in cases.cuda_plan("cuda").ops if dtype == torch.bfloat16}
    assert {(name, 2**power) for name in cases.OPS for power in (26, 28)} <= sizes


def test_what_a_sanitizer_watches_is_right(monkeypatch):
    monkeypatch.setattr(sanitized.launch, "DEVICE", "cpu")
    for name, op in cases.OPS.items():
        assert sanitized.check(op, (2, 9, 16, 4), torch.bfloat16) <= 1, name
