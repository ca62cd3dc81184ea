import math

import pytest
import torch
from torch import nn

from lada_kernels.training.losses import discriminator_loss, generator_loss, r1_penalty


def test_logistic_losses_match_their_formula():
    real, fake = torch.tensor([[0.5, -2.0]]), torch.tensor([[1.5], [-3.0]])
    softplus = [math.log1p(math.exp(x)) for x in (-0.5, 2.0, 1.5, -3.0, -1.5, 3.0)]
    assert discriminator_loss(real, fake).item() == pytest.approx(sum(softplus[:4]) / 2)
    assert generator_loss(fake).item() == pytest.approx(sum(softplus[4:]) / 2)


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


def test_r1_refuses_what_cannot_be_right():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"reals.*requires_grad"):
        r1_penalty(x.sum((1, 2, 3)), x)
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"real_logits.*bfloat16"):
        r1_penalty(x.sum((1, 2, 3)).bfloat16(), x)
