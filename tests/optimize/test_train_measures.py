import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import losses, train

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(13, 3)), RANDOM.normal(size=13)
PARAMS = {"b": jnp.asarray(0.5), "w": jnp.asarray([1.0, -2.0, 0.25])}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2) / 2


def gradients(x, y):
    """One row for each example: (b, w)."""
    error = x @ np.asarray(PARAMS["w"]) + 0.5 - y
    return error[:, None] * np.concatenate([np.ones((len(y), 1)), x], axis=1)


def moment(memory=()):
    return train.Moment(7, memory, jax.tree.map(jnp.zeros_like, PARAMS))


def test_gradient_noise_is_the_scatter_between_batches():
    noise = train.gradient_noise(loss, (X, Y), size=3)(PARAMS)
    means = gradients(X[:12], Y[:12]).reshape(4, 3, 4).mean(axis=1)
    trace = 3 * np.sum(np.var(means, axis=0, ddof=1))
    square = np.sum(means.mean(axis=0) ** 2) - trace / 12
    np.testing.assert_allclose([noise.trace, noise.square_norm, noise.scale], [trace, square, trace / square])
    single = train.gradient_noise(loss, (X, Y), size=1)(PARAMS)
    np.testing.assert_allclose(single.trace, np.sum(np.var(gradients(X, Y), axis=0, ddof=1)))
    with pytest.raises(ValueError, match="size must be an integer in 1..6; got 7"):
        train.gradient_noise(loss, (X, Y), size=7)


def test_update_ratio_is_that_of_the_next_step():
    optimizer = optax.sgd(0.1, momentum=0.9)
    memory = optimizer.init(PARAMS)
    _, memory = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), memory)
    measure = train.update_ratio(loss, optimizer, (X, Y))
    ratio = measure(PARAMS, moment(memory))
    step = 0.1 * (gradients(X, Y).mean(axis=0) + 0.9)
    np.testing.assert_allclose(ratio["b"], abs(step[0]) / 0.5)
    np.testing.assert_allclose(ratio["w"], np.linalg.norm(step[1:]) / np.linalg.norm(PARAMS["w"]))


def test_distance_is_from_the_start_and_fit_hands_it_over():
    np.testing.assert_allclose(train.distance()(PARAMS, moment()), np.sqrt(0.25 + 1 + 4 + 0.0625))
    seen = []

    def look(params, moment):
        seen.append(moment)
        return moment.step

    observe = {"far": ([0, 4], train.distance()), "look": ([2], train.with_moment(look))}
    optimizer = optax.sgd(0.1, momentum=0.9)
    params, history = train.fit(loss, PARAMS, optimizer, train.whole((X, Y)), steps=4, observe=observe)
    moved = np.append(params["b"] - PARAMS["b"], params["w"] - PARAMS["w"])
    np.testing.assert_allclose(history.observed["far"][1], [0, np.linalg.norm(moved)])
    assert history.observed["look"][1] == [2] and seen[0].step == 2
    assert jax.tree.structure(seen[0].memory) == jax.tree.structure(optimizer.init(PARAMS))
    assert seen[0].start["b"] == 0.5


def test_accuracy_in_pieces_counts_every_example_once():
    labels = RANDOM.integers(0, 3, 13)
    right = np.mean(np.argmax(X, axis=1) == labels)
    for size in (None, 1, 5, 13):
        measure = train.accuracy(lambda params, x: params["scale"] * x, X, labels, size=size)
        np.testing.assert_allclose(measure({"scale": jnp.asarray(2.0)}), right)
        np.testing.assert_allclose(measure({"scale": jnp.asarray(jnp.nan)}), 0)
    with pytest.raises(ValueError, match="size must be an integer in 1..13; got 14"):
        train.accuracy(lambda params, x: x, X, labels, size=14)


def test_the_penalty_is_on_the_leaves_that_are_named():
    plain = loss(PARAMS, (X, Y))
    np.testing.assert_allclose(losses.with_l2(loss, 0.1)(PARAMS, (X, Y)) - plain, 0.05 * (0.25 + 1 + 4 + 0.0625))
    weights = losses.with_l2(loss, 0.1, where=lambda name: name == "w")
    np.testing.assert_allclose(weights(PARAMS, (X, Y)) - plain, 0.05 * (1 + 4 + 0.0625))
    assert losses.with_l2(lambda params, batch, key: loss(params, batch), 1e-3)(PARAMS, (X, Y), None) > plain
    with pytest.raises(ValueError, match="strength must be a finite number >= 0; got -1"):
        losses.with_l2(loss, -1.0)


def test_a_measure_of_changing_shape_is_refused_at_once():
    values = iter([np.ones(2), np.ones(3)])
    observe = {"odd": (train.every(1), lambda params: next(values))}
    with pytest.raises(TypeError, match="observe.'odd'. must return shape .2,., as before; got shape .3,."):
        train.fit(loss, PARAMS, optax.sgd(0.1), train.whole((X, Y)), steps=4, observe=observe)
    with pytest.raises(TypeError, match="function must be a function; got 3"):
        train.with_moment(3)
