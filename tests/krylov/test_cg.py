"""Conjugate gradients against dense linear algebra in NumPy, on pytrees; what must go wrong goes wrong visibly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.krylov import cg

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def symmetric(eigenvalues, seed=0):
    """A dense matrix with these eigenvalues, in float64."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q @ np.diag(eigenvalues) @ q.T


def split(vector):
    """A vector as a tree of two leaves."""
    vector = jnp.asarray(vector, WIDEST)
    return {"a": vector[:2], "b": vector[2:].reshape(-1, 1)}


def joined(tree):
    return jnp.concatenate([tree["a"], tree["b"].ravel()])


def on_trees(matrix, tree):
    vector = matrix @ joined(tree)
    return {"a": vector[:2], "b": vector[2:].reshape(-1, 1)}


@functools.partial(jax.jit, static_argnames="iterations")
def compiled_cg(matrix, rhs, tolerance, inverse, x0, iterations):
    """One program for the tests of one number of iterations; inverse and x0 may be None."""
    preconditioner = None if inverse is None else functools.partial(on_trees, inverse)
    matvec = functools.partial(on_trees, matrix)
    return cg.cg(matvec, rhs, iterations=iterations, tolerance=tolerance, preconditioner=preconditioner, x0=x0)


def solve(matrix, rhs, *, tolerance=100 * EPS, inverse=None, x0=None, iterations=30):
    x0 = np.zeros(8) if x0 is None else x0
    inverse = None if inverse is None else jnp.asarray(inverse, WIDEST)
    return compiled_cg(jnp.asarray(matrix, WIDEST), split(rhs), tolerance, inverse, split(x0), iterations)


RHS = np.random.default_rng(1).standard_normal(8)


def test_solution_is_that_of_a_dense_solver():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    found = solve(matrix, RHS)
    expected = np.linalg.solve(matrix, RHS)
    np.testing.assert_allclose(joined(found.solution), expected, atol=1e3 * EPS)
    residual = np.linalg.norm(RHS - matrix @ np.asarray(joined(found.solution), np.float64))
    np.testing.assert_allclose(found.residual_norm, residual, atol=100 * EPS)
    assert found.converged and not found.negative_curvature and not found.breakdown


def test_three_distinct_eigenvalues_take_three_iterations():
    found = solve(symmetric([1, 1, 1, 5, 5, 5, 9, 9.0]), RHS, tolerance=1e3 * EPS)
    assert found.iterations == 3 and found.converged


def test_iterations_and_tolerance_are_kept():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    short = solve(matrix, RHS, iterations=3)
    assert short.iterations == 3 and not short.converged
    rough = solve(matrix, RHS, tolerance=0.1)
    assert rough.converged and rough.iterations < 8
    assert 1e-3 < rough.residual_norm <= 0.1 * np.linalg.norm(RHS) * (1 + 1e-3)


def test_a_start_at_the_solution_and_the_exact_inverse_as_preconditioner():
    matrix = symmetric(np.logspace(0, 2, 8))
    inverse = np.linalg.inv(matrix)
    begun = solve(matrix, RHS, x0=inverse @ RHS, tolerance=1e4 * EPS)
    assert begun.iterations == 0 and begun.converged
    helped = solve(matrix, RHS, inverse=inverse, tolerance=1e4 * EPS)
    assert helped.iterations == 1 and helped.converged
    np.testing.assert_allclose(joined(helped.solution), inverse @ RHS, atol=1e4 * EPS)


def test_a_diagonal_preconditioner_saves_iterations():
    scales = np.logspace(0, 1.5, 8)
    matrix = scales[:, None] * symmetric(np.linspace(1, 2, 8)) * scales[None, :]
    plain = solve(matrix, RHS, tolerance=1e-2)
    helped = solve(matrix, RHS, tolerance=1e-2, inverse=np.diag(scales**-2.0))
    assert helped.converged and helped.iterations < plain.iterations


def test_negative_curvature_and_nan_are_told():
    found = solve(symmetric([-1.0, -2, -3, -4, -5, -6, -7, -8]), RHS)
    assert found.negative_curvature and not found.converged and found.iterations == 1
    np.testing.assert_array_equal(joined(found.solution), np.zeros(8))
    lost = solve(np.full((8, 8), np.nan), RHS)
    assert not lost.converged and np.isnan(lost.residual_norm)
    huge = float(jnp.finfo(WIDEST).max) / 10
    broken = solve(huge * np.eye(8), RHS * huge, iterations=3)
    assert broken.breakdown and not broken.converged and np.all(np.isfinite(joined(broken.solution)))


