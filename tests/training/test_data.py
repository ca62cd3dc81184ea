import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from lada_kernels.training.data import Sampler, load_digits, load_folder, to_float
from lada_kernels.training.errors import TrainingError


def write_images(folder, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (10 + i, 20), (i, 100, 200)).save(folder / f"{i:02d}.png")


def load(folder, tmp_path, memory_gib: float = 1.0) -> torch.Tensor:
    return load_folder(folder, 16, memory_gib, tmp_path / "spill")


def test_folder_is_read_recursively_in_order_and_stretched(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "a" / "deeper", 1)
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "a" / "grey.PNG")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = load(tmp_path / "a", tmp_path)
    assert images.shape == (4, 3, 16, 16)
    assert images.dtype == torch.uint8
    colours = [(0, 100, 200), (1, 100, 200), (0, 100, 200), (7, 7, 7)]
    for image, colour in zip(images, colours, strict=True):
        assert torch.equal(image, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 16, 16))


def test_memory_mapped_equals_in_memory(tmp_path):
    write_images(tmp_path / "a", 3)
    mapped = load(tmp_path / "a", tmp_path, memory_gib=0.0)
    assert torch.equal(mapped, load(tmp_path / "a", tmp_path))
    assert (tmp_path / "spill").stat().st_size == 3 * 3 * 16 * 16


def test_missing_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(TrainingError, match=r"no such folder.*nowhere"):
        load(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"no image below.*empty"):
        load(tmp_path / "empty", tmp_path)


def test_corrupt_images_are_named_counted_and_skipped(tmp_path, capsys):
    write_images(tmp_path / "a", 3)
    (tmp_path / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    whole = (tmp_path / "a" / "02.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert len(load(tmp_path / "a", tmp_path)) == 3
    warnings = capsys.readouterr().err
    assert "broken.jpg" in warnings
    assert "cut.png" in warnings
    assert "2 of 5 images skipped" in warnings


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"none of the 1 images"):
        load(tmp_path, tmp_path)


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits as original

    images, labels = load_digits(32)
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    assert labels.tolist() == original().target.tolist()
    small = interpolate(images[:, :1].float(), size=10, mode="bilinear")[:, 0]  # [1797, 10, 10], the outer ones margin
    assert small[:, 0].mean() < 0.05 * small[:, 1:-1, 1:-1].mean()
    pair = torch.stack([small[:, 1:-1, 1:-1].flatten(), torch.from_numpy(original().images).float().flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.995


def test_to_float_spans_minus_one_to_one():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (3, 8), (1, 2), (8, 8)])
def test_sampler_shows_every_image_once_an_epoch(size, batch):
    sampler = Sampler(size, batch, seed=3)
    drawn = torch.cat([next(sampler) for _ in range(3 * size)])
    epochs = drawn[: len(drawn) // size * size].view(-1, size)
    assert torch.equal(epochs.sort(1).values, torch.arange(size).expand_as(epochs))
    if size > 8:
        assert not torch.equal(epochs[0], epochs[1])


def test_sampler_resumes_exactly():
    sampler = Sampler(10, 4, seed=0)
    for _ in range(6):
        next(sampler)
    resumed = Sampler(10, 4, seed=0)
    resumed.load_state_dict(sampler.state_dict())
    for _ in range(6):
        assert torch.equal(next(sampler), next(resumed))
