"""Synthetic points lie where they should, classes are equally frequent, randomness comes from the argument only."""

import numpy as np
import pytest
from scipy.optimize import minimize

from numdl.data import synthetic

MAKERS = {
    "peaks": (synthetic.peaks, 5),
    "circles": (synthetic.circles, 2),
    "ellipses": (synthetic.ellipses, 2),
    "swiss_roll": (synthetic.swiss_roll, 2),
    "spirals": (synthetic.spirals, 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_classes_and_randomness(name):
    make, classes = MAKERS[name]
    points = make(3, 200)
    assert points.features.shape == (200, 2) and points.features.dtype == np.float32
    assert points.labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(points.labels), [200 // classes] * classes)
    assert len(set(points.labels[: 200 // classes])) > 1, "the points come in a random order"
    np.testing.assert_array_equal(make(np.random.default_rng(3), 200).features, points.features)
    assert not np.array_equal(make(4, 200).features, points.features)
    state = np.random.get_state()[1].copy()
    make(5, 200)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_peaks_are_matlabs():
    """Values as MATLAB prints them for peaks(0), and the extremes found by scipy."""
    assert abs(synthetic.peaks_function(0.0, 0.0) - (3 / np.e - 1 / (3 * np.e))) < 1e-15
    low = minimize(lambda v: synthetic.peaks_function(*v), [0.2, -1.6], tol=1e-12).fun
    high = -minimize(lambda v: -synthetic.peaks_function(*v), [0.0, 1.6], tol=1e-12).fun
    assert abs(low - synthetic.LOWEST) < 1e-9 and abs(high - synthetic.HIGHEST) < 1e-9
    grid = synthetic.peaks_function(*np.meshgrid(np.linspace(-3, 3, 601), np.linspace(-3, 3, 601)))
    assert synthetic.LOWEST <= grid.min() < synthetic.LOWEST + 1e-3
    assert synthetic.HIGHEST - 1e-3 < grid.max() <= synthetic.HIGHEST


def test_peaks_are_classified_by_level():
    points = synthetic.peaks(0, 500)
    x, y = points.features.astype(float).T
    height = (synthetic.HIGHEST - synthetic.LOWEST) / 5
    expected = (synthetic.peaks_function(x, y) - synthetic.LOWEST) / height
    assert (np.abs(expected - (points.labels + 0.5)) < 0.5 + 1e-5).all()
    assert np.abs(points.features).max() <= 3
    assert set(synthetic.peaks(0, 30, classes=3).labels) == {0, 1, 2}


@pytest.mark.parametrize("axis", [1.0, 0.4, 0.25])
def test_rings(axis):
    points = synthetic.circles(0, 1000) if axis == 1 else synthetic.ellipses(0, 1000, axis=axis)
    x, y = points.features.astype(float).T
    radius = np.hypot(x, y / axis)
    assert (radius[points.labels == 0] <= 1 + 1e-6).all()
    assert (radius[points.labels == 1] >= 1 - 1e-6).all() and radius.max() <= 2 + 1e-6
    # Uniform radii: mean 1/2 and 3/2, variance 1/12.
    for label, mean in ((0, 0.5), (1, 1.5)):
        assert abs(radius[points.labels == label].mean() - mean) < 6 * np.sqrt(1 / 12 / 500)
    assert np.abs(np.arctan2(y / axis, x)).max() > 3


def test_swiss_roll_and_spirals_are_curves():
    points = synthetic.swiss_roll(0, 512)
    radius = np.hypot(*points.features.astype(float).T)
    np.testing.assert_allclose(np.sort(radius[points.labels == 0]), np.linspace(0, 1, 256), atol=1e-6)
    np.testing.assert_allclose(np.sort(radius[points.labels == 1]), np.linspace(0.2, 1.2, 256), atol=1e-6)
    for turns, arms in ((1.5, 2), (2.0, 3)):
        points = synthetic.spirals(0, 60 * arms, turns=turns, arms=arms)
        x, y = points.features.astype(float).T
        turn = np.arctan2(y, x) - 2 * np.pi * turns * np.hypot(x, y) - 2 * np.pi * points.labels / arms
        np.testing.assert_allclose(np.cos(turn), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["circles", "ellipses", "swiss_roll", "spirals"])
def test_noise_is_a_variance(name):
    make, _ = MAKERS[name]
    clean, noisy = (make(1, 4000, noise=noise) for noise in (0.0, 0.09))

    def spread(points):
        return (points.features.astype(float) ** 2).sum(axis=1)

    added = spread(noisy).mean() - spread(clean).mean()
    error = np.sqrt((spread(noisy).var() + spread(clean).var()) / 4000)
    assert abs(added - 2 * 0.09) < 6 * error


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: synthetic.peaks(0, 7), ValueError, "count must be a multiple of the 5 classes; got 7"),
        (lambda: synthetic.circles(0, 0), ValueError, "count .*got 0"),
        (lambda: synthetic.circles(0, True), TypeError, "count .*got True"),
        (lambda: synthetic.circles("seed", 2), TypeError, "random .*'seed'"),
        (lambda: synthetic.circles(None, 2), TypeError, "random .*None"),
        (lambda: synthetic.ellipses(0, 2, axis=0.0), ValueError, "axis must be a finite number > 0; got 0"),
        (lambda: synthetic.spirals(0, 2, turns=-1), ValueError, "turns must be a finite number > 0; got -1"),
        (lambda: synthetic.spirals(0, 2, arms=0), ValueError, "arms .*got 0"),
        (lambda: synthetic.swiss_roll(0, 2, noise=-0.1), ValueError, "noise must be a finite number >= 0; got -0.1"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
