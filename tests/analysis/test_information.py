"""Information of tables, bins and noisy states against closed forms, SciPy and integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from numdl.analysis import information

WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def test_tables():
    rng = np.random.default_rng(0)
    table = rng.random((4, 5))
    table /= table.sum()
    table[0] += table[1]
    table[1] = 0
    assert information.entropy(table) == pytest.approx(stats.entropy(table.ravel()), rel=1e-12)
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    divergence = stats.entropy(table.ravel(), np.outer(rows, columns).ravel())
    assert information.mutual_information(table) == pytest.approx(divergence, rel=1e-10)
    assert information.mutual_information(np.outer(rows, columns)) == pytest.approx(0, abs=1e-12)
    assert information.mutual_information(np.eye(3) / 3) == pytest.approx(np.log(3))
    flip = 0.1  # a binary symmetric channel
    channel = np.array([[1 - flip, flip], [flip, 1 - flip]]) / 2
    capacity = np.log(2) - stats.entropy([flip, 1 - flip])
    assert information.mutual_information(channel) == pytest.approx(capacity)
    for wrong, text in (
        ([0.5, 0.6], "probabilities must sum to 1; got 1.1"),
        ([1.5, -0.5], "probabilities must be .*-0.5"),
    ):
        with pytest.raises(ValueError, match=text):
            information.entropy(wrong)


def test_bins_by_hand():
    """Four examples in one dimension: what is known falls as bins grow, and depends on where they lie."""
    states, labels = np.array([[0.1], [0.2], [0.9], [1.3]]), np.array([0, 0, 1, 1])
    found = information.binned(states, labels, widths=[0.05, 0.5, 1.0, 4.0])
    np.testing.assert_allclose(found.inputs, [np.log(4), 1.5 * np.log(2), stats.entropy([3, 1]), 0], atol=1e-12)
    last = stats.entropy([3, 1]) - 0.5 * np.log(2)
    np.testing.assert_allclose(found.labels, [np.log(2), np.log(2), last, 0], atol=1e-12)
    np.testing.assert_array_equal(found.occupied, [4, 3, 2, 1])
    rng = np.random.default_rng(1)
    states, labels = rng.normal(size=(60, 2, 2)), rng.integers(0, 3, 60)
    found = information.binned(states, labels, widths=2.0)
    cells = [tuple(np.floor(s / 2.0).ravel()) for s in states]
    joint = {}
    for cell, label in zip(cells, labels):
        joint[cell, label] = joint.get((cell, label), 0) + 1
    counts = [
        stats.entropy(list(c))
        for c in (np.unique(cells, axis=0, return_counts=True)[1], np.bincount(labels), joint.values())
    ]
    np.testing.assert_allclose([found.inputs[0], found.labels[0]], [counts[0], counts[0] + counts[1] - counts[2]])


@pytest.mark.float32
def test_bounds_against_brute_force():
    rng = np.random.default_rng(2)
    states, labels = rng.normal(size=(30, 2, 2)), rng.integers(0, 3, 30)
    variances = [0.01, 0.3, 5.0]
    found = information.kernel_bounds(jnp.asarray(states, WIDEST), labels, noise_variances=variances)
    flat = states.reshape(30, -1)

    def bound(points, scale):
        return -np.mean([np.log(np.mean([np.exp(-np.sum((a - b) ** 2) / scale) for b in points])) for a in points])

    for i, variance in enumerate(variances):
        low, high = bound(flat, 8 * variance), bound(flat, 2 * variance)
        given = [
            sum(np.mean(labels == c) * bound(flat[labels == c], factor * variance) for c in range(3))
            for factor in (8, 2)
        ]
        most = stats.entropy(np.bincount(labels))
        expected = [low, high, np.clip(low - given[1], 0, most), np.clip(high - given[0], 0, most)]
        got = [found.inputs_low[i], found.inputs_high[i], found.labels_low[i], found.labels_high[i]]
        np.testing.assert_allclose(got, expected, atol=300 * EPS)


def test_bounds_contain_the_information_of_a_gaussian_mixture():
    """One dimension, six centres: the entropy by integration lies between, and both ends are reached in the limits."""
    centres, labels = np.array([-3.0, -2.6, -0.5, 0.0, 1.0, 4.0]), np.array([0, 0, 1, 1, 1, 0])
    variances = np.array([1e-6, 0.02, 0.1, 0.5, 2.0, 1e6])
    found = information.kernel_bounds(centres[:, None], labels, noise_variances=variances)

    def information_of(points, variance):
        s = np.sqrt(variance)

        def density(t):
            return np.mean([stats.norm.pdf(t, c, s) for c in points])

        def integrand(t):
            p = density(t)
            return -p * np.log(p) if p > 0 else 0.0

        marks = sorted(points)
        ends = min(points) - 12 * s, max(points) + 12 * s
        total = integrate.quad(integrand, *ends, points=marks, limit=400, epsabs=1e-9)[0]
        return total - 0.5 * np.log(2 * np.pi * np.e * variance)

    for i in range(1, 5):
        inputs = information_of(centres, variances[i])
        assert found.inputs_low[i] < inputs < found.inputs_high[i]
        told = inputs - sum(0.5 * information_of(centres[labels == c], variances[i]) for c in (0, 1))
        assert found.labels_low[i] <= told <= found.labels_high[i]
        assert found.labels_high[i] - found.labels_low[i] < np.log(2)
    np.testing.assert_allclose([found.inputs_low[0], found.inputs_high[0]], np.log(6), rtol=1e-9)
    np.testing.assert_allclose([found.labels_low[0], found.labels_high[0]], np.log(2), rtol=1e-9)
    np.testing.assert_allclose([found.inputs_low[-1], found.inputs_high[-1], found.labels_low[-1]], 0, atol=1e-4)


def test_the_conclusion_depends_on_the_width_of_the_bins():
    """States that shrink towards 0 lose information in fixed bins and none in bins that shrink along."""
    rng = np.random.default_rng(3)
    states, labels = rng.normal(size=(80, 2)), rng.integers(0, 2, 80)
    times = np.stack([states, states / 4, states / 64])
    layers = [times, 2 * times]
    found = information.plane(layers, labels, widths=[0.5, 1e-4])
    assert found.inputs_low.shape == (3, 2, 2)
    assert np.all(np.diff(found.inputs_low[:, 0, 0]) < 0)
    np.testing.assert_allclose(found.inputs_low[:, 0, 1], np.log(80))
    one = information.binned(layers[1][2], labels, widths=[0.5, 1e-4])
    np.testing.assert_array_equal(found.inputs_high[2, 1], one.inputs)
    np.testing.assert_array_equal(found.labels_low[2, 1], one.labels)
    np.testing.assert_array_equal(found.scales, [0.5, 1e-4])
    noisy = information.plane(layers, labels, noise_variances=[0.1])
    bounds = information.kernel_bounds(layers[1][0], labels, noise_variances=0.1)
    expected = [bounds.inputs_low, bounds.inputs_high, bounds.labels_low, bounds.labels_high]
    got = [noisy.inputs_low, noisy.inputs_high, noisy.labels_low, noisy.labels_high]
    np.testing.assert_allclose([a[0, 1] for a in got], expected, rtol=1e-12)
    assert noisy.labels_low.shape == (3, 2, 1) and jax.tree.leaves(noisy)


def test_bad_arguments_are_named():
    states, labels = np.ones((3, 2)), np.array([0, 1, 1])
    for text, call in (
        (r"labels must have shape \(3\)", lambda: information.binned(states, labels[:2], widths=[1.0])),
        ("widths must be .* > 0; got 0", lambda: information.binned(states, labels, widths=[0.0])),
        ("states must be finite", lambda: information.binned(states * np.nan, labels, widths=[1.0])),
        (
            "noise_variances must be .* > 0; got -1",
            lambda: information.kernel_bounds(states, labels, noise_variances=-1.0),
        ),
        (
            "exactly one of widths and noise_variances must be given; got neither",
            lambda: information.plane([states[None]], labels),
        ),
        ("one number of times", lambda: information.plane([states[None], np.ones((2, 3, 1))], labels, widths=[1.0])),
    ):
        with pytest.raises(ValueError, match=text):
            call()
