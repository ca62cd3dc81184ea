"""Every suite on the smallest sizes: right ops pass its gate, wrong ones do not, and its figures follow from its times."""

import dataclasses
import math

import pytest
import torch

from benchmarks import cases, orders, peers, rivals, sanitized
from benchmarks.__main__ import make_plan
from benchmarks.alone import train_alone
from benchmarks.record import label
from benchmarks.suites import ORDER, SUITES, floors, models, ops, overhead
from lada_kernels import additive_attention, backends, explain
from lada_kernels.training import trainer

SHAPE = (2, 8, 16, 4)


def rows_of(suite, plan, **about):
    return [case.row() for case in suite.cases(plan) if about.items() <= case.about.items()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(cases.OPS))
def test_the_gate_lets_every_op_pass(plan, name, dtype):
    rows = rows_of(ops, dataclasses.replace(plan, compiled=()), op=name, dtype=dtype)
    assert [row.case["order"] for row in rows] == ["forward", "backward", "double backward"]
    for row in rows:
        assert row.refused is None
        assert row.errors["ours"] <= row.tolerance
        assert set(row.times) == {"ours", "plain", "copy"}
        assert row.figures["share"]["ours"] == row.times["copy"].median / row.times["ours"].median
        assert row.figures["GB/s"]["copy"] == row.figures["bytes"] / row.times["copy"].median / 1e9
        assert row.figures["share"]["copy"] == 1


def test_the_gate_refuses_a_wrong_op_and_gives_it_no_time(plan, monkeypatch):
    def wrong(q, k, v, w):
        return additive_attention(q, k, v, w) + 1e-4 * q  # right shape and dtype, differentiable, and not the op

    monkeypatch.setitem(cases.OPS, "wrong", cases.Op(wrong, peers.plain_attention, "tttw", (4, 7, 11)))
    calls = (("wrong", SHAPE, torch.float32),)
    rows = rows_of(ops, dataclasses.replace(plan, ops=calls, compiled=())) + rows_of(
        floors, dataclasses.replace(plan, floors=calls)
    )
    assert len(rows) == 3 + 2
    for row in rows:
        if row.case["order"] == "double backward":  # which cannot tell q's part: it is linear
            continue
        assert row.errors["ours"] > row.tolerance
        assert "wrong result" in row.refused
        assert row.times == row.readings == row.figures == {}


def test_bytes_of_the_bound(plan):
    batch, tokens, channels, _ = SHAPE
    tensor = batch * tokens * channels * 4
    # q, k, v -> out; grad, q, k, v -> three gradients; cotangents of three, grad, q, k, v -> second gradients of four
    moved = [(3 + 1) * tensor, (4 + 3) * tensor, (7 + 4) * tensor]
    plan = dataclasses.replace(plan, compiled=())
    rows = rows_of(ops, plan, op="additive_attention", dtype="float32")
    assert [row.figures["bytes"] for row in rows] == moved


def test_the_compiled_twin_is_held_to_the_truth_too(plan):
    (row,) = rows_of(ops, plan, op="additive_attention", dtype="float32", order="backward")
    assert row.errors["compiled"] <= cases.PEER_TOLERANCES[torch.float32]
    assert set(row.figures["over compiled"]) == {"ours"}


def test_two_backends_race_in_one_row_each_on_its_own(two, monkeypatch):
    seen = {"cpu": 0, "reference": 0}

    def spying(q, k, v, w):
        seen[backends.chosen("additive_attention", q)] += 1
        return additive_attention(q, k, v, w)

    monkeypatch.setitem(cases.OPS, "spying", cases.Op(spying, peers.plain_attention, "tttw", (4, 7, 11)))
    (row, *_) = rows_of(ops, dataclasses.replace(two, ops=(("spying", SHAPE, torch.float32),), compiled=(), repeats=3))
    assert seen["cpu"] == seen["reference"] > 3
    assert explain("gated_product", torch.ones(1, 1, 1)).backend == "cpu"  # as before
    assert list(row.times) == ["cpu", "reference", "plain", "copy"]
    assert set(row.figures["over plain"]) == {"cpu", "reference"}


def test_two_backends_race_in_whole_models(two):
    (images, step) = rows_of(models, two, task="images") + rows_of(models, two, task="training step")
    variants = ["cpu float32", "cpu bfloat16", "reference float32", "reference bfloat16"]
    assert set(images.times) == {*variants, "official", "official bfloat16"}
    assert set(images.figures["over official"]) == set(variants)
    assert set(step.times) == {*variants, *(f"{name} channels_last" for name in variants), "official"}
    assert images.refused is step.refused is None
    assert step.figures["images/s"]["official"] == 4 / step.times["official"].median


def test_the_official_models_and_ours_agree(plan):
    for row in rows_of(models, plan):
        assert row.refused is None, row.case
        assert row.errors["float32"] < 1e-4
        assert row.errors["bfloat16"] < 0.5
        assert "compiled" in row.absent or row.case["task"] == "training step"


@pytest.mark.parametrize("official", [False, True])
def test_a_process_of_its_own_says_what_training_takes(plan, official):
    (config,) = plan.models
    weights = sum(4 * p.numel() for part in (config.generator, config.discriminator) for p in part.build(32).parameters())
    found = train_alone(config, official)
    assert found["resident bytes"] > 4 * weights  # they, their gradients and Adam's two moments
    assert ("waiting" in found) != official
    assert official or 0 <= found["waiting"] < 1


