"""Training images, kept as one uint8 tensor, and the order in which they are shown."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lada_kernels.training.archives import TARS, is_cifar, open_zip, read_cifar
from lada_kernels.training.errors import TrainingError, import_extra

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SOURCES = """a folder of images, a .zip of them, CIFAR's binary version, or "digits\""""


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [-1, 1]."""
    return pixels.to(torch.float32).div(127.5).sub(1)


def load_digits(img_size: int) -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that scikit-learn carries; nothing is downloaded.

    They are real scans (UCI, "Optical Recognition of Handwritten Digits") reduced to 8x8 and 17 grey levels, here
    given a margin of one such pixel and enlarged bicubically.

    Returns:
        images [1797, 3, S, S] uint8 and labels [1797] int64.
    """
    pillow = import_extra("PIL.Image")
    digits = import_extra("sklearn.datasets").load_digits()
    small = (digits.images * (255 / 16)).round().astype(np.uint8)  # [1797, 8, 8]
    small = np.pad(small, ((0, 0), (1, 1), (1, 1)))  # [1797, 10, 10]
    large = [pillow.fromarray(d).resize((img_size, img_size), pillow.Resampling.BICUBIC) for d in small]
    images = torch.from_numpy(np.stack([np.asarray(d) for d in large]))  # [1797, S, S]
    return images[:, None].repeat(1, 3, 1, 1), torch.from_numpy(digits.target).long()


def load_images(source: str, img_size: int, memory_gib: float, spill: Path) -> Tensor:
    """The images that ``data.source`` names, stretched to a square.

    Args:
        source: the word "digits"; a folder of images or a .zip of them, searched at any depth for the suffixes of
            `SUFFIXES`, in sorted order; or the binary version of CIFAR-10 or CIFAR-100, archive or folder, of which the
            training images are taken. Archives are read where they are, not unpacked onto the disk.
        img_size: side S in pixels.
        memory_gib: up to this size the pixels stay in memory, beyond it in the memory-mapped file ``spill``.
        spill: path of that file, overwritten; the digits need none.

    Returns:
        [n, 3, S, S] uint8, RGB. Files in a folder or zip that cannot be read are named on stderr and left out.

    Raises:
        TrainingError: there is no such source, or of another kind, or it is damaged; it holds no image, or none that can be
            read.
    """
    if not source:
        raise TrainingError(f"data.source: name {SOURCES}")
    if source == "digits":
        return load_digits(img_size)[0]
    path = Path(source)
    if not path.exists():
        raise TrainingError(f"data.source: no such {'file' if path.suffix else 'folder'}: {path}")
    if path.is_dir():
        load = _load_cifar if is_cifar(path) else load_folder
    elif path.suffix.lower() == ".zip":
        load = _load_zip
    elif path.name.lower().endswith(TARS):
        load = _load_cifar
    else:
        raise TrainingError(f"data.source: expected {SOURCES}, got the file {path}")
    return load(path, img_size, memory_gib, spill)


def load_folder(folder: Path, img_size: int, memory_gib: float, spill: Path) -> Tensor:
    """`load_images` of a folder of images; for shape, arguments and errors see there."""
    pillow = import_extra("PIL.Image")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    names = [path.relative_to(folder) for path in paths]
    return _decode(folder, names, lambda name: pillow.open(folder / name), img_size, memory_gib, spill)


def _load_zip(path: Path, img_size: int, memory_gib: float, spill: Path) -> Tensor:
    pillow = import_extra("PIL.Image")
    with open_zip(path) as archive:
        names = archive.names(SUFFIXES)
        return _decode(path, names, lambda name: pillow.open(BytesIO(archive.read(name))), img_size, memory_gib, spill)


def _load_cifar(path: Path, img_size: int, memory_gib: float, spill: Path) -> Tensor:
    pillow = import_extra("PIL.Image")
    pixels = read_cifar(path).transpose(0, 2, 3, 1)  # [n, 32, 32, 3]
    return _decode(path, range(len(pixels)), lambda i: pillow.fromarray(pixels[i]), img_size, memory_gib, spill)


def _decode(
    source: Path, names: Sequence[Any], opened: Callable[[Any], Any], img_size: int, memory_gib: float, spill: Path
) -> Tensor:
    """The images ``opened(name)`` of ``source``, in the order of ``names``, opened and decoded by several threads."""
    if not names:
        raise TrainingError(f"data.source: no image below {source} (looked for {', '.join(sorted(SUFFIXES))})")
    pillow, unidentified = import_extra("PIL.Image"), import_extra("PIL").UnidentifiedImageError

    def read(name: Any) -> np.ndarray | str:
        try:
            with opened(name) as image:
                square = image.convert("RGB").resize((img_size, img_size), pillow.Resampling.LANCZOS)
            return np.asarray(square)  # [S, S, 3]
        except unidentified:
            return f"{source}/{name}: no image of a kind that Pillow knows"
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
            return f"{source}/{name}: {error}"

    shape = (len(names), 3, img_size, img_size)
    size = math.prod(shape)
    if size <= memory_gib * 2**30:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        spill.parent.mkdir(parents=True, exist_ok=True)
        images = torch.from_file(str(spill), shared=True, size=size, dtype=torch.uint8).view(shape)
    kept = 0
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        for pixels in pool.map(read, names):
            if isinstance(pixels, str):
                print(f"warning: skipped unreadable image {pixels}", file=sys.stderr)
            else:
                images[kept] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                kept += 1
    if kept < len(names):
        print(f"warning: {len(names) - kept} of {len(names)} images skipped", file=sys.stderr)
    if not kept:
        raise TrainingError(f"data.source: none of the {len(names)} images below {source} can be read")
    return images[:kept]


class Sampler:
    """Endless seeded batches of indices: every epoch in a fresh order, batches running across the seams.

    Its whole state is the number of indices drawn, so resuming is exact.

    Args:
        size: number of images, at least 1.
        batch_size: indices a batch.
        seed: epoch e is shuffled with a generator seeded by (seed, e).
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.drawn = size, batch_size, seed, 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """[batch_size] int64."""
        parts, missing = [], self.batch_size
        while missing:
            epoch, position = divmod(self.drawn, self.size)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
            parts.append(self._order[position : position + missing])
            missing -= len(parts[-1])
            self.drawn += len(parts[-1])
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to go on: the number of indices drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken."""
        self.drawn = state["drawn"]
