"""Evaluations in the middle of training, and the best one's checkpoint."""

import dataclasses
from pathlib import Path

import pytest
from training.running import Pooled, run_command, save_net
from training.variants import assert_bit_equal, with_run

from lada_kernels.training import checkpoint, selection
from lada_kernels.training.config import DataConfig
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.evaluation import make_evaluator
from lada_kernels.training.loop import fit
from lada_kernels.training.sampling import averaged_generator
from lada_kernels.training.selection import Selection
from lada_kernels.training.trainer import Trainer


@pytest.fixture
def evaluating(tiny, tmp_path):
    """Steps 3, 6 and 7 of 7 are evaluated, which neither reports nor checkpoints coincide with."""
    net = save_net(Pooled(), tmp_path / "net.pt")
    return with_run(tiny, steps=7, log_every=2, save_every=5, evaluate_every=3, evaluate_samples=8, inception=net)


@pytest.fixture
def scores(monkeypatch):
    """Give evaluations these scores, in turn; notes after which steps they were."""

    class Scripted(Selection):
        steps, scripted = [], [5.0, 2.0, 3.0]

        def __init__(self, trainer, folder):
            super().__init__(trainer, folder)
            self.evaluator.figures = lambda features: {"frechet": self.scripted[len(self.steps) - 1], "precision": 0.5}

        def evaluate(self):
            self.steps.append(self.trainer.iteration)
            return super().evaluate()

    monkeypatch.setattr("lada_kernels.training.loop.Selection", Scripted)
    return Scripted


def test_evaluation_has_an_interval_of_its_own_and_the_best_is_kept(evaluating, images, scores, capsys):
    folder = Path(evaluating.run.out)
    assert fit(Trainer(evaluating, images), folder)
    assert scores.steps == [3, 6, 7]
    best = checkpoint.read(folder / checkpoint.BEST)
    assert best["iter"] == best["best"]["iter"] == 6
    assert best["best"]["frechet"] == 2.0
    assert checkpoint.read(folder / checkpoint.LAST)["best"] == best["best"]
    assert "step 6: frechet 2  precision 0.5" in capsys.readouterr().out


def test_figures_are_those_of_the_evaluator(evaluating, images):
    """Of the average, as the command would judge the checkpoint."""
    folder = Path(evaluating.run.out)
    fit(Trainer(evaluating, images), folder)
    for name in (checkpoint.BEST, checkpoint.LAST):
        state = checkpoint.read(folder / name)
        evaluator = make_evaluator(evaluating, images, folder, inception=evaluating.run.inception, samples=8, progress=False)
        figures = evaluator.evaluate(averaged_generator(state, "cpu"))
        if name == checkpoint.BEST:
            assert state["best"]["frechet"] == pytest.approx(figures["frechet"], rel=1e-5)
        else:
            assert figures["frechet"] >= state["best"]["frechet"] * (1 - 1e-5)


def test_training_goes_on_as_if_nothing_had_been_evaluated(evaluating, images):
    runs = []
    for config in (evaluating, with_run(evaluating, evaluate_every=0, out=evaluating.run.out + "-plain")):
        runs.append(Trainer(config, images))
        fit(runs[-1], Path(config.run.out))
    judged, plain = runs
    left, right = judged.state_dict(), plain.state_dict()
    assert left.pop("best")["iter"] in (3, 6, 7)
    assert right.pop("best") == {}
    for state in (left, right):
        state.pop("config")
    assert_bit_equal(left, right)
    assert not (Path(plain.config.run.out) / checkpoint.BEST).exists()


def test_a_resumed_run_remembers_the_best(evaluating, images, scores):
    folder = Path(evaluating.run.out)
    fit(Trainer(evaluating, images), folder)
    longer = with_run(evaluating, steps=9)
    trainer = Trainer(longer, images)
    trainer.load_state_dict(checkpoint.read_latest(folder))
    scores.scripted.append(2.5)
    fit(trainer, folder)
    assert scores.steps == [3, 6, 7, 9]
    assert checkpoint.read(folder / checkpoint.BEST)["iter"] == trainer.best["iter"] == 6


def test_other_judges_are_no_comparison(evaluating, images, scores):
    folder = Path(evaluating.run.out)
    trainer = Trainer(evaluating, images)
    trainer.best = {"iter": 2, "judge": "another net, 8 samples", "frechet": 0.1}
    fit(trainer, folder)
    assert trainer.best["iter"] == 6


def test_a_best_checkpoint_that_cannot_be_written_costs_a_warning(evaluating, images, scores, monkeypatch, capsys):
    def full(state, folder):
        raise OSError("cannot write: No space left on device")

    monkeypatch.setattr(selection.checkpoint, "write_best", full)
    assert fit(Trainer(evaluating, images), Path(evaluating.run.out))
    assert capsys.readouterr().err.count("WARNING: cannot write: No space left on device. Training goes on") == 2


def test_what_cannot_be_evaluated_is_said_before_training(evaluating, images):
    config = dataclasses.replace(with_run(evaluating, inception=""), data=DataConfig(source="photos"))
    trainer = Trainer(config, images)
    with pytest.raises(TrainingError, match=r"^inception: FID needs the TF-ported Inception"):
        fit(trainer, Path(config.run.out))
    assert trainer.iteration == 0


def test_the_command_evaluates(monkeypatch, capsys, tmp_path):
    net = save_net(Pooled(), tmp_path / "net.pt")
    small = [
        *("--generator.dim", 16, 8, 8, "--generator.noise-dim", 8, "--generator.mlp-dim", 8, 8, 8),
        *("--discriminator.enc-dim", 4, 8, "--discriminator.out-dim", 8, 8, "--discriminator.mlp-dim", 8),
        *("--optim.batch-size", 4, "--run.steps", 2, "--run.grid-images", 1, "--run.device", "cpu"),
        *("--run.evaluate-every", 1, "--run.evaluate-samples", 8, "--run.inception", net, "--run.out", tmp_path / "run"),
    ]
    code, out, err = run_command(monkeypatch, capsys, "train", *small)
    assert code == 0, err
    assert out.count("frechet ") == 2
    assert checkpoint.read(tmp_path / "run" / checkpoint.BEST)["best"]["iter"] in (1, 2)
