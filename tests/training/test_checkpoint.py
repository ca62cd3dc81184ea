import errno
import os
import stat

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
    with pytest.raises(OSError, match=r"cannot write .*best_ckpt\.pt.*the best one before is untouched"):
        checkpoint.write_best(state(3), tmp_path)
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


def test_where_the_last_one_is_missing_the_previous_is_read(tmp_path, capsys):
    checkpoint.write(state(1), tmp_path)
    (tmp_path / checkpoint.LAST).rename(tmp_path / checkpoint.PREVIOUS)
    assert checkpoint.exists(tmp_path)
    assert checkpoint.read_latest(tmp_path)["iter"] == 1
    assert "no checkpoint at" in capsys.readouterr().err


def test_file_systems_without_hard_links_keep_both(tmp_path, monkeypatch):
    def refuse(source, name):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_last_two_are_kept_and_nothing_else(tmp_path)


def test_file_systems_that_do_not_sync_folders_are_written_to(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    test_last_two_are_kept_and_nothing_else(tmp_path)


def test_bytes_and_names_reach_the_disk_in_order(tmp_path, monkeypatch):
    """The file's bytes before a name changes, the folder's names at the end."""
    checkpoint.write(state(1), tmp_path)
    events, sync, replace = [], os.fsync, os.replace

    def syncing(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes")
        sync(descriptor)

    def replacing(source, target):
        events.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    checkpoint.write(state(2), tmp_path)
    assert events == ["bytes", checkpoint.LAST, checkpoint.PREVIOUS, "folder"]


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path):
    for iteration in (1, 2):
        checkpoint.write(state(iteration), tmp_path)
    checkpoint.write_best(state(1), tmp_path)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST):
        (tmp_path / f"{name}.tmp").write_bytes(b"half a checkpoint")
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
