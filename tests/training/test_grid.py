import numpy as np
import torch
from PIL import Image

from lada_kernels.training.grid import image_grid, save_grid


def test_one_value_range_for_the_whole_sheet(tmp_path):
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 7.0])
    path = tmp_path / "new" / "grid.png"
    save_grid(values[:, None, None, None].expand(-1, 3, 4, 4), path, columns=3)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    cells = [sheet[2 + 6 * (i // 3) : 6 + 6 * (i // 3), 2 + 6 * (i % 3) : 6 + 6 * (i % 3)] for i in range(6)]
    for cell, expected in zip(cells, [0, 64, 128, 191, 255, 255], strict=True):
        assert (cell == expected).all()
    assert (sheet[:2] == 128).all()
    assert (sheet[:, :2] == 128).all()


def test_uneven_count_leaves_the_rest_grey():
    sheet = image_grid(torch.full((3, 3, 2, 2), -1.0), pad=0)
    assert sheet.shape == (4, 4, 3)
    assert sheet.dtype == torch.uint8
    assert (sheet[2:, 2:] == 128).all()
    assert (sheet[:2] == 0).all()
