"""`make gpu` loses nothing of one stage when another fails."""

import dataclasses
import importlib.machinery
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest

from benchmarks import gpu, record
from benchmarks.suites import SUITES


def stage(limit=60, **commands):
    return gpu.Stage("some", {label: [sys.executable, "-c", code] for label, code in commands.items()}, limit)


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
    assert "nothing for a GPU" in log


def test_what_runs_out_of_time_keeps_its_log(tmp_path):
    (late,) = gpu.run_stage(
        stage(limit=1, late="import time; print('begun', flush=True); time.sleep(60)"), tmp_path, dict(os.environ)
    )
    assert late.status is None
    assert not late.passed
    assert "out of time" in str(late)
    assert "begun" in (tmp_path / "gpu-some.log").read_text()


def test_what_runs_out_of_time_takes_along_what_it_has_started(tmp_path):
    code = "import os, subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); os.wait()"
    (late,) = gpu.run_stage(stage(limit=1, late=code), tmp_path, dict(os.environ))
    assert late.status is None
    state = Path(f"/proc/{int(late.log)}/stat")
    end = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z":  # ended, though perhaps nobody has asked after it
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.01)


@pytest.mark.parametrize("dry", [True, False])
def test_stages(tmp_path, dry, monkeypatch):
    monkeypatch.setattr(gpu, "architecture", lambda dry: "90")
    build, smoke, tests, figures, sanitizer = gpu.stages(tmp_path, dry)
    assert [stage.name for stage in (build, smoke, tests, figures, sanitizer)] == list(gpu.STAGES)
    # 10 s for Python's start, the device's architecture and the headlines.
    assert dry or build.limit + smoke.limit + tests.limit <= 260 - 10
    assert dry or figures.limit + sanitizer.limit <= 330 - 10
    assert build.environment == {"LADA_CUDA_ARCHS": os.environ.get("LADA_CUDA_ARCHS", "90")}
    assert all(
        (gpu.ROOT / file).exists() for command in tests.commands.values() for file in command if file.startswith("tests")
    )
    assert all(("--tiny" in command) == dry for command in figures.commands.values())
    assert all("benchmarks" in command for command in figures.commands.values())
    ran = ",".join(command[command.index("--only") + 1] if dry else ",".join(SUITES) for command in figures.commands.values())
    assert set(ran.split(",")) == set(SUITES)
    assert all("benchmarks.sanitized" in command for command in sanitizer.commands.values() if "-m" in command or dry)


def test_every_test_for_a_gpu_is_run_by_one_command(tmp_path):
    (tests,) = gpu.stages(tmp_path, False, ["tests"])
    commands = list(tests.commands.values())
    files = {f"tests/{folder}/{file.name}" for folder in gpu.TESTED for file in (gpu.ROOT / "tests" / folder).glob("test_*.py")}
    others = [command for command in commands if "not triton" in command]
    assert {command[-1] for command in others} == files
    assert len(others) == len(files)
    shares = [command for command in commands if "triton and not float64" in command]
    assert [command[command.index("--share") + 1] for command in shares] == [f"{i + 1}/16" for i in range(16)]
    assert len(others) + len(shares) == len(commands)


def test_shares_are_all_of_the_tests_once():
    shares = []
    for i in range(1, 4):
        items = list(range(10))
        conftest.pytest_collection_modifyitems(SimpleNamespace(getoption={"share": f"{i}/3"}.get), items)
        shares.append(items)
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The compiled module in the place of the checkout's."""
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    module = tmp_path / "lada_kernels" / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    module.parent.mkdir()
    module.touch()
    return module


def test_the_stages_that_are_asked_for(built, tmp_path):
    assert [stage.name for stage in gpu.stages(tmp_path, False, gpu.choose("sanitizer,figures"))] == ["figures", "sanitizer"]
    assert [stage.name for stage in gpu.stages(tmp_path, False, gpu.choose("tests"))] == ["smoke", "tests"]
    assert gpu.choose(",".join(gpu.STAGES))[:5] == ["build", "smoke", "tests", "figures", "sanitizer"]
    with pytest.raises(SystemExit, match="unknown 'tets', '', expected some of build,smoke,tests,figures,sanitizer"):
        gpu.choose("build,tets,")


def test_without_a_build_one_is_asked_for(built):
    built.rename(built.with_name("_native.cpython-27-vax.so"))
    with pytest.raises(SystemExit, match=f"{re.escape(str(built))} is not built yet: ask for build,smoke,figures"):
        gpu.choose("smoke,figures")
    assert gpu.choose("build,figures") == ["build", "figures"]


def test_what_has_no_time_left_is_not_begun(tmp_path):
    outcomes = gpu.run_stage(stage(limit=-1, late="print('begun')"), tmp_path, dict(os.environ))
    assert [(outcome.state, outcome.log) for outcome in outcomes] == [("out of time", "")]


