"""``python -m lada_kernels.evaluate`` as a person meets it, and docs/evaluating.md."""

import dataclasses
import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from training.running import WIDTH, Plain, Pooled, run_command, save_net, save_run

from lada_kernels.training import evaluation, features, metrics
from lada_kernels.training.config import DataConfig
from lada_kernels.training.data import load_folder
from lada_kernels.training.evaluation import Evaluator
from lada_kernels.training.features import INCEPTION_URL, TorchScriptFeatures
from lada_kernels.training.grid import save_singles
from lada_kernels.training.sampling import load_generator

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluating.md").read_text()


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_command, monkeypatch, capsys)


@pytest.fixture
def hasty(monkeypatch):
    """A classifier that has seen little."""
    monkeypatch.setattr(metrics, "train_classifier", functools.partial(metrics.train_classifier, epochs=1))


@pytest.fixture
def photos(tmp_path, images):
    """A folder of images, and a run's configuration on it."""
    save_singles(images.float() / 127.5 - 1, tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def run(tiny, photos, images):
    save_run(dataclasses.replace(tiny, data=DataConfig(source=str(photos))), images)
    return Path(tiny.run.out)


def test_fid_and_the_others_of_the_averaged_generator(command, run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "INCEPTION_FEATURES", WIDTH)
    path = save_net(Pooled(), tmp_path / "inception.pt")
    code, out, err = command("evaluate", run, "--inception", path, "--samples", 40, "--seed", 6, "--device", "cpu")
    assert code == 0, err
    figures = json.loads((run / "evaluation.json").read_text())
    net = TorchScriptFeatures(path, 32)
    expected = Evaluator(net, images, tmp_path, samples=40, seed=6, progress=False).evaluate(load_generator(run, "cpu"))
    about = {"step": 0, "data": str(tmp_path / "photos"), "samples": 40, "real_images": 10, "seed": 6}
    about |= {"net": "inception.pt", "net_sha256": net.identity, "net_features": WIDTH}
    assert figures == about | expected
    assert "step 0: 40 samples against 10 real images" in out
    assert f"FID       {figures['fid']:.2f}" in out
    assert f"KID       {figures['kid']:.5f} ± {figures['kid_std']:.5f}" in out
    assert f"precision {figures['precision']:.3f}" in out
    assert len(list((run / "real_statistics").iterdir())) == 1
    assert sorted(entry.name for entry in run.iterdir()) == [
        "config.json",
        "evaluation.json",
        "last_ckpt.pt",
        "real_statistics",
    ]


def test_another_net_s_distance_is_not_called_fid(command, run, tmp_path):
    path = save_net(Plain(), tmp_path / "net.pt")
    code, out, _ = command("evaluate", run, "--inception", Path(path).as_uri(), "--samples", 20)
    assert code == 0
    figures = json.loads((run / "evaluation.json").read_text())
    assert not any("fid" in name or "kid" in name for name in figures)
    assert f"Fréchet distance {figures['frechet']:.4g}, not FID: " in out
    assert "12 features" in out


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def test_other_real_images(command, run, images, tmp_path):
    save_singles(images[:6].float() / 127.5 - 1, tmp_path / "others" / "deep")
    path = save_net(Plain(), tmp_path / "net.pt")
    code, _, _ = command("evaluate", run, "--inception", path, "--samples", 20, "--data", tmp_path / "others")
    assert code == 0
    figures = json.loads((run / "evaluation.json").read_text())
    assert figures["real_images"] == 6
    others = load_folder(tmp_path / "others", 32, 1.0, tmp_path / "spill")
    evaluator = Evaluator(TorchScriptFeatures(path, 32), others, tmp_path, samples=20, progress=False)
    assert figures["frechet"] == evaluator.evaluate(load_generator(run, "cpu"))["frechet"]


def test_pixels_beyond_memory_leave_nothing_behind_and_touch_no_training(command, tiny, photos, images, tmp_path):
    config = dataclasses.replace(tiny, data=DataConfig(source=str(photos), memory_gib=0.0))
    save_run(config, images)
    run = Path(config.run.out)
    (run / "images.uint8").write_bytes(b"a running training's")
    code, _, err = command("evaluate", run, "--inception", save_net(Plain(), tmp_path / "net.pt"), "--samples", 20)
    assert code == 0, err
    assert json.loads((run / "evaluation.json").read_text())["real_images"] == 10
    assert (run / "images.uint8").read_bytes() == b"a running training's"
    assert not list(run.glob("evaluate-*"))


def test_without_the_inception_nothing_is_faked(command, run):
    code, _, _ = command("evaluate", run)
    assert code.startswith("error: inception: FID needs the TF-ported Inception as a TorchScript file")
    assert INCEPTION_URL in code
    assert "\n" not in code
    code, _, _ = command("evaluate", run, "--inception", "inception-2015-12-05.pt")
    assert code == f"error: inception: no such file: inception-2015-12-05.pt; one is published at {INCEPTION_URL}"
    code, _, _ = command("evaluate", run, "--data", run / "nowhere", "--inception", "x.pt", "--inception-sha256", "00")
    assert code.startswith("error: inception: no such file: x.pt")
    assert not (run / "evaluation.json").exists()
    assert not (run / "real_statistics").exists()


def test_figures_are_of_ten_thousand_samples_unless_told_otherwise(command, run, tiny, images, tmp_path, monkeypatch, hasty):
    drawn = []

    def draw(evaluator, generator):
        drawn.append(evaluator.samples)
        return torch.randn(evaluator.samples, evaluator.net.width, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(Evaluator, "features", draw)
    code, out, err = command("evaluate", run, "--inception", save_net(Plain(), tmp_path / "net.pt"))
    assert code == 0, err
    assert "10,000 samples" in out
    save_run(dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, out=str(tmp_path / "digits"))), images)
    assert command("evaluate", tmp_path / "digits")[0] == 0
    assert drawn == [10_000, 2000, 2000]
    assert evaluation.SAMPLES == 10_000


