"""The bugs of LadaGAN's official code: for each a test that its behaviour would fail, here or where it is tested anyway.

1   a checkpoint with numpy scalars cannot be read, nor one from a GPU without one: here
2   resuming overwrites the average of G: test_loop.py::test_resuming_is_exact, and test_killed.py by the command
3   FID is evaluated only where losses are reported, or fails: test_selection.py::test_evaluation_has_an_interval_of_its_own_and
    _the_best_is_kept
4   FID ends in a NameError where scipy finds no root of singular covariances: here
5   FID that cannot be compared. Other weights, test_evaluate.py::test_without_the_inception_nothing_is_faked; a part of the
    image, test_features.py::test_features_of_a_torchscript_file; 1,000 samples,
    test_evaluate.py::test_figures_are_of_ten_thousand_samples_unless_told_otherwise; files of old samples,
    test_evaluation.py::test_figures_are_those_of_the_bytes_that_a_png_would_hold; statistics of other images: here
6   scipy's sqrtm, with an argument that SciPy removes: here
7   packages that only some need: tests/packaging/test_imports.py
8   positions are added in place, to what may be saved for the backward: here
9   batch norm under R1: tests/modules/test_batch_norm.py; in several processes,
    test_distributed.py::test_batch_norm_over_both_is_that_of_all_items. That it couples the images, and that G's step moves the
    statistics too, is the official model, and kept
10  the average of G leaves buffers out: test_ema.py::test_parameters_and_buffers_are_averaged_and_counters_copied
11  each sample on a sheet has a contrast of its own: test_grid.py::test_one_value_range_for_the_whole_sheet; a sheet takes no
    more than a batch: here
12  initialisation. Biases and positions, tests/models/test_ladagan_options.py::test_tf_flavor_initialises_like_the_paper; by
    the names of classes: here
13  metrics wait for the device in every step: here. A configuration on disk wins silently over the one that is given,
    test_training_commands.py::test_resume_refuses_contradictions and ::test_an_existing_run_is_not_lost_by_accident; the first
    GPU for all, test_distributed.py::test_more_processes_than_gpus_are_refused
14  widths that only shrink by four: tests/models/test_ladagan_options.py::test_expanding_widths and
    test_ladagan_official.py::test_published_ffhq_size; 16x16 tokens, tests/modules/test_blocks.py
15  FID every ten steps unless told otherwise: here. The average begins as another network than G,
    test_ema.py::test_parameters_and_buffers_are_averaged_and_counters_copied; an initialisation that is asked for is ignored,
    test_ladagan_options.py::test_a_flavor_of_one_s_own. That XLA has to be turned off by hand for the convolutional decoder
    has no counterpart

16, contradictions in the README, and 17, other people's ports, leave nothing to test.
"""

import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training.operations import WAITING
from training.running import Plain, save_net
from training.variants import flat, trained, with_run

from lada_kernels.models.flavor import init_weights
from lada_kernels.models.ladagan import Discriminator, Generator
from lada_kernels.training import checkpoint
from lada_kernels.training.config import DataConfig
from lada_kernels.training.data import load_folder
from lada_kernels.training.evaluation import make_evaluator
from lada_kernels.training.grid import save_singles
from lada_kernels.training.loop import fit
from lada_kernels.training.metrics import frechet_distance
from lada_kernels.training.presets import PRESETS
from lada_kernels.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def test_a_checkpoint_holds_tensors_and_pythons_own_values_alone(tiny, images):
    """D.1-1: a numpy scalar among them, and torch.load, which runs no code from the file by default, refuses it."""
    folder = Path(tiny.run.out)
    checkpoint.write(trained(tiny, images, 1).state_dict(), folder)
    for state in (torch.load(folder / checkpoint.LAST), checkpoint.read_latest(folder)):
        leaves = flat(state)
        assert {type(leaf) for leaf in leaves.values()} <= {torch.Tensor, int, float, str, bool, type(None)}
        assert leaves["/iter"] == 1


def move_to_gpu(path: Path) -> None:
    """Make of a checkpoint one whose tensors were on a GPU."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    here, there = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7"
    assert here in entries[name]
    entries[name] = entries[name].replace(here, there)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_a_checkpoint_of_a_gpu_is_read_without_it(tiny, images):
    """D.1-1: without map_location torch wants the device that the tensors were on."""
    folder = Path(tiny.run.out)
    trainer = trained(tiny, images, 1)
    path = checkpoint.write(trainer.state_dict(), folder)
    move_to_gpu(path)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path)
    weights, true = checkpoint.read_latest(folder)["generator"], trainer.generator.state_dict()
    assert all(value.device.type == "cpu" for value in weights.values())
    assert all(torch.equal(value, true[name]) for name, value in weights.items())


def test_figures_follow_the_images_whose_folder_stays_as_it_is(tiny, images, tmp_path):
    """D.1-5: real statistics were kept among the images, under the folder's name, whatever it held later."""
    photos, run = tmp_path / "photos", tmp_path / "run"
    config = dataclasses.replace(tiny, data=DataConfig(source=str(photos)))
    inception = save_net(Plain(), tmp_path / "net.pt")
    generator = Trainer(tiny, images).ema

    def judged(folder: Path) -> dict[str, float]:
        pixels = load_folder(photos, 32, 1.0, tmp_path / "spill")
        evaluator = make_evaluator(config, pixels, folder, inception=inception, samples=20, progress=False)
        return evaluator.evaluate(generator)

    save_singles(images / 127.5 - 1, photos)
    files, before = sorted(photos.iterdir()), judged(run)
    save_singles(1 - images / 127.5, photos)  # other images under the same names
    save_singles(images / 127.5 - 1, run)  # as an earlier evaluation's samples
    after = judged(run)
    assert after == judged(tmp_path / "new")
    assert after["frechet"] != before["frechet"]
    assert sorted(photos.iterdir()) == files


