"""Is it an ODE? Networks that are, one whose steps are too large, one that is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import refinement as measured
from numdl.audit import verdicts
from numdl.networks import residual
from numdl.ode import refinement, tableaus

EULER, HEUN, RK4 = tableaus.euler, tableaus.heun, tableaus.rk4


def smooth_network(key, depth, scale=1.0):
    """Parameters that are linear in time: a smooth function for every solver."""
    net = residual.network(
        widths=(4, 4, 3),
        depth=depth,
        activation=jnp.tanh,
        weight_variance=1.0,
        bias_variance=0.1,
        time=1.0,
        interpolation="linear",
    )
    x = jax.random.normal(jax.random.key(3), (40, 4), jnp.float64)
    params = net.init(key, x)
    ends = jax.tree.map(lambda leaf: scale * leaf[:2], params["blocks"][0])
    return net, {**params, "blocks": (refinement.prolong(ends, steps=depth, interpolation="linear"),)}, x


def refiner(net, params):
    def refine(factor, solver):
        finer, more = residual.refine(net, params, factor=factor)
        return functools.partial(residual.with_tableau(finer, solver).apply, more)

    return refine


def test_a_smooth_network_is_an_ode(key):
    net, params, x = smooth_network(key, 64)
    labels = np.asarray(net.apply(params, x)).argmax(axis=1)
    found = measured.study(refiner(net, params), x, solvers=(EULER, HEUN, RK4), labels=labels)
    np.testing.assert_allclose(found.order, [1, 2, 4], atol=0.15)
    assert (found.low <= found.order).all() and (found.order <= found.high).all()
    assert verdicts.refinement(found).startswith("Yes")
    assert found.solvers == ("euler", "heun", "rk4")
    assert found.distance[0, 0] > found.distance[0, 1] > found.distance[1, 1] > found.distance[2, 1]
    # Against scipy: the limit is the solution of the ODE.
    from scipy.integrate import solve_ivp

    theta = jax.tree.map(lambda leaf: np.asarray(leaf), params["blocks"][0])

    def rate(t, y):
        kernel, bias = (theta[n][0] + t * (theta[n][-1] - theta[n][0]) for n in ("kernel", "bias"))
        return np.tanh(y @ kernel + bias)

    ends = [solve_ivp(rate, (0, 1), y, rtol=1e-11, atol=1e-12).y[:, -1] for y in np.asarray(x)]
    exact = np.asarray(ends) @ np.asarray(params["readout"]["kernel"]) + np.asarray(params["readout"]["bias"])
    start = np.asarray(net.apply(params, x))
    np.testing.assert_allclose(found.distance[0, 0], np.linalg.norm(start - exact) / np.linalg.norm(exact), rtol=1e-5)
    assert found.accuracy[0, 0] == 1 and found.same[0, 0] == 1


def test_steps_that_are_too_large_are_told(key):
    net, params, x = smooth_network(key, 2, scale=4.0)
    found = measured.study(refiner(net, params), x, factors=(1, 2, 4, 8, 16, 32, 64), solvers=(EULER, RK4))
    assert verdicts.refinement(found).startswith("Only in the limit")
    assert found.distance[0, 0] > verdicts.LIMIT
    assert np.isnan(found.accuracy).all()


def test_what_has_no_limit_is_none():
    def refine(factor, solver):
        return lambda x: jnp.sin(x * factor**1.5)

    x = jnp.linspace(0.1, 3.0, 20).reshape(10, 2)
    found = measured.study(refine, x)
    assert verdicts.refinement(found).startswith("No: cutting the steps")
    assert np.isnan(found.order).all()

    def blow_up(factor, solver):
        return lambda x: x / (factor - 2.0)

    assert verdicts.refinement(measured.study(blow_up, x)).startswith("No: with other steps")


def test_order_and_its_interval_on_made_up_errors():
    def refine(factor, solver):
        return lambda x: x * (1 + 0.1 * factor ** -float(solver))

    x = jnp.ones((5, 2))
    found = measured.study(refine, x, solvers=("1", "3"), factors=(1, 2, 4, 8))
    np.testing.assert_allclose(found.order, [1, 3], atol=1e-6)
    np.testing.assert_allclose(found.distance[0, 0], 0.1 * (1 - 8**-3) / (1 + 0.1 * 8**-3), rtol=1e-12)
    assert found.solvers == ("1", "3")


def test_bad_arguments_are_named():
    x = jnp.ones((5, 2))
    with pytest.raises(ValueError, match=r"factors .*one ratio; got \(1, 2, 3\)"):
        measured.study(lambda f, s: lambda x: x, x, factors=(1, 2, 3))
    with pytest.raises(ValueError, match=r"labels must have shape \(5\); got \(4,\)|labels must have shape"):
        measured.study(lambda f, s: lambda x: x, x, labels=np.zeros(4))
    with pytest.raises(TypeError, match="refine must be a function; got None"):
        measured.study(None, x)
    with pytest.raises(ValueError, match=r"refine\(factor, solver\)\(x\) must have shape"):
        measured.study(lambda f, s: lambda x: x[0], x)
