"""Arnoldi's method against its own relation and dense eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.krylov import arnoldi

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
SIZE = 12


def problem(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(SIZE, SIZE)), WIDEST), jnp.asarray(rng.normal(size=SIZE), WIDEST)


@pytest.mark.parametrize("steps", [1, 5])
def test_factors(steps):
    matrix, start = problem()
    found = jax.jit(lambda v: arnoldi.decompose(lambda u: matrix @ u, v, num_matvecs=steps))(start)
    v, h = np.asarray(found.basis), np.asarray(found.matrix)
    np.testing.assert_allclose(v[:-1] @ matrix.T, h.T @ v, atol=100 * EPS)
    np.testing.assert_allclose(v @ v.T, np.eye(steps + 1), atol=50 * EPS)
    np.testing.assert_array_equal(np.tril(h, -2), 0)
    np.testing.assert_allclose(v[0], start / np.linalg.norm(start), rtol=10 * EPS)


def test_all_steps_give_the_eigenvalues():
    matrix, start = problem(1)
    found = arnoldi.decompose(lambda u: matrix @ u, start, num_matvecs=SIZE)
    values = np.sort_complex(np.linalg.eigvals(np.asarray(found.square, np.float64)))
    exact = np.sort_complex(np.linalg.eigvals(np.asarray(matrix, np.float64)))
    np.testing.assert_allclose(values, exact, atol=1e4 * EPS)


def test_an_invariant_subspace_ends_the_basis():
    matrix, start = jnp.diag(jnp.arange(SIZE, dtype=WIDEST)), jnp.zeros(SIZE, WIDEST).at[jnp.array([2, 7])].set(1)
    found = arnoldi.decompose(lambda u: matrix @ u, start, num_matvecs=4)
    np.testing.assert_array_equal(found.basis[2:], 0)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(np.asarray(found.square[:2, :2]))), [2, 7], rtol=100 * EPS)


@pytest.mark.parametrize("narrow", ["float32", "float16"])
def test_a_start_less_precise_than_the_product_gives_factors_of_its_own_precision(narrow):
    draw = np.random.default_rng(5)
    matrix, start = jnp.asarray(draw.normal(size=(12, 12))), jnp.asarray(draw.normal(size=12), narrow)
    found = arnoldi.decompose(lambda v: matrix @ v, start, num_matvecs=5)
    assert found.basis.dtype == found.matrix.dtype == start.dtype
    product = np.asarray(found.basis[:-1], float) @ np.asarray(matrix).T
    np.testing.assert_allclose(
        product,
        np.asarray(found.matrix, float).T @ np.asarray(found.basis, float),
        atol=50 * float(jnp.finfo(narrow).eps),
    )