def test_figures_of_the_digits_have_the_recorded_names_and_none_is_fid(command, tiny, images, hasty):
    save_run(tiny, images)
    code, out, _ = command("evaluate", tiny.run.out, "--samples", 30, "--batch-size", 7)
    assert code == 0
    figures = json.loads((Path(tiny.run.out) / "evaluation.json").read_text())
    assert figures.keys() == json.loads((DOCS / "digits.json").read_text()).keys()
    assert not any("fid" in name.lower() for name in figures)
    assert "(not FID)" in out
    assert sum(figures["class_histogram"]) == 30
    assert figures["frechet_untrained"] != figures["frechet_trained"]


def test_too_few_samples(command, tiny, images, hasty):
    save_run(tiny, images)
    assert command("evaluate", tiny.run.out, "--samples", 3)[0] == "error: samples: expected 4 or more, got 3"


def test_what_the_page_says_can_be_typed(command, tiny, images, tmp_path, hasty):
    for name in ("runs/digits", "runs/celeba64"):
        save_run(dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, out=name)), images)
    save_net(Plain(), tmp_path / "inception-2015-12-05.pt")
    lines = re.findall(r"^python -m lada_kernels\.(\w+) (.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in lines} == {"evaluate", "sample"}
    for name, rest in lines:
        words = shlex.split(rest, comments=True)
        few = ["--samples", "20"] if name == "evaluate" else ["--frames", "1"] if "--interpolate" in words else []
        code, _, err = command(name, *words, *few)
        assert code == 0, err
    for path in ("grid.png", "other.png", "images/00003.png", "images/00014.png", "walk.gif", "attention.png"):
        Image.open(tmp_path / path).verify()

    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("```python") == 2
    names = {}
    for block in blocks:
        exec(compile(block.replace("samples=2000", "samples=20"), "evaluating.md", "exec"), names)
    assert names["figures"].keys() == {"frechet", "precision", "recall"}
    assert names["evaluator"].score == "frechet"
    assert (tmp_path / "seven.png").exists()


def test_the_page_names_what_there_is():
    assert INCEPTION_URL in PAGE
    assert "2,048" in PAGE
    assert features.INCEPTION_FEATURES == 2048
    assert "10,000 samples (`--samples`)" in PAGE
    assert f"at most {evaluation.KEPT:,} real images" in PAGE
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", PAGE):
        assert (DOCS / link).exists(), link
