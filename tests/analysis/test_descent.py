"""Measured descent against dense Hessians, numpy loops and quadratics with known eigenvalues."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.analysis import descent

RNG = np.random.default_rng(2)
A = RNG.normal(size=(6, 6))
A = jnp.asarray(A @ A.T)
PARAMS = {"a": jnp.asarray(RNG.normal(size=(2, 2))), "b": jnp.asarray(RNG.normal(size=2))}


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def quadratic(params, matrix):
    w = flat(params)
    return w @ matrix @ w / 2 + jnp.sum(w**4) / 20


def hessian(params):
    return np.asarray(A) + np.diag(0.6 * np.asarray(flat(params)) ** 2)


def test_sharpness_is_the_largest_eigenvalue():
    found = descent.sharpness(quadratic, PARAMS, A, start=PARAMS, num_matvecs=6)
    values, vectors = np.linalg.eigh(hessian(PARAMS))
    assert float(found.value) == pytest.approx(values[-1], rel=1e-12)
    assert abs(float(flat(found.vector) @ vectors[:, -1])) == pytest.approx(1, abs=1e-9)
    assert float(found.residual) < 1e-8


def test_few_products_bound_it_and_warm_starts_help():
    exact = np.linalg.eigvalsh(hessian(PARAMS))
    cold = descent.sharpness(quadratic, PARAMS, A, start=PARAMS, num_matvecs=2)
    assert float(cold.value) <= exact[-1] and np.abs(exact - float(cold.value)).min() <= float(cold.residual)
    product = hessian(PARAMS) @ np.asarray(flat(cold.vector))
    assert float(cold.residual) == pytest.approx(np.linalg.norm(product - cold.value * flat(cold.vector)), rel=1e-8)
    warm = descent.sharpness(quadratic, PARAMS, A, start=cold.vector, num_matvecs=2)
    assert exact[-1] - float(warm.value) < exact[-1] - float(cold.value)


def test_preconditioned_sharpness():
    metric = jax.tree.map(lambda leaf: 0.5 + leaf**2, PARAMS)
    found = descent.sharpness(quadratic, PARAMS, A, start=PARAMS, num_matvecs=6, preconditioner=metric)
    exact = np.linalg.eigvals(hessian(PARAMS) / np.asarray(flat(metric))[:, None]).real.max()
    assert float(found.value) == pytest.approx(exact, rel=1e-10)


@functools.cache
def tool(kind):
    return optax.sgd(0.01) if kind == "sgd" else optax.adam(0.01)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_along_is_a_plain_loop(kind):
    metric = descent.adam_preconditioner() if kind == "adam" else None
    start = PARAMS if kind == "sgd" else jax.tree.map(lambda leaf: leaf + 1, PARAMS)
    run = descent.along(
        jax.random.key(0), quadratic, start, A, tool(kind), steps=6, every=3, num_matvecs=6, preconditioner=metric
    )
    params, memory, losses = start, tool(kind).init(start), []
    for step in range(6):
        losses.append(quadratic(params, A))
        if step == 3:
            weights = 1.0 if metric is None else np.sqrt(np.asarray(flat(memory[0].nu)) / (1 - 0.999**3)) + 1e-8
            exact = np.linalg.eigvals(hessian(params) / np.reshape(weights, (-1, 1))).real.max()
            assert float(run.sharpness[1]) == pytest.approx(exact, rel=1e-8)
        update, memory = tool(kind).update(jax.grad(quadratic)(params, A), memory, params)
        params = optax.apply_updates(params, update)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-10)
    np.testing.assert_allclose(flat(run.params), flat(params), rtol=1e-10)
    np.testing.assert_array_equal(run.step, [0, 3])


def test_adam_preconditioner_keeps_the_dtype():
    params = {"a": jnp.ones(3, jnp.float32)}
    memory = optax.adam(0.1).init(params)
    got = jax.jit(descent.adam_preconditioner())(memory, jnp.arange(3)[2])
    assert got["a"].dtype == jnp.float32


def test_path_keeps_every_step():
    got = descent.path(lambda x: jnp.sum(x**2) / 2, jnp.array([1.0, -2.0]), optax.sgd(0.1), steps=4)
    np.testing.assert_allclose(got, 0.9 ** np.arange(5)[:, None] * np.array([1.0, -2.0]), rtol=1e-12)


def test_mode_strength_is_the_projected_product():
    matrices = [jnp.asarray(RNG.normal(size=shape)) for shape in ((4, 3), (3, 5), (5, 2))]
    u, s, v = np.linalg.svd(np.linalg.multi_dot([np.asarray(m) for m in matrices]))
    got = descent.mode_strength(matrices, left=jnp.asarray(v), right=jnp.asarray(u[:, :2].T))
    np.testing.assert_allclose(got, s, rtol=1e-10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 7}, "steps must be a multiple of every = 3; got 7"),
        ({"every": 0}, "every must be an integer >= 1; got 0"),
        ({"num_matvecs": 0}, "num_matvecs must be an integer >= 1; got 0"),
    ],
)
def test_bad_input_is_told(change, message):
    settings = {"steps": 6, "every": 3, "num_matvecs": 2, **change}
    with pytest.raises(ValueError, match=message):
        descent.along(jax.random.key(0), quadratic, PARAMS, A, optax.sgd(0.1), **settings)
