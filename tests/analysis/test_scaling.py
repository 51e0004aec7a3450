"""Coordinate checks of networks whose parametrization is known, whole and broken; flanks against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl import trees
from numdl.analysis import scaling as measured
from numdl.optimize import scaling
from numdl.theory import scaling as predicted
from tests import widening
from tests.selection import some_fast

WIDTHS = (32, 64, 128)
TARGETS = jax.random.normal(jax.random.key(3), (6, 4))
OPTIMIZERS = {"adam": lambda: optax.adam(1e-3), "sgd": lambda: optax.sgd(1e-3)}
STARTS = {"standard": "standard", "mup": "mup", "standard with rate per layer": "standard", "ntk": "ntk"}


def check(build, rule, optimizer="adam", widths=WIDTHS, broken=None, seeds=2, steps=2):
    """The check of a build under a rule: rates from the rule, and where `broken` says so one leaf's of another."""
    allowed = widening.broadcasting(build)
    x = widening.inputs(build)
    roles = scaling.roles(allowed, widths[:2], x)
    leaf, size, rate = broken or (None, 0.0, 0.0)

    def made(width, seed=0):
        apply, params = allowed(width, seed)
        params = scaling.rescale(params, roles, STARTS[rule])
        return apply, scaled(params, leaf, (width / widths[0]) ** size)

    def transformation(width):
        wrong = optax.stateless(lambda updates, _: scaled(updates, leaf, (width / widths[0]) ** rate))
        return optax.chain(OPTIMIZERS[optimizer](), scaling.multipliers(roles, rule, optimizer), wrong)

    found = measured.coordinate_check(made, (x, TARGETS), widths, steps, optimizer=transformation, seeds=seeds)
    return found, roles


def scaled(tree, leaf, factor):
    """The tree with one leaf times a number."""
    leaves, structure = jax.tree.flatten(tree)
    changed = [part * factor if name == leaf else part for name, part in zip(trees.names(tree), leaves)]
    return jax.tree.unflatten(structure, changed)


def failing(found):
    return {name for name, text in found.verdict.items() if text.startswith("fails")}


@pytest.mark.parametrize("build", some_fast(widening.MODELS, fast=()))
def test_mup_passes(build):
    found, _ = check(build, "mup")
    assert found.passes, found
    assert not found.culprits


@pytest.mark.slow
def test_mup_passes_where_the_heads_of_a_fused_layer_widen():
    """The table is of the first two widths; the queries' columns of the third follow from it.

    The state of attention/0 is the product before it is divided by the root: it changes as the root.
    """
    found, roles = check(widening.wide_heads, "mup")
    assert roles.leaves[roles.path.index("blocks/0/qkv")].part is not None
    assert failing(found) == {"attention/0"} and not found.culprits, found
    assert abs(found.total[list(found.names).index("attention/0")] - 0.5) < 0.2, found


@pytest.mark.parametrize("build", some_fast(widening.MODELS, fast=(0,)))
def test_standard_fails_in_hidden_layers_and_output(build):
    found, roles = check(build, "standard")
    wrong = {path for path, m_in in zip(roles.path, roles.m_in) if m_in > 1}
    assert {leaf for name, leaf in zip(found.names, found.leaves) if name in failing(found)} - {None} == wrong
    assert found.verdict["output"].startswith("fails") and set(found.culprits) == wrong
    slopes = dict(zip(found.names, found.own))
    assert all(slopes[name] > 0.5 for name in failing(found))


@pytest.mark.parametrize("build", some_fast(widening.MODELS, fast=(0,)))
def test_rates_per_layer_pass_in_every_layer_and_fail_in_the_output(build):
    found, roles = check(build, "standard with rate per layer")
    assert failing(found) == {"output"}
    assert found.culprits == tuple(path for path, role in zip(roles.path, roles.role) if role == "output")


# leaf, power of its deviation, of its rate: one at a time
BROKEN = [("0/weight", 0, -1), ("1/weight", 0, 1), ("2/weight", 0, 1), ("1/weight", 0.5, 0), ("2/weight", 0.5, 0)]
BROKEN += [("0/weight", -0.5, 0), ("1/weight", 0, -0.5), ("1/weight", -0.5, 0), ("2/weight", -0.5, 0)]