def test_the_frechet_distance_of_singular_covariances(monkeypatch):
    """D.1-4: of fewer samples than features, where scipy's root may be NaN; of two that differ by their means alone."""
    linalg = pytest.importorskip("scipy.linalg")
    monkeypatch.setattr(linalg, "sqrtm", lambda matrix, disp=True: (np.full_like(matrix, np.nan), np.inf))
    a = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.matrix_rank(torch.cov(a.T)) == 4
    assert frechet_distance(a, a + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)


def test_the_frechet_distance_does_without_scipys_matrix_square_root(monkeypatch):
    """D.1-6: between two Gaussians that differ by their means alone it is the square of those' distance."""
    linalg = pytest.importorskip("scipy.linalg")
    monkeypatch.delattr(linalg, "sqrtm")
    a = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert frechet_distance(a, a + torch.tensor([1.0, 2.0, -2.0])) == pytest.approx(9, rel=1e-9)


def small_generator() -> Generator:
    return Generator(64, (16, 8, 8), 8, (2, 2, 2), (8, 8, 8), decoder_dim=(4,))


def small_discriminator() -> Discriminator:
    return Discriminator((4, 8), (8, 8), 2, 8)


@pytest.mark.parametrize(
    ("build", "shape", "positioned"),
    [
        (small_generator, (2, 8), {"init", "conv_256", "conv_1024"}),
        (small_discriminator, (2, 3, 32, 32), {"encoder.0"}),
    ],
)
def test_nothing_is_written_into_what_a_layer_returned(build, shape, positioned):
    """D.1-8: ``x += pos`` wrote into a view of what a layer returned, and may have saved for its backward."""
    torch.manual_seed(0)
    model, kept = build(), {}
    names = {layer: name for name, layer in model.named_modules()}

    def keep(layer: nn.Module, arguments: tuple, result: torch.Tensor) -> None:
        kept[names[layer]] = result, result.detach().clone()

    for layer in names:
        layer.register_forward_hook(keep)
    model(torch.randn(shape))
    assert positioned <= kept.keys()
    for name, (result, as_returned) in kept.items():
        assert torch.equal(result, as_returned), name


def test_a_sheet_may_hold_more_samples_than_a_batch(tiny, images):
    """D.1-11: its latents were a batch's; and every sample shows the values it has, -1 black and 1 white."""
    trainer, folder = Trainer(with_run(tiny, steps=1, grid_images=9), images), Path(tiny.run.out)
    assert tiny.optim.batch_size == 4
    fit(trainer, folder)
    sheet = np.asarray(Image.open(folder / "grids" / "0000001.png"))
    assert sheet.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    with torch.no_grad():
        latents = torch.randn(9, tiny.generator.noise_dim, generator=torch.Generator().manual_seed(tiny.seed))
        samples = trainer.ema(latents).numpy()  # [9, 3, 32, 32]
    for index, sample in enumerate(samples):
        y, x = (2 + 34 * place for place in divmod(index, 3))
        expected = np.rint((sample.clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)
        assert np.abs(sheet[y : y + 32, x : x + 32] - expected).max() <= 1  # of rounding in a batch of another size


class LinearConvolutionalGate(nn.Module):
    """Has no weights, whatever its name says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sigmoid()


class Projection(nn.Linear):
    """Has weights, though its name says nothing of them."""


def test_initialisation_asks_what_a_layer_is_not_what_it_is_called():
    """D.1-12: a class with "Conv" or "Linear" in its name and no weight ended it; a layer without either was left out."""
    model = nn.Sequential(LinearConvolutionalGate(), Projection(6, 6))
    init_weights(model, "torch")
    weight = model[1].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), rtol=0, atol=1e-6)


class Waits(TorchDispatchMode):
    """Counts the operations by which the CPU reads a value, for which it waits on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += func.overloadpacket.__name__ in WAITING
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value(tiny, images):
    """D.1-13: losses and norms were read, one by one, in every step."""
    trainer = Trainer(tiny, images)
    with Waits() as waits:
        metrics = torch.stack([trainer.step() for _ in range(3)])
    assert waits.count == 0
    with waits:
        [value.item() for value in metrics[0, :6]]
    assert waits.count == 6


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_evaluated_unless_asked_for(preset):
    """D.1-15: every tenth step drew 2,500 samples for FID, and reported the losses."""
    assert PRESETS[preset].run.evaluate_every == 0
    assert PRESETS[preset].run.log_every >= 50
