"""`pytest benchmarks/ --benchmark-only`: the suites by pytest-benchmark, for its tables, its JSON and its comparisons."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import THREADS, add_options, default_device, make_plan
from benchmarks.cases import Plan
from benchmarks.harness import keep_freed_memory
from benchmarks.record import Row, label, save, start_record
from benchmarks.suites import ORDER, SUITES
from benchmarks.trial import Case
from lada_kernels import info

COLUMNS = ["min", "median", "iqr", "rounds"]


class Cases:
    """All cases of a plan; each is run once, when the first of its contestants asks for its row."""

    def __init__(self, plan: Plan, suites: tuple[str, ...], command: str, allocator: str, out: Path | None) -> None:
        self.cases: dict[str, Case] = {f"{case.suite} {label(case.about)}": case for s in suites for case in SUITES[s](plan)}
        self.rows: dict[str, Row] = {}
        self.record, self.out = start_record(command, plan.device, allocator), out

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, contestant) for name, case in self.cases.items() for contestant in case.contestants)

    def row(self, name: str) -> Row:
        if name not in self.rows:
            self.rows[name] = self.cases[name].row()
            self.keep(self.rows[name])
        return self.rows[name]

    def keep(self, row: Row) -> None:
        self.record.rows.append(row)
        if all(name in self.rows for name, case in self.cases.items() if case.suite == row.suite):
            self.record.suites.append(row.suite)
        if self.out:
            save(self.record, self.out)


CASES = pytest.StashKey[Cases]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lada_kernels")
    add_options(group.addoption)
    group.addoption("--results", type=Path, help="the JSON file to write, as `python -m benchmarks` does")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("benchmarks/ needs pytest-benchmark; without it there is python -m benchmarks")
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        raise pytest.UsageError("-n: workers would take each other's time, expected none where there are benchmarks")
    device, tiny = config.getoption("device") or default_device(), config.getoption("tiny")
    try:
        plan = make_plan(device, tiny, config.getoption("backend"), config.getoption("repeats"))
    except SystemExit as error:
        raise pytest.UsageError(str(error)) from None
    torch.set_num_threads(THREADS)
    command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    suites = ORDER["cuda" if tiny else device]
    config.stash[CASES] = Cases(plan, suites, command, keep_freed_memory(), config.getoption("results"))
    show_medians(config)


def show_medians(config: pytest.Config) -> None:
    """What the tables show, unless something else was asked for."""
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = COLUMNS
    if not any(str(argument).startswith("--benchmark-sort") for argument in config.invocation_params.args):
        config.option.benchmark_sort = "median"


@pytest.fixture(scope="session")
def cases(pytestconfig: pytest.Config) -> Cases:
    return pytestconfig.stash[CASES]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "contestant"} <= set(metafunc.fixturenames):
        pairs = list(metafunc.config.stash[CASES])
        # Such as ops-additive_attention-64x64x1024x4-float32-forward-ours.
        ids = ["-".join(re.findall(r"[^\s,]+", f"{case} {contestant}")) for case, contestant in pairs]
        metafunc.parametrize(("case", "contestant"), pairs, ids=ids)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    # What differs from run to run would have every comparison warn of another machine.
    machine_info["lada_kernels"] = {name: fact for name, fact in info.collect().items() if name != "triton_first_starts"}


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_benchmark_group_stats(config: pytest.Config, benchmarks: list[dict], group_by: str):
    """In a table that is headed by a case its contestants need no longer names."""
    groups = yield
    if group_by == "group":
        for _, group in groups:
            for benchmark in group:
                benchmark["name"] = benchmark["params"]["contestant"]
    return groups
