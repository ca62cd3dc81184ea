"""Who is let in, who is turned away, and who is timed."""

import dataclasses
import math

import pytest
import torch

from benchmarks import record, trial
from lada_kernels import additive_pool, explain

TRUTH = [torch.tensor([3.0, 4.0])]


@pytest.fixture
def some(plan):
    return trial.Trial(plan, "ops", {"op": "some"}, 1e-5, 1e-3)


@pytest.fixture
def pair(two):
    return trial.Trial(two, "ops", {"op": "some"}, 1e-5, 1e-3)


def off_by(error, calls=None, name=None):
    """A contestant with a relative error."""

    def call():
        if calls is not None:
            calls.append(name)
        return [TRUTH[0] + torch.tensor([0.0, 5 * error])]

    return lambda: call


def failing():
    raise NotImplementedError("there is no such\n kernel")


def test_who_is_right_is_let_in_and_timed(some):
    calls = []
    assert some.enter("ours", off_by(1e-6, calls, "ours"), TRUTH)
    assert some.enter("plain", off_by(1e-4, calls, "plain"), TRUTH)
    assert some.enter("copy", lambda: lambda: None)
    row = some.race(2)
    assert (row.suite, row.case, row.tolerance) == ("ops", {"op": "some"}, 1e-5)
    assert row.refused is None
    assert row.absent == {}
    assert row.errors == {"ours": pytest.approx(1e-6, rel=0.1), "plain": pytest.approx(1e-4, rel=0.1)}
    assert list(row.times) == list(row.readings) == ["ours", "plain", "copy"]
    assert calls[:6] == ["ours", "plain", *["ours"] * 2, *["plain"] * 2]  # judged, then warmed up
    assert calls[6:] == ["ours", "plain"]  # the plan has one reading, whatever a suite is used to
    some.speedups()
    assert row.figures == {"over plain": {"ours": row.times["plain"].median / row.times["ours"].median}}


@pytest.mark.parametrize("error", [1e-4, math.nan, math.inf])
def test_ours_that_is_wrong_is_refused_and_nobody_is_timed(some, error, tmp_path):
    calls = []
    assert not some.enter("ours", off_by(error), TRUTH)
    assert some.enter("plain", off_by(0.0, calls, "plain"), TRUTH)
    row = some.race(2)
    assert row.refused.startswith("wrong result: relative error")
    assert row.refused.endswith("at most 1e-05 is allowed")
    assert row.errors["ours"] == (pytest.approx(1e-4, rel=0.1) if error == 1e-4 else None)
    assert calls == ["plain"]
    assert row.times == row.readings == row.figures == {}
    assert "REFUSED" in record.describe(row)
    kept = record.start_record("a test", "cpu", "as it is")
    kept.rows.append(row)
    record.save(kept, tmp_path / "out.json")  # there is no NaN in JSON
    assert record.load(tmp_path / "out.json") == kept


def test_one_of_ours_that_is_wrong_takes_no_time_from_the_other(pair):
    assert pair.enter("cpu", off_by(0.0), TRUTH)
    assert not pair.enter("reference", off_by(0.5), TRUTH)
    row = pair.race(1)
    assert list(row.times) == ["cpu"]
    assert row.refused == "reference: wrong result: relative error 0.5, at most 1e-05 is allowed"
    assert not pair.enter("cpu", failing)
    assert row.refused.endswith("; cpu: NotImplementedError: there is no such kernel")


def test_a_peer_that_is_not_what_it_claims_is_absent(some):
    some.enter("ours", off_by(0.0), TRUTH)
    assert not some.enter("plain", off_by(1e-2), TRUTH)
    assert not some.enter("compiled", failing, TRUTH)
    row = some.race(1)
    assert list(row.times) == ["ours"]
    assert row.refused is None
    assert row.absent == {
        "plain": "wrong result: relative error 0.01, at most 0.001 is allowed",
        "compiled": "NotImplementedError: there is no such kernel",
    }
    assert "without compiled: NotImplementedError" in record.describe(row)


@pytest.mark.parametrize("error", [ImportError("no module"), torch.OutOfMemoryError("no memory"), ValueError("no")])
def test_whatever_a_first_call_raises_is_a_reason(some, error):
    def call():
        raise error

    assert not some.enter("plain", lambda: call)
    assert not some.enter("ours", lambda: call)
    assert some.row.absent["plain"] == some.row.refused == f"{type(error).__name__}: {error}"


def test_variants_of_ours_have_tolerances_and_say_their_names(some):
    assert some.enter("bfloat16", off_by(0.05), TRUTH, backend="ours", tolerance=0.1)
    assert not some.enter("float32", off_by(0.05), TRUTH, backend="ours")
    assert some.ours == ["bfloat16"]
    assert some.row.refused.startswith("float32: wrong result: relative error 0.05")


def test_a_sample_and_a_part_of_a_result_can_be_judged(some):
    sampled, call = off_by(0.0)(), lambda: [TRUTH[0] * 7, "more"]
    assert some.enter("ours", lambda: call, TRUTH, of=lambda result: [result[0] / 7])
    assert some.enter("plain", lambda: call, TRUTH, sample=sampled)
    assert some.contestants == {"ours": call, "plain": call}  # what is timed is the call


def test_each_contestant_is_on_its_backend(pair):
    seen = {"cpu": [], "reference": [], "plain": []}

    def asking(name):
        def call():
            seen[name].append(explain("gated_product", torch.ones(1, 1, 1)).backend)
            return TRUTH

        return lambda: call

    for name in seen:
        assert pair.enter(name, asking(name), TRUTH)
    pair.race(3)
    pair.peaks()
    assert [set(backends) for backends in seen.values()] == [{"cpu"}, {"reference"}, {"cpu"}]
    assert len({len(backends) for backends in seen.values()}) == 1


def test_peaks_are_those_of_the_work(some):
    x, w = torch.randn(1, 64, 32), torch.randn(4, 32)
    assert some.enter("ours", lambda: lambda: [additive_pool(x, w)])
    assert some.enter("plain", lambda: lambda: [torch.empty(100, dtype=torch.uint8)])
    assert some.enter("copy", lambda: lambda: torch.empty(7))
    some.race(1)
    some.peaks()
    peaks = some.row.figures["peak bytes"]
    assert set(peaks) == {"ours", "plain"}
    assert peaks["plain"] == 100
    assert 32 * 4 <= peaks["ours"] < x.nbytes  # the result, and nothing of the tokens' size


def test_a_case_that_fails_is_refused(capsys):
    def run():
        raise torch.OutOfMemoryError("no memory is left")

    case = trial.Case("ops", {"op": "some"}, ("ours",), ("plain", "copy"), run)
    assert case.contestants == ("ours", "plain", "copy")
    row = case.row()
    assert row.refused == "OutOfMemoryError: no memory is left"
    assert (row.suite, row.case, row.times) == ("ops", {"op": "some"}, {})
    assert "Traceback" in capsys.readouterr().err


def test_a_plan_s_readings_go_before_a_suite_s(plan):
    some = trial.Trial(dataclasses.replace(plan, repeats=None), "ops", {}, 1e-5, 1e-3)
    some.enter("ours", off_by(0.0), TRUTH)
    assert len(some.race(4).readings["ours"]) == 4
