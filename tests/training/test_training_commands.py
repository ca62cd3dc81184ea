"""The commands as a person meets them: exit codes, one-line errors, files on disk."""

import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from lada_kernels.training import checkpoint

TINY = shlex.split(
    "--model.dim 16 8 8 --model.noise-dim 8 --model.heads 2 2 2 --model.mlp-dim 8 8 8 --model.enc-dim 4 8 "
    "--model.out-dim 8 8 --model.d-heads 2 --model.d-mlp-dim 8 --optim.batch-size 4 --optim.r1 0.01 --run.device cpu "
    "--run.grid-images 4 --run.save-every 2"
)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``python -m lada_kernels.NAME args`` in this process: (exit code or message, stdout, stderr)."""

    def run(name: str, *args: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        try:
            runpy.run_module(f"lada_kernels.{name}", run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trained(command, tmp_path):
    code, _, _ = command("train", *TINY, "--run.out", tmp_path / "run", "--run.steps", 4)
    assert code == 0
    return tmp_path / "run"


def test_sample_writes_a_reproducible_grid(command, trained, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, out, _ = command("sample", trained, "--out", tmp_path / f"{name}.png", "--seed", seed, "--images", 9)
        assert code == 0
        assert "9 samples of step 4" in out
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
    assert Image.open(tmp_path / "a.png").size == (3 * 34 + 2, 3 * 34 + 2)


def test_evaluate_prints_and_writes_the_same_figures(command, trained):
    code, out, _ = command("evaluate", trained / checkpoint.LAST, "--samples", 50)
    assert code == 0
    figures = json.loads((trained / "evaluation.json").read_text())
    assert figures["step"] == 4
    assert sum(figures["class_histogram"]) == figures["samples"] == 50
    assert figures["classifier_accuracy"] >= 0.97
    assert f"{figures['frechet_untrained']:.1f}" in out
    assert figures["frechet_ratio"] == pytest.approx(figures["frechet_untrained"] / figures["frechet_trained"])


def test_resume_goes_on_to_a_larger_budget(command, trained):
    code, out, _ = command("train", "--resume", trained, "--run.steps", 6)
    assert code == 0
    assert "at step 4" in out
    assert checkpoint.read_latest(trained)["iter"] == 6
    assert json.loads((trained / "config.json").read_text())["run"]["steps"] == 6


def test_resume_refuses_contradictions(command, trained):
    code, _, _ = command("train", "--resume", trained, "--optim.r1", 0.5)
    assert code == "error: optim.r1: 0.5 contradicts the checkpoint, which was trained with 0.01"
    code, _, _ = command("train", "--resume", trained, "--preset", "celeba64")
    assert code.startswith("error: model.img_size: 64 contradicts the checkpoint")
    assert checkpoint.read_latest(trained)["iter"] == 4


def test_an_existing_run_is_not_lost_by_accident(command, trained):
    again = ("train", *TINY, "--run.out", trained, "--run.steps", 1)
    code, _, _ = command(*again)
    assert "already holds a run" in code
    assert "--overwrite" in code
    assert checkpoint.read_latest(trained)["iter"] == 4
    code, _, _ = command(*again, "--overwrite")
    assert code == 0
    assert checkpoint.read_latest(trained)["iter"] == 1
    assert not (trained / checkpoint.PREVIOUS).exists()


def test_truncated_checkpoint_resumes_from_the_previous(command, trained):
    os.truncate(trained / checkpoint.LAST, 1000)
    code, out, err = command("train", "--resume", trained)
    assert code == 0
    assert "WARNING" in err
    assert "at step 2" in out
    assert checkpoint.read(trained / checkpoint.LAST)["iter"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--resume", "nowhere"), "error: no configuration at nowhere"),
        (("train", "--data.source", "nowhere"), "error: data.source: no such folder: nowhere"),
        (("train", "--preset", "cifar10"), "error: data.source: name a folder of images"),
        (("train", *TINY, "--model.heads", "3", "2", "2"), "error: model: "),
        (("train", "--optim.batch-size", "0"), "error: optim.batch_size: expected 1 or more, got 0"),
        (("sample", "nowhere"), "error: no checkpoint at nowhere"),
        (("sample", "text.pt"), "error: text.pt is not a readable checkpoint"),
        (("evaluate", "text.pt"), "error: text.pt is not a readable checkpoint"),
    ],
)
def test_mistakes_end_in_one_line(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    code, _, _ = command(*arguments)
    assert code.startswith(message)
    assert "\n" not in code


def test_missing_extras_name_the_command_that_installs_them(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    code, _, _ = command("sample", "x.pt")
    assert code == "error: tyro is needed here: pip install 'lada_kernels[train]'"


def test_ctrl_c_saves_then_exits_and_resume_goes_on(command, tmp_path):
    run = tmp_path / "run"
    options = [*TINY, "--run.out", str(run), "--run.steps", "100000", "--run.save-every", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lada_kernels.train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "grids").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    iteration = checkpoint.read_latest(run)["iter"]
    assert iteration >= 1
    assert f"stopped and saved at step {iteration}" in out
    assert "Traceback" not in err

    code, out, _ = command("train", "--resume", run, "--run.steps", iteration + 1)
    assert code == 0
    assert f"at step {iteration}" in out
    assert torch.isfinite(checkpoint.read_latest(run)["ema"]["ch_conv.weight"]).all()
