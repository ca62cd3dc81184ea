"""Two processes against one, by gloo; processes.py is what they run. Then the command, as torchrun starts it."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from training import processes
from training.processes import CASES, SHARES, STEPS, WORLD, norm_inputs
from training.running import Pooled, save_net
from training.variants import assert_bit_equal, flat

from lada_kernels.modules.batch_norm import synchronize_batch_norm
from lada_kernels.training import checkpoint
from lada_kernels.training.config import from_dict
from lada_kernels.training.distributed import Part, joined_processes
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.evaluation import make_evaluator
from lada_kernels.training.sampling import averaged_generator

# In float64: of sums that are taken in another order, and of gradients that cancel, which Adam divides by themselves.
ROUNDING = {"rtol": 1e-7, "atol": 1e-7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have run, of which the second one was killed."""
    folder = tmp_path_factory.mktemp("processes")
    spawn = multiprocessing.get_context("spawn")
    running = [spawn.Process(target=processes.run, args=(rank, str(folder))) for rank in range(WORLD)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    assert codes == [0, -signal.SIGKILL]
    return folder


@pytest.fixture(scope="module")
def both(folder):
    """What each process saved."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def assert_same_run(found: dict, true: dict) -> None:
    """Up to rounding."""
    found, true = flat(found), flat(true)
    assert found.keys() == true.keys()
    for name, expected in true.items():
        if not isinstance(expected, torch.Tensor):
            assert found[name] == expected, name
        elif not expected.is_floating_point():
            assert torch.equal(found[name], expected), name
        else:
            torch.testing.assert_close(found[name], expected, **ROUNDING, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_at_half_the_batch_train_as_one(case, both):
    first = both[0][case]
    assert first["metrics"].dtype == torch.float64
    torch.testing.assert_close(first["metrics"], first["true metrics"], **ROUNDING)
    assert_same_run(first["state"], first["true state"])
    assert first["state"]["iter"] == STEPS


@pytest.mark.parametrize("case", CASES)
def test_both_hold_the_same(case, both):
    assert torch.equal(both[0][case]["metrics"], both[1][case]["metrics"])
    assert_bit_equal(both[0][case]["state"], both[1][case]["state"])


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_any_number_of_processes_resumes(before, after, both):
    whole = both[0]["ladagan"]
    found = both[0]["resumed"][before, after]
    assert_same_run(found["state"], whole["true state"])
    torch.testing.assert_close(found["metrics"], whole["true metrics"][processes.HALF :], **ROUNDING)
    if before == after:
        assert_bit_equal(found["state"], whole["state"])


def test_batch_norm_over_both_is_that_of_all_items(both):
    """In every order; a gradient by the weight is each process's own share."""
    items, grads, cotangents, of_weights = norm_inputs()
    norm = nn.BatchNorm2d(2, momentum=0.3, dtype=torch.float64)
    weights = torch.full((WORLD, 2), 1.5, dtype=torch.float64, requires_grad=True)
    biases = torch.zeros(WORLD, 2, dtype=torch.float64, requires_grad=True)
    x, grad = items.requires_grad_(), grads.requires_grad_()
    normal = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=True, momentum=0.3)
    parts = [
        weight[:, None, None] * part + bias[:, None, None]
        for weight, bias, part in zip(weights, biases, normal.split(SHARES), strict=True)
    ]
    firsts = torch.autograd.grad(torch.cat(parts), (x, weights, biases), grad, create_graph=True)
    seconds = torch.autograd.grad(firsts, (grad, x, weights), (cotangents, *of_weights.unbind(1)))
    for rank in range(WORLD):
        true = {
            "value": parts[rank].detach(),
            "value without gradients": parts[rank].detach(),
            "x": firsts[0].split(SHARES)[rank].detach(),
            "weight": firsts[1][rank].detach(),
            "bias": firsts[2][rank].detach(),
            "second of grad": seconds[0].split(SHARES)[rank],
            "second of x": seconds[1].split(SHARES)[rank],
            "second of weight": seconds[2][rank],
        }
        found = both[rank]["batch norm"]
        assert found["dtype"] == torch.bfloat16
        for name, expected in true.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-12, msg=f"{rank}: {name}")


def test_running_statistics_are_those_of_all_items(both):
    items = norm_inputs()[0]
    norm = nn.BatchNorm2d(2, momentum=0.3, dtype=torch.float64)
    for values in (items, items, items.bfloat16().double()):
        norm(values)
    for rank in range(WORLD):
        found = both[rank]["batch norm"]["buffers"]
        assert found["num_batches_tracked"] == 3
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(found[name], getattr(norm, name), rtol=1e-6, atol=1e-7)


def test_without_synchronisation_each_keeps_to_its_own_images(both):
    first, second = (process["without synchronisation"] for process in both)
    assert torch.equal(first.pop("weight"), second.pop("weight"))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_batch_norms_that_cannot_be_synchronised_are_refused():
    with pytest.raises(
        ValueError, match=r"model: got BatchNorm1d.* as '0', expected lada_kernels' BatchNorm2d, affine and tracking"
    ):
        synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(2)))


