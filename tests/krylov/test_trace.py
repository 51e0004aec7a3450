"""Stochastic estimates against the dense matrix, in standard errors; quadrature against its moments and matfree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numdl import statistics
from numdl.krylov import trace

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
N = 40
LIMIT = statistics.z_limit(500)
LIKE = jax.ShapeDtypeStruct((N,), WIDEST)


def times(matrix, v):
    return matrix @ v


def matrix_of(values, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(N, N)))[0]
    matrix = (turn * values) @ turn.T
    return (matrix + matrix.T) / 2


def decaying():
    return matrix_of(100.0 * 0.6 ** np.arange(N))


def estimate(method, matrix, seed=0, **settings):
    return method(jax.random.key(seed), Partial(times, jnp.asarray(matrix, WIDEST)), LIKE, **settings)


def test_hutchinson_and_its_variance():
    matrix = matrix_of(np.linspace(-1, 3, N))
    for law, variance in (
        ("rademacher", 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2))),
        ("normal", 2 * np.sum(matrix**2)),
    ):
        found = estimate(trace.hutchinson, matrix, num_matvecs=400, law=law)
        assert abs(found.value - np.trace(matrix)) < LIMIT * found.stderr
        # The variance of a sample variance of 400 nearly normal numbers is 2 / 400 of its square.
        assert abs(found.stderr**2 * 400 / variance - 1) < LIMIT * np.sqrt(3 / 400)
    assert found.matvecs == 400 and found.samples.shape == (400,)


def test_random_signs_are_exact_on_diagonal_matrices():
    matrix = np.diag(np.arange(1.0, N + 1))
    found = estimate(trace.hutchinson, matrix, num_matvecs=3)
    np.testing.assert_allclose(found.value, np.trace(matrix), rtol=10 * EPS)
    assert found.stderr < 100 * EPS * found.value
    assert estimate(trace.hutchinson, matrix, num_matvecs=3, law="normal").stderr > 1


def test_squared_norm_and_diagonal():
    matrix = matrix_of(np.linspace(-1, 3, N))
    norm = estimate(trace.squared_norm, matrix, num_matvecs=300)
    assert abs(norm.value - np.sum(matrix**2)) < LIMIT * norm.stderr
    found = estimate(trace.diagonal, matrix, num_matvecs=300)
    z = (np.asarray(found.value) - np.diag(matrix)) / np.asarray(found.stderr)
    assert np.abs(z).max() < LIMIT
    spread = np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2
    assert np.all(np.abs(300 * np.asarray(found.stderr, np.float64) ** 2 / spread - 1) < LIMIT * np.sqrt(3 / 300))


@pytest.mark.parametrize("method", [trace.hutch_plus_plus, trace.xtrace])
def test_sketched_traces_are_unbiased_and_say_their_error(method):
    matrix, exact = decaying(), np.trace(decaying())
    keys = jax.random.split(jax.random.key(1), 200)
    data = jnp.asarray(matrix, WIDEST)
    run = jax.jit(jax.vmap(lambda key: method(key, Partial(times, data), LIKE, num_matvecs=18)))
    found = run(keys)
    assert abs(statistics.agreement(exact, found.value).z) < LIMIT
    error, worse = np.std(found.value), np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 18)
    assert error < worse / 3  # what it is for
    assert 0.4 < np.sqrt(np.mean(np.square(found.stderr))) / error < 2.5


@pytest.mark.parametrize("method", [trace.hutch_plus_plus, trace.xtrace])
def test_sketched_traces_are_exact_at_low_rank(method):
    values = np.zeros(N)
    values[:3] = [5.0, -2.0, 1.0]
    found = estimate(method, matrix_of(values), num_matvecs=18)
    np.testing.assert_allclose(found.value, 4.0, rtol=300 * EPS)
    zero = estimate(method, np.zeros((N, N)), num_matvecs=18)
    assert abs(zero.value) < EPS and zero.stderr < EPS


def test_quadrature_is_exact_for_low_moments_from_its_start():
    matrix = matrix_of(np.linspace(-1, 3, N))
    rule = estimate(trace.quadrature, matrix, num_matvecs=5, num_probes=2, reorthogonalize=True)
    np.testing.assert_allclose(rule.weights.sum(axis=1), 1, rtol=20 * EPS)
    long = estimate(trace.quadrature, matrix, num_matvecs=N, num_probes=2, reorthogonalize=True)
    for power in range(10):  # degree 2 m - 1 = 9
        moment = (rule.weights * rule.nodes**power).sum(axis=1)
        np.testing.assert_allclose(moment, (long.weights * long.nodes**power).sum(axis=1), rtol=1e4 * EPS)
    np.testing.assert_allclose(long.nodes[0], np.sort(np.linspace(-1, 3, N)), atol=100 * EPS)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 3, 12])
def test_quadrature_that_ends_early_poisons_no_function(rank, full):
    values = np.full(N, 0.1)
    values[:rank] += np.linspace(1, 5, rank)
    rule = estimate(trace.quadrature, matrix_of(values), num_matvecs=20, num_probes=20, reorthogonalize=full)
    np.testing.assert_allclose(rule.weights.sum(axis=1), 1, rtol=100 * EPS)
    assert rule.nodes.min() > 0.099 and np.all(np.diff(rule.nodes, axis=1) >= 0)
    for function in (np.log, np.reciprocal):
        means = statistics.mean_and_error(rule.sums(function))
        assert abs(means.mean - np.mean(function(values))) < LIMIT * means.stderr + 1e-4


def test_quadrature_gives_traces_with_and_without_reorthogonalization():
    matrix = matrix_of(np.concatenate([[30.0, 20.0], np.linspace(0, 1, N - 2)]))
    exact = np.sum(np.exp(-np.linalg.eigvalsh(matrix)))
    sums = {}
    for full in (True, False):
        rule = estimate(trace.quadrature, matrix, num_matvecs=30, num_probes=40, reorthogonalize=full)
        sums[full] = rule.size * (rule.weights * np.exp(-rule.nodes)).sum(axis=1)
        assert abs(statistics.agreement(exact, sums[full]).z) < LIMIT
    np.testing.assert_allclose(sums[True], sums[False], rtol=1e4 * EPS)
    copies = [np.sum(rule.nodes > 10) for rule in (rule,)]
    assert copies[0] > 2 * 40  # the ghosts that share a weight: the switch does something


def test_quadrature_agrees_with_matfree():
    from matfree import decomp

    matrix = jnp.asarray(matrix_of(np.linspace(-1, 3, N)), WIDEST)
    rule = estimate(trace.quadrature, matrix, num_matvecs=6, num_probes=1, reorthogonalize=True)
    start = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (N,), WIDEST)
    peer = decomp.tridiag_sym(6, reortho="full", materialize=True)(lambda v: matrix @ v, start / jnp.linalg.norm(start))
    np.testing.assert_allclose(rule.nodes[0], np.linalg.eigvalsh(peer.J_small), atol=1e3 * EPS)


def test_quadrature_of_an_identity_and_of_what_is_not_finite():
    rule = estimate(trace.quadrature, 2 * np.eye(N), num_matvecs=4, num_probes=2)
    np.testing.assert_allclose((rule.weights * rule.nodes).sum(axis=1), 2, rtol=20 * EPS)
    assert np.isnan(estimate(trace.quadrature, np.full((N, N), np.nan), num_matvecs=4, num_probes=2).nodes).all()


def test_errors_name_the_argument():
    eye = np.eye(N)
    with pytest.raises(ValueError, match="num_matvecs must be an integer >= 2; got 1"):
        estimate(trace.hutchinson, eye, num_matvecs=1)
    with pytest.raises(ValueError, match="law must be one of rademacher, normal; got 'sphere'"):
        estimate(trace.hutchinson, eye, num_matvecs=4, law="sphere")
    with pytest.raises(ValueError, match="num_matvecs must be even and at most 80; got 7"):
        estimate(trace.xtrace, eye, num_matvecs=7)
    with pytest.raises(ValueError, match="num_probes must be an integer >= 1; got 0"):
        estimate(trace.quadrature, eye, num_matvecs=7, num_probes=0)
    with pytest.raises(TypeError, match="outside of jit; got tracers: inside, use lanczos.tridiagonalize"):
        jax.jit(lambda m: trace.quadrature(jax.random.key(0), Partial(times, m), LIKE, num_matvecs=3, num_probes=1))(
            jnp.eye(N, dtype=WIDEST)
        )


@pytest.mark.parametrize("num_matvecs", [4, 6])
def test_xtrace_of_a_multiple_of_the_identity_is_exact(key, num_matvecs):
    # What each vector adds beside the others lies in n - r + 1 directions: any other count is a bias seen at once.
    found = trace.xtrace(key, lambda v: 3.0 * v, jnp.zeros(6), num_matvecs=num_matvecs)
    np.testing.assert_allclose(np.asarray(found.samples), 18.0, rtol=1e3 * float(jnp.finfo(jnp.zeros(()).dtype).eps))
