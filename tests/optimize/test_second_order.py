"""The outer loop: one step against dense algebra, what the record says, and L-BFGS against scipy."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

from numdl.optimize import gauss_newton, newton_cg, second_order

WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
MATRIX = np.diag([1.0, 3.0, 10.0, 30.0]) + 0.5
TARGET = np.array([1.0, -2.0, 0.5, 3.0])


def linear(params, *, matrix, target):
    return matrix @ params - target


def objective():
    return Partial(linear, matrix=jnp.asarray(MATRIX, WIDEST), target=jnp.asarray(TARGET, WIDEST))


def run(**options):
    options = {"steps": 6, "inner_iterations": 30, "inner_tolerance": 30 * EPS, "tolerance": 1e3 * EPS, **options}
    return gauss_newton.minimize(objective(), jnp.zeros(4, WIDEST), **options)


@pytest.mark.float32
@pytest.mark.parametrize(
    "method, radius, damping", [("armijo", 1.0, 5.0), ("trust_region", 1e3, 0.0), ("levenberg_marquardt", 1.0, 5.0)]
)
def test_the_first_step_is_the_damped_newton_step(method, radius, damping):
    _, history = run(method=method, radius=radius, damping=damping)
    slope = MATRIX.T @ -TARGET
    expected = -np.linalg.solve(MATRIX.T @ MATRIX + damping * np.eye(4), slope)
    left = MATRIX @ expected - TARGET
    np.testing.assert_allclose(history.value[0], TARGET @ TARGET / 2, rtol=10 * EPS)
    np.testing.assert_allclose(history.value[1], left @ left / 2, rtol=1e5 * EPS, atol=1e3 * EPS)
    norms = [np.linalg.norm(slope), np.linalg.norm(MATRIX.T @ left)]
    np.testing.assert_allclose(history.gradient_norm[:2], norms, rtol=1e5 * EPS, atol=1e4 * EPS)
    assert history.accepted[0] and history.inner_iterations[0] >= 4
    scales = {"trust_region": [radius], "armijo": [1, 1], "levenberg_marquardt": [5, 5 / 3]}[method]
    np.testing.assert_allclose(history.scale[: len(scales)], scales, rtol=100 * EPS)


def bent(params):
    return params - params**2 / 2 - 1


def test_the_damping_follows_what_was_gained_of_what_was_promised():
    # By hand: s = 1/2, gained 1/2 - 0.625^2 / 2, promised 1/2 - 1/8; Nielsen's factor 1 - (2 ratio - 1)^3.
    options = {"method": "levenberg_marquardt", "damping": 1.0, "steps": 3, "inner_tolerance": 1e3 * EPS}
    _, history = gauss_newton.minimize(gauss_newton.least_squares(bent), jnp.zeros(1, WIDEST), **options)
    ratio = (0.5 - 0.625**2 / 2) / 0.375
    np.testing.assert_allclose(history.scale[:2], [1.0, 1 - (2 * ratio - 1) ** 3], rtol=1e4 * EPS)


def test_the_radius_bounds_every_step_and_doubles_while_the_model_is_right():
    params, history = run(radius=0.001)
    np.testing.assert_allclose(history.scale, 0.001 * 2.0 ** np.arange(6), rtol=10 * EPS)
    np.testing.assert_allclose(np.linalg.norm(params), 0.063, rtol=0.1)
    assert np.linalg.norm(params) <= 0.063 * (1 + 100 * EPS) and history.accepted.all() and history.iterations == 6


def test_rows_after_the_end_repeat_the_last():
    _, history = run(radius=1e3)
    end = int(history.iterations)
    assert history.converged and not history.stalled and end < 6
    np.testing.assert_array_equal(history.inner_iterations[end:], 0)
    assert not history.accepted[end:].any() and (history.value[end:] == history.value[end]).all()
    short = run(radius=1e3, inner_iterations=1)[1]
    assert not short.converged and short.inner_iterations.max() == 1


@pytest.mark.parametrize("method, damping", [("levenberg_marquardt", 1e-9), ("armijo", 0.0), ("wolfe", 0.0)])
def test_every_method_repeats_its_last_row_bit_by_bit(method, damping):
    _, history = run(method=method, damping=damping, steps=12, tolerance=1e5 * EPS)
    end = int(history.iterations)
    assert history.converged and end < 12
    for column in (history.value, history.gradient_norm):
        np.testing.assert_array_equal(column[end:], column[end])


@pytest.mark.parametrize("steps", [3, 40])
def test_lbfgs_repeats_its_last_row_and_ends_where_it_says(steps):
    def bowl(params):
        return jnp.sum((jnp.asarray(MATRIX, WIDEST) @ params - 1.0) ** 2)

    params, history = second_order.lbfgs(bowl, jnp.zeros(4, WIDEST), steps=steps, tolerance=1e5 * EPS)
    end = int(history.iterations)
    assert history.value.shape == (steps + 1,) and history.scale.shape == (steps,)
    assert (steps == 3) == (not history.converged) and end <= steps
    for column in (history.value, history.gradient_norm):
        np.testing.assert_array_equal(column[end:], column[end])
    np.testing.assert_allclose(history.value[-1], bowl(params), rtol=1e-9, atol=1e4 * EPS**2)


def test_a_step_from_a_gradient_that_is_not_finite_is_not_taken():
    def broken(params):
        return jnp.sqrt(params) - 1.0  # slope infinite at 0

    params, history = gauss_newton.minimize(Partial(broken), jnp.zeros(4, WIDEST), steps=4)
    assert history.stalled and not history.converged and not history.accepted.any()
    np.testing.assert_array_equal(params, 0.0)
    np.testing.assert_array_equal(history.value, 2.0)
    _, history = second_order.lbfgs(lambda p: jnp.sum(broken(p)), jnp.zeros(4, WIDEST), steps=4)
    assert not history.converged


def test_a_loose_tolerance_ends_sooner():
    loose, tight = run(radius=0.1, tolerance=0.9)[1], run(radius=0.1)[1]
    assert loose.converged and loose.iterations < tight.iterations


def inverse(params, v):
    return jnp.asarray(np.linalg.inv(MATRIX.T @ MATRIX), params.dtype) @ v


@pytest.mark.parametrize("method", ["trust_region", "armijo"])
def test_a_preconditioner_saves_inner_iterations(method):
    options = {"method": method, "radius": 1e6, "inner_tolerance": 1e4 * EPS}
    params, history = run(preconditioner=inverse, **options)
    assert history.inner_iterations[0] == 1
    np.testing.assert_allclose(params, np.linalg.solve(MATRIX, TARGET), rtol=1e5 * EPS)


def test_data_in_a_partial_does_not_compile_again():
    traces = []

    def residual(params, *, shift):
        traces.append(1)
        return params - shift

    for shift in (1.0, 2.0):
        data = Partial(residual, shift=jnp.full(3, shift, WIDEST))
        params, _ = gauss_newton.minimize(data, jnp.zeros(3, WIDEST), steps=2, radius=10.0)
        np.testing.assert_allclose(params, shift, rtol=100 * EPS)
        count = len(traces) if shift == 1.0 else count
    assert len(traces) == count


def quartic(params):
    return jnp.sum(jnp.asarray([1.0, 5.0, 20.0], WIDEST) * (params - 1) ** 2) + jnp.sum(params**4)


@pytest.mark.float32
def test_lbfgs_finds_what_scipy_finds():
    start = jnp.asarray([2.0, -1.0, 3.0], WIDEST)
    params, history = second_order.lbfgs(quartic, start, steps=40, tolerance=1e-4 if jnp.float32 == WIDEST else 1e-8)

    def reference(p):
        return np.sum(np.array([1.0, 5, 20]) * (p - 1) ** 2) + np.sum(p**4)

    best = scipy.optimize.minimize(reference, np.asarray(start, np.float64), tol=1e-12)
    np.testing.assert_allclose(
        params, best.x, atol=4e-3 if jnp.float32 == WIDEST else 1e-6
    )  # tolerance |g| / curvature
    assert history.converged and 0 < history.iterations < 40 and not history.stalled
    assert (np.diff(np.asarray(history.value)) <= 1e3 * EPS).all()
    np.testing.assert_allclose(history.value[0], reference(np.asarray(start)), rtol=10 * EPS)
    assert not second_order.lbfgs(quartic, start, steps=40, tolerance=0.0)[1].converged


def test_a_function_that_is_nan_everywhere_is_not_converged():
    function = functools.partial(jnp.full, (), jnp.nan)
    params, history = newton_cg.minimize(lambda p: jnp.sum(p) * function(p.dtype), jnp.ones(2, WIDEST), steps=3)
    assert not history.converged and not history.accepted.any()
    np.testing.assert_array_equal(params, 1)


@pytest.mark.parametrize("method", ["trust_region", "levenberg_marquardt"])
def test_a_first_call_needs_neither_steps_nor_damping(method):
    params, history = gauss_newton.minimize(objective(), jnp.zeros(4, WIDEST), method=method)
    np.testing.assert_allclose(params, np.linalg.solve(MATRIX, TARGET), rtol=1e-3)
    assert history.converged and history.value.shape == (101,)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="method must be one of trust_region, .*; got 'newton'"):
        run(steps=1, method="newton")
    with pytest.raises(ValueError, match="damping must be > 0 to start levenberg_marquardt; got 0"):
        run(steps=1, method="levenberg_marquardt", damping=0.0)
    with pytest.raises(ValueError, match="steps must be an integer >= 1; got 0"):
        run(steps=0)
    with pytest.raises(ValueError, match=r"radius must be .*> 0; got -1"):
        run(steps=1, radius=-1.0)
    with pytest.raises(ValueError, match="inner_iterations must be an integer >= 1; got 0"):
        run(steps=1, inner_iterations=0)
    with pytest.raises(ValueError, match="memory must be an integer >= 1; got 0"):
        second_order.lbfgs(quartic, jnp.ones(3, WIDEST), steps=1, memory=0)
    with pytest.raises(TypeError, match="preconditioner must be a function; got 3"):
        run(steps=1, preconditioner=3)
