import dataclasses
import json

import pytest
import torch

from lada_kernels.training.config import (
    PRESETS,
    check_same_run,
    from_dict,
    load_config,
    save_config,
    to_dict,
)
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.loop import build_discriminator, build_generator


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_matching_models(name):
    model = PRESETS[name].model
    with torch.device("meta"):
        generator, discriminator = build_generator(model), build_discriminator(model)
        images = generator(torch.empty(2, model.noise_dim))
    assert images.shape == (2, 3, model.img_size, model.img_size)
    assert discriminator.img_size == model.img_size


def test_ffhq_preset_has_the_published_size():
    with torch.device("meta"):
        model = build_generator(PRESETS["ffhq128"].model)
    statistics = [b for b in model.buffers() if b.is_floating_point()]
    assert sum(t.numel() for t in (*model.parameters(), *statistics)) == 24_026_255


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name, tmp_path):
    save_config(PRESETS[name], tmp_path / "new" / "config.json")
    assert load_config(tmp_path / "new" / "config.json") == PRESETS[name]


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("optim", "lr", 1.0, r"optim\.lr: unknown field, expected .*g_lr"),
        ("optim", "g_lr", "fast", r"optim\.g_lr: expected a value of type float, got 'fast'"),
        ("optim", "batch_size", 1.5, r"optim\.batch_size: expected a value of type int, got 1\.5"),
        ("optim", "batch_size", 0, r"optim\.batch_size: expected 1 or more, got 0"),
        ("optim", "ema_decay", 1.0, r"optim\.ema_decay: expected a value in \[0, 1\), got 1\.0"),
        (
            "optim",
            "augment",
            ["color", "mixup"],
            r"optim\.augment\[1\]: expected one of 'color'.*got 'mixup'",
        ),
        ("model", "dim", [64, 16], r"model\.dim: expected 3 values, got \[64, 16\]"),
        ("run", "channels_last", 1, r"run\.channels_last: expected a value of type bool, got 1"),
    ],
)
def test_strict_loading_names_the_field(group, field, value, message, tmp_path):
    values = to_dict(PRESETS["digits"])
    values[group][field] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(TrainingError, match=rf"config\.json: {message}"):
        load_config(path)


def test_missing_fields_and_broken_files_are_named(tmp_path):
    values = to_dict(PRESETS["digits"])
    del values["optim"]["r1"]
    with pytest.raises(TrainingError, match=r"optim\.r1: missing field"):
        from_dict(values)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(TrainingError, match=r"config\.json: Expecting"):
        load_config(tmp_path / "config.json")
    with pytest.raises(TrainingError, match=r"no configuration at .*nowhere"):
        load_config(tmp_path / "nowhere")


def test_contradictions_are_named_and_run_may_change(tiny):
    longer = dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, steps=99, out="elsewhere"))
    check_same_run(longer, tiny)
    other = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, batch_size=8))
    with pytest.raises(TrainingError, match=r"optim\.batch_size: 8 contradicts.*trained with 4"):
        check_same_run(other, tiny)
    with pytest.raises(TrainingError, match=r"seed: 5 contradicts.*trained with 0"):
        check_same_run(dataclasses.replace(tiny, seed=5), tiny)


def test_models_that_do_not_fit_are_named(tiny):
    with pytest.raises(TrainingError, match=r"model: .*heads"):
        build_generator(dataclasses.replace(tiny.model, heads=(3, 2, 2)))
    with pytest.raises(TrainingError, match=r"model\.enc_dim: 3 widths are for images of 64 pixels"):
        build_discriminator(dataclasses.replace(tiny.model, enc_dim=(4, 4, 8)))
