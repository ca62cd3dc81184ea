import sys
from types import SimpleNamespace

import pytest
import torch

from lada_kernels.training.errors import TrainingError
from lada_kernels.training.progress import METRICS, Progress


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """In the place of Weights & Biases: what it is called with."""

    class Error(Exception):
        pass

    module = SimpleNamespace(Error=Error, started=[], logged=[], finished=[])

    def init(**options):
        module.started.append(options)
        return SimpleNamespace(
            log=lambda values, step: module.logged.append((step, values)),
            finish=lambda exit_code: module.finished.append(exit_code),
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def metrics(value: float) -> torch.Tensor:
    return value + torch.arange(len(METRICS), dtype=torch.float32)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_means_since_the_last_report_go_to_tensorboard_and_wandb(tmp_path, wandb, capsys):
    with Progress(tmp_path / "cats", 10, 4, 8, wandb="gans", config={"seed": 3}) as progress:
        for value in (1.0, 2.0):
            progress.add(metrics(value))
        progress.report(waited=1e-9)
        progress.add(metrics(5.0))
        progress.report(waited=1e-9)
        progress.report()  # of nothing new
        progress.show_evaluation({"fid": 2.5})
    assert wandb.started == [{"project": "gans", "group": "cats", "dir": str(tmp_path / "cats"), "config": {"seed": 3}}]
    (first, early), (second, late), (third, own) = wandb.logged
    assert (first, second, third) == (6, 7, 7)
    assert own == {"evaluation/fid": 2.5}
    for values, mean in ((early, 1.5), (late, 5.0)):
        assert values.pop("images_per_s") > 0
        assert (0 < values.pop("waiting") < 1) if values is early else values.pop("waiting") == 0
        assert values == {name: mean + index for index, name in enumerate(METRICS)}
    assert wandb.finished == [0]
    kept = scalars(tmp_path / "cats")
    assert kept.keys() == {*METRICS, "images_per_s", "waiting", "evaluation/fid"}
    assert kept["g_loss"] == [(6, 2.5), (7, 6.0)]
    assert kept["evaluation/fid"] == [(7, 2.5)]
    assert "step 7: fid 2.5" in capsys.readouterr().out


def test_an_error_ends_the_run_in_wandb_as_failed(tmp_path, wandb, capsys):
    def train():
        with Progress(tmp_path, 10, 0, 8, wandb="gans") as progress:
            progress.add(metrics(float("nan")))
            progress.report()

    with pytest.raises(TrainingError, match="step 1: a loss is no longer finite"):
        train()
    assert [step for step, _ in wandb.logged] == [1]
    assert wandb.finished == [1]
    capsys.readouterr()


def test_without_a_project_nothing_goes_to_wandb(tmp_path, wandb, capsys):
    with Progress(tmp_path, 10, 0, 8) as progress:
        progress.add(metrics(1.0))
        progress.report()
    assert wandb.started == wandb.logged == []
    capsys.readouterr()


def test_what_wandb_refuses_is_one_line(tmp_path, wandb, monkeypatch):
    def refuse(**options):
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(TrainingError, match=r"^run\.wandb: No API key configured\. Use `wandb login` to log in\.$"):
        Progress(tmp_path, 10, 0, 8, wandb="gans")


def test_wandb_asked_for_and_absent_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"^wandb is needed here: pip install 'lada_kernels\[wandb\]'$"):
        Progress(tmp_path, 10, 0, 8, wandb="gans")


def test_without_tensorboard_there_is_a_notice_and_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with Progress(tmp_path, 10, 0, 8) as progress:
        progress.add(metrics(1.0))
        progress.report()
    notice = "no events for TensorBoard are written: tensorboard is needed here: pip install 'lada_kernels[tensorboard]'"
    assert notice in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
