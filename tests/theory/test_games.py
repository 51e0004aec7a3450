"""Steps of games against dense step matrices, roots of polynomials and scans over the step size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.analysis import games as measured
from numdl.optimize import games
from numdl.theory import games as predicted
from tests.selection import some_fast


def bilinear(seed, n):
    """A, and the Jacobian of min_x max_y x' A y."""
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a, np.block([[np.zeros((n, n)), a], [-a.T, np.zeros((n, n))]])


def options(method):
    return {"method": method, "consensus": 0.3 if method == "consensus" else 0.0}


@pytest.mark.parametrize("method", predicted.METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_growth_is_the_spectral_radius_of_the_step(method, n):
    _, jacobian = bilinear(n, n)
    values = np.linalg.eigvals(jacobian)
    for h in (0.1, 0.7):
        matrix = predicted.step_matrix(jacobian, sizes=(n, n), learning_rate=h, **options(method))
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        found = predicted.growth(values, learning_rate=h, **options(method)).max()
        np.testing.assert_allclose(found, radius, rtol=1e-6)


def test_the_bilinear_rates():
    s, h = 1.7, 0.2
    growth = {m: predicted.growth(1j * s, learning_rate=h, **options(m)) for m in predicted.METHODS}
    assert growth["simultaneous"] == pytest.approx(np.sqrt(1 + h**2 * s**2))
    assert growth["extragradient"] == pytest.approx(np.sqrt(1 - (h * s) ** 2 + (h * s) ** 4))
    assert growth["alternating"] == pytest.approx(1.0)
    assert growth["consensus"] == pytest.approx(abs(1 - 1j * h * s - 0.3 * h * s**2))


@pytest.mark.parametrize("method", predicted.METHODS)
@pytest.mark.parametrize("angle", [0.0, 0.3, 0.9, 1.2, 1.5, np.pi / 2])
def test_nothing_grows_below_the_largest_step_and_something_beyond(method, angle):
    values = np.array([2.0, 0.5]) * np.exp(1j * angle * np.array([[1], [-1]]))
    limit = predicted.largest_step(values, **options(method))
    factor = lambda h: predicted.growth(values, learning_rate=h, **options(method)).max()  # noqa: E731
    if limit:
        assert max(factor(h) for h in np.linspace(0.01, 0.999, 60) * limit) <= 1 + 1e-12
    assert factor(1.01 * limit if limit else 1e-3) > 1


def test_a_mode_that_repels_leaves_no_step_and_no_mode_any():
    assert predicted.largest_step([-0.1 + 2j, 1.0], method="extragradient") == 0
    assert predicted.largest_step([0.0], method="simultaneous") == np.inf
    assert predicted.largest_step([2j, -2j], method="extragradient") == pytest.approx(0.5)
    assert predicted.largest_step([1e-14 + 2j], method="alternating") == pytest.approx(1.0)


def quadratic(seed, sizes):
    """Losses w' B_i w / 2 of all coordinates together, and the matrices."""
    n = sum(sizes)
    b = np.random.default_rng(seed).standard_normal((len(sizes), n, n))
    b = b + b.transpose(0, 2, 1)

    def value(matrix, players, batch):
        w = jnp.concatenate([jnp.ravel(part["w"]) for part in players])
        return batch * w @ jnp.asarray(matrix) @ w / 2

    return [jax.tree_util.Partial(value, matrix) for matrix in b], b


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (1, 2, 2)])
def test_the_spectrum_is_that_of_the_rows(sizes):
    losses, b = quadratic(0, sizes)
    edges = np.cumsum((0, *sizes))
    w = np.linspace(-1, 1, edges[-1])
    players = [{"w": jnp.asarray(w[i:j]), "count": jnp.arange(3)} for i, j in zip(edges, edges[1:])]
    rows = np.concatenate([b[k][i:j] for k, (i, j) in enumerate(zip(edges, edges[1:]))])
    found = measured.spectrum(losses, players, jnp.asarray(2.0))
    np.testing.assert_allclose(found.jacobian, 2 * rows, rtol=1e-6)
    np.testing.assert_allclose(found.field, 2 * rows @ w, rtol=1e-6)
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), np.sort_complex(2 * np.linalg.eigvals(rows)))
    assert found.sizes == sizes
    still = measured.spectrum(losses, players, jnp.asarray(np.nan))
    assert np.isnan(still.eigenvalues).all()


