"""The suites by pytest-benchmark: what was raced is what it tells of, and what is wrong gets no time."""

import json
import os
import statistics
import subprocess
import sys

import pytest

from benchmarks import gpu, record

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
GATED, SCALING = "ops gated_product 2x8x16x4 float32 forward", "scaling LadaAttention 1x32x16 forward+backward"
# Off by a thousandth, at the very kernel.
WRONG = """
import dataclasses, sys
import pytest
from lada_kernels.backends.cpu import KERNELS
right = KERNELS["gated_product"]
KERNELS["gated_product"] = dataclasses.replace(right, forward=lambda *args: right.forward(*args) * 1.001)
sys.exit(pytest.main(sys.argv[1:]))
"""


def run(*arguments, program=("-m", "pytest")):
    command = [sys.executable, *program, "benchmarks/", "-p", "no:cacheprovider", "--tiny", "--device", "cpu", *arguments]
    # A run of tests leaves traces that would pass for a worker's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=gpu.ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_what_was_raced_is_played_back(plan, tmp_path):
    files = [tmp_path / "results.json", tmp_path / "benchmark.json"]
    options = ["--benchmark-only", "--repeats", "5", "--results", str(files[0]), "--benchmark-json", str(files[1])]
    status, out = run(*options, "-k", "ops and gated and float32 or scaling and 1x32x16")
    assert status == 0, out
    kept, told = record.load(files[0]), json.loads(files[1].read_text())
    rows = {f"{row.suite} {record.label(row.case)}": row for row in kept.rows}
    benchmarks = {(one["group"], one["params"]["contestant"]): one for one in told["benchmarks"]}
    assert set(benchmarks) == {(name, who) for name, row in rows.items() for who in row.times}
    assert len(rows) == 3 + 1  # each was run once
    for (name, who), one in benchmarks.items():
        timing, readings = rows[name].times[who], one["stats"]["data"]
        assert (timing.repeats, timing.median) == (5, one["stats"]["median"]) == (len(readings), statistics.median(readings))
        assert one["extra_info"]["p20"] == timing.p20 <= timing.p80 == one["extra_info"]["p80"]
        assert one["extra_info"]["tolerance"] == rows[name].tolerance
        assert one["extra_info"]["error"] == rows[name].errors.get(who)
        assert one["extra_info"].get("share") == rows[name].figures.get("share", {}).get(who)
    assert benchmarks[GATED, "ours"]["extra_info"]["over plain"] == rows[GATED].figures["over plain"]["ours"]
    assert "over plain" not in benchmarks[GATED, "plain"]["extra_info"]
    assert benchmarks[GATED, "ours"]["param"] == "ops-gated_product-2x8x16x4-float32-forward-ours"
    assert told["machine_info"]["lada_kernels"]["backends"]["cpu"] is None
    assert benchmarks[GATED, "ours"]["extra_info"]["share"] > 0
    assert kept.suites == []  # not all of their cases were asked for
    assert kept.command.startswith("pytest benchmarks/ ")
    table = out[out.index(f"benchmark '{GATED}'") :].split("\n\n")[0].splitlines()
    assert table[1].split() == ["Name", "(time", "in", "us)", "Min", "Median", "IQR", "Rounds"]
    assert {line.split()[0] for line in table[3:-1]} == {"ours", "plain", "copy"}
    late = {"sdpa fused", "sdpa math", "DotProductAttention", "L2Attention"}
    assert set(rows[SCALING].absent) == late
    assert all(f"{name}: {rows[SCALING].absent[name]}" in out for name in late)
    assert "4 skipped" in out  # those of ours, too: nothing was wrong with them


def test_a_wrong_kernel_is_refused_a_time_and_fails_the_run(plan, tmp_path):
    results = tmp_path / "results.json"
    status, out = run("--results", str(results), "-k", "float32 and forward and (gated or norm) and ops", program=("-c", WRONG))
    assert status == 1, out
    assert "4 passed" not in out
    assert "1 failed, 3 passed, 2 skipped" in out  # the norm's are timed; beside a refusal nobody is
    assert "refused a time: wrong result: relative error 0.001, at most 1e-05 is allowed" in out
    assert "not timed, as nothing of ours was: wrong result" in out
    assert f"benchmark '{GATED}'" not in out
    refused, right = record.load(results).rows
    assert refused.refused
    assert refused.times == {}
    assert right.refused is None
    assert set(right.times) == {"ours", "plain", "copy"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--backend", "cpuu"], "--backend: unknown backend 'cpuu', expected some of cpu,"),
        (["-p", "no:benchmark"], "benchmarks/ needs pytest-benchmark"),
        (["-n", "2"], "-n: workers would take each other's time, expected none"),
    ],
)
def test_a_run_that_makes_no_sense_ends_with_a_reason(arguments, why):
    if "-n" in arguments:
        pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    status, out = run(*arguments)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {why}" in out
    assert "Traceback" not in out


def test_plain_pytest_collects_no_benchmarks(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]
