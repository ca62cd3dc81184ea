"""Judging a generator by features of its samples and of the real images, the latter's statistics kept on disk."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lada_kernels.training.config import Config
from lada_kernels.training.data import load_digits
from lada_kernels.training.distributed import ALONE, Processes
from lada_kernels.training.errors import TrainingError, import_extra
from lada_kernels.training.features import INCEPTION_URL, PREPROCESSING, DigitFeatures, FeatureNet, TorchScriptFeatures
from lada_kernels.training.grid import to_uint8
from lada_kernels.training.latents import latent_stream
from lada_kernels.training.metrics import frechet_metric, frechet_value, kernel_distance, precision_recall

SAMPLES = 10_000
KEPT = 50_000  # real images, drawn at random, whose features are kept: 400 MB of the Inception's


@dataclass(frozen=True)
class RealStatistics:
    """What a generator's features are compared with.

    Args:
        moments: torchmetrics' sums over the features of all real images, see `frechet_metric`.
        features: [n, F] float32 of at most `KEPT` real images, in random order.
    """

    moments: dict[str, Tensor]
    features: Tensor


class Evaluator:
    """Measures generators against one set of real images.

    Nothing is computed before the first `evaluate`; the real images' statistics are then read from ``folder``, or computed
    and written there, under a hash of the images' content, the net and the preprocessing.

    Args:
        net: where the features come from.
        images: the real ones, [n, 3, S, S] uint8, n >= 4.
        folder: of the statistics.
        samples: images to generate, at least 4.
        batch_size: images at a time, real and generated.
        seed: of the latents.
        progress: show bars.
        processes: those that generate the samples together, each its part; default this one alone.

    Raises:
        TrainingError: too few images or samples.
    """

    def __init__(
        self,
        net: FeatureNet,
        images: Tensor,
        folder: str | Path,
        *,
        samples: int = SAMPLES,
        batch_size: int = 64,
        seed: int = 0,
        progress: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        for name, value, least in (("samples", samples, 4), ("images", len(images), 4), ("batch_size", batch_size, 1)):
            if value < least:
                raise TrainingError(f"{name}: expected {least} or more, got {value}")
        import_extra("torchmetrics.image.fid")  # what is missing is said before samples are drawn
        self.net, self.images, self.folder = net, images, Path(folder)
        self.samples, self.batch_size, self.seed, self.progress, self.processes = samples, batch_size, seed, progress, processes
        self._real: RealStatistics | None = None

    @property
    def score(self) -> str:
        """Which of the figures tells better from worse: "fid", or "frechet" in other features; lower is better."""
        return "fid" if self.net.is_inception else "frechet"

    def evaluate(self, generator: nn.Module) -> dict[str, float]:
        """`figures` of the samples of a generator, such as the moving average; torch's random numbers stay as they were."""
        return self.figures(self.features(generator))

    @torch.no_grad()
    def features(self, generator: nn.Module) -> Tensor:
        """Draw samples, in evaluation mode, round them to bytes as a PNG would, and take their features.

        Several processes call it together, and each gets the features of all samples.

        Args:
            generator: latents [B, noise_dim] to images [B, 3, S, S] in [-1, 1], with an attribute ``noise_dim``.

        Returns:
            [samples, F] float32, on the generator's device.

        Raises:
            TrainingError: an image is not finite.
        """
        device = next(generator.parameters()).device
        self.net.to(device)
        latents = next(latent_stream(generator.noise_dim, self.samples, self.seed))
        mine = latents.tensor_split(self.processes.count)[self.processes.rank]
        was_training, parts, finite = generator.training, [], torch.ones((), dtype=torch.bool, device=device)
        generator.eval()
        try:
            with self._bar("samples", len(mine)) as bar:
                for z in mine.split(self.batch_size):
                    images = generator(z.to(device))
                    finite &= images.isfinite().all()
                    parts.append(self.net(to_uint8(images)))
                    bar.update(len(z))
        finally:
            generator.train(was_training)
        if self.processes.any(not finite):
            raise TrainingError("the generator draws values that are not finite")
        return self.processes.gather(torch.cat(parts))

    @torch.no_grad()
    def figures(self, features: Tensor) -> dict[str, float]:
        """How the samples' ``features`` [n, F] compare with the real images'.

        Returns:
            With the Inception ``fid``, ``kid`` (mean over 100 pairs of subsets of 1,000), ``kid_std``, ``precision`` and
            ``recall``; with any other net ``frechet`` in the place of the first, and neither of the next two. Fréchet distance
            is to all real images, KID to at most `KEPT` of them, precision and recall between as many of either kind.
        """
        real = self.real_statistics(features.device)
        metric = frechet_metric(features.shape[1], features.device)
        metric.load_state_dict(real.moments, strict=False)
        metric.to(features.device)
        metric.update(features.double(), real=False)
        figures = {self.score: frechet_value(metric)}
        kept = real.features.to(features.device)
        if self.net.is_inception:
            figures["kid"], figures["kid_std"] = kernel_distance(kept, features)
        number = min(len(kept), len(features))
        figures["precision"], figures["recall"] = precision_recall(kept[:number], features[:number])
        return figures

    def real_statistics(self, device: torch.device | str = "cpu") -> RealStatistics:
        """The real images' statistics, from memory, from ``folder``, or computed on ``device`` and written there."""
        if self._real is None:
            key = self._key()
            path = self.folder / f"{key[:16]}.pt"
            self._real = _read(path, key)
            if self._real is None:
                self._real = self._compute(torch.device(device))
                _write(self._real, path, key)
        return self._real

    def _key(self) -> str:
        """A hash of all that the statistics depend on."""
        digest = hashlib.sha256(f"{PREPROCESSING} {KEPT} {self.net.identity} {list(self.images.shape)}".encode())
        for block in self.images.split(1024):
            digest.update(block.contiguous().numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def _compute(self, device: torch.device) -> RealStatistics:
        self.net.to(device)
        metric = frechet_metric(self.net.width, device)
        random = torch.Generator().manual_seed(0)
        keep = torch.zeros(len(self.images), dtype=torch.bool)
        keep[torch.randperm(len(keep), generator=random)[:KEPT]] = True
        kept = []
        with self._bar("real images", len(self.images)) as bar:
            for pixels, wanted in zip(self.images.split(self.batch_size), keep.split(self.batch_size), strict=True):
                features = self.net(pixels.to(device))
                metric.update(features.double(), real=True)
                kept.append(features.cpu()[wanted])
                bar.update(len(pixels))
        features = torch.cat(kept)
        features = features[torch.randperm(len(features), generator=random)]
        moments = {name: value.cpu() for name, value in metric.state_dict().items() if name.startswith("real_")}
        return RealStatistics(moments, features)

    def _bar(self, what: str, total: int) -> Any:
        tqdm = import_extra("tqdm").tqdm
        return tqdm(total=total, desc=what, unit="image", leave=False, dynamic_ncols=True, disable=not self.progress)


def choose_features(config: Config, inception: str = "", sha256: str = "") -> FeatureNet:
    """The net that judges a run: the TorchScript file if one is named, or the classifier of the digits for a run on those.

    Args:
        config: of the run.
        inception: path or URL of the TF-ported Inception as a TorchScript file; empty: none.
        sha256: of that file, or how it begins; empty: not checked.

    Raises:
        TrainingError: no net is named and the images are not the digits, or the named one cannot be used.
    """
    if inception:
        return TorchScriptFeatures(inception, config.img_size, sha256)
    if config.data.source == "digits":
        return DigitFeatures(*load_digits(config.img_size))
    raise TrainingError(
        "inception: FID needs the TF-ported Inception as a TorchScript file, path or URL, and none is named; "
        f"NVIDIA publishes one: {INCEPTION_URL}"
    )


def make_evaluator(
    config: Config,
    images: Tensor,
    folder: str | Path,
    *,
    inception: str = "",
    sha256: str = "",
    **options: Any,
) -> Evaluator:
    """An `Evaluator` of a run, by the net of `choose_features`, with its statistics in ``folder``/real_statistics.

    ``options`` are those of `Evaluator`: samples, batch_size, seed, progress, processes.
    """
    net = choose_features(config, inception, sha256)
    return Evaluator(net, images, Path(folder) / "real_statistics", **options)


def _read(path: Path, key: str) -> RealStatistics | None:
    if not path.is_file():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored["key"] == key:
            return RealStatistics(stored["moments"], stored["features"])
        reason = f"holds the statistics of {stored['key']}"
    except Exception as error:  # on foreign bytes torch.load raises whatever its unpickler runs into
        reason = f"is not readable ({type(error).__name__})"
    print(f"warning: {path} {reason}; the real images are judged again", file=sys.stderr)
    return None


def _write(statistics: RealStatistics, path: Path, key: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save({"key": key, "moments": statistics.moments, "features": statistics.features}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # a file of this name is always a whole one
    except (OSError, RuntimeError) as error:  # torch's writer reports some disk errors as RuntimeError
        print(f"warning: cannot keep the real images' statistics in {path}: {error}", file=sys.stderr)
    finally:
        temporary.unlink(missing_ok=True)
