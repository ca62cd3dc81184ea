import pytest
import torch

from lada_kernels.training.augment import augment, color, cutout, translation


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_color_draws_once_per_sample_from_the_stated_ranges():
    x = torch.rand(4000, 3, 4, 4, dtype=torch.float64) * 2 - 1
    y = color(x)
    # Brightness alone moves the mean; saturation alone scales the chroma, contrast everything about the mean.
    shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert -0.5 <= shift.min() < -0.49
    assert 0.49 < shift.max() <= 0.5
    assert shift.var().item() == pytest.approx(1 / 12, rel=0.05)
    grey_x, grey_y = x.mean(1), y.mean(1)
    spread_x, spread_y = (g - g.mean((1, 2), keepdim=True) for g in (grey_x, grey_y))
    contrast = (spread_x * spread_y).sum((1, 2)) / spread_x.square().sum((1, 2))
    assert 0.5 <= contrast.min() < 0.51
    assert 1.49 < contrast.max() <= 1.5
    torch.testing.assert_close(spread_y, contrast[:, None, None] * spread_x)
    chroma_x, chroma_y = x - grey_x[:, None], y - grey_y[:, None]
    scale = (chroma_x * chroma_y).sum((1, 2, 3)) / chroma_x.square().sum((1, 2, 3))
    torch.testing.assert_close(chroma_y, scale[:, None, None, None] * chroma_x)
    saturation = scale / contrast
    assert 0 <= saturation.min() < 0.01
    assert 1.99 < saturation.max() <= 2
    assert abs(torch.corrcoef(torch.stack([shift, contrast, saturation])).triu(1)).max() < 0.05


def test_translation_shifts_whole_pixels_and_fills_with_zero():
    x = torch.rand(2000, 1, 16, 8) + 1
    seen = set()
    for before, after in zip(x[:, 0], translation(x)[:, 0], strict=True):
        rows, columns = after.any(1).nonzero().flatten(), after.any(0).nonzero().flatten()
        dy = 16 - len(rows) if rows[-1] == 15 else len(rows) - 16
        dx = 8 - len(columns) if columns[-1] == 7 else len(columns) - 8
        expected = torch.zeros_like(before)
        expected[max(dy, 0) : 16 + min(dy, 0), max(dx, 0) : 8 + min(dx, 0)] = before[
            max(-dy, 0) : 16 + min(-dy, 0), max(-dx, 0) : 8 + min(-dx, 0)
        ]
        assert torch.equal(after, expected)
        seen.add((dy, dx))
    assert seen == {(dy, dx) for dy in range(-2, 3) for dx in range(-1, 2)}


def test_cutout_blanks_half_of_each_side_anywhere():
    blank = cutout(torch.ones(5000, 2, 8, 8)) == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    heights, widths = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(heights * widths, blank[:, 0].sum((1, 2)))  # a rectangle
    for sizes in (heights, widths):
        # Nine centres, 0 to 8: the window of four is whole for five of them, else 3 or 2 pixels remain.
        share = torch.bincount(sizes, minlength=5).double() / 5000
        torch.testing.assert_close(share, torch.tensor([0, 0, 2 / 9, 2 / 9, 5 / 9]).double(), atol=0.03, rtol=0)


def test_gradients_flow_to_the_images():
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return augment(x, ("color", "translation", "cutout"))

    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)


def test_empty_policy_is_identity_and_unknown_names_are_refused():
    x = torch.rand(2, 3, 8, 8)
    assert augment(x, ()) is x
    with pytest.raises(ValueError, match=r"'mixup'.*color.*translation.*cutout"):
        augment(x, ("mixup",))
