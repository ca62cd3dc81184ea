"""Images inside archives, read where they are: zip files, and CIFAR-10 and CIFAR-100 as their authors publish them.

CIFAR comes from https://www.cs.toronto.edu/~kriz/cifar.html in three versions. The binary one is read here: records of one byte
for the label (CIFAR-100: two, coarse and fine) and 3 x 32 x 32 for the pixels, channels first. The Python version is a pickle,
which runs what it says when it is loaded: it is refused.
"""

import gzip
import lzma
import math
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from lada_kernels.training.errors import TrainingError

TARS = (".tar.gz", ".tgz", ".tar")
EXPECTED = (
    "expected CIFAR's binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz of "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or the folder inside it"
)
_PIXELS = (3, 32, 32)


class ZipImages:
    """The files in an open zip, to be read from any thread.

    Args:
        archive: open for reading.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._lock = threading.Lock()  # ZipFile counts its readers without one

    def names(self, suffixes: set[str]) -> list[str]:
        """Those with one of the lower-case ``suffixes``, in a folder's order, without the shadows that macOS adds."""
        files = {name: PurePosixPath(name) for name in self._archive.namelist() if not name.endswith("/")}
        images = [name for name, path in files.items() if path.suffix.lower() in suffixes and "__MACOSX" not in path.parts]
        return sorted(images, key=files.get)

    def read(self, name: str) -> bytes:
        """A file's content; ``OSError`` where it is damaged, encrypted, or compressed in a way that is not known."""
        try:
            with self._lock:
                return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
            raise OSError(str(error)) from error


@contextmanager
def open_zip(path: Path) -> Iterator[ZipImages]:
    """Open a zip file; ``TrainingError`` if it is none, or cut off."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise TrainingError(f"data.source: {path} cannot be read as a zip file: {error}") from error
    with archive:
        yield ZipImages(archive)


class _Layout(NamedTuple):
    """What stands before the pixels of a record: a label of each kind, below its number of classes."""

    name: str
    classes: tuple[int, ...]


def _layout(name: str) -> _Layout | None:
    """How the records of a file of training images are laid out; None for any other file."""
    if name.startswith("data_batch_") and name.endswith(".bin"):
        return _Layout("CIFAR-10", (10,))
    return _Layout("CIFAR-100", (20, 100)) if name == "train.bin" else None


def _is_pickle(name: str) -> bool:
    """Whether that is a file of the Python version, by its name and its folder's."""
    path = PurePosixPath(name)
    return path.name in ("data_batch_1", "batches.meta") or path.parent.name == "cifar-100-python"


def is_cifar(folder: Path) -> bool:
    """Whether ``folder`` itself holds CIFAR's batches, of the binary version or of the Python one."""
    return any(_layout(path.name) or _is_pickle(str(path.absolute())) for path in folder.iterdir())


def read_cifar(source: Path) -> np.ndarray:
    """The training images of CIFAR-10 or CIFAR-100, without the test images and the labels.

    Args:
        source: the binary version's archive (`TARS`) or folder.

    Returns:
        [n, 3, 32, 32] uint8, in the batches' order.

    Raises:
        TrainingError: another version, no CIFAR, or a file that is damaged or cut off.
    """
    names, batches = _read_folder(source) if source.is_dir() else _read_tar(source)
    if not batches:
        reason = "holds neither data_batch_*.bin nor train.bin"
        if any(map(_is_pickle, names)):
            reason = "is CIFAR's Python version, a pickle, which runs code when it is loaded"
        raise TrainingError(f"data.source: {source} {reason}: {EXPECTED}")
    return np.concatenate([_pixels(batches[name], name, source) for name in sorted(batches)])


def _read_folder(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """The files' names, the folder's before them, and the content of those that hold training images."""
    paths = {f"{folder.absolute().name}/{path.name}": path for path in folder.iterdir()}
    return list(paths), {name: path.read_bytes() for name, path in paths.items() if _layout(path.name)}


def _read_tar(path: Path) -> tuple[list[str], dict[str, bytes]]:
    names, batches = [], {}
    try:
        with (open if path.suffix.lower() == ".tar" else gzip.open)(path, "rb") as file, tarfile.open(fileobj=file) as archive:
            for member in archive:  # in the archive's order: a compressed one is read forwards
                names.append(member.name)
                if member.isfile() and _layout(PurePosixPath(member.name).name):
                    batches[member.name] = archive.extractfile(member).read()
            while file.read(2**20):  # gzip's checksum comes last
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise TrainingError(f"data.source: {path} cannot be read as a tar file: {error}") from error
    return names, batches


def _pixels(content: bytes, name: str, source: Path) -> np.ndarray:
    """The pixels [n, 3, 32, 32] of a file's records; ``TrainingError`` if they are not laid out so."""
    where = f"data.source: {name} in {source} has"
    layout = _layout(PurePosixPath(name).name)
    labels = len(layout.classes)
    size = labels + math.prod(_PIXELS)
    if not content or len(content) % size:
        raise TrainingError(f"{where} {len(content):,} bytes: expected {layout.name}'s records of {size:,} each")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    for column, classes in enumerate(layout.classes):
        if (largest := records[:, column].max()) >= classes:
            raise TrainingError(f"{where} a label {largest}: expected {layout.name}'s, below {classes}")
    return records[:, labels:].reshape(-1, *_PIXELS)
