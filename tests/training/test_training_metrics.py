import pytest
import torch

from lada_kernels.training.data import load_digits, to_float
from lada_kernels.training.metrics import frechet_distance, histogram, train_classifier


def test_classifier_is_good_enough_to_judge_by_and_reproducible():
    images, labels = load_digits(32)
    state = torch.get_rng_state()
    classifier, accuracy = train_classifier(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert accuracy >= 0.97
    counts = histogram(classifier, to_float(images))
    true = torch.bincount(labels).tolist()
    assert sum(counts) == 1797
    assert all(abs(a - b) <= 10 for a, b in zip(counts, true, strict=True))
    features = classifier.features(to_float(images))
    assert features.shape == (1797, 64)
    halves = frechet_distance(features[::2], features[1::2])
    inverted = frechet_distance(features, classifier.features(-to_float(images)))
    assert inverted > 50 * halves


def test_frechet_distance_of_gaussians_is_analytic():
    # Whitened samples have exactly the moments wanted, and commuting covariances give sum (s_a - s_b)^2.
    torch.manual_seed(0)

    def exactly(mean, deviation):
        x = torch.randn(500, 3, dtype=torch.float64)
        x = x - x.mean(0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
        return x * torch.tensor(deviation) + torch.tensor(mean)

    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    a, b = exactly([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), exactly([1.0, 2.0, -2.0], [2.0, 2.0, 0.5])
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(9 + 1 + 0 + 6.25, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    torch.manual_seed(0)
    a, b = torch.randn(60, 8).double(), torch.randn(50, 8).double() @ torch.randn(8, 8).double() + 1
    product = torch.cov(a.T) @ torch.cov(b.T)
    cross = linalg.sqrtm(product.numpy()).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
