"""Lanczos against dense eigh and ARPACK: bounds that hold, copies that are real, failures that are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numdl.krylov import _vectors, lanczos
from tests.selection import in_turn

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
N, K = 64, 5


def times(matrix, v):
    return matrix @ v


def spectrum(kind, rng):
    """Eigenvalues of one of five kinds, each hard in its own way."""
    rest = rng.uniform(-0.5, 0.7, N)
    if kind == "clustered":
        rest[:6] = 1 + 10.0 ** -rng.uniform(2, 9) * rng.random(6)
    if kind == "degenerate":
        rest[:8] = np.repeat([3.0, 2.0, 1.0], [2, 2, 4])
    if kind == "very degenerate":
        rest[:10] = 1.0
    if kind == "wide":
        rest = np.concatenate([10.0 ** np.linspace(6, -6, N // 2), -(10.0 ** np.linspace(3, -6, N // 2))])
    if kind == "low rank":
        rest[3:] = 0.0
    return rest


KINDS = ("clustered", "degenerate", "very degenerate", "wide", "low rank")


def matrix_of(values, rng):
    """A matrix in the widest dtype, and the exact eigenvalues of what was rounded, descending."""
    turn = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    matrix = jnp.asarray((turn * values) @ turn.T, WIDEST)
    matrix = (matrix + matrix.T) / 2
    return matrix, np.sort(np.linalg.eigvalsh(np.asarray(matrix, np.float64)))[::-1]


def solve(matrix, *, key=None, k=K, **settings):
    like = jax.ShapeDtypeStruct((len(matrix),), WIDEST)
    return lanczos.eigenpairs(jax.random.key(0) if key is None else key, Partial(times, matrix), like, k=k, **settings)


@pytest.mark.parametrize("seed", in_turn(range(2), 0, every=2))
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_contain_the_truth_converged_or_not(kind, seed):
    stopped = 0
    for case in range(10):  # 50 matrices in all, each with two seeds
        rng = np.random.default_rng([case, KINDS.index(kind)])
        matrix, exact = matrix_of(spectrum(kind, rng), rng)
        for budget in (14, 500):
            found = solve(matrix, key=jax.random.key(seed), max_matvecs=budget, basis=24)
            assert found.matvecs <= budget
            inside = (found.intervals[:, 0] <= exact[:K]) & (exact[:K] <= found.intervals[:, 1])
            assert inside.all(), (case, budget, found, exact[: K + 1])
            distance = np.abs(exact[None] - found.values[:, None]).min(axis=1)
            scale = np.abs(exact).max()
            dense = 20 * np.finfo(np.float64).eps * scale  # the dense solver's own rounding
            assert (distance <= found.residuals + found.noise + dense).all()
            off = np.abs(found.values - exact[:K]) > 1e-4 * scale
            assert not np.any(off & found.converged), (case, budget, found, exact[: K + 1])
            if budget == 14:
                stopped += not found.converged.all()
            else:
                assert found.converged.all(), (case, found, exact[: K + 1])
                assert np.all(np.diff(found.intervals, axis=1)[:, 0] <= 2 * (1e-4 * np.sqrt(K) * scale + found.noise))
    assert stopped > 0 or kind in ("wide", "low rank")


@pytest.mark.parametrize("basis", [24, None])
@pytest.mark.parametrize("kind", ["clustered", "degenerate"])
def test_residuals_from_the_recursion_bound_those_of_the_matrix_and_cost_one_product(kind, basis):
    rng = np.random.default_rng(11)
    matrix, exact = matrix_of(spectrum(kind, rng), rng)
    tolerance = max(1e-3, 2e3 * EPS)
    found = solve(matrix, tolerance=tolerance, basis=basis)
    vectors = np.asarray(found.vectors, np.float64)
    left = np.linalg.norm(vectors @ np.asarray(matrix, np.float64) - found.values[:, None] * vectors, axis=1)
    scale = np.abs(exact).max()
    assert (left <= found.residuals + found.noise).all()
    assert found.residuals.max() <= 3 * left.max() + 100 * EPS * scale
    assert found.converged.all() and (found.residuals <= tolerance * scale).all()


def test_where_the_recursion_does_not_tell_the_truth_each_vector_has_a_product():
    """A matrix that is not symmetric: the products of the vectors show it."""
    rng = np.random.default_rng(12)
    matrix, _ = matrix_of(np.concatenate([[9.0, 8, 7, 6, 5], rng.uniform(-0.5, 0.5, N - 5)]), rng)
    turned = matrix + 0.3 * jnp.triu(jnp.asarray(rng.normal(size=(N, N)), WIDEST), 1)
    found = solve(turned, tolerance=1e-2, max_matvecs=200)
    vectors = np.asarray(found.vectors, np.float64)
    left = np.linalg.norm(vectors @ np.asarray(turned, np.float64).T - found.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, left, rtol=1e-3)
    assert not found.converged.all() and found.noise > 1


def test_a_single_start_misses_copies_that_a_second_finds():
    rng = np.random.default_rng(3)
    top = [9.0, 9.0, 8.0, 7.0, 6.0, 5.0]
    matrix, exact = matrix_of(np.concatenate([top, rng.uniform(-0.5, 0.5, N - 6)]), rng)
    trusting = solve(matrix, verify=False, tolerance=1e-2)
    np.testing.assert_allclose(trusting.values, [9, 8, 7, 6, 5], rtol=1e-3)
    verified = solve(matrix, tolerance=1e-2)
    np.testing.assert_allclose(verified.values, exact[:K], rtol=1e-3)


def test_what_several_starts_leave_behind_is_measured():
    """Six copies: what two starts left in the bounds of the rows adds up to more than is asked and never falls."""
    rng = np.random.default_rng([7, 6])
    matrix, exact = matrix_of(np.concatenate([np.ones(6), rng.uniform(-0.5, 0.7, N)[6:]]), rng)
    found = solve(matrix, tolerance=1e-2, max_matvecs=300, basis=24)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, exact[:K], rtol=1e-3)


def test_values_and_vectors_to_rounding():
    rng = np.random.default_rng(1)
    matrix, exact = matrix_of(rng.normal(size=N), rng)
    found = solve(matrix, tolerance=1e4 * EPS, max_matvecs=2000)
    assert found.converged.all()
    np.testing.assert_allclose(found.values, exact[:K], atol=50 * EPS * exact[0])
    turned = np.asarray(found.vectors, np.float64)
    np.testing.assert_allclose(turned @ turned.T, np.eye(K), atol=50 * EPS)
    np.testing.assert_allclose(turned @ np.asarray(matrix, np.float64), exact[:K, None] * turned, atol=2e4 * EPS)


def test_agrees_with_arpack_from_either_end():
    from scipy.sparse.linalg import eigsh

    rng = np.random.default_rng(2)
    matrix, _ = matrix_of(rng.normal(size=N), rng)
    for which, code, order in (("largest", "LA", -1), ("smallest", "SA", 1)):
        found = solve(matrix, which=which, tolerance=1e-3)
        expected = np.sort(eigsh(np.asarray(matrix, np.float64), k=K, which=code, return_eigenvectors=False))[::order]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        assert np.all((found.intervals[:, 0] <= expected) & (expected <= found.intervals[:, 1]))


@pytest.mark.parametrize(
    "diagonal", [np.ones(N), np.zeros(N), np.eye(N)[0], np.arange(-40.0, N - 40), np.repeat([2.0, 1, 0], [3, 30, 31])]
)
def test_breakdowns(diagonal):
    found = solve(jnp.diag(jnp.asarray(diagonal, WIDEST)))
    np.testing.assert_allclose(found.values, np.sort(diagonal)[::-1][:K], rtol=1e-6, atol=50 * EPS)
    assert found.converged.all()


def test_hilbert_matrix():
    n = 6
    hilbert = jnp.asarray(1 / (np.arange(n)[:, None] + np.arange(n)[None] + 1.0), WIDEST)
    found = solve(jnp.zeros((N, N), WIDEST).at[:n, :n].set(hilbert), tolerance=1e-6)
    np.testing.assert_allclose(found.values[0], 1.618899858924339, rtol=20 * EPS)
    np.testing.assert_allclose(found.values[4], 1.257075712262519e-05, atol=50 * EPS)
    assert found.converged.all()


def test_what_is_not_finite_is_told():
    matrix = jnp.eye(N, dtype=WIDEST).at[0, 0].set(jnp.nan)
    found = solve(matrix)
    assert np.isnan(found.values).all() and not found.converged.any()
    assert np.all(found.intervals == [-np.inf, np.inf])


def test_too_tight_a_tolerance_is_not_reached():
    rng = np.random.default_rng(5)
    matrix, exact = matrix_of(rng.normal(size=N), rng)
    found = solve(matrix, tolerance=1e-3 * EPS, max_matvecs=100, basis=30)
    assert not found.converged.any()
    np.testing.assert_allclose(found.values, exact[:K], atol=50 * EPS * exact[0])


def test_a_warm_start_needs_fewer_products():
    rng = np.random.default_rng(6)
    matrix, _ = matrix_of(rng.normal(size=N), rng)
    cold = solve(matrix, verify=False, tolerance=1e-3)
    near = matrix + 1e-3 * jnp.diag(jnp.asarray(rng.normal(size=N), WIDEST))
    again = solve(near, verify=False, tolerance=1e-3)
    warm = solve(near, verify=False, tolerance=1e-3, start=cold.vectors)
    assert warm.matvecs < again.matvecs
    np.testing.assert_allclose(warm.values, again.values, rtol=1e-4)
    assert np.isinf(warm.ceiling) and np.isfinite(again.ceiling)  # a start that was chosen carries no probability


def test_deflation_leaves_the_given_vectors_out():
    rng = np.random.default_rng(7)
    matrix, exact = matrix_of(rng.normal(size=N), rng)
    first = solve(matrix, tolerance=1e-5)
    rest = solve(matrix, deflate=first.vectors)
    np.testing.assert_allclose(rest.values, exact[K : 2 * K], rtol=1e-5)


def test_pytrees_and_vectors_are_the_same():
    rng = np.random.default_rng(8)
    matrix, _ = matrix_of(rng.normal(size=N), rng)
    like = {"a": jnp.zeros((4, 8), WIDEST), "b": jnp.zeros(32, WIDEST)}

    def product(v):
        flat = matrix @ jnp.concatenate([v["a"].ravel(), v["b"]])
        return {"a": flat[:32].reshape(4, 8), "b": flat[32:]}

    found = lanczos.eigenpairs(jax.random.key(0), product, like, k=K)
    plain = solve(matrix)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-6)
    assert found.vectors["a"].shape == (K, 4, 8)
    image = product(jax.tree.map(lambda leaf: leaf[0], found.vectors))
    np.testing.assert_allclose(image["b"], found.values[0] * found.vectors["b"][0], atol=1e-3)


def test_new_data_compile_nothing():
    count = 0

    def product(matrix, v):
        nonlocal count
        count += 1
        return matrix @ v

    rng = np.random.default_rng(9)
    like = jax.ShapeDtypeStruct((N,), WIDEST)
    for _ in range(3):
        matrix, _ = matrix_of(rng.normal(size=N), rng)
        lanczos.eigenpairs(jax.random.key(0), Partial(product, matrix), like, k=K, max_matvecs=20)
    assert count == 1


def test_tridiagonalize():
    rng = np.random.default_rng(10)
    matrix, exact = matrix_of(rng.normal(size=12), rng)
    start = jnp.asarray(rng.normal(size=12), WIDEST)
    found = jax.jit(lambda v: lanczos.tridiagonalize(lambda u: matrix @ u, v, 12))(start)
    square = np.diag(found.diagonal) + np.diag(found.off_diagonal[:-1], 1) + np.diag(found.off_diagonal[:-1], -1)
    np.testing.assert_allclose(np.linalg.eigvalsh(square)[::-1], exact, atol=100 * EPS)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(12), atol=50 * EPS)
    part = lanczos.tridiagonalize(lambda u: matrix @ u, start, 5, reorthogonalize=False)
    assert part.basis is None
    np.testing.assert_allclose(part.diagonal, found.diagonal[:5], rtol=1e3 * EPS)


def test_tridiagonalize_stops_at_an_invariant_subspace():
    start = jnp.zeros(6, WIDEST).at[0].set(3.0)
    found = lanczos.tridiagonalize(lambda v: 2 * v, start, 3)
    np.testing.assert_array_equal(found.diagonal, [2.0, 2.0, 2.0])  # a node of its own, which poisons no function
    np.testing.assert_array_equal(found.off_diagonal, [0.0, 0.0, 0.0])
    assert found.count == 1


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_tridiagonal_nodes_stay_in_the_spectrum_when_the_space_ends(rank):
    rng = np.random.default_rng(rank)
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0][:, :rank]
    matrix = jnp.asarray((turn * np.arange(2, rank + 2)) @ turn.T - 3 * np.eye(9), WIDEST)
    found = jax.jit(lambda v: lanczos.tridiagonalize(lambda u: matrix @ u, v, 7))(
        jnp.asarray(rng.normal(size=9), WIDEST)
    )
    square = np.diag(found.diagonal) + np.diag(found.off_diagonal[:-1], 1) + np.diag(found.off_diagonal[:-1], -1)
    nodes, exact = np.linalg.eigvalsh(square), np.linalg.eigvalsh(matrix)
    assert found.count >= rank + 1
    assert nodes.min() >= exact.min() - 1e-5 and nodes.max() <= exact.max() + 1e-5


def test_a_start_of_zero_is_refused_or_counts_nothing():
    zero = np.zeros(4)
    with pytest.raises(ValueError, match="start must be a finite vector that is not 0; got one of norm 0"):
        lanczos.tridiagonalize(lambda v: v, zero, 2)
    found = jax.jit(lambda v: lanczos.tridiagonalize(lambda u: 2 * u, v, 2))(jnp.asarray(zero, WIDEST))
    assert found.count == 0 and np.isnan(found.diagonal).all()
    given = lanczos.eigenpairs(
        jax.random.key(0), lambda v: 2 * v, jnp.zeros(4, WIDEST), k=1, start=jnp.zeros((1, 4), WIDEST)
    )
    np.testing.assert_allclose(given.values, 2.0)  # a random start instead


def test_ghosts_without_reorthogonalization():
    """The reason for the default: a plain recurrence lists one eigenvalue many times."""
    values = np.concatenate([np.linspace(0, 1, 195), [50.0, 60, 70, 80, 100]])
    diagonal = jnp.asarray(values, WIDEST)
    start = jnp.asarray(np.random.default_rng(0).normal(size=200), WIDEST)

    def listed(reorthogonalize):
        t = lanczos.tridiagonalize(lambda v: diagonal * v, start, 80, reorthogonalize=reorthogonalize)
        square = np.diag(t.diagonal) + np.diag(t.off_diagonal[:-1], 1) + np.diag(t.off_diagonal[:-1], -1)
        return np.sum(np.linalg.eigvalsh(square) > 40)

    assert listed(True) == 5
    assert listed(False) > 10


def test_errors_name_the_argument():
    key, eye = jax.random.key(0), jnp.eye(4, dtype=WIDEST)
    with pytest.raises(ValueError, match=r"k must be an integer in 1\.\.4; got 5"):
        solve(eye, k=5)
    with pytest.raises(ValueError, match="max_matvecs must be an integer >= 6; got 5"):
        solve(eye, k=3, max_matvecs=5)
    with pytest.raises(ValueError, match="basis must be an integer >= 6; got 5"):
        solve(eye, k=3, basis=5)
    with pytest.raises(ValueError, match="which must be one of largest, smallest; got 'LM'"):
        solve(eye, k=1, which="LM")
    with pytest.raises(ValueError, match="tolerance must be .* > 0; got 0"):
        solve(eye, k=1, tolerance=0.0)
    with pytest.raises(TypeError, match=r"like\['a'\] is int32"):
        lanczos.eigenpairs(key, lambda v: v, {"a": jnp.zeros(3, jnp.int32)}, k=1)
    with pytest.raises(ValueError, match="like must hold at least one array"):
        lanczos.eigenpairs(key, lambda v: v, {}, k=1)


def test_rows_keep_what_they_are_given():
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(N, 20)))[0].T
    space = _vectors.Rows(_vectors.layout("like", jax.ShapeDtypeStruct((N,), WIDEST)))
    for row in jnp.asarray(rows, WIDEST):
        space.append(row)
    assert space.count == 20 and len(space.blocks) == 2
    w = jnp.asarray(np.random.default_rng(1).normal(size=N), WIDEST)
    coefficients, left = space.project(w)
    np.testing.assert_allclose(coefficients, rows @ np.asarray(w), atol=50 * EPS)
    np.testing.assert_allclose(rows @ np.asarray(left), 0, atol=50 * EPS)
    turn = np.random.default_rng(2).normal(size=(20, K))
    np.testing.assert_allclose(space.turned(turn).array(), turn.T @ rows, atol=50 * EPS)
    copy = space.copy()
    copy.append(w)
    assert (copy.count, space.count) == (21, 20) and not np.any(space.blocks[1][4])
    _, _, norm = _vectors.orthonormal(space, jnp.asarray(rows[3], WIDEST))
    assert norm == 0
