"""Verdicts: Student's interval by scipy against the thresholds, networks whose growth is known, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numdl.analysis import gradients
from numdl.audit import verdicts
from numdl.networks import dense, initializers

pytestmark = pytest.mark.float32


def lines(change, spread, seeds=20, depth=11, seed=0):
    """Samples whose change from y_L to y_1 is known for each seed."""
    changes = change + spread * stats.zscore(np.random.default_rng(seed).normal(size=seeds), ddof=1)
    return changes[:, None] * np.linspace(1, 0, depth)[None, :] + 3.0, changes


@pytest.mark.parametrize(
    "change, spread, kind",
    [
        (-10.0, 1.0, "vanishing"),
        (10.0, 1.0, "exploding"),
        (5.0, 1.0, "stable"),
        (-5.0, 1.0, "stable"),
        (6.2, 1.0, "undecided"),
        (-5.8, 1.0, "undecided"),
        (0.0, 20.0, "undecided"),
    ],
)
def test_verdict_is_the_interval_against_the_threshold(change, spread, kind):
    samples, _ = lines(change, spread)
    found = verdicts.gradients(samples)
    assert found.kind == kind
    half = stats.t.ppf(0.975, 19) * spread / np.sqrt(20)
    assert (found.low, found.high) == (pytest.approx(change - half), pytest.approx(change + half))
    assert found.growth == pytest.approx(change / 10)
    assert found.growth_stderr == pytest.approx(spread / np.sqrt(20) / 10)
    assert (found.spread, found.threshold, found.dead) == (pytest.approx(spread), pytest.approx(6.0), 0.0)


def test_factor_and_confidence_move_the_verdict():
    samples, _ = lines(5.0, 1.0)
    assert verdicts.gradients(samples, factor=10.0).kind == "exploding"
    near, _ = lines(6.3, 1.0)
    assert verdicts.gradients(near, confidence=0.5).kind == "exploding"
    assert verdicts.gradients(near, confidence=0.999).kind == "undecided"


def test_verdict_counts_dead_networks_apart():
    samples, changes = lines(2.0, 1.0)
    samples[:5, 0] = -np.inf
    found = verdicts.gradients(samples)
    assert (found.kind, found.dead) == ("stable", 0.25)
    assert found.change == pytest.approx(changes[5:].mean())
    samples[:, 0] = -np.inf
    assert (verdicts.gradients(samples).kind, verdicts.gradients(samples).dead) == ("vanishing", 1.0)
    samples[:, 0] = np.nan
    assert verdicts.gradients(samples).kind == "undecided"


@pytest.mark.parametrize("weight_variance, kind", [(0.5, "vanishing"), (9.0, "exploding"), (1.0, "stable")])
def test_verdict_of_orthogonal_linear_networks(key, weight_variance, kind):
    """The change is (L - 1) ln weight_variance without any spread."""
    net = dense.network(
        widths=(5,) * 22,
        activation=lambda z: z,
        initializer=initializers.orthogonal(weight_variance),
        bias_variance=0.0,
    )
    found = verdicts.gradients(gradients.growth(key, net, jnp.ones((1, 5), jnp.float32), seeds=4))
    assert found.kind == kind
    assert found.growth == pytest.approx(np.log(weight_variance), abs=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"samples must have shape .*got \(1, 4\)"):
        verdicts.gradients(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"factor must be .*> 1; got 1"):
        verdicts.gradients(np.zeros((3, 4)), factor=1.0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\); got 1"):
        verdicts.gradients(np.zeros((3, 4)), confidence=1.0)
    with pytest.raises(TypeError, match="study must be a Refinement; got 3"):
        verdicts.refinement(3)
    with pytest.raises(TypeError, match="spectrum must be a Spectrum; got 3"):
        verdicts.steps(3)
