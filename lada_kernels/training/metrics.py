"""How far generated images are from real ones, from features of both; and a classifier of the digits to take them from.

Fréchet and kernel distance are torchmetrics'. They are FID and KID only where the features are the TF-ported Inception's:
in another net's they are comparable only to themselves.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lada_kernels.training.data import to_float
from lada_kernels.training.errors import import_extra

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

CLASSES = 10
BLOCK = 2**24  # distances that are held at a time: 64 MiB


class DigitClassifier(nn.Module):
    """A small convolutional net for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(16),  # the digits are enlarged from 8x8, 16x16 loses nothing
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to the penultimate layer, [B, 64]."""
        return self.body(images.mean(dim=1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to logits [B, 10]."""
        return self.head(self.features(images))


@torch.enable_grad()  # whoever asks
def train_classifier(images: Tensor, labels: Tensor, epochs: int = 15, seed: int = 0) -> tuple[DigitClassifier, float]:
    """Train on four fifths of the digits and judge on the rest.

    Args:
        images: [n, 3, S, S] uint8, S >= 16.
        labels: [n] int64 in 0..9.
        epochs: passes over the training part.
        seed: of the split, the weights and the batches; torch's own generator is left as it was.

    Returns:
        The classifier in eval mode, and its accuracy (0..1) on the held-out fifth.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train, held_out = torch.randperm(len(images)).split([len(images) - len(images) // 5, len(images) // 5])
        model = DigitClassifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in train[torch.randperm(len(train))].split(64):
                optimizer.zero_grad()
                cross_entropy(model(to_float(images[batch])), labels[batch]).backward()
                optimizer.step()
    model.requires_grad_(False).eval()
    accuracy = (model(to_float(images[held_out])).argmax(1) == labels[held_out]).double().mean().item()
    return model, accuracy


def histogram(classifier: DigitClassifier, features: Tensor) -> list[int]:
    """How many images fall into each of the ten classes, by their ``features`` [n, 64]."""
    return torch.bincount(classifier.head(features).argmax(1), minlength=CLASSES).tolist()


_ALONE = {"sync_on_compute": False}  # else torchmetrics would wait for all processes of a training, of which one evaluates


class GivenFeatures(nn.Module):
    """Hands features through: with it, torchmetrics' metrics take features [n, F] where they otherwise take images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """[n, F] as it is."""
        return features


def frechet_metric(num_features: int, device: torch.device | str = "cpu") -> "FrechetInceptionDistance":
    """torchmetrics' Fréchet distance of features, to be updated with float64 [n, F], batch by batch."""
    fid = import_extra("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(feature=GivenFeatures(num_features), **_ALONE)
    metric.persistent(True)  # its sums are its state_dict
    return metric.to(device)


def frechet_value(metric: "FrechetInceptionDistance") -> float:
    """The distance of what has been summed up, on the CPU: not every torch for GPUs finds a general matrix's eigenvalues."""
    return max(metric.cpu().compute().item(), 0.0)


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features, in float64, by torchmetrics.

    ``|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((AB)^1/2)``, covariances A and B unbiased. Of the Inception's features, FID.

    Args:
        real: [n, F], n >= 2.
        fake: [m, F], m >= 2.
    """
    metric = frechet_metric(real.shape[1], real.device)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return frechet_value(metric)


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (<a, b> / F + 1)^3, unbiased, in float64, by torchmetrics.

    Of the Inception's features, KID (Binkowski et al., arXiv 1801.01401).

    Args:
        real: [n, F], n >= 2.
        fake: [m, F], m >= 2.
        subsets: how many random pairs of subsets are compared.
        size: images in a subset, or n or m where there are fewer.
        seed: of the subsets; torch's own generator is left as it was.

    Returns:
        Mean and standard deviation over the subsets.
    """
    kid = import_extra("torchmetrics.image.kid")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")  # they are in memory anyway
        metric = kid.KernelInceptionDistance(
            feature=GivenFeatures(real.shape[1]), subsets=subsets, subset_size=min(size, len(real), len(fake)), **_ALONE
        )
    metric.to(real.device)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    Around every feature of a set lies a ball that reaches its k-th nearest neighbour in the set. Precision is the share of
    fakes that lie in a ball of the reals, recall the share of reals in a ball of the fakes. Both depend on how many features
    there are: the authors take as many of either kind.

    Args:
        real: [n, F], n > k.
        fake: [m, F], m > k.
        k: 3 in the paper.

    Raises:
        ValueError: too few features.
    """
    for name, features in (("real", real), ("fake", fake)):
        if len(features) <= k:
            raise ValueError(f"{name} must hold more than k={k} features, got {len(features)}")
    return _share_within(fake, real, k), _share_within(real, fake, k)


def _share_within(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of ``points`` [m, F] that lie in the ball of at least one of ``centres`` [n, F]."""
    rows = max(1, BLOCK // len(centres))
    radii = []
    for first in range(0, len(centres), rows):
        distances = torch.cdist(centres[first : first + rows], centres)  # [rows, n]
        own = torch.arange(len(distances), device=centres.device)
        distances[own, own + first] = torch.inf
        radii.append(distances.topk(k, largest=False).values[:, -1])
    reach = torch.cat(radii)  # [n]
    within = sum((torch.cdist(block, centres) <= reach).any(1).sum() for block in points.split(rows))
    return int(within) / len(points)