def test_the_table_comes_first(tmp_path, monkeypatch, capsys):
    some = dataclasses.replace(
        stage(good="print('fine')", bad="print('wrong'); exit(1)"), digest=lambda outcomes: f"a table of {len(outcomes)}"
    )
    monkeypatch.setattr(gpu, "stages", lambda out, dry, names: [some])
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--stages", "build"])
    assert gpu.main() == 1
    head, at_once, bad, _, again, *_ = capsys.readouterr().out.splitlines()
    assert head == "some, at most 60 s"
    assert at_once == again == "a table of 2"
    assert bad.split()[:3] == ["bad", "failed", "(1)"]
    log = (tmp_path / "gpu-some.log").read_text()
    assert log.startswith("a table of 2\n")
    assert "wrong" in log


def test_the_end_says_what_became_of_every_stage(tmp_path):
    commands = {"good": "print('fine')", "bad": "exit(3)", "none": "exit(5)", "missing": "exit(77)"}
    stages = [gpu.Stage(name, {name: [sys.executable, "-c", code]}, 60) for name, code in commands.items()]
    stages.append(gpu.Stage("mixed", {name: [sys.executable, "-c", commands[name]] for name in ("good", "bad")}, 60))
    results = [(one, gpu.run_stage(one, tmp_path, dict(os.environ)), 1.5) for one in stages]
    lines = [line.rsplit(maxsplit=2) for line in gpu.summary(results).splitlines()]
    assert [(*line[0].split(maxsplit=1), line[1]) for line in lines[:-1]] == [
        ("good", "passed", "1.5"),
        ("bad", "failed (3)", "1.5"),
        ("none", "passed", "1.5"),
        ("missing", "not run", "1.5"),
        ("mixed", "failed (3)", "1.5"),
    ]
    assert lines[-1] == ["total", "7.5", "s"]


def test_the_end_quotes_what_was_found_in_this_run(tmp_path):
    kept = record.start_record("a test", "cpu", "as it is")
    times = {name: record.Timing(median, median, median, 1) for name, median in (("cuda", 1.0), ("plain", 3.0), ("copy", 0.5))}
    case = {"op": "some", "shape": [1, 2, 3, 4], "dtype": "float32", "order": "forward"}
    figures = {"share": {"cuda": 0.5, "plain": 0.17, "copy": 1.0}, "over plain": {"cuda": 3.0}}
    kept.rows = [
        record.Row("ops", case, 1e-5, times=times, figures=figures),
        record.Row("ops", case | {"order": "backward"}, 1e-5, refused="it is wrong"),
    ]
    record.save(kept, tmp_path / "old.json")
    since = time.time() + 60
    assert gpu.headlines(tmp_path, since) == ""
    record.save(kept, tmp_path / "new.json")
    os.utime(tmp_path / "new.json", (since, since))
    machine, ops, refused = gpu.headlines(tmp_path, since).splitlines()
    assert machine.endswith(":")
    assert " ".join(ops.split()) == "ops some 1x2x3x4 float32 forward share: cuda 0.5; over plain: cuda 3"
    assert refused == "REFUSED: ops some 1x2x3x4 float32 backward: it is wrong"


def test_a_rehearsal_writes_nothing_among_the_results(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(gpu, "stages", lambda out, dry, names: seen.append((out, dry)) or [stage(good="print('fine')")])
    for arguments in ([], ["--dry"]):
        monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *arguments])
        assert gpu.main() == 0
    assert seen == [(tmp_path, False), (tmp_path / "dry", True)]
    assert (tmp_path / "dry" / "gpu-some.log").exists()


def test_an_architecture_that_torch_does_not_know_is_left_to_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "architecture", lambda dry: None)
    monkeypatch.delenv("LADA_CUDA_ARCHS", raising=False)
    assert gpu.stages(tmp_path, False, ["build"])[0].environment == {}


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """An empty folder in the place of every toolkit."""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return tmp_path


def test_a_sanitizer_that_is_not_there_is_said_not_to_have_run(toolkit, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: None)
    (outcome,) = gpu.run_stage(gpu.Stage("some", gpu.sanitizers(), 60), toolkit, dict(os.environ))
    assert outcome.passed
    assert "not run" in str(outcome)
    assert "compute-sanitizer is neither" in str(outcome)
    assert "compute-sanitizer is neither" in (toolkit / "gpu-some.log").read_text()


@pytest.mark.parametrize("folder", ["bin", "compute-sanitizer"])
def test_every_tool_of_the_sanitizer_runs_and_one_that_finds_something_fails(toolkit, folder):
    tool = toolkit / folder / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "========= ERROR SUMMARY: $2"\n[ $2 != racecheck ] || exit $4\n')
    tool.chmod(0o755)
    outcomes = gpu.run_stage(gpu.Stage("some", gpu.sanitizers(), 60), toolkit, dict(os.environ))
    assert [outcome.label for outcome in outcomes] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert [outcome.status for outcome in outcomes] == [0, 9, 0, 0]
    assert str(outcomes[0]).endswith("ERROR SUMMARY: memcheck")


def test_a_stage_has_an_environment_of_its_own(tmp_path):
    code = "import os; print(os.environ['MINE'], os.environ['THEIRS'])"
    some = gpu.Stage("some", {"some": [sys.executable, "-c", code]}, 60, {"MINE": "here"})
    (outcome,) = gpu.run_stage(some, tmp_path, dict(os.environ) | {"MINE": "there", "THEIRS": "too"})
    assert outcome.log == "here too\n"
