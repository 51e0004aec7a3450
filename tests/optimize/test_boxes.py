"""Overlap of boxes against areas counted exactly and by grid points, and what the loss is there for."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.optimize import boxes

pytestmark = pytest.mark.float32


def counted(a, b):
    """(intersection over union, generalized) of boxes with integer corners, by unit squares."""
    squares = [
        {(i, j) for i in range(*sorted((box[0], box[2]))) for j in range(*sorted((box[1], box[3])))} for box in (a, b)
    ]
    rows, columns = (sorted((a[k], a[k + 2], b[k], b[k + 2])) for k in (0, 1))
    hull = (rows[-1] - rows[0]) * (columns[-1] - columns[0])
    both, either = len(squares[0] & squares[1]), len(squares[0] | squares[1])
    overlap = fractions.Fraction(both, either)
    return float(overlap), float(overlap - fractions.Fraction(hull - either, hull))


@pytest.fixture(scope="module")
def pairs():
    """Corners in any order, boxes apart, inside each other, touching, one of them without an area."""
    drawn = np.random.default_rng(0).integers(-4, 5, (200, 2, 4))
    area = lambda box: abs((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]))  # noqa: E731
    return drawn[(area(drawn) > 0).any(axis=1)]


def test_overlap_is_that_of_unit_squares(pairs):
    exact = np.array([counted(a.tolist(), b.tolist()) for a, b in pairs])
    assert (exact[:, 0] == 0).any()
    assert ((exact[:, 0] > 0) & (exact[:, 0] < 1)).any()
    first, second = (jnp.asarray(part, jnp.result_type(float)) for part in np.swapaxes(pairs, 0, 1))
    tolerance = 8 * float(jnp.finfo(first.dtype).eps)
    np.testing.assert_allclose(boxes.intersection_over_union(first, second), exact[:, 0], atol=tolerance)
    np.testing.assert_allclose(boxes.generalized(first, second), exact[:, 1], atol=tolerance)


def test_of_one_box_and_of_many_axes(pairs):
    first, second = (jnp.asarray(part[:12], jnp.result_type(float)) for part in np.swapaxes(pairs, 0, 1))
    for function in (boxes.intersection_over_union, boxes.generalized):
        flat = function(first, second)
        assert flat.shape == (12,)
        np.testing.assert_array_equal(function(first.reshape(3, 4, 4), second.reshape(3, 4, 4)), flat.reshape(3, 4))
        np.testing.assert_array_equal(jax.vmap(jax.jit(function))(first, second), flat)
        assert function(first[0], second[0]).shape == ()


def test_whatever_cannot_be_said_is_nan():
    nothing, box = jnp.zeros(4), jnp.asarray([0.0, 0.0, 1.0, 1.0])
    for function in (boxes.intersection_over_union, boxes.generalized):
        assert np.isnan(function(nothing, nothing))
        assert np.isnan(function(box.at[2].set(jnp.nan), box))
    assert boxes.intersection_over_union(nothing, box) == 0


def test_small_errors_of_edges_add_up_over_the_extents():
    """1 - IoU against its first order, with a remainder that falls as the square."""
    box, error = np.array([3.0, -2.0, 7.0, 8.0]), np.array([0.3, -0.2, -0.5, 0.7])
    first = np.sum(np.abs(error) / np.array([4.0, 10.0, 4.0, 10.0]))
    sizes = np.array([1e-1, 1e-2])
    found = [1 - boxes.intersection_over_union(jnp.asarray(box + h * error), jnp.asarray(box)) for h in sizes]
    left = np.abs(np.asarray(found) - sizes * first)
    assert 50 < left[0] / left[1] < 200


def test_generalized_has_a_slope_where_boxes_are_apart():
    apart, box = jnp.asarray([5.0, 5.0, 6.0, 6.0]), jnp.asarray([0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(jax.grad(boxes.intersection_over_union)(apart, box), 0)
    towards = jax.grad(boxes.generalized)(apart, box)
    assert np.all(np.isfinite(towards))
    assert towards[:2].sum() < 0 or towards[2:].sum() < 0
    moved = boxes.generalized(apart - 1.0, box)
    assert moved > boxes.generalized(apart, box)


@pytest.mark.parametrize("function", [boxes.intersection_over_union, boxes.generalized])
def test_bad_boxes_are_named(function):
    good = jnp.ones((3, 4))
    for bad, name in ((jnp.ones((3, 5)), "boxes"), (jnp.ones((4, 3, 4), int), "boxes")):
        with pytest.raises((ValueError, TypeError), match=name):
            function(bad, good)
    with pytest.raises(ValueError, match="targets must have shape .*3, 4.*got.*4,"):
        function(good, jnp.ones(4))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_areas_of_half_precision_boxes_are_not_those_of_half_precision(dtype):
    """300 x 300 is beyond float16, and bfloat16 knows three digits of it."""
    found = boxes.intersection_over_union(jnp.array([0, 0, 288, 288], dtype), jnp.array([0, 0, 288, 272], dtype))
    assert float(found) == pytest.approx(272 / 288, rel=1e-6)