def test_a_right_hand_side_of_zero_is_solved_by_zero():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    nothing = np.zeros(8)
    for tolerance in (0.0, 1e-3):
        found = solve(matrix, nothing, tolerance=tolerance)
        np.testing.assert_array_equal(joined(found.solution), nothing)
        assert found.converged and found.iterations == 0 and not (found.breakdown or found.negative_curvature)
    step = in_ball(matrix, nothing, 1.0)
    np.testing.assert_array_equal(joined(step.step), nothing)
    assert step.converged and not (step.boundary or step.breakdown or step.negative_curvature)
    assert step.norm == step.decrease == 0
    least = cg.cgls(lambda v: matrix @ v, lambda u: matrix.T @ u, jnp.zeros(8, WIDEST), iterations=3, tolerance=1e-3)
    np.testing.assert_array_equal(least.solution, nothing)
    assert least.converged and least.iterations == 0 and not least.breakdown


def test_vmap_is_one_by_one():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    many = np.random.default_rng(2).standard_normal((3, 8))
    trees = jax.vmap(lambda row: {"a": row[:2], "b": row[2:, None]})(jnp.asarray(many, WIDEST))
    start = jax.tree.map(jnp.zeros_like, trees)
    run = jax.vmap(lambda b, x0: compiled_cg(jnp.asarray(matrix, WIDEST), b, 100 * EPS, None, x0, 30))
    found = jax.vmap(joined)(run(trees, start).solution)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, many.T).T, atol=1e3 * EPS)


@jax.jit
def compiled_steihaug(matrix, gradient, radius, inverse):
    preconditioner = None if inverse is None else functools.partial(on_trees, inverse)
    options = {"iterations": 30, "tolerance": 100 * EPS, "preconditioner": preconditioner}
    return cg.steihaug(functools.partial(on_trees, matrix), gradient, radius, **options)


def in_ball(matrix, gradient, radius, inverse=None):
    inverse = None if inverse is None else jnp.asarray(inverse, WIDEST)
    return compiled_steihaug(jnp.asarray(matrix, WIDEST), split(gradient), jnp.asarray(radius, WIDEST), inverse)


def model(matrix, gradient, step):
    step = np.asarray(joined(step), np.float64)
    return gradient @ step + step @ matrix @ step / 2


def test_a_wide_ball_gives_the_newton_step():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    found = in_ball(matrix, RHS, 100.0)
    newton = -np.linalg.solve(matrix, RHS)
    np.testing.assert_allclose(joined(found.step), newton, atol=1e3 * EPS)
    np.testing.assert_allclose(found.norm, np.linalg.norm(newton), rtol=1e3 * EPS)
    np.testing.assert_allclose(found.decrease, -model(matrix, RHS, found.step), rtol=1e3 * EPS)
    assert found.converged and not found.boundary and not found.negative_curvature


def test_a_small_ball_ends_on_its_surface():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    tiny = in_ball(matrix, RHS, 1e-3)
    np.testing.assert_allclose(joined(tiny.step), -1e-3 * RHS / np.linalg.norm(RHS), atol=1e-3 * 100 * EPS)
    assert tiny.boundary and tiny.iterations == 1 and not tiny.converged
    middle = in_ball(matrix, RHS, 0.9)
    assert middle.boundary and not middle.negative_curvature and middle.iterations > 1
    np.testing.assert_allclose(np.linalg.norm(joined(middle.step)), 0.9, rtol=100 * EPS)
    np.testing.assert_allclose(middle.norm, 0.9, rtol=1e3 * EPS)
    np.testing.assert_allclose(middle.decrease, -model(matrix, RHS, middle.step), rtol=1e3 * EPS)
    best_along_gradient = min(RHS @ RHS / (RHS @ matrix @ RHS), 0.9 / np.linalg.norm(RHS))
    cauchy = -model(matrix, RHS, split(-best_along_gradient * RHS))
    assert middle.decrease > cauchy


def test_no_step_leaves_its_ball_wherever_the_surface_is_crossed():
    matrix = symmetric([1, 2, 3, 4, 5, 6, 7, 8.0])
    newton = np.linalg.norm(np.linalg.solve(matrix, RHS))
    radii = np.linspace(0.05, 1.02, 60) * newton
    found = [in_ball(matrix, RHS, radius) for radius in radii]
    sizes = np.array([np.linalg.norm(joined(step.step)) for step in found])
    assert (sizes <= radii * (1 + 1e3 * EPS)).all()
    np.testing.assert_allclose(sizes[:-2], radii[:-2], rtol=1e3 * EPS)  # inside of the Newton step the ball decides
    assert [bool(step.boundary) for step in found[:-2]] == [True] * 58


