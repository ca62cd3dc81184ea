"""Generators in safetensors files: what is loaded is what was saved, or an error."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from training.variants import GENERATORS

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config, to_dict
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.trainer import build_generator
from lada_kernels.training.weights import load_generator, read_generator, save_generator


@pytest.fixture
def saved(generator, tmp_path):
    """One of the small generators: configuration, model, and the file that it was saved to."""
    torch.manual_seed(0)
    config = Config(img_size=32, generator=generator)
    model = build_generator(config).requires_grad_(False).eval()
    for value in model.state_dict().values():
        value.copy_(value + 0.1 * torch.randn_like(value))
    path = tmp_path / "new" / "generator.safetensors"
    save_generator(model.to(memory_format=torch.channels_last).state_dict(), config, path)
    return config, model, path


def test_the_same_images_and_configuration(saved):
    config, model, path = saved
    loaded = load_generator(path, "cpu")
    assert type(loaded) is type(model)
    assert not loaded.training
    z = torch.randn(2, config.generator.noise_dim)
    assert torch.equal(loaded(z), model.to(memory_format=torch.contiguous_format)(z))
    assert read_generator(path)[0] == config
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_metadata_say_how_to_build_it(saved):
    config, model, path = saved
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == model.state_dict().keys()
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == json.loads(json.dumps({k: to_dict(config)[k] for k in ("img_size", "generator")}))


def test_runs_are_loaded_too(saved, tmp_path):
    config, model, _ = saved
    state = {key: {} for key in checkpoint.KEYS} | {"iter": 1, "ema": model.state_dict(), "config": to_dict(config)}
    checkpoint.write(state, tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / checkpoint.LAST):
        loaded = load_generator(path, "cpu").state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


CONFIG = {"img_size": 32, "generator": to_dict(Config())["generator"]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "holds no configuration of a generator"),
        ({"config": "{"}, r"configuration in .*broken\.safetensors: "),
        ({"config": "[]"}, "expected img_size, generator, got"),
        ({"config": json.dumps({**CONFIG, "seed": 1})}, "expected img_size, generator, got"),
        ({"config": json.dumps({**CONFIG, "generator": {"family": "biggan"}})}, r"generator\.family: expected one of ladagan"),
        ({"config": json.dumps({**CONFIG, "img_size": "32"})}, "img_size: expected a value of type int"),
        (
            {"config": json.dumps({**CONFIG, "generator": GENERATORS["ladagan"].__dict__})},
            r"as it is configured, does not fit: missing: pos_64, .*; unknown: weight",
        ),
    ],
)
def test_foreign_files_are_clear_errors(tmp_path, metadata, message):
    path = tmp_path / "broken.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata)
    with pytest.raises(TrainingError, match=message):
        load_generator(path)


def test_tensors_that_are_missing_unknown_or_misshapen_are_named(tmp_path):
    config = Config(img_size=32, generator=GENERATORS["ladagan"])
    state = build_generator(config).state_dict()
    state["strange"] = state.pop("conv_256.bias")
    state["ch_conv.bias"] = torch.ones(4)
    save_generator(state, config, tmp_path / "generator.safetensors")
    with pytest.raises(
        TrainingError, match=r"missing: conv_256\.bias; unknown: strange; misshapen: ch_conv\.bias \[4\] for \[3\]"
    ):
        load_generator(tmp_path / "generator.safetensors")


def test_without_safetensors_the_install_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch")
    for call in (lambda: load_generator("a.safetensors"), lambda: save_generator({}, Config(), tmp_path / "a.safetensors")):
        with pytest.raises(ImportError, match=r"safetensors is needed here: pip install 'lada_kernels\[train\]'"):
            call()


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(TrainingError, match=r"no weights at .*nowhere\.safetensors"):
        load_generator(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(TrainingError, match=r"text\.safetensors is not a readable safetensors file"):
        load_generator(tmp_path / "text.safetensors")