def test_a_stop_that_one_is_asked_for_ends_both_at_the_same_step(folder, both):
    assert both[0]["stopped"] == both[1]["stopped"] == {"finished": False, "iteration": 3}
    assert checkpoint.read_latest(folder / "fit")["iter"] == 3


def test_the_error_of_one_ends_both(both):
    errors = [process["errors"] for process in both]
    for error in errors:
        assert error["broken loss"][0] == "TrainingError"
        assert error["broken loss"][1].startswith("step 2: a loss is no longer finite")
        assert error["odd batch"] == (
            "TrainingError",
            "optim.batch_size: expected a multiple of 4, processes x optim.accumulate = 2 x 2, got 10",
        )
        assert error["other images"][1].startswith("data.source: expected the same in all processes, got {'images': 20")
        assert error["other seed"][1].startswith("configuration: expected the same in all processes, got ")
    assert errors[0]["full disk"] == ("OSError", "cannot write: No space left on device")
    assert errors[1]["full disk"] == ("TrainingError", "process 0 failed: cannot write: No space left on device")


def test_the_death_of_one_ends_the_other(folder):
    survivor = torch.load(folder / "survivor.pt")
    assert survivor["error"]
    assert survivor["iteration"] == 2
    assert survivor["seconds"] < 30


def draws(part: Part, rows: int) -> list[torch.Tensor]:
    torch.manual_seed(3)
    with part.draws():
        drawn = [
            torch.rand(rows, 1, 1, 1),
            torch.randn(rows, 5),
            torch.randint(-2, 3, (rows, 1)),
            torch.randn_like(torch.zeros(rows, 4, 3, 2)[:, :1]),
            torch.randn_like(torch.zeros(rows, 4, 3, 2).to(memory_format=torch.channels_last)[:, :1]),
        ]
    return [*drawn, torch.rand(3)]


@pytest.mark.parametrize("count", [2, 3])
def test_parts_draw_what_the_whole_batch_draws(count):
    *whole, after = draws(Part(0, 1), 6)
    parts = [draws(Part(index, count), 6 // count) for index in range(count)]
    for *_, later in parts:
        assert torch.equal(later, after)
    for position, true in enumerate(whole):
        assert torch.equal(torch.cat([part[position] for part in parts]), true)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes(torch.device("cpu")) as alone:
        assert (alone.rank, alone.count, alone.leads) == (0, 1, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(TrainingError, match=r"^RANK: expected a number, as torchrun sets it, got 'first'"):
        joined_processes(torch.device("cpu")).__enter__()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match=r"^LOCAL_RANK: expected less than 2, one process for each GPU, got 2"):
        joined_processes(torch.device("cuda")).__enter__()


def test_torchrun_trains_on_a_folder_and_writes_one_set_of_files(tmp_path):
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for index, image in enumerate(processes.noise_images(32, 6)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{index}.png")
    (pictures / "broken.png").write_bytes(b"nothing")
    model = "--generator.dim 16 8 8 --generator.noise-dim 8 --generator.heads 2 2 2 --generator.mlp-dim 8 8 8"
    model += " --discriminator.enc-dim 4 8 --discriminator.out-dim 8 8 --discriminator.heads 2 --discriminator.mlp-dim 8"
    options = "--run.device cpu --run.steps 3 --run.save-every 1 --run.grid-images 4 --optim.batch-size 4 --optim.accumulate 2"
    options += " --run.evaluate-every 2 --run.evaluate-samples 5 --run.inception " + save_net(Pooled(), tmp_path / "net.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lada_kernels.train"]
    command += [*model.split(), *options.split(), "--data.source", str(pictures), "--run.out", str(run)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *judged, last = re.findall(r"^\w.*", done.stdout, re.MULTILINE)
    assert first == f"6 images, cpu, float32, 2 processes; writing to {run}"
    assert last == f"done: 3 steps, samples in {run / 'grids'}"
    assert [line.partition(" frechet ")[0] for line in judged] == ["step 2:", "step 3:"]
    best = checkpoint.read(run / checkpoint.BEST)
    options = {"inception": str(tmp_path / "net.pt"), "samples": 5, "progress": False}
    alone = make_evaluator(from_dict(best["config"]), processes.noise_images(32, 6), tmp_path, **options)
    assert best["best"]["frechet"] == pytest.approx(alone.evaluate(averaged_generator(best, "cpu"))["frechet"], rel=1e-4)
    assert done.stderr.count("skipped unreadable image") == 1
    assert checkpoint.read(run / checkpoint.LAST)["iter"] == 3
    assert checkpoint.read(run / checkpoint.PREVIOUS)["iter"] == 2
    assert json.loads((run / "config.json").read_text())["optim"]["accumulate"] == 2
    assert sorted(path.name for path in (run / "grids").iterdir()) == ["0000000.png", "0000003.png"]
    assert len(list(run.glob("events.*"))) <= 1  # none without TensorBoard
