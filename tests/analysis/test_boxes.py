"""Box counting on sets whose dimension is known: curves, areas, dust, gaskets, and the corners of a grid by hand."""

import itertools

import numpy as np
import pytest

from numdl.analysis import landscape
from tests.doors import bad, refused

POWER = 6
SIDE = 2**POWER


def gasket(power):
    """Sierpinski's triangle: cells whose coordinates share no binary digit."""
    i = np.arange(2**power)
    return (i[:, None] & i[None, :]) == 0


def carpet(power):
    """Sierpinski's carpet, by its own rule."""
    cell = np.ones((1, 1), bool)
    for _ in range(power):
        hole = np.zeros_like(cell)
        cell = np.block([[cell, cell, cell], [cell, hole, cell], [cell, cell, cell]])
    return cell


def dust(power):
    """Cantor's set on a line."""
    cell = np.ones(1, bool)
    for _ in range(power):
        cell = np.concatenate([cell, np.zeros_like(cell), cell])
    return cell


@pytest.mark.parametrize(
    "marked, sizes, expected",
    [
        (np.ones((SIDE, SIDE), bool), None, 2.0),
        (np.ones((16, 16, 16), bool), None, 3.0),
        (np.arange(SIDE)[:, None] == np.arange(SIDE)[None, :], None, 1.0),
        (np.broadcast_to(np.arange(SIDE)[:, None] == 5, (SIDE, SIDE)), None, 1.0),
        (gasket(POWER), None, np.log2(3)),
        (carpet(4), (1, 3, 9, 27), np.log(8) / np.log(3)),
        (dust(7), (1, 3, 9, 27, 81), np.log(2) / np.log(3)),
    ],
    ids=["square", "cube", "diagonal", "row", "gasket", "carpet", "dust"],
)
def test_exact_at_every_size(marked, sizes, expected):
    found = landscape.box_dimension(marked, sizes=sizes)
    np.testing.assert_allclose(found.local, expected, rtol=1e-12)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.counts[0] == np.count_nonzero(marked)


def test_a_point_has_dimension_0_and_nothing_has_none():
    point = np.zeros((SIDE, SIDE), bool)
    assert np.isnan(landscape.box_dimension(point).value)
    assert np.isnan(landscape.box_dimension(point).local).all()
    point[3, 40] = True
    found = landscape.box_dimension(point)
    assert found.value == 0
    assert (found.counts == 1).all()


def test_the_koch_curve():
    """Four maps of a third of the size: ln 4 / ln 3, but for what a grid cuts off."""
    points = np.array([0.0, 1.0 + 0j])
    for _ in range(7):
        steps = np.diff(points)[:, None] / 3
        corners = np.cumsum(steps * np.exp(1j * np.pi / 3 * np.array([0, 1, -1])), axis=1)
        points = np.append(np.concatenate([points[:-1, None], points[:-1, None] + corners], axis=1).ravel(), points[-1])
    marked = np.zeros((512, 512), bool)
    marked[(points.real * 511).astype(int), (points.imag * 511 + 100).astype(int)] = True
    assert landscape.box_dimension(marked).value == pytest.approx(np.log(4) / np.log(3), abs=0.04)


@pytest.mark.parametrize("shape", [(7,), (9, 31), (8, 10, 13)])
def test_counts_are_those_of_loops(shape):
    marked = np.random.default_rng(0).random(shape) < 0.05
    found = landscape.box_dimension(marked, sizes=(1, 2, 3, 5))
    for size, count in zip(found.sizes, found.counts, strict=True):
        boxes = {tuple(place // size) for place in np.argwhere(marked)}
        assert count == len(boxes)


@pytest.mark.parametrize("shape", [(9,), (5, 7), (3, 4, 5)])
def test_the_border_is_where_the_corners_differ(shape):
    inside = np.random.default_rng(1).random(shape) < 0.8
    found = landscape.boundary(inside)
    assert found.shape == tuple(n - 1 for n in shape)
    for place in np.ndindex(*found.shape):
        corners = {bool(inside[c]) for c in itertools.product(*((i, i + 1) for i in place))}
        assert found[place] == (len(corners) == 2)


def test_a_circle_has_a_smooth_border():
    x = np.linspace(-1, 1, 257)
    border = landscape.boundary(x[:, None] ** 2 + x[None, :] ** 2 < 0.6)
    assert landscape.box_dimension(border).value == pytest.approx(1.0, abs=0.03)


GRID = np.zeros((8, 8), bool)
DOORS = [
    bad(lambda: landscape.boundary(GRID[:1]), "inside", shown="(1, 8)"),
    bad(lambda: landscape.boundary(GRID.astype(float)), "inside", shown="float64"),
    bad(lambda: landscape.boundary(True), "inside"),
    bad(lambda: landscape.box_dimension(GRID.astype(int)), "marked", shown="int64"),
    bad(lambda: landscape.box_dimension(GRID[:6]), "marked", shown="(6, 8)"),
    bad(lambda: landscape.box_dimension(GRID, sizes=(2, 2)), "sizes", shown="(2, 2)"),
    bad(lambda: landscape.box_dimension(GRID, sizes=(4, 9)), "sizes", shown="(4, 9)"),
    bad(lambda: landscape.box_dimension(GRID, sizes=(4,)), "sizes", shown="(4,)"),
]


@pytest.mark.parametrize("row", DOORS, ids=str)
def test_doors(row):
    refused(row)


def test_the_smallest_grids_that_are_let_in():
    assert landscape.box_dimension(GRID[:7]).sizes.tolist() == [1, 2]
    assert landscape.box_dimension(GRID[:6], sizes=(1, 6)).sizes.tolist() == [1, 6]
    assert landscape.boundary(GRID[:2]).shape == (1, 7)