def test_a_training_that_fails_says_why(plan):
    (config,) = plan.models
    with pytest.raises(RuntimeError, match=r"(?s)benchmarks.alone failed: .*run.cuda_graphs: expected a CUDA device"):
        train_alone(dataclasses.replace(config, run=dataclasses.replace(config.run, cuda_graphs=True)))


def test_on_a_gpu_the_first_backends_steps_are_recorded_too(two):
    names = [f"{models.variant(two, who, precision)}{mode}" for who, mode, precision in models.training_variants(two)]
    assert names == [
        *("cpu float32", "cpu bfloat16", "cpu float32 channels_last", "cpu bfloat16 channels_last"),
        *("reference float32", "reference bfloat16", "reference float32 channels_last", "reference bfloat16 channels_last"),
    ]
    on_gpu = dataclasses.replace(two, device="cuda")
    added = [(who, mode) for who, mode, _ in models.training_variants(on_gpu) if "recorded" in mode]
    assert added == [("cpu", " recorded")] * 2 + [("cpu", " recorded channels_last")] * 2


def test_a_step_that_is_wrong_is_refused(plan, monkeypatch):
    right, step = trainer.r1_penalty, trainer.Trainer.step
    monkeypatch.setattr(trainer, "r1_penalty", lambda logits, reals: 1.1 * right(logits, reals))
    (row,) = rows_of(models, plan, task="training step")
    assert "float32: wrong result" in row.refused
    assert "float32 channels_last: wrong result" in row.refused
    assert "float32" not in row.times

    def failing(trainer):
        if trainer.config.run.channels_last:
            raise RuntimeError("there is no such layout")
        return step(trainer)

    monkeypatch.undo()
    monkeypatch.setattr(trainer.Trainer, "step", failing)
    (row,) = rows_of(models, plan, task="training step")
    why = "RuntimeError: there is no such layout"
    assert row.refused == f"float32 channels_last: {why}; bfloat16 channels_last: {why}"
    assert set(row.times) == {"float32", "bfloat16", "official"}


def test_tiny_calls_pass_the_gate(plan):
    rows = rows_of(overhead, plan)
    assert len(rows) == (len(cases.OPS) + 1) * 2
    assert [row.refused for row in rows] == [None] * len(rows)
    assert all(set(row.times) == {"ours", "plain"} for row in rows)


def test_the_floors_are_multiples_of_what_starts_nothing(two):
    rows = rows_of(floors, dataclasses.replace(two, repeats=2))
    assert [row.case["order"] for row in rows] == ["forward", "backward"]
    for row in rows:
        assert row.refused is None
        assert list(row.times) == ["cpu", "reference", "plain", "copy", "empty"]
        assert row.figures["floors"]["cpu"] == pytest.approx(row.times["cpu"].median / row.times["empty"].median)


@pytest.mark.parametrize("order", cases.ORDERS)
@pytest.mark.parametrize("name", list(cases.OPS))
def test_the_truth_by_parts_is_the_truth(name, order):
    op = cases.OPS[name]
    inputs = orders.make_inputs(op.inputs, (5, 8, 16, 4), torch.float32)
    grad, cotangents = orders.make_cotangents(op, inputs)
    whole, parts = (orders.truth_of(op, order, inputs, grad, cotangents, largest) for largest in (2**25, 2 * 8 * 16))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", cases.PLANS)
def test_a_plan_names_what_there_is_and_every_case_once(name):
    plan = cases.PLANS[name]("cpu" if name == "tiny" else name)
    assert {called for called, *_ in plan.ops + plan.floors} <= set(cases.OPS)
    assert set(plan.compiled) <= set(plan.ops)
    for suite in SUITES.values():
        found = list(suite(plan))
        assert len({label(case.about) for case in found}) == len(found)
        assert all(len(set(case.contestants)) == len(case.contestants) for case in found)
    assert set(ORDER["cpu"]) == set(ORDER["cuda"]) == set(SUITES)


def test_a_case_knows_who_will_take_part(two):
    for name in ("ops", "floors", "scaling"):
        (case, *_) = SUITES[name](two)
        row = case.row()
        assert {*row.times, *row.absent} == set(case.contestants), name
        assert case.ours == ("cpu", "reference", *(rivals.QUADRATIC if name == "scaling" else ()))


def test_repeats_change_nothing_but_the_number_of_readings(plan):
    full = make_plan("cpu", tiny=False, repeats=2)
    assert (full.rehearsal, full.repeats, full.device) == (False, 2, "cpu")
    tiny = make_plan("cpu", tiny=True)
    assert (tiny.rehearsal, tiny.repeats) == (True, 1)
    (row, *_) = rows_of(overhead, dataclasses.replace(plan, repeats=2), call="gated_product")
    assert row.times["ours"].repeats == 2


def test_the_gpu_is_measured_beyond_its_caches():
    sizes = {(name, math.prod(shape[:3])) for name, shape, dtype in cases.cuda_plan("cuda").ops if dtype == torch.bfloat16}
    assert {(name, 2**power) for name in cases.OPS for power in (26, 28)} <= sizes


def test_what_a_sanitizer_watches_is_right(plan, monkeypatch):
    monkeypatch.setattr(sanitized.launch, "DEVICE", "cpu")
    for name, op in cases.OPS.items():
        assert sanitized.check(op, (2, 9, 16, 4), torch.bfloat16) <= 1, name