def test_negative_curvature_is_followed_to_the_surface():
    matrix = symmetric([-3.0, 1, 2, 3, 4, 5, 6, 7])
    found = in_ball(matrix, RHS, 50.0)
    assert found.negative_curvature and found.boundary and not found.converged
    np.testing.assert_allclose(np.linalg.norm(joined(found.step)), 50.0, rtol=1e3 * EPS)
    assert model(matrix, RHS, found.step) < -100


@pytest.mark.parametrize("radius", [0.3, 2.0])
def test_the_preconditioned_ball_is_the_plain_one_in_other_coordinates(radius):
    matrix, metric = symmetric(np.logspace(0, 1, 8)), symmetric(np.linspace(1, 3, 8), seed=5)
    half = np.linalg.cholesky(metric)
    inverse = np.linalg.inv(half)
    plain = in_ball(inverse @ matrix @ inverse.T, inverse @ RHS, radius)
    found = in_ball(matrix, RHS, radius, np.linalg.inv(metric))
    expected = inverse.T @ np.asarray(joined(plain.step), np.float64)
    np.testing.assert_allclose(joined(found.step), expected, atol=1e4 * EPS)
    np.testing.assert_allclose(found.norm, plain.norm, rtol=1e4 * EPS)
    assert found.boundary == plain.boundary


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_least_squares_are_those_of_a_dense_solver(damping):
    random = np.random.default_rng(3)
    matrix, rhs = random.standard_normal((12, 5)), random.standard_normal(12)
    rows = np.concatenate([matrix, np.sqrt(damping) * np.eye(5)])
    expected = np.linalg.lstsq(rows, np.concatenate([rhs, np.zeros(5)]))[0]
    a = jnp.asarray(matrix, WIDEST)
    options = {"iterations": 40, "tolerance": 100 * EPS, "damping": damping}
    found = jax.jit(lambda b: cg.cgls(lambda x: a @ x, lambda r: a.T @ r, b, **options))(jnp.asarray(rhs, WIDEST))
    np.testing.assert_allclose(found.solution, expected, atol=1e3 * EPS)
    x = np.asarray(found.solution, np.float64)
    normal = np.linalg.norm(matrix.T @ (rhs - matrix @ x) - damping * x)
    np.testing.assert_allclose(found.residual_norm, normal, atol=300 * EPS)
    assert found.converged


def test_arguments_are_checked():
    good = {"iterations": 3, "tolerance": 0.1}
    with pytest.raises(ValueError, match="iterations must be an integer >= 1; got 0"):
        cg.cg(lambda v: v, jnp.ones(2), iterations=0, tolerance=0.1)
    with pytest.raises(ValueError, match=r"tolerance must be .*>= 0; got -1"):
        cg.cg(lambda v: v, jnp.ones(2), iterations=3, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"radius must be .*> 0; got 0"):
        cg.steihaug(lambda v: v, jnp.ones(2), 0.0, **good)
    with pytest.raises(TypeError, match="matvec must be a function; got 3"):
        cg.cg(3, jnp.ones(2), **good)
    with pytest.raises(TypeError, match="preconditioner must be a function; got 4"):
        cg.cg(lambda v: v, jnp.ones(2), preconditioner=4, **good)
    with pytest.raises(ValueError, match=r"damping must be .*>= 0; got -2"):
        cg.cgls(lambda v: v, lambda v: v, jnp.ones(2), damping=-2.0, **good)


@pytest.mark.parametrize("narrow", ["float32", "float16"])
def test_a_trust_region_step_is_as_precise_as_the_gradient(narrow):
    draw = np.random.default_rng(6)
    half, gradient = draw.normal(size=(6, 6)), jnp.asarray(draw.normal(size=6), narrow)
    matrix = jnp.asarray(np.eye(6) + half @ half.T / 6)
    found = cg.steihaug(lambda v: matrix @ v, gradient, 100.0, iterations=20, tolerance=1e-3)
    assert found.step.dtype == gradient.dtype
    exact = -np.linalg.solve(np.asarray(matrix, float), np.asarray(gradient, float))
    np.testing.assert_allclose(found.step, exact, atol=3e-3 if narrow == "float32" else 3e-2)
