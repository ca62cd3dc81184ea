"""The commands as a person meets them: exit codes, one-line errors, files on disk."""

import dataclasses
import functools
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from training.running import run_command

from lada_kernels.backends import BackendError
from lada_kernels.training import checkpoint, metrics
from lada_kernels.training.errors import TrainingError, one_line_errors
from lada_kernels.training.families import LadaGANGenerator, StyleGAN2Discriminator, ViTGANGenerator
from lada_kernels.training.presets import PRESETS

SHORT = "--run.device cpu --run.grid-images 4 --run.save-every 2 --optim.batch-size 4"
LADAGAN = "--generator.dim 16 8 8 --generator.noise-dim 8 --generator.heads 2 2 2 --generator.mlp-dim 8 8 8"
LADAGAN_D = "--discriminator.enc-dim 4 8 --discriminator.out-dim 8 8 --discriminator.heads 2 --discriminator.mlp-dim 8"
TINY = shlex.split(f"{LADAGAN} {LADAGAN_D} {SHORT} --optim.r1 0.01")

VIT = "--{0}.family vitgan --{0}.dim 8 --{0}.blocks 1 --{0}.heads 2 --{0}.mlp-dim 12"
VITGAN = VIT.format("generator") + " --generator.noise-dim 6 --generator.spectral-norm --generator.residual official"
AUGMENTED = "--optim.augment translation scaling --optim.augment-p 0.8 --optim.bcr-real 10 --optim.bcr-fake 10 --optim.warmup 3"
OTHERS = {
    "vitgan-stylegan2": f"{VITGAN} --discriminator.family stylegan2 --discriminator.widths 4 4 4 4 {AUGMENTED} --data.mirror",
    "vitgan-vitgan": f"{VITGAN} --generator.output inr --generator.inr-dim 8 {VIT.format('discriminator')} {AUGMENTED}",
    "ladagan-vitgan": f"{LADAGAN} {VIT.format('discriminator')} --optim.loss hinge --optim.ema-half-life 20",
}


@pytest.fixture
def command(monkeypatch, capsys):
    """`run_command` in this test."""
    return functools.partial(run_command, monkeypatch, capsys)


@pytest.fixture
def parse():
    """How the training command reads its arguments."""
    yield importlib.import_module("lada_kernels.train").parse
    del sys.modules["lada_kernels.train"]  # what is imported already, runpy warns of


@pytest.fixture
def trained(command, tmp_path):
    code, _, _ = command("train", *TINY, "--run.out", tmp_path / "run", "--run.steps", 4)
    assert code == 0
    return tmp_path / "run"


@pytest.fixture(params=OTHERS)
def other(command, tmp_path, request):
    """A run of other families than the default's."""
    options = shlex.split(f"{OTHERS[request.param]} {SHORT} --run.steps 2")
    code, _, err = command("train", *options, "--run.out", tmp_path / "run")
    assert code == 0, err
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
    assert code == "error: img_size: 64 contradicts the checkpoint, which was trained with 32"
    code, _, _ = command("train", "--resume", trained, "--generator.family", "vitgan")
    assert code == "error: generator.family: 'vitgan' contradicts the checkpoint, which was trained with 'ladagan'"
    code, _, _ = command("train", "--resume", trained, "--discriminator.family=stylegan2")
    assert code == "error: discriminator.family: 'stylegan2' contradicts the checkpoint, which was trained with 'ladagan'"
    assert checkpoint.read_latest(trained)["iter"] == 4


def test_other_families_are_resumed_sampled_and_judged_without_being_named(command, other, tmp_path, monkeypatch):
    config = json.loads((other / "config.json").read_text())
    code, out, _ = command("train", "--resume", other, "--run.steps", 4)
    assert code == 0
    assert "at step 2" in out
    assert checkpoint.read_latest(other)["iter"] == 4
    assert {**json.loads((other / "config.json").read_text()), "run": None} == {**config, "run": None}
    code, _, _ = command("sample", other, "--out", tmp_path / "grid.png", "--images", 4)
    assert code == 0
    assert Image.open(tmp_path / "grid.png").size == (2 * 34 + 2, 2 * 34 + 2)
    monkeypatch.setattr(metrics, "train_classifier", functools.partial(metrics.train_classifier, epochs=1))
    code, _, _ = command("evaluate", other, "--samples", 20)
    assert code == 0
    assert json.loads((other / "evaluation.json").read_text())["step"] == 4


