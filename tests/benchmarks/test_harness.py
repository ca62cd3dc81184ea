"""What the timing and the counting of bytes rest on."""

import math
import types
from contextlib import contextmanager

import pytest
import torch

from benchmarks import harness


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


@pytest.mark.parametrize("size", [8, 64, 1024 * 12])
def test_the_copy_moves_exactly_so_many_bytes(size):
    target = harness.copying(size)()
    assert 2 * target.nbytes == size  # as much is read as written
    assert target.eq(1).all()


def test_the_copy_refuses_what_it_cannot_halve():
    with pytest.raises(ValueError, match="12 bytes"):
        harness.copying(12)


def test_contestants_run_in_turn():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = harness.race(contestants, repeats=3, warmup=1)
    assert "".join(calls) == "ab" + "ababab"
    assert {name: len(readings) for name, readings in seconds.items()} == {"a": 3, "b": 3}
    assert all(reading >= 0 for readings in seconds.values() for reading in readings)


def test_a_reading_takes_several_calls_and_what_is_around_them_is_done_once():
    log = []

    @contextmanager
    def around(name):
        log.append(f"<{name}")
        yield
        log.append(">")

    harness.race({name: lambda: log.append(".") for name in "ab"}, repeats=2, warmup=2, calls=3, around=around)
    assert "".join(log) == "<a..><b..>" + 2 * "<a...><b...>"


@pytest.mark.parametrize(
    ("budget", "repeats", "readings"), [(math.inf, 9, 9), (5, 9, 6), (0, 9, harness.FEWEST), (0, 2, 2), (-1, 9, harness.FEWEST)]
)
def test_no_turn_begins_when_the_budget_is_spent_but_for_the_fewest(monkeypatch, budget, repeats, readings):
    now = [0.0]
    # The clock that the budget is held to; a turn of the contestant takes a second of it.
    monkeypatch.setattr(harness, "time", types.SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: 0.0))

    def second():
        now[0] += 1

    seconds = harness.race({"only": second}, repeats, warmup=0, budget=budget)
    assert len(seconds["only"]) == readings


def test_a_mean_of_calls_is_timed_by_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(harness, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def call():
        now[0] += 0.25

    assert harness.seconds_of(call, 4, "cpu") == 0.25


def test_a_timing_is_the_median_with_its_spread():
    timing = harness.timing_of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (timing.median, timing.p20, timing.p80, timing.repeats) == (3.5, 2.0, 5.0, 6)


def test_saved_bytes_are_those_of_activations():
    x, linear = torch.randn(2, 3, 4, requires_grad=True), torch.nn.Linear(4, 4)
    assert harness.saved_bytes(lambda: linear(x), list(linear.parameters())) == x.nbytes  # the weight is a parameter
    assert harness.saved_bytes(lambda: linear(x)) == x.nbytes + linear.weight.nbytes
    assert harness.saved_bytes(lambda: x.mul(2)) == 0


def test_peak_bytes_are_what_is_held_at_once():
    def call():
        first = torch.empty(1024, dtype=torch.uint8)
        second = torch.empty(2048, dtype=torch.uint8)
        del first
        third = torch.empty(512, dtype=torch.uint8)
        del second
        return third

    assert harness.peak_bytes(call, "cpu") == 1024 + 2048
    assert harness.peak_bytes(lambda: torch.empty(4096, dtype=torch.uint8), "cpu") == 4096  # a result that nobody takes
    kept = torch.empty(4096)
    assert harness.peak_bytes(lambda: kept.neg_(), "cpu") == 0  # what was there before is not the call's
