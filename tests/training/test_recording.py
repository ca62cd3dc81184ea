"""Steps that are recorded and replayed against plain ones, on the CPU: there is one code path for both."""

import dataclasses

import pytest
import torch
from training.operations import Operations
from training.variants import DISCRIMINATORS, EVERYTHING, GENERATORS, assert_bit_equal, trained, with_optim, with_run

from lada_kernels.training import recording
from lada_kernels.training.distributed import ALONE, Processes
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.recording import Recorded
from lada_kernels.training.trainer import Trainer

# Learning rates, and the steps by which they rise, are exact in float32, in which a recorded step reads them.
RATES = {"g_lr": 2**-10, "d_lr": 2**-9}


@pytest.fixture
def recorded(tiny, monkeypatch):
    """A run that is recorded."""
    monkeypatch.setitem(recording.RECORDERS, "cpu", Operations)
    config = with_optim(dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, mirror=True)), **EVERYTHING, **RATES)
    return with_run(config, cuda_graphs=True)


def plain(config):
    return with_run(config, cuda_graphs=False)


def comparable(trainer):
    """The state but for where the learning rates stand."""
    state = trainer.state_dict()
    for name in ("g_opt", "d_opt"):
        state[name] = {**state[name], "param_groups": [float(group["lr"]) for group in state[name]["param_groups"]]}
    return {name: value for name, value in state.items() if name != "config"}


def assert_same_steps(config, images, steps):
    runs = []
    for variant in (plain(config), config):
        trainer = Trainer(variant, images)
        runs.append((torch.stack([trainer.step() for _ in range(steps)]), comparable(trainer)))
    (true_metrics, true_state), (metrics, state) = runs
    assert torch.equal(metrics, true_metrics)
    assert_bit_equal(state, true_state)


def test_fifty_recorded_steps_are_the_plain_ones(recorded, images):
    """Of which the first three of each kind, with R1 and without, are not recorded yet."""
    assert_same_steps(recorded, images, 50)


@pytest.mark.parametrize(
    ("generator", "discriminator", "precision"),
    [("vitgan-conv", "vitgan", "float32"), ("vitgan-inr", "stylegan2", "float32"), ("ladagan", "ladagan", "bfloat16")],
)
def test_the_other_networks_and_precisions_can_be_recorded(recorded, images, generator, discriminator, precision):
    config = dataclasses.replace(recorded, generator=GENERATORS[generator], discriminator=DISCRIMINATORS[discriminator])
    assert_same_steps(with_run(config, precision=precision), images, 10)


def test_a_run_goes_on_recorded_or_not(recorded, images):
    """Whichever it was: the checkpoint is the same."""
    whole = trained(plain(recorded), images, 18)
    for before, after in ((recorded, plain(recorded)), (plain(recorded), recorded)):
        trainer = Trainer(after, images)
        trainer.load_state_dict(trained(before, images, 9).state_dict())
        for _ in range(9):
            trainer.step()
        assert_bit_equal(comparable(trainer), comparable(whole))
        assert all(
            isinstance(o.param_groups[0]["lr"], torch.Tensor) == after.run.cuda_graphs for o in (trainer.g_opt, trainer.d_opt)
        )


def test_what_waits_for_the_device_cannot_be_recorded():
    """So the tests above prove that a step does not."""
    step = Recorded(lambda variant, x: x * x.sum().item(), Operations())
    x = torch.ones(3)
    for _ in range(3):
        step("same", x)
    with pytest.raises(RuntimeError, match=r"_local_scalar_dense.* waits for the device"):
        step("same", x)


def test_a_record_reads_its_arguments_anew_and_freezes_the_rest():
    factor = 2.0
    step = Recorded(lambda variant, x: factor * x if variant == "scaled" else -x, Operations(), warm_ups=1)
    first = [step("scaled", torch.full((2,), value)) for value in (1.0, 2.0, 3.0)]
    assert [result.tolist() for result in first] == [[2.0, 2.0], [4.0, 4.0], [6.0, 6.0]]
    factor = 5.0
    assert step("scaled", torch.ones(2)).tolist() == [2.0, 2.0]
    assert [step("negated", torch.full((2,), value)).tolist() for value in (1.0, 2.0)] == [[-1.0, -1.0], [-2.0, -2.0]]


@pytest.mark.parametrize("choice", ["cuda_graphs", "compile"])
@pytest.mark.parametrize(("accumulate", "processes", "numbers"), [(2, ALONE, "1 and 2"), (1, Processes(0, 2), "2 and 1")])
def test_several_parts_are_neither_recorded_nor_compiled(recorded, images, accumulate, processes, numbers, choice):
    """Their random numbers are drawn by Python, for the whole batch."""
    config = with_run(with_optim(recorded, accumulate=accumulate), **{"cuda_graphs": False, choice: True})
    with pytest.raises(TrainingError, match=rf"^run.{choice}: expected one process and optim.accumulate 1, got {numbers}"):
        Trainer(config, images, processes)


def test_recording_where_there_is_no_cuda_is_refused(tiny, images):
    with pytest.raises(TrainingError, match=r"^run.cuda_graphs: expected a CUDA device to record them on, got cpu"):
        Trainer(with_run(tiny, cuda_graphs=True), images)
