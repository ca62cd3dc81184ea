"""Commands where a package of an extra is not installed: one line that names it, and what installs it.

The packages of ONNX are in test_export.py, torchmetrics and safetensors by the functions in test_training_metrics.py and
test_weights.py.
"""

import functools
import shlex
import sys
from pathlib import Path

import pytest
from training.running import run_command, save_run

from lada_kernels.training import checkpoint, metrics

TRAIN = "--overwrite --run.device cpu --run.steps 1 --run.grid-images 4 --optim.batch-size 4"
TRAIN += " --generator.dim 16 8 8 --generator.noise-dim 8 --generator.heads 2 2 2 --generator.mlp-dim 8 8 8"
TRAIN += " --discriminator.enc-dim 4 8 --discriminator.out-dim 8 8 --discriminator.heads 2 --discriminator.mlp-dim 8"
COMMANDS = {
    "train": f"train {TRAIN} --run.out new",
    "resume": "train --resume run",
    "sample": "sample run",
    "walk": "sample run --interpolate walk.gif --images 1 --keys 2 --frames 1",
    "attention": "sample run --attention maps.png --images 1",
    "evaluate": "evaluate run --samples 10",
    "export": "export run --out generator.safetensors",
    "convert": "convert last_ckpt.pt --out converted",
}


@pytest.fixture
def run(tiny, images, tmp_path, monkeypatch) -> Path:
    """A run in the folder ``run`` of the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "train_classifier", functools.partial(metrics.train_classifier, epochs=1))
    save_run(tiny, images)
    return Path(tiny.run.out)


def uninstall(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package, and all of it that is imported already, one that cannot be imported."""
    for name in (package, *(name for name in sys.modules if name.startswith(f"{package}."))):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "module", "commands"),
    [
        ("tyro", "tyro", "train resume sample evaluate export convert"),
        ("tqdm", "tqdm", "train walk evaluate"),
        ("pillow", "PIL", "train sample walk attention evaluate"),
        ("scikit-learn", "sklearn", "train evaluate"),
        ("torchmetrics", "torchmetrics", "evaluate"),
        ("safetensors", "safetensors", "export"),
    ],
)
def test_what_a_command_lacks_is_named_with_what_installs_it(run: Path, capsys, package, module, commands):
    for name in commands.split():
        command, *arguments = shlex.split(COMMANDS[name])
        with pytest.MonkeyPatch.context() as patch:
            uninstall(patch, module)
            code, _, _ = run_command(patch, capsys, command, *arguments)
        assert code == f"error: {package} is needed here: pip install 'lada_kernels[train]'", name


def test_without_tensorboard_training_goes_on(run: Path, monkeypatch, capsys):
    uninstall(monkeypatch, "tensorboard")
    command, *arguments = shlex.split(COMMANDS["train"])
    code, out, err = run_command(monkeypatch, capsys, command, *arguments)
    assert code == 0
    assert err.count("tensorboard is needed here: pip install 'lada_kernels[tensorboard]'") == 1
    assert "done: 1 steps" in out
    assert checkpoint.read_latest(Path("new"))["iter"] == 1
    assert not list(Path("new").glob("events.*"))


def test_wandb_asked_for_and_absent_is_named(run: Path, monkeypatch, capsys):
    uninstall(monkeypatch, "wandb")
    command, *arguments = shlex.split(COMMANDS["train"])
    code, _, _ = run_command(monkeypatch, capsys, command, *arguments, "--run.wandb", "gans")
    assert code == "error: wandb is needed here: pip install 'lada_kernels[wandb]'"


def test_extras_are_those_of_the_package():
    """What the messages name can be installed."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra, packages in {
        "train": ("pillow", "safetensors", "scikit-learn", "torchmetrics", "tqdm", "tyro"),
        "onnx": ("onnx", "onnxruntime", "onnxscript"),
        "tensorboard": ("tensorboard",),
        "wandb": ("wandb",),
    }.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{extra} = ")]
        assert all(f'"{package}' in line for package in packages), extra
