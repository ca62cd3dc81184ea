import errno

import pytest
import torch

from lada_kernels.training import checkpoint
from lada_kernels.training.errors import TrainingError


def state(iteration: int) -> dict:
    return {key: {} for key in checkpoint.KEYS} | {"iter": iteration, "ema": {"weight": torch.ones(1000)}}


def test_last_two_are_kept_and_nothing_else(tmp_path):
    for iteration in (1, 2, 3):
        checkpoint.write(state(iteration), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [checkpoint.LAST, checkpoint.PREVIOUS]
    assert checkpoint.read(tmp_path / "run" / checkpoint.LAST)["iter"] == 3
    assert checkpoint.read(tmp_path / "run" / checkpoint.PREVIOUS)["iter"] == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")])
def test_full_disk_leaves_earlier_checkpoints(tmp_path, monkeypatch, error):
    checkpoint.write(state(1), tmp_path)
    checkpoint.write(state(2), tmp_path)

    def full(_, file):
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*last_ckpt\.pt.*earlier checkpoints are untouched"):
        checkpoint.write(state(3), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.LAST, checkpoint.PREVIOUS]
    assert checkpoint.read_latest(tmp_path)["iter"] == 2


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_last_falls_back_loudly(tmp_path, capsys, keep):
    checkpoint.write(state(1), tmp_path)
    last = checkpoint.write(state(2), tmp_path)
    whole = last.read_bytes()
    last.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    assert checkpoint.read_latest(tmp_path)["iter"] == 1
    warning = capsys.readouterr().err
    assert "last_ckpt.pt is not a readable checkpoint" in warning
    assert "previous_ckpt.pt, step 1" in warning


def test_crash_between_the_two_renames_falls_back(tmp_path, capsys):
    checkpoint.write(state(1), tmp_path)
    (tmp_path / checkpoint.LAST).rename(tmp_path / checkpoint.PREVIOUS)
    assert checkpoint.read_latest(tmp_path)["iter"] == 1
    assert "no checkpoint at" in capsys.readouterr().err


def test_unusable_files_are_clear_errors(tmp_path):
    with pytest.raises(TrainingError, match=r"no checkpoint at .*nowhere"):
        checkpoint.read_latest(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match=r"no checkpoint at"):
        checkpoint.read_latest(tmp_path)
    text = tmp_path / "text.pt"
    text.write_text("root:x:0:0:root:/root:/bin/bash\n")
    with pytest.raises(TrainingError, match=r"text\.pt is not a readable checkpoint"):
        checkpoint.read_latest(text)
    other = tmp_path / "other.pt"
    torch.save({"iter": 1, "generator": {}}, other)
    with pytest.raises(TrainingError, match=r"other\.pt is not a checkpoint of .* lacks discriminator, ema"):
        checkpoint.read_latest(other)
    torch.save(torch.nn.Linear(1, 1), other)  # would run code on loading
    with pytest.raises(TrainingError, match=r"other\.pt is not a readable checkpoint"):
        checkpoint.read_latest(other)
