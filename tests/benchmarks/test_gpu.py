"""`make gpu` loses nothing of one stage when another fails."""

import os

import pytest

from benchmarks import gpu


def stage(limit=60, **commands):
    return gpu.Stage("some", {label: ["-c", code] for label, code in commands.items()}, limit)


def test_what_fails_takes_nothing_from_the_others(tmp_path):
    good, bad, none = gpu.run_stage(
        stage(good="print('12 passed')", bad="print('why'); exit(3)", none="print('nothing for a GPU'); exit(5)"),
        tmp_path,
        dict(os.environ),
    )
    assert (good.status, bad.status, none.status) == (0, 3, 5)
    assert [outcome.passed for outcome in (good, bad, none)] == [True, False, True]
    assert "passed" in str(good)
    assert str(good).endswith("12 passed")
    assert "failed (3)" in str(bad)
    log = (tmp_path / "gpu-some.log").read_text()
    assert "12 passed" in log
    assert "why" in log
    assert "nothing for a GPU" not in log


def test_what_runs_out_of_time_keeps_its_log(tmp_path):
    (late,) = gpu.run_stage(
        stage(limit=1, late="import time; print('begun', flush=True); time.sleep(60)"), tmp_path, dict(os.environ)
    )
    assert late.status is None
    assert not late.passed
    assert "out of time" in str(late)
    assert "begun" in (tmp_path / "gpu-some.log").read_text()


@pytest.mark.parametrize("dry", [True, False])
def test_stages(tmp_path, dry):
    build, tests, figures = gpu.stages(tmp_path, dry)
    assert build.limit + tests.limit + figures.limit < 600
    assert all((gpu.ROOT / label).exists() for label in tests.commands)
    assert ("cuda" in figures.commands["figures"]) != dry
