"""Golub-Kahan against the dense singular value decomposition: values, bounds, breakdowns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numdl.krylov import bidiagonal

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
ROWS, COLUMNS = 14, 20


def times(matrix, v):
    return matrix @ v


def matrix_of(values, seed=0):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(ROWS, ROWS)))[0]
    right = np.linalg.qr(rng.normal(size=(COLUMNS, COLUMNS)))[0][:ROWS]
    return jnp.asarray((left * values) @ right, WIDEST)


def solve(matrix, *, k=3, num_matvecs=ROWS, seed=0, **settings):
    like = jax.ShapeDtypeStruct((COLUMNS,), WIDEST)
    product = Partial(times, matrix)
    return bidiagonal.singular_triplets(jax.random.key(seed), product, like, k=k, num_matvecs=num_matvecs, **settings)


def test_factors():
    matrix = matrix_of(np.linspace(1, 3, ROWS))
    start = jnp.asarray(np.random.default_rng(1).normal(size=COLUMNS), WIDEST)
    found = bidiagonal.decompose(lambda v: matrix @ v, lambda u: matrix.T @ u, start, num_matvecs=6)
    square = np.asarray(found.square)
    np.testing.assert_allclose(square[:, :-1] - np.triu(np.tril(square[:, :-1], 1)), 0)
    np.testing.assert_allclose(found.left @ matrix, square @ found.right, atol=50 * EPS)
    np.testing.assert_allclose(found.right[:6] @ matrix.T, square.T[:6] @ found.left, atol=50 * EPS)
    for rows in (found.left, found.right):
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=50 * EPS)


def test_all_steps_give_the_singular_values():
    matrix = matrix_of(np.linspace(1, 3, ROWS))
    found = solve(matrix)
    u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    np.testing.assert_allclose(found.values, s[:3], rtol=50 * EPS)
    np.testing.assert_allclose(np.abs(np.sum(found.right * vt[:3], axis=1)), 1, rtol=1e3 * EPS)
    np.testing.assert_allclose(np.abs(np.sum(found.left * u[:, :3].T, axis=1)), 1, rtol=1e3 * EPS)
    assert found.converged.all() and found.matvecs == ROWS + 3


@pytest.mark.parametrize("steps", [4, 8])
def test_intervals_are_honest_before_convergence(steps):
    stopped = 0
    for seed in range(10):
        matrix = matrix_of(np.random.default_rng(seed).uniform(0, 3, ROWS), seed)
        found = solve(matrix, num_matvecs=steps, seed=seed)
        exact = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
        low, high = np.asarray(found.intervals, np.float64)[:, :, None].swapaxes(0, 1)
        within = (low <= exact) & (exact <= high)
        assert within.any(axis=1).all()
        stopped += not found.converged.all()
    assert stopped > 5


def test_a_lost_rank_is_not_called_converged():
    found = solve(matrix_of(np.concatenate([[2.0], np.zeros(ROWS - 1)])))
    np.testing.assert_allclose(found.values, [2, 0, 0], atol=100 * EPS)
    assert found.converged[0] and np.all(found.intervals[:, 0] <= found.values)
    equal = solve(matrix_of(np.full(ROWS, 2.0)))
    assert equal.converged[0] and not equal.converged.all()  # copies come from rounding, if at all
    np.testing.assert_allclose(equal.values[equal.converged], 2, rtol=1e-3)
    assert np.all(equal.intervals[:, 1] >= 2 - 1e-3)


def test_pytrees_and_an_own_transpose():
    matrix = matrix_of(np.linspace(1, 3, ROWS))
    like = {"a": jnp.zeros((2, 5), WIDEST), "b": jnp.zeros(10, WIDEST)}
    calls = []

    def product(v):
        return [matrix @ jnp.concatenate([v["a"].ravel(), v["b"]])]

    def transpose(u):
        calls.append(1)
        flat = matrix.T @ u[0]
        return {"a": flat[:10].reshape(2, 5), "b": flat[10:]}

    found = bidiagonal.singular_triplets(jax.random.key(0), product, like, k=2, num_matvecs=ROWS, transpose=transpose)
    np.testing.assert_allclose(found.values, np.linalg.svd(matrix, compute_uv=False)[:2], rtol=50 * EPS)
    assert calls and found.right["a"].shape == (2, 2, 5) and found.left[0].shape == (2, ROWS)


def test_a_start_of_zero_is_refused_and_nothing_that_is_not_finite_converges():
    matrix = matrix_of(np.ones(ROWS))
    zero = jnp.zeros(matrix.shape[1], WIDEST)

    def factors(start):
        return bidiagonal.decompose(lambda v: matrix @ v, lambda u: matrix.T @ u, start, num_matvecs=2)

    with pytest.raises(ValueError, match="start must be a finite vector that is not 0; got one of norm 0"):
        factors(zero)
    found = jax.jit(factors)(zero)
    assert np.isnan(found.diagonal).all() and np.isnan(found.off_diagonal).all()
    lost = solve(matrix.at[1, 2].set(np.nan))
    assert np.isnan(lost.values).all() and not lost.converged.any()


def test_errors_name_the_argument():
    matrix = matrix_of(np.ones(ROWS))
    with pytest.raises(ValueError, match=rf"num_matvecs must be an integer in 1\.\.{ROWS}; got 15"):
        solve(matrix, num_matvecs=15)
    with pytest.raises(ValueError, match=r"k must be an integer in 1\.\.4; got 5"):
        solve(matrix, k=5, num_matvecs=4)
    with pytest.raises(ValueError, match="tolerance must be .* > 0; got -1"):
        solve(matrix, tolerance=-1.0)


def test_a_key_goes_on_past_equal_singular_values():
    matrix = matrix_of(np.r_[np.full(5, 2.0), np.full(ROWS - 5, 1.0)])
    start = jnp.asarray(np.random.default_rng(1).normal(size=ROWS), WIDEST)
    maps = (lambda v: matrix.T @ v, lambda u: matrix @ u)
    found = bidiagonal.decompose(*maps, start, num_matvecs=ROWS, key=jax.random.key(0))
    values = np.linalg.svd(np.asarray(found.square[:, :-1]), compute_uv=False)
    np.testing.assert_allclose(values, np.r_[np.full(5, 2.0), np.full(ROWS - 5, 1.0)], rtol=100 * EPS)
    stuck = bidiagonal.decompose(*maps, start, num_matvecs=ROWS)
    assert np.linalg.svd(np.asarray(stuck.square[:, :-1]), compute_uv=False)[-1] < 1e-3


@pytest.mark.parametrize("narrow", ["float32", "float16"])
def test_a_start_less_precise_than_the_product_gives_factors_of_its_own_precision(narrow):
    matrix = matrix_of(np.linspace(1, 3, ROWS))
    start = jnp.asarray(np.random.default_rng(1).normal(size=COLUMNS), narrow)
    found = bidiagonal.decompose(lambda v: matrix @ v, lambda u: matrix.T @ u, start, num_matvecs=6)
    assert found.left.dtype == found.right.dtype == found.diagonal.dtype == start.dtype
    eps = float(jnp.finfo(narrow).eps)
    np.testing.assert_allclose(found.left @ matrix, found.square @ found.right, atol=50 * eps)
