import dataclasses
import io
import runpy
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from lada_kernels.training.data import Sampler, load_digits, load_images, to_float
from lada_kernels.training.errors import TrainingError


def write_images(folder, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (10 + i, 20), (i, 100, 200)).save(folder / f"{i:02d}.png")


def load(folder, tmp_path, memory_gib: float = 1.0) -> torch.Tensor:
    return load_images(str(folder), 16, memory_gib, tmp_path / "spill")


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


def write_zip(path, folder, compression: int = zipfile.ZIP_DEFLATED) -> None:
    """Everything in ``folder``, the last first."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_the_folder_inside_it(tmp_path, compression):
    folder = tmp_path / "a"
    write_images(folder, 3)
    write_images(folder / "01", 2)  # "01" sorts before "01.png", though "/" comes after "."
    write_images(folder / "deep" / "er", 1)
    Image.new("L", (4, 4), 7).save(folder / "GREY.PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    write_zip(tmp_path / "a.ZIP", folder, compression)
    images = load(tmp_path / "a.ZIP", tmp_path)
    assert images[:, :, 5, 5].tolist() == [
        *([0, 100, 200], [0, 100, 200], [1, 100, 200], [1, 100, 200], [2, 100, 200]),
        *([7, 7, 7], [0, 100, 200]),
    ]
    assert torch.equal(images, load(folder, tmp_path))
    assert torch.equal(images, load(tmp_path / "a.ZIP", tmp_path, memory_gib=0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.ZIP", "spill"]


def test_zips_as_other_programs_write_them(tmp_path, capsys):
    write_images(tmp_path, 3)
    first, second, third = ((tmp_path / f"{i:02d}.png").read_bytes() for i in range(3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("./photos/b.png", second)
        archive.writestr("photos/a.png", third)
        archive.writestr("__MACOSX/photos/._a.png", b"finder's")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("photos/a.png", first)  # what was added last is what is unpacked
    assert load(tmp_path / "a.zip", tmp_path)[:, 0, 5, 5].tolist() == [0, 1]
    assert capsys.readouterr().err == ""


def test_corrupt_members_of_a_zip_are_named_counted_and_skipped(tmp_path, capsys):
    write_images(tmp_path / "a", 5)
    path = tmp_path / "a.zip"
    write_zip(path, tmp_path / "a", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cut.png", (tmp_path / "a" / "03.png").read_bytes()[:40])
    content = bytearray(path.read_bytes())
    content[content.index((tmp_path / "a" / "01.png").read_bytes()) + 50] ^= 1  # against its checksum
    entry = content.index(b"PK\x01\x02")
    entry = content.index(b"04.png", entry) - 46  # in the directory
    content[entry + 8] |= 1  # encrypted
    entry = content.index(b"02.png", entry) - 46
    content[entry + 10] = 97  # compressed in a way that is not known
    path.write_bytes(content)
    assert load(path, tmp_path)[:, 0, 5, 5].tolist() == [0, 3]
    warnings = capsys.readouterr().err
    for name, reason in {"01": "Bad CRC-32", "02": "compression", "04": "encrypted", "cut": "no image of a kind"}.items():
        assert any(f"a.zip/{name}.png: " in line and reason in line for line in warnings.splitlines()), (name, warnings)
    assert "4 of 6 images skipped" in warnings


def test_a_zip_without_images_or_cut_off_is_an_error(tmp_path):
    write_images(tmp_path / "a", 2)
    write_zip(tmp_path / "a.zip", tmp_path / "a")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(TrainingError, match=r"^data\.source: .*cut\.zip cannot be read as a zip file: "):
        load(tmp_path / "cut.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    with pytest.raises(TrainingError, match=r"^data\.source: no image below .*b\.zip \(looked for \.bmp, "):
        load(tmp_path / "b.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.png", "no image")
    with pytest.raises(TrainingError, match=r"^data\.source: none of the 1 images below .*c\.zip can be read"):
        load(tmp_path / "c.zip", tmp_path)


def cifar_images(count: int, first: int = 0) -> np.ndarray:
    """[count, 3, 32, 32] uint8: no two pixels of an image, and no two images, have one colour."""
    row, column = np.mgrid[:32, :32]
    return np.stack([np.stack([8 * row + i, 8 * column + i, 0 * row + i]) for i in range(first, first + count)]).astype(
        np.uint8
    )


def records(images: np.ndarray, *classes: int) -> bytes:
    """As the page of CIFAR describes its binary version: labels, then the red, the green and the blue values row by row."""
    labels = [bytes((5 * i + 4) % n for n in classes) for i in range(len(images))]
    return b"".join(label + image.tobytes() for label, image in zip(labels, images, strict=True))


def write_tar(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


CIFAR10 = {
    "cifar-10-batches-bin/data_batch_2.bin": records(cifar_images(3, first=4), 10),
    "cifar-10-batches-bin/test_batch.bin": records(cifar_images(2, first=100), 10),
    "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
    "cifar-10-batches-bin/data_batch_1.bin": records(cifar_images(4), 10),
}
CIFAR100 = {
    "cifar-100-binary/train.bin": records(cifar_images(30), 20, 100),
    "cifar-100-binary/test.bin": records(cifar_images(2, first=100), 20, 100),
    "cifar-100-binary/fine_label_names.txt": b"apple\n",
}


@pytest.mark.parametrize(("files", "count"), [(CIFAR10, 7), (CIFAR100, 30)], ids=["10", "100"])
@pytest.mark.parametrize("name", ["cifar.tar.gz", "cifar.tgz", "cifar.tar", "folder"])
def test_cifar_s_training_images_without_labels(tmp_path, files, count, name):
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        for file, content in files.items():
            (source / file.rpartition("/")[2]).write_bytes(content)
    else:
        write_tar(source, files)
    images = load_images(str(source), 32, 1.0, tmp_path / "spill")
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(cifar_images(count)))
    assert torch.equal(load_images(str(source), 32, 0.0, tmp_path / "spill"), images)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "spill"])


def test_cifar_is_resized_as_a_folder_s_images_are(tmp_path):
    write_tar(tmp_path / "cifar.tar.gz", CIFAR10)
    (tmp_path / "a").mkdir()
    for i, image in enumerate(cifar_images(7)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "a" / f"{i}.png")
    assert torch.equal(load(tmp_path / "cifar.tar.gz", tmp_path), load(tmp_path / "a", tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"data_batch_1.bin": CIFAR10["cifar-10-batches-bin/data_batch_1.bin"][:-1]},
            "12,291 bytes: expected CIFAR-10's .*3,073",
        ),
        ({"train.bin": records(cifar_images(2), 10)}, "6,146 bytes: expected CIFAR-100's records of 3,074"),
        ({"data_batch_1.bin": b""}, "0 bytes"),
        ({"data_batch_1.bin": records(cifar_images(3), 20)}, "a label 14: expected CIFAR-10's, below 10"),
        ({"train.bin": records(cifar_images(30), 100, 20)}, "a label [0-9]+: expected CIFAR-100's, below 20"),
        (
            {"cifar-10-batches-py/data_batch_1": b"pickle"},
            "CIFAR's Python version.*expected.*cifar-10-binary.tar.gz or cifar-100-b",
        ),
        ({"cifar-100-python/train": b"pickle"}, "CIFAR's Python version.*expected.*cifar-10-binary.tar.gz or cifar-100-b"),
        ({"photos/a.png": b""}, "neither data_batch_.*expected CIFAR's binary version"),
    ],
)
def test_what_is_not_cifar_s_binary_version_is_refused(tmp_path, files, message):
    write_tar(tmp_path / "cifar.tar.gz", files)
    with pytest.raises(TrainingError, match=f"^data\\.source: .*{message}"):
        load(tmp_path / "cifar.tar.gz", tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "cifar-100-python/train"])
def test_a_folder_of_cifar_s_pickles_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b"pickle")
    with pytest.raises(TrainingError, match="CIFAR's Python version"):
        load(path.parent, tmp_path)


def test_a_cut_off_or_damaged_tar_is_an_error(tmp_path):
    write_tar(tmp_path / "cifar.tar.gz", CIFAR10)
    whole = (tmp_path / "cifar.tar.gz").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for content in (whole[: len(whole) // 2], whole[:-4], bytes(damaged), b"<html>Not Found</html>"):
        (tmp_path / "other.tar.gz").write_bytes(content)
        with pytest.raises(TrainingError, match=r"^data\.source: .*other\.tar\.gz cannot be read as a tar file: "):
            load(tmp_path / "other.tar.gz", tmp_path)
    write_tar(tmp_path / "cifar.tar", CIFAR10)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cifar.tar").read_bytes()[:30_000])
    with pytest.raises(TrainingError, match=r"cut\.tar cannot be read as a tar file: unexpected end of data"):
        load(tmp_path / "cut.tar", tmp_path)


def test_other_sources_are_refused_by_what_could_be_named(tmp_path):
    kinds = 'a folder of images, a .zip of them, CIFAR\'s binary version, or "digits"'
    with pytest.raises(TrainingError, match=f"^data\\.source: name {kinds}$"):
        load("", tmp_path)
    (tmp_path / "photos.rar").write_bytes(b"")
    with pytest.raises(TrainingError, match=f"^data\\.source: expected {kinds}, got the file .*photos.rar$"):
        load(tmp_path / "photos.rar", tmp_path)
    for name in ("photos.zip", "cifar-10-binary.tar.gz"):
        with pytest.raises(TrainingError, match=f"^data\\.source: no such file: {tmp_path / 'nowhere' / name}$"):
            load(tmp_path / "nowhere" / name, tmp_path)


def test_training_and_judging_see_the_same_images(tmp_path, tiny):
    train, evaluate = (runpy.run_module(f"lada_kernels.{name}") for name in ("train", "evaluate"))  # others run them, too
    write_tar(tmp_path / "cifar.tar.gz", CIFAR10)
    for source, count in (("digits", 1797), (str(tmp_path / "cifar.tar.gz"), 7)):
        config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source=source))
        images = train["load_images"](config)
        assert images.shape == (count, 3, 32, 32)
        assert torch.equal(evaluate["real_images"](config, tmp_path), images)


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
