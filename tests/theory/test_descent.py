"""Predictions about gradient methods against optax, companion matrices, scipy's ODE solver and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

from numdl.theory import descent

SETTINGS = [("gradient_descent", 0.0), ("polyak", 0.9), ("nesterov", 0.9), ("adam", 0.9), ("polyak", 0.3)]


def optimizer(method, learning_rate, momentum):
    """The same methods in optax; adam at rest is the average of gradients, not corrected for its start."""
    if method == "adam":
        return optax.chain(optax.ema(momentum, debias=False), optax.scale(-learning_rate))
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=method == "nesterov")


def walk(method, learning_rate, momentum, eigenvalues, start, steps):
    """The path by optax, as a plain loop."""
    tool = optimizer(method, learning_rate, momentum)
    x, memory = jnp.asarray(start), tool.init(jnp.asarray(start))
    path = [np.asarray(x)]
    for _ in range(steps):
        update, memory = tool.update(jnp.asarray(eigenvalues) * x, memory, x)
        x = x + update
        path.append(np.asarray(x))
    return np.array(path)


@pytest.mark.parametrize("method, momentum", SETTINGS[:4])
def test_path_is_that_of_optax(method, momentum):
    eigenvalues, start = np.array([0.1, 1.0, 3.0, -0.2]), np.array([1.0, -2.0, 0.5, 1.0])
    told = descent.path(start, eigenvalues=eigenvalues, steps=30, method=method, learning_rate=0.3, momentum=momentum)
    if method == "nesterov":  # optax keeps the point where the gradient is taken; so compare that point
        told = told + momentum * np.diff(told, axis=0, prepend=told[:1])
    np.testing.assert_allclose(told, walk(method, 0.3, momentum, eigenvalues, start, 30), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method, momentum", SETTINGS)
def test_limit_separates_convergence_from_divergence(method, momentum):
    edge = descent.sharpness_limit(method, learning_rate=0.1, momentum=momentum)
    how = {"method": method, "learning_rate": 0.1, "momentum": momentum}
    below, at, above = descent.growth(edge * np.array([1 - 1e-4, 1.0, 1 + 1e-4]), **how)
    assert below < 1 < above
    assert at == pytest.approx(1, abs=1e-12)
    sizes = np.abs(descent.path(np.ones(2), eigenvalues=edge * np.array([0.9, 1.1]), steps=400, **how))
    assert sizes[-1, 0] < 1e-3 and sizes[-1, 1] > 1e3


def test_published_limits():
    """Cohen et al.: 2/eta, 3.8/eta and 38/eta at momentum 0.9; heavy ball at eta = 0.1 has its edge at 38."""
    assert descent.sharpness_limit("gradient_descent", learning_rate=0.05) == pytest.approx(40)
    assert descent.sharpness_limit("polyak", learning_rate=0.1, momentum=0.9) == pytest.approx(38)
    assert descent.sharpness_limit("adam", learning_rate=1.0, momentum=0.9) == pytest.approx(38)
    assert descent.sharpness_limit("nesterov", learning_rate=1.0, momentum=0.9) == pytest.approx(3.8 / 2.8)


@pytest.mark.parametrize("method, momentum", SETTINGS)
def test_growth_is_the_spectral_radius_of_one_step(method, momentum):
    for eigenvalue in (-1.0, 0.3, 4.0, 30.0):
        how = {"steps": 2, "method": method, "learning_rate": 0.2, "momentum": momentum}
        _, one, two = descent.path(np.ones(1), eigenvalues=np.full(1, eigenvalue), **how)[:, 0]
        trace = (two - one) / (one - 1)  # x_1 = t - d and x_2 = t x_1 - d
        matrix = np.array([[trace, one - trace], [1.0, 0.0]])
        told = descent.growth(eigenvalue, method=method, learning_rate=0.2, momentum=momentum)
        assert told == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(), rel=1e-7)


@pytest.mark.parametrize("method", descent.METHODS[:3])
def test_tuning_is_the_best_on_a_grid(method):
    best = descent.tuning(method, least=0.5, largest=20.0)
    eigenvalues = np.linspace(0.5, 20.0, 400)

    def rate(learning_rate, momentum):
        return descent.growth(eigenvalues, method=method, learning_rate=learning_rate, momentum=momentum).max()

    assert rate(best.learning_rate, best.momentum) == pytest.approx(best.rate, abs=1e-6)
    near = best.rate - 1e-9 + 1e-6  # double roots: a rate is known to the square root of rounding
    for a in (0.9, 1.0, 1.1):
        for b in (0.95, 1.0, 1.05) if best.momentum else (1.0,):
            assert rate(a * best.learning_rate, b * best.momentum) >= near - 2e-6


def test_gradient_descent_follows_the_modified_loss_to_second_order():
    """Against scipy's flow: the gap to the modified flow falls with h^2, to the plain one with h."""
    loss = lambda x: jnp.cosh(x[0]) + x[0] * x[1] ** 2 + 2 * x[1] ** 2  # noqa: E731
    start, gaps = np.array([0.7, -0.4]), []
    plain_slope = jax.jit(jax.grad(loss))
    for h in (0.02, 0.01):
        x = start
        for _ in range(round(1 / h)):
            x = x - h * np.asarray(plain_slope(x))
        for energy in (loss, descent.modified_loss(loss, learning_rate=h)):
            slope = jax.jit(jax.grad(energy))
            flow = scipy.integrate.solve_ivp(
                lambda t, x, slope=slope: -np.asarray(slope(x)), (0, 1), start, rtol=1e-8, atol=1e-10
            )
            gaps.append(np.linalg.norm(flow.y[:, -1] - x))
    plain, modified = np.log2(gaps[0] / gaps[2]), np.log2(gaps[1] / gaps[3])
    assert plain == pytest.approx(1, abs=0.1)
    assert modified == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_mode_strength_solves_its_equation(depth):
    s, u0 = 3.0, 0.01
    times = np.array([0.0, 0.1, 0.5, 0.9, 1.4, 2.0, 30.0])
    flow = scipy.integrate.solve_ivp(
        lambda t, u: depth * u ** (2 - 2 / depth) * (s - u), (0, 30), [u0], rtol=1e-11, atol=1e-13, t_eval=times
    )
    told = descent.mode_strength(times, singular_value=s, start=u0, depth=depth)
    np.testing.assert_allclose(told, flow.y[0], rtol=1e-7)
    if depth == 2:
        grown = np.exp(2 * s * times[:5])
        np.testing.assert_allclose(told[:5], s * grown / (grown - 1 + s / u0), rtol=1e-13)
    time = descent.learning_time(singular_value=s, start=u0, end=told[1:4], depth=depth)
    np.testing.assert_allclose(time, times[1:4], rtol=1e-10)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: descent.sharpness_limit("sgd", learning_rate=0.1), "method must be one of gradient_descent"),
        (lambda: descent.sharpness_limit("polyak", learning_rate=-1.0), "learning_rate must be .* > 0; got -1.0"),
        (lambda: descent.growth(1.0, method="polyak", learning_rate=0.1, momentum=1.0), "momentum must be below 1"),
        (lambda: descent.growth(1.0, method="gradient_descent", learning_rate=0.1, momentum=0.5), "momentum must be 0"),
        (lambda: descent.mode_strength(1.0, singular_value=1.0, start=2.0, depth=2), "start must be below"),
        (lambda: descent.learning_time(singular_value=1.0, start=0.1, end=1.0, depth=2), "end must be below"),
        (lambda: descent.tuning("adam", least=1.0, largest=2.0), "method must be one of gradient_descent, polyak"),
        (lambda: descent.tuning("polyak", least=2.0, largest=1.0), "largest must be .* >= 2; got 1.0"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
