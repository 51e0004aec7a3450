"""Newton–CG against dense Hessians, scipy, and the closed forms of Rosenbrock's function and of a saddle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.optimize import newton_cg

WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def rosenbrock(p):
    return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2


def saddle(p):
    """Minima at (+-1, 0) of value -1/4; a saddle at the origin."""
    return p["x"] ** 4 / 4 - p["x"] ** 2 / 2 + p["y"] ** 2


def point(x, y):
    return {"x": jnp.asarray(x, WIDEST), "y": jnp.asarray(y, WIDEST)}


@pytest.mark.float32
def test_products_are_those_of_the_hessian():
    value, gradient, product = newton_cg.Smooth(rosenbrock).local(point(-1.2, 1.0))
    columns = [product(v) for v in (point(1.0, 0.0), point(0.0, 1.0))]
    found = np.array([[c["x"], c["y"]] for c in columns])
    np.testing.assert_allclose(found, [[2 + 1200 * 1.44 - 400, 480], [480, 200]], rtol=10 * EPS)
    np.testing.assert_allclose([gradient["x"], gradient["y"]], [-215.6, -88.0], rtol=10 * EPS)
    np.testing.assert_allclose(value, 24.2, rtol=10 * EPS)


@pytest.mark.parametrize(
    "method",
    [pytest.param("trust_region", marks=pytest.mark.float32), "armijo", "wolfe", "levenberg_marquardt"],
)
def test_every_method_ends_in_the_valley_of_rosenbrock(method):
    damping = 1e-2 if method == "levenberg_marquardt" else 0.0
    options = {"inner_tolerance": 1e-3, "tolerance": 10 * EPS**0.75}
    found, history = newton_cg.minimize(
        rosenbrock, point(-1.2, 1.0), steps=60, method=method, damping=damping, **options
    )
    np.testing.assert_allclose([found["x"], found["y"]], 1, rtol=1e-3 if jnp.float32 == WIDEST else 1e-8)
    assert history.converged and history.iterations < 60
    accepted = np.asarray(history.accepted)
    assert (np.diff(np.asarray(history.value))[accepted] <= 0).all()


def bowl(p):
    """Strictly convex, not quadratic: sum of exp(p) and a square of the sum."""
    return jnp.exp(p["x"]) + jnp.exp(p["y"]) - p["y"] + (p["x"] + p["y"] - 1) ** 2


def test_convergence_is_quadratic():
    found, history = newton_cg.minimize(bowl, point(1.0, -1.0), steps=15, tolerance=1e-13)
    norms = np.asarray(history.gradient_norm)
    tail = norms[(norms < 0.3) & (norms > 1e-14)]
    orders = np.log(tail[1:]) / np.log(tail[:-1])
    assert history.converged and len(tail) >= 3 and orders[-1] > 1.7, norms
    x, y = float(found["x"]), float(found["y"])
    np.testing.assert_allclose([np.exp(x), np.exp(y) - 1], -2 * (x + y - 1), atol=1e-12)


@pytest.mark.parametrize("method", ["trust_region", "armijo", "wolfe"])
def test_a_saddle_is_left_along_negative_curvature(method):
    found, history = newton_cg.minimize(saddle, point(1e-3, 0.5), steps=40, method=method, tolerance=1e-5)
    np.testing.assert_allclose([found["x"], found["y"]], [1, 0], atol=1e-3)
    assert history.negative_curvature.any() and history.converged
    np.testing.assert_allclose(history.value[-1], -0.25, rtol=1e-5)


def test_levenberg_marquardt_does_not_accept_a_step_of_an_indefinite_model():
    _, history = newton_cg.minimize(saddle, point(0.1, 0.0), steps=30, method="levenberg_marquardt", damping=1e-3)
    indefinite = np.asarray(history.negative_curvature)
    assert indefinite[0] and not np.asarray(history.accepted)[indefinite].any() and history.converged
    np.testing.assert_allclose(history.value[-1], -0.25, rtol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="function must be a function; got 2.0"):
        newton_cg.minimize(2.0, point(0.0, 0.0), steps=1)
    with pytest.raises(TypeError, match="steps must be an integer >= 1; got 1.5"):
        newton_cg.minimize(saddle, point(0.0, 0.0), steps=1.5)


def test_it_runs_under_jit_and_vmap():
    def end(x):
        return newton_cg.minimize(saddle, {"x": x, "y": x}, steps=15, tolerance=1e-9)[0]["x"]

    found = jax.jit(jax.vmap(end))(jnp.asarray([-0.5, 0.3, 2.0], WIDEST))
    np.testing.assert_allclose(found, [-1, 1, 1], atol=1e-7)
