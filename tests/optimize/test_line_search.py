"""Line searches: the conditions are checked at the step that came out, by values and slopes computed here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.optimize import line_search

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def hill(params):
    """Convex, with a minimum far from the start; its argument is a tree."""
    return jnp.sum(jnp.sqrt(1 + (params["a"] - 3) ** 2)) + jnp.sum(params["b"] ** 4)


def barrier(params):
    """Infinite or nan beyond its domain, a > 0."""
    return params["a"][0] - jnp.log(params["a"][0]) + jnp.sum(params["b"] ** 2)


def point(a, b):
    return {"a": jnp.asarray([a], WIDEST), "b": jnp.asarray([b], WIDEST)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def searched(search, function, params, direction, options=None):
    value, gradient = jax.value_and_grad(function)(params)
    return search(function, params, direction, value=value, gradient=gradient, **(options or {}))


def along(function, params, direction, t):
    """f and its slope at params + t direction, in float64 NumPy by central differences of the values."""

    def value(t):
        a, b = (np.float64(params[n][0]) + t * np.float64(direction[n][0]) for n in "ab")
        return np.sqrt(1 + (a - 3) ** 2) + b**4 if function is hill else a - np.log(a) + b**2

    t = float(t)
    return value(t), (value(t + 1e-6) - value(t - 1e-6)) / 2e-6


def test_armijo_takes_the_first_step_that_decreases_enough():
    params, direction = point(0.0, 1.0), point(40.0, -16.0)
    found = searched(line_search.armijo, hill, params, direction)
    start, slope = along(hill, params, direction, 0.0)
    trials = 0.5 ** np.arange(20)
    good = [t for t in trials if along(hill, params, direction, t)[0] <= start + 1e-4 * t * slope]
    assert found.found and good[0] < 1
    np.testing.assert_allclose(found.step, good[0], rtol=EPS)
    np.testing.assert_allclose(found.value, along(hill, params, direction, good[0])[0], rtol=10 * EPS)
    assert found.evaluations == 1 + np.log2(1 / good[0])


def test_options_of_armijo_are_kept():
    params, direction = point(0.0, 1.0), point(40.0, -16.0)
    numbers = {"start": 2.0, "shrink": 0.1, "sufficient": 0.3}
    found = line_search.armijo(
        hill, params, direction, value=hill(params), gradient=jax.grad(hill)(params), trials=9, **numbers
    )
    start, slope = along(hill, params, direction, 0.0)
    trials = 2.0 * 0.1 ** np.arange(9)
    good = [t for t in trials if along(hill, params, direction, t)[0] <= start + 0.3 * t * slope]
    np.testing.assert_allclose(found.step, good[0], rtol=10 * EPS)
    few = line_search.armijo(hill, params, direction, value=hill(params), gradient=jax.grad(hill)(params), trials=2)
    assert not few.found and few.step == 0 and few.value == hill(params)


@pytest.mark.parametrize("search", [line_search.armijo, line_search.wolfe])
def test_values_outside_the_domain_are_stepped_back_from(search):
    params, direction = point(3.0, 0.5), point(-8.0, 0.0)
    found = searched(search, barrier, params, direction)
    assert found.found and 0 < found.step < 3 / 8
    value, _ = along(barrier, params, direction, found.step)
    np.testing.assert_allclose(found.value, value, rtol=30 * EPS)


@pytest.mark.parametrize("search", [line_search.armijo, line_search.wolfe])
def test_a_direction_of_ascent_is_refused(search):
    params = point(0.0, 1.0)
    found = searched(search, hill, params, point(-1.0, 1.0))
    assert not found.found and found.step == 0 and found.value == hill(params)


@pytest.mark.parametrize("params, direction", [((0.0, 0.1), (0.01, 0.0)), ((0.0, 1.0), (40.0, -16.0))])
def test_wolfe_satisfies_both_conditions(params, direction):
    params, direction = point(*params), point(*direction)
    found = searched(line_search.wolfe, hill, params, direction)
    start, slope = along(hill, params, direction, 0.0)
    value, after = along(hill, params, direction, found.step)
    assert found.found
    assert value <= start + 1e-4 * float(found.step) * slope + 10 * EPS
    assert abs(after) <= 0.9 * abs(slope) + 1e-6


def test_wolfe_goes_beyond_one_where_armijo_is_content():
    params, direction = point(0.0, 0.1), point(0.01, 0.0)
    assert searched(line_search.armijo, hill, params, direction).step == 1
    assert searched(line_search.wolfe, hill, params, direction).step > 1


def test_equal_to_rounding_counts_as_decreased():
    params = point(3.0, 0.0)  # the minimum of the first term: f = 1 and any small step changes nothing
    gradient = {"a": jnp.asarray([EPS], WIDEST), "b": jnp.zeros(1, WIDEST)}
    direction = {"a": jnp.asarray([-np.sqrt(EPS)], WIDEST), "b": jnp.zeros(1, WIDEST)}
    found = line_search.armijo(hill, params, direction, value=hill(params), gradient=gradient)
    assert found.found and found.step == 1


def test_arguments_are_checked():
    params = point(0.0, 1.0)
    here = {"value": 1.0, "gradient": params}
    with pytest.raises(ValueError, match=r"shrink must be .*got 2"):
        line_search.armijo(hill, params, params, shrink=2.0, **here)
    with pytest.raises(ValueError, match=r"start must be .*got 0"):
        line_search.armijo(hill, params, params, start=0.0, **here)
    with pytest.raises(ValueError, match=r"curvature must be above sufficient = 0.5; got 0.2"):
        line_search.wolfe(hill, params, params, sufficient=0.5, curvature=0.2, **here)
    with pytest.raises(ValueError, match="trials must be an integer >= 1; got 0"):
        line_search.wolfe(hill, params, params, trials=0, **here)
    turned = jax.tree.map(lambda leaf: leaf * (1 + 1j), params)
    for search in (line_search.wolfe, line_search.armijo):
        with pytest.raises(TypeError, match="gradient must be real where params are; got complex"):
            search(hill, params, params, value=1.0, gradient=turned)
        with pytest.raises(TypeError, match="direction must be real where params are; got complex"):
            search(hill, params, turned, **here)