PLAYED = [(method, sizes) for method in predicted.METHODS for sizes in ((2, 3), (1, 2, 2))]


@pytest.mark.parametrize("method, sizes", some_fast(PLAYED, fast=(1, 3, 4, 6)))
def test_steps_are_their_matrices(method, sizes):
    losses, b = quadratic(1, sizes)
    edges = np.cumsum((0, *sizes))
    w = np.linspace(-1, 1, edges[-1])
    rows = np.concatenate([b[k][i:j] for k, (i, j) in enumerate(zip(edges, edges[1:]))])
    matrix = predicted.step_matrix(rows, sizes=sizes, learning_rate=0.1, **options(method))
    players = [{"w": jnp.asarray(w[i:j]), "count": jnp.arange(3)} for i, j in zip(edges, edges[1:])]
    last, values = games.descend(losses, players, optax.sgd(0.1), jnp.ones(2), **options(method))
    np.testing.assert_allclose(np.concatenate([part["w"] for part in last]), matrix @ matrix @ w, rtol=1e-5)
    np.testing.assert_array_equal(last[0]["count"], np.arange(3))
    after = matrix @ w
    np.testing.assert_allclose(values, [[v @ m @ v / 2 for m in b] for v in (w, after)], rtol=1e-5)


def test_each_player_may_have_its_own_optimizer_and_one_player_is_descent():
    loss = lambda players, batch: jnp.sum((players[0] - batch) ** 2)  # noqa: E731
    other = lambda players, batch: jnp.sum(players[1] ** 2) + players[0].sum()  # noqa: E731
    start, batches = (jnp.ones(2), jnp.ones(3)), jnp.zeros(4)
    found, _ = games.descend([loss, other], start, [optax.sgd(0.1), optax.adam(0.2)], batches, method="simultaneous")
    np.testing.assert_allclose(found[0], 0.8**4 * np.ones(2), rtol=1e-6)
    adam = optax.adam(0.2)
    w, memory = jnp.ones(3), adam.init(jnp.ones(3))
    for _ in range(4):
        update, memory = adam.update(2 * w, memory, w)
        w = w + update
    np.testing.assert_allclose(found[1], w, rtol=1e-6)


def test_extragradient_leaves_the_memory_of_its_look_ahead():
    loss = lambda players, batch: jnp.sum(players[0] ** 4) / 4  # noqa: E731
    found, _ = games.descend(
        [loss], [jnp.asarray(1.0)], optax.sgd(0.1, momentum=0.5), jnp.zeros(2), method="extragradient"
    )
    w, v = 1.0, 0.0
    for _ in range(2):
        ahead = w - 0.1 * (0.5 * v + w**3)
        v = 0.5 * v + ahead**3
        w = w - 0.1 * v
    np.testing.assert_allclose(found[0], w, rtol=1e-6)


def test_it_is_traceable():
    loss = lambda players, batch: players[0] * players[1]  # noqa: E731
    minus = lambda players, batch: -players[0] * players[1]  # noqa: E731

    @jax.jit
    def ends(starts, weight):
        play = lambda w: games.descend(  # noqa: E731
            (loss, minus), (w, w), optax.sgd(0.1), jnp.zeros(5), method="consensus", consensus=weight
        )
        return jax.vmap(play)(starts)[0][0]

    assert ends(jnp.asarray([1.0, 2.0]), 0.5).shape == (2,)


def test_a_wrong_number_of_losses_is_refused():
    with pytest.raises(ValueError, match="losses must be one for each"):
        games.descend([lambda p, b: p[0]], [1.0, 2.0], optax.sgd(0.1), jnp.zeros(2), method="simultaneous")
    with pytest.raises(ValueError, match="consensus must be 0"):
        predicted.growth([1.0], method="alternating", learning_rate=0.1, consensus=0.2)
