import math
from typing import get_args

import pytest
import torch
from torch import nn

from lada_kernels.training.losses import LOSSES, LossName, consistency, gradient_penalty, lecam_penalty, r1_penalty

REAL, FAKE = (0.5, -2.0, 1.25), (1.5, -3.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# By hand, of the logits above: D's loss and G's, and their slopes by each logit.
LOGISTIC = [math.log(1 + math.exp(x)) for x in (-0.5, 2.0, -1.25, 1.5, -3.0, -1.5, 3.0)]
BY_HAND = {
    "nonsaturating": (
        sum(LOGISTIC[:3]) / 3 + sum(LOGISTIC[3:5]) / 2,
        sum(LOGISTIC[5:]) / 2,
        [-sigmoid(-x) / 3 for x in REAL],
        [sigmoid(x) / 2 for x in FAKE],
        [-sigmoid(-x) / 2 for x in FAKE],
    ),
    "hinge": ((0.5 + 3 + 0) / 3 + (2.5 + 0) / 2, 0.75, [-1 / 3, -1 / 3, 0], [1 / 2, 0], [-1 / 2, -1 / 2]),
    "wasserstein": (-0.75 + 0.25 / 3, 0.75, [-1 / 3] * 3, [1 / 2] * 2, [-1 / 2] * 2),
    "least_squares": (
        (0.25 + 9 + 0.0625) / 6 + (2.25 + 9) / 4,
        (0.25 + 16) / 4,
        [-0.5 / 3, -3 / 3, 0.25 / 3],
        [1.5 / 2, -3 / 2],
        [0.5 / 2, -4 / 2],
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_slopes_are_those_by_hand(name):
    d_value, g_value, *slopes = BY_HAND[name]
    real = torch.tensor(REAL, dtype=torch.float64)[:, None].requires_grad_()  # [3, 1]
    fake = torch.tensor(FAKE, dtype=torch.float64)[None].requires_grad_()  # [1, 2]
    d_loss, g_loss = LOSSES[name].discriminator(real, fake), LOSSES[name].generator(fake)
    assert d_loss.shape == g_loss.shape == ()
    assert d_loss.item() == pytest.approx(d_value, rel=1e-12)
    assert g_loss.item() == pytest.approx(g_value, rel=1e-12)
    got = (*torch.autograd.grad(d_loss, (real, fake)), *torch.autograd.grad(g_loss, fake))
    for ours, truth in zip(got, slopes, strict=True):
        assert ours.flatten().tolist() == pytest.approx(truth, rel=1e-12, abs=1e-15)


def test_there_are_no_other_losses():
    assert LOSSES.keys() == BY_HAND.keys() == set(get_args(LossName))


def test_the_logistic_loss_survives_large_logits():
    large = torch.tensor([1000.0, -1000.0])
    assert LOSSES["nonsaturating"].discriminator(large, large).item() == 1000
    assert LOSSES["nonsaturating"].generator(large).item() == 500


def test_consistency_is_the_mean_square_and_moves_both_sides():
    logits = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    augmented = torch.tensor([[0.0, 4.0], [0.0, 2.0]], requires_grad=True)
    value = consistency(logits, augmented)
    assert value.item() == (1 + 4 + 0 + 9) / 4
    value.backward()
    assert logits.grad.tolist() == [[0.5, -1.0], [0.0, -1.5]]
    assert torch.equal(augmented.grad, -logits.grad)


def test_r1_of_a_quadratic_is_analytic():
    # logits_b = (<w, x_b>^2, <v, x_b>): d sum / dx = 2 <w, x> w + v.
    generator = torch.Generator().manual_seed(0)
    w, v = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_().unbind()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    dot = (x * w).sum((1, 2, 3))
    penalty = r1_penalty(torch.stack([dot**2, (x * v).sum((1, 2, 3))], 1), x)
    expected = (2 * dot[:, None, None, None] * w + v).square().sum() / 5
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    got = torch.autograd.grad(penalty, [w, v], retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, [w, v]), rtol=1e-12, atol=0)


def test_r1_gradient_by_parameters_matches_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)

    def penalty() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return r1_penalty(model(leaf), leaf)

    penalty().backward()
    weight, step = model[0].weight, 1e-6
    for index in range(0, weight.numel(), 5):
        flat = weight.data.view(-1)
        flat[index] += step
        above = penalty().item()
        flat[index] -= 2 * step
        below = penalty().item()
        flat[index] += step
        assert weight.grad.view(-1)[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-6)


def test_the_gradient_penalty_of_a_quadratic_is_analytic():
    # logits_b = <w, x_b>^2: the slope is 2 <w, x> w.
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    dot = (x * w).sum((1, 2, 3))
    penalty = gradient_penalty(dot[:, None] ** 2, x)
    expected = ((2 * dot).abs() * w.square().sum().sqrt() - 1).square().mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    got = torch.autograd.grad(penalty, w, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, w), rtol=1e-12, atol=0)


def test_lecam_by_hand():
    real, fake = torch.tensor([1.0, -3.0], requires_grad=True), torch.tensor([0.5, 4.0], requires_grad=True)
    value = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))
    assert value.item() == (2**2 + 0) / 2 + (1.5**2 + 0) / 2
    value.backward()
    assert real.grad.tolist() == [2.0, 0.0]
    assert fake.grad.tolist() == [-1.5, 0.0]


def test_r1_refuses_what_cannot_be_right():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"reals.*requires_grad"):
        r1_penalty(x.sum((1, 2, 3)), x)
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"real_logits.*bfloat16"):
        r1_penalty(x.sum((1, 2, 3)).bfloat16(), x)
