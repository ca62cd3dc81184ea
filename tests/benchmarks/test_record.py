"""What a run leaves behind."""

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import harness, record, trial
from benchmarks.record import Row, Timing
from lada_kernels import backends
from lada_kernels.backends.base import Availability

MACHINE = {"devices": {"cpu": {"name": "AMD EPYC(TM) 9R14"}, "cuda": {"devices": [{"name": "NVIDIA H100 80GB HBM3"}]}}}


def case(name, run=None):
    about = {"op": name}
    row = Row("ops", about, 1e-5, errors={"ours": 1e-7}, times={"ours": Timing(2.0, 1.0, 3.0, 5)}, readings={"ours": [2.0] * 5})
    return trial.Case("ops", about, ("ours",), (), run or (lambda: row))


@pytest.fixture
def suite(monkeypatch):
    """Puts a suite of these cases, or what raises, in the place of all others."""

    def put(*found):
        def cases(plan):
            for one in found:
                if isinstance(one, BaseException):
                    raise one
                yield one

        monkeypatch.setattr(command, "SUITES", {"ops": cases})

    return put


def test_right_results_end_in_status_zero(plan, suite, tmp_path):
    suite(case("first"), case("second"))
    assert command.run(plan, ["ops"], tmp_path / "new" / "out.json") == 0
    kept = record.load(tmp_path / "new" / "out.json")
    assert kept.suites == ["ops"]
    assert [row.case for row in kept.rows] == [{"op": "first"}, {"op": "second"}]
    assert kept.rows[0].times == {"ours": Timing(2.0, 1.0, 3.0, 5)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]
    assert {"versions", "devices", "backends"} <= set(kept.machine)


def test_a_refusal_ends_in_status_one_and_takes_nothing_from_the_next(plan, suite, tmp_path):
    def fail():
        raise RuntimeError("no memory is left")

    suite(case("first"), case("second", fail), case("third"))
    assert command.run(plan, ["ops"], tmp_path / "out.json") == 1
    kept = record.load(tmp_path / "out.json")
    assert [row.refused for row in kept.rows] == [None, "RuntimeError: no memory is left", None]
    assert kept.suites == ["ops"]


def test_an_interrupted_suite_leaves_its_rows(plan, suite, tmp_path):
    suite(case("first"), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        command.run(plan, ["ops"], tmp_path / "out.json")
    kept = record.load(tmp_path / "out.json")
    assert [row.case for row in kept.rows] == [{"op": "first"}]
    assert kept.suites == []


def test_an_unknown_suite_is_named(plan, tmp_path):
    with pytest.raises(SystemExit, match="'opps'"):
        command.run(plan, ["ops", "opps"], tmp_path / "out.json")


def test_a_folder_gets_a_file_named_after_the_machine(plan, suite, tmp_path):
    suite(case("first"))
    command.run(plan, ["ops"], tmp_path)
    (path,) = tmp_path.iterdir()
    assert path == record.file_of(record.load(path), tmp_path)


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "cpu-amd-epyc-tm-9r14.json"), ("cuda", "cuda-nvidia-h100-80gb-hbm3.json")]
)
def test_a_file_is_named_after_its_machine(device, name, tmp_path):
    kept = record.Record("a test", "today", None, None, "as it is", device, MACHINE)
    assert record.file_of(kept) == record.RESULTS / name
    assert record.file_of(kept, tmp_path) == tmp_path / name


def test_a_record_survives_json_but_for_its_readings(tmp_path):
    kept = record.start_record("a test", "cpu", "as it is")
    kept.rows = [case("first").row(), Row("ops", {"op": "other"}, 1e-5, refused="why", absent={"plain": "how"})]
    record.save(kept, tmp_path / "out.json")
    assert record.load(tmp_path / "out.json") == kept
    assert "readings" not in json.loads((tmp_path / "out.json").read_text())["rows"][0]
    assert kept.rows[0].readings  # not taken from what was saved


def test_a_row_in_words():
    row = Row("ops", {"op": "some", "shape": [2, 8]}, 1e-5, absent={"compiled": "left out"})
    row.times = {"ours": harness.timing_of([2e-4]), "plain": harness.timing_of([6e-4])}
    row.figures = {"over plain": {"ours": 3.0}, "bytes": 1024}
    timed, absent = (" ".join(line.split()) for line in record.describe(row).splitlines())
    assert timed == "some 2x8 us: ours 200 [200, 200] plain 600 [600, 600] | over plain 3 bytes 1024"
    assert absent == "some 2x8 without compiled: left out"


def test_backends_are_chosen(capsys):
    missing = {name: found.reason for name, found in backends.available().items()}
    assert command.choose_backends("cpu", "reference") == {"ours": "reference"}
    assert command.choose_backends("cpu", "cpu,reference") == {"cpu": "cpu", "reference": "reference"}
    with pytest.raises(SystemExit, match="'cpuu'"):
        command.choose_backends("cpu", "cpuu")
    if missing["cpu"] is None:
        assert command.choose_backends("cpu", None) == {"ours": "cpu"}
    if missing["cuda"] and missing["triton"]:
        with pytest.raises(SystemExit, match="no backend for cuda"):
            command.choose_backends("cuda", None)
        assert missing["triton"] in capsys.readouterr().out


def test_a_backend_that_cannot_run_is_left_out_with_its_reason(monkeypatch, capsys):
    found = {"cuda": Availability(None), "triton": Availability("it has no interpreter")}
    monkeypatch.setattr(command, "available", lambda: found)
    assert command.choose_backends("cpu", "cuda,triton") == {"ours": "cuda"}
    assert capsys.readouterr().out == "backend 'triton' is left out: it has no interpreter\n"
    with pytest.raises(SystemExit, match="no backend for cpu"):
        command.choose_backends("cpu", "triton")
