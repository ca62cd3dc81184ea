"""Drawing from Python."""

import dataclasses

import numpy as np
import pytest
import torch
from training.running import save_run

from lada_kernels.training import checkpoint
from lada_kernels.training.attention_maps import GAP, HEADER, STAGE_GAP, relative_to_uniform
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.grid import image_grid
from lada_kernels.training.loop import fixed_latents, sample
from lada_kernels.training.sampling import attention_maps, attention_sheet, draw, load_generator, walk
from lada_kernels.training.trainer import build_generator


@pytest.fixture
def run(tiny, generator, images):
    """A run with each of the small generators: its folder and what its checkpoint holds."""
    config = dataclasses.replace(tiny, generator=generator)
    return config.run.out, save_run(config, images)


def test_the_averaged_generator_draws(tiny, generator, run):
    folder, state = run
    config = dataclasses.replace(tiny, generator=generator)
    expected = build_generator(config).eval()
    expected.load_state_dict(state["ema"])
    images = sample(expected, fixed_latents(6, generator.noise_dim, 5))
    for path in (folder, f"{folder}/{checkpoint.LAST}"):
        loaded = load_generator(path, "cpu")
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        torch.testing.assert_close(draw(loaded, 6, seed=5, batch_size=4), images)
    expected.load_state_dict(state["generator"])
    assert (sample(expected, fixed_latents(6, generator.noise_dim, 5)) - images).abs().max() > 1e-3


def test_one_seed_is_one_image(run):
    generator = load_generator(run[0], "cpu")
    together, alone = draw(generator, seeds=[3, 8]), draw(generator, seeds=[8])
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(together[:1], draw(generator, 1, seed=3))


def test_a_walk_starts_at_the_images_of_its_seeds(run):
    generator = load_generator(run[0], "cpu")
    sheets = list(walk(generator, seeds=[3, 8], keys=3, frames=2, columns=1))
    assert len(sheets) == 6
    assert (sheets[0].int() - image_grid(draw(generator, seeds=[3, 8]), 1).int()).abs().max() <= 1
    assert len({sheet.numpy().tobytes() for sheet in sheets}) == 6


def test_maps_are_shares_of_the_attention(run, generator):
    model = load_generator(run[0], "cpu")
    z = fixed_latents(2, generator.noise_dim, 0)
    images, maps = attention_maps(model, z)
    drawn, weights = model(z, return_weights=True)
    torch.testing.assert_close(images, drawn)
    assert len(maps) == len(weights)
    for one, of in zip(maps, weights, strict=True):
        torch.testing.assert_close(one.sum((2, 3)), torch.ones(one.shape[:2]))
        if of.dim() == 3:  # one query: row by row
            assert torch.equal(one[1, 0, 1, 2], of[1, 0, one.shape[-1] + 2])
        else:  # what the token in row 1, column 2 gets from all
            torch.testing.assert_close(one[1, 0, 1, 2], sum(of[1, 0, query, 10] for query in range(64)) / 64)
    sheet = attention_sheet(images, maps)
    columns = 1 + sum(one.shape[1] for one in maps)
    cell = 32 * (1600 // (32 * columns))
    assert sheet.size == (columns * (cell + GAP) + len(maps) * STAGE_GAP + GAP, HEADER + 2 * (cell + GAP))


def test_shares_are_judged_by_what_an_equal_one_would_be():
    maps = torch.full((1, 3, 2, 2), 0.25)
    values, factor = relative_to_uniform(maps)
    assert values.abs().max() == 0
    maps[0, 1] = torch.tensor([[0.5, 0.25], [0.125, 0.125]])
    maps[0, 2] = torch.tensor([[1, 0], [0, 0]])
    values, factor = relative_to_uniform(maps)
    assert factor == pytest.approx(2)
    assert values.tolist() == [[[[0, 0], [0, 0]], [[1, 0], [-1, -1]], [[1, -1], [-1, -1]]]]


def test_colour_stands_where_the_attention_is():
    images = torch.zeros(1, 3, 8, 8)
    maps = torch.full((1, 3, 2, 2), 0.25)
    maps[0, 1:] = torch.tensor([[0.5, 0.25], [0.125, 0.125]])
    sheet = np.asarray(attention_sheet(images, [maps])).astype(int)
    cell = 8 * (1600 // 32)

    def at(column: int, row: float, across: float) -> list[int]:
        x = GAP + column * (cell + GAP) + (STAGE_GAP if column else 0)
        return sheet[HEADER + int(row * cell), x + int(across * cell)].tolist()

    assert at(0, 0.5, 0.5) == [128, 128, 128]
    grey = at(1, 0.25, 0.25)
    assert len(set(grey)) == 1
    assert at(1, 0.75, 0.75) == at(2, 0.25, 0.75) == grey  # an equal share
    red, _, blue = at(2, 0.25, 0.25)
    assert red > 180 > 60 > blue
    red, _, blue = at(2, 0.75, 0.75)
    assert red < 60 < 150 < blue
    assert (sheet[:HEADER] < 100).any()  # it is labelled


def test_nothing_to_draw_from(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint at"):
        load_generator(tmp_path)