@pytest.mark.parametrize("broken", some_fast([(each,) for each in BROKEN], fast=(1,)))
@pytest.mark.parametrize("optimizer", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_one_broken_leaf_is_named(broken, optimizer):
    found, _ = check(widening.plain, "mup", optimizer, broken=broken, seeds={"adam": 4, "sgd": 24}[optimizer])
    assert not found.passes and found.culprits == broken[:1], found


OTHERS = [(widening.transformer, "blocks/0/qkv"), (widening.transformer, "norm"), (widening.conv, "two")]
OTHERS += [(widening.scan, "stack"), (widening.haiku, "linear_1/w")]


@pytest.mark.slow
@pytest.mark.parametrize("build, leaf", OTHERS)
@pytest.mark.parametrize("size, rate", [(0.0, 1.0), (0.5, 0.0)])
def test_one_broken_leaf_of_any_model_is_named(build, leaf, size, rate):
    found, _ = check(build, "mup", broken=(leaf, size, rate))
    assert not found.passes and found.culprits == (leaf,), found


PAIRS = [("standard", "adam"), ("mup", "sgd"), ("ntk", "adam"), ("standard", "sgd"), ("ntk", "sgd")]


@pytest.mark.parametrize("rule, optimizer", some_fast(PAIRS, fast=(0,)))
def test_slopes_are_theorys(rule, optimizer):
    found, _ = check(
        widening.plain, rule, optimizer, seeds={"adam": 4, "sgd": 32}[optimizer], widths=(64, 128, 256), steps=1
    )
    theory = predicted.exponents(parametrization=rule, optimizer=optimizer)
    assert np.abs(found.own[:3] - theory.own).max() < 0.15
    assert abs(max(found.own[-1], found.passed[-1]) - theory.output) < 0.15
    assert np.abs(found.initial[:3] - theory.initial).max() < 0.2


def test_expected_slopes_are_what_is_judged():
    names = {"1/weight": 1.0, "2/weight": 1.0, "output": 1.3}
    build, x = widening.plain, widening.inputs(widening.plain)
    options = {"optimizer": optax.adam(1e-3), "seeds": 2, "expected": names}
    found = measured.coordinate_check(build, (x, TARGETS), WIDTHS, 1, **options)
    assert found.passes and found.own[1] > 0.75 and not found.culprits


@pytest.mark.slow
def test_own_passed_and_total_are_what_they_say():
    """Against the products written out, for one network, one step."""
    apply, params = widening.plain(16, 1)
    x = widening.inputs(widening.plain)
    options = {"optimizer": optax.sgd(0.3), "seeds": 2}
    found = measured.coordinate_check(widening.plain, (x, TARGETS), (16, 32), 1, **options)
    gradients = jax.grad(lambda p: jnp.mean(jnp.sum((apply(p, x) - TARGETS) ** 2, 1)) / 2)(params)
    old = [layer["weight"] for layer in params]
    new = [w - 0.3 * g["weight"] for w, g in zip(old, gradients)]
    before, after = x, x
    for i, (w, v) in enumerate(zip(old, new)):
        total, own = after @ v - before @ w, before @ (v - w)
        expected = [np.sqrt(np.mean(np.square(a))) for a in (before @ w, own, total - own, total)]
        assert np.allclose(found.rms[:, 0, 1, 0, i], expected, rtol=1e-5, atol=1e-7)
        before, after = jnp.tanh(before @ w), jnp.tanh(after @ v)


def quadratic(width, seed=0):
    """Loss w^2 / 2 from w = 1: gradient descent multiplies w by 1 - rate, and is stable below 2."""
    return lambda params, x: x @ params["w"], {"w": jnp.ones((1, 1))}


def test_flanks_of_a_quadratic():
    x, targets = jnp.ones((1, 1)), jnp.zeros((1, 1))
    rates = np.array([0.01, 0.03, 0.1, 0.3, 0.9, 1.5, 2.5, 4.0])
    options = {"steps": 5, "optimizer": optax.sgd, "target": 0.02}
    found = measured.transfer(quadratic, (x, targets), (1, 2), rates, **options)
    losses = (1 - rates) ** 10 / 2
    assert np.allclose(found.loss[0, :, 0], losses, rtol=1e-6)
    assert found.best.tolist() == [0.9, 0.9] and found.best_octaves == 0
    left = np.exp(np.interp(-np.log(0.02), -np.log(losses[:4]), np.log(rates[:4])))
    assert np.allclose(found.left, left)
    right = np.exp(np.interp(np.log(0.5), np.log(losses[5:7]), np.log(rates[5:7])))
    assert np.allclose(found.right, right)
    upper = np.exp(np.interp(np.log(0.02), np.log(losses[5:7]), np.log(rates[5:7])))
    assert np.allclose(found.upper, upper) and found.upper_octaves == 0
    assert found.first.tolist() == [[0.5], [0.5]]


def test_flanks_that_are_not_there_are_nan():
    x, targets = jnp.ones((1, 1)), jnp.zeros((1, 1))
    options = {"steps": 2, "optimizer": optax.sgd, "target": 1e-3}
    found = measured.transfer(quadratic, (x, targets), (1, 2), [1e-3, 2e-3, 4e-3], **options)
    assert np.isnan(found.left).all() and np.isnan(found.right).all()


def test_sensitivity_is_the_mean_over_log_rates_less_the_best():
    """loss = (ln rate - ln r)^2 + b on an even grid, by sums of squares; above the first it counts as the first."""
    octaves = np.arange(-8.0, 1.0)
    loss = octaves[:, None] ** 2 + np.array([1.0, 2.0])
    found = measured.sensitivity(rates=2**octaves, loss=loss, first=[1e3, 1e3])
    assert np.allclose(found, sum(k**2 for k in range(9)) / 9)
    capped = measured.sensitivity(rates=2**octaves, loss=loss[:, 0], first=10.0)
    assert np.isclose(capped, (0 + 1 + 4 + 6 * 9) / 9)


def test_sensitivity_of_an_uneven_grid_is_that_of_the_range():
    """A thousand rates in the lower half of the range weigh no more than three: against the integral of |ln rate|."""
    logs = np.unique(np.r_[np.linspace(-1, 0, 1001), np.linspace(0, 1, 41)])
    found = measured.sensitivity(rates=np.exp(logs), loss=np.abs(logs), first=5.0)
    assert np.isclose(found, 0.5, atol=0.02) and np.abs(logs).mean() > 0.5 - 1e-9
    skewed = measured.sensitivity(rates=np.exp(logs), loss=logs + 1, first=5.0)
    assert np.isclose(skewed, 1.0, atol=0.02) and (logs + 1).mean() < 0.6


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf, 1e30])
def test_what_diverged_counts_as_untrained(lost):
    found = measured.sensitivity(rates=[1, 2, 4, 8], loss=[[1.0], [0.5], [lost], [lost]], first=[2.0])
    assert np.allclose(found, (1.0 + 0.5 + 2.0 + 2.0) / 4 - 0.5)


def test_sensitivity_of_what_never_trains_is_nan():
    rates, flat = [1, 2, 4], [[2.0, np.nan], [3.0, np.inf], [2.5, 1.0]]
    assert np.isnan(measured.sensitivity(rates=rates, loss=flat, first=[2.0, 1.0])).all()
    assert np.isnan(measured.sensitivity(rates=rates, loss=[1.0, 0.5, 2.0], first=np.nan))


def test_sensitivity_refuses_losses_that_do_not_fit():
    with pytest.raises(ValueError, match=r"loss must have shape \(3, 2\).*got"):
        measured.sensitivity(rates=[1, 2, 4], loss=np.ones((2, 3)), first=[1.0, 1.0])
    with pytest.raises(ValueError, match="rates must be three or more positive numbers that rise"):
        measured.sensitivity(rates=[2, 1, 4], loss=np.ones(3), first=1.0)