def test_a_family_on_the_command_line_brings_its_own_settings(parse):
    config, resume, overwrite = parse(["--generator.family=vitgan", "--generator.dim", "16", "--generator.output", "inr"])
    assert config.generator == ViTGANGenerator(dim=16, output="inr")
    assert config.discriminator == PRESETS["digits"].discriminator
    assert (resume, overwrite) == (None, False)
    config, _, _ = parse(["--discriminator.family", "stylegan2", "--discriminator.widths", "4", "8", "8", "8"])
    assert config.discriminator == StyleGAN2Discriminator(widths=(4, 8, 8, 8))
    assert config.generator == PRESETS["digits"].generator
    config, _, _ = parse(["--preset", "vitgan-cifar10", "--generator.family", "ladagan", "--discriminator.blocks", "2"])
    assert config.generator == LadaGANGenerator()
    assert config.discriminator == dataclasses.replace(PRESETS["vitgan-cifar10"].discriminator, blocks=2)
    # The preset's own family keeps the preset's values.
    config, _, _ = parse(["--preset", "vitgan-digits", "--generator.family", "vitgan", "--generator.blocks", "1"])
    assert config.generator == dataclasses.replace(PRESETS["vitgan-digits"].generator, blocks=1)


def test_settings_of_the_step_on_the_command_line(parse):
    options = (
        "--optim.loss hinge --optim.augment scaling color --optim.augment-p 0.5 --optim.no-augment-adversarial --data.mirror"
    )
    config, _, _ = parse(shlex.split(options))
    assert (config.optim.loss, config.optim.augment, config.optim.augment_p) == ("hinge", ("scaling", "color"), 0.5)
    assert not config.optim.augment_adversarial
    assert config.data.mirror


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--generator.family vitgan --generator.decoder-dim 16", "--generator.decoder-dim"),
        ("--generator.blocks 2", "--generator.blocks"),
        ("--discriminator.family stylegan2 --discriminator.enc-dim 4 8", "--discriminator.enc-dim"),
        ("--preset vitgan-digits --discriminator.out-dim 4 8", "--discriminator.out-dim"),
        ("--generator.family stylegan2", "--generator.family"),
        ("--discriminator.family gan", "--discriminator.family"),
        ("--model.dim 16 8 8", "--model.dim"),
        ("--optim.loss hinged", "--optim.loss"),
    ],
)
def test_what_a_family_does_not_have_is_refused(command, arguments, named):
    code, _, err = command("train", *shlex.split(arguments))
    assert code == 2
    assert named in err


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
        (("train", *TINY, "--generator.heads", "3", "2", "2"), "error: generator: heads: got 3, expected a divisor of dim"),
        (
            ("train", *TINY, "--img-size", "64"),
            "error: discriminator: enc_dim: 2 widths are for images of 32 pixels, not of 64",
        ),
        (
            ("train", "--discriminator.family", "vitgan", "--discriminator.heads", "5"),
            "error: discriminator: heads: got 5, expected a divisor of dim",
        ),
        (("train", "--optim.batch-size", "0"), "error: optim.batch_size: expected 1 or more, got 0"),
        (("train", "--optim.warmup", "-1"), "error: optim.warmup: expected 0 or more, got -1"),
        (("train", "--optim.bcr-real", "1"), "error: optim.bcr_real: expected 0 where nothing is augmented, got 1.0"),
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


@pytest.mark.parametrize("error", [TrainingError, BackendError, ImportError, OSError])
def test_foreseen_errors_are_one_line(error):
    with pytest.raises(SystemExit, match=r"^error: what is wrong$"), one_line_errors():
        raise error("what is wrong")


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a bug")
