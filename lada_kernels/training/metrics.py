"""How good generated digits are: a classifier of the real ones, class histogram, Fréchet distance.

The distance is taken in this classifier's features. It is *not* FID, and comparable only to itself.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lada_kernels.training.data import to_float

CLASSES = 10


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


def histogram(classifier: DigitClassifier, images: Tensor) -> list[int]:
    """How many of ``images`` [n, 3, S, S], float in [-1, 1], fall into each of the ten classes."""
    return torch.bincount(classifier(images).argmax(1), minlength=CLASSES).tolist()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

    ``|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2)``, covariances A and B unbiased, in float64.

    Args:
        a: [n, F], n >= 2.
        b: [m, F], m >= 2.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)  # [F, F]
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)
