"""The Hopfield memory against brute-force NumPy loops and what is known of its fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import hopfield

pytestmark = pytest.mark.float32

UNITS, PATTERNS = 32, 3  # fields are multiples of 1 / 32, exact in any precision


def signs(key, shape=(PATTERNS, UNITS)):
    return jax.random.rademacher(key, shape, jnp.result_type(float))


def slow_energy(weights, state):
    w, s = np.asarray(weights, np.float64), np.asarray(state, np.float64)
    return -sum(w[i, j] * s[i] * s[j] for i in range(len(s)) for j in range(len(s))) / 2


def slow_update(weights, state, unit):
    field = np.asarray(weights, np.float64)[unit] @ state
    after = state.copy()
    if field != 0:
        after[unit] = 1 if field > 0 else -1
    return after


def test_weights_are_hebbs(key):
    patterns = signs(key)
    weights = np.asarray(hopfield.hebbian(patterns))
    for i, j in ((0, 1), (5, 2), (2, 5), (29, 3)):
        assert weights[i, j] == pytest.approx(sum(float(p[i] * p[j]) for p in patterns) / UNITS, rel=1e-6)
    assert (np.diag(weights) == 0).all()
    assert (weights == weights.T).all()


def test_energy_is_the_double_sum(key):
    patterns = signs(key)
    weights = hopfield.hebbian(patterns)
    state = signs(jax.random.fold_in(key, 1), (UNITS,))
    tolerance = 1e3 * float(jnp.finfo(weights.dtype).eps)
    assert float(hopfield.energy(weights, state)) == pytest.approx(slow_energy(weights, state), abs=tolerance)
    assert hopfield.energy(weights, patterns).shape == (PATTERNS,)
    # One pattern: s W s = (n^2 / n - 1) at the pattern, the lowest energy that there is.
    alone = hopfield.hebbian(patterns[:1])
    assert float(hopfield.energy(alone, patterns[0])) == pytest.approx(-(UNITS - 1) / 2, rel=1e-5)


def test_synchronous_steps_are_those_of_a_loop(key):
    weights = hopfield.hebbian(signs(key, (8, UNITS)))
    start = signs(jax.random.fold_in(key, 1), (4, UNITS))
    found = hopfield.synchronous(weights, start, steps=3)
    states = [np.asarray(start, np.float64)]
    for _ in range(3):
        states.append(np.stack([_all(weights, s) for s in states[-1]]))
    np.testing.assert_array_equal(found.state, states[-1])
    np.testing.assert_array_equal(found.flips, [(a != b).sum(axis=1) for a, b in zip(states, states[1:])])
    expected = [[slow_energy(weights, s) for s in row] for row in states]
    np.testing.assert_allclose(found.energies, expected, atol=1e-4)
    np.testing.assert_array_equal(found.settled, (states[-1] == states[-2]).all(axis=1))


def _all(weights, state):
    return np.array([slow_update(weights, state, unit)[unit] for unit in range(len(state))])


def test_asynchronous_updates_are_those_of_a_loop(key):
    weights = hopfield.hebbian(signs(key, (8, UNITS)))
    start = signs(jax.random.fold_in(key, 1), (2, UNITS))
    order = hopfield.sweeps(jax.random.fold_in(key, 2), UNITS, 3)
    found = hopfield.asynchronous(weights, start, order)
    states = np.asarray(start, np.float64)
    for index, units in enumerate(np.asarray(order)):
        before = states
        for unit in units:
            states = np.stack([slow_update(weights, s, unit) for s in states])
        np.testing.assert_array_equal(found.flips[index], (states != before).sum(axis=1))
    np.testing.assert_array_equal(found.state, states)
    # The order is no ornament: another one reaches another state.
    assert (np.asarray(hopfield.asynchronous(weights, start, order[:, ::-1]).state) != states).any()


def test_no_single_update_raises_the_energy(key):
    weights = hopfield.hebbian(signs(key, (8, UNITS)))
    order = hopfield.sweeps(key, UNITS, 4).reshape(-1, 1)
    found = hopfield.asynchronous(weights, signs(jax.random.fold_in(key, 1), (5, UNITS)), order)
    rise = np.diff(np.asarray(found.energies), axis=0)
    assert rise.max() <= 1e3 * float(jnp.finfo(weights.dtype).eps)
    turned = np.asarray(found.flips) > 0
    assert turned.any() and rise[turned].max() < 0 and np.abs(rise[~turned]).max() == 0


def test_two_units_that_follow_each_other_swap_for_ever_unless_one_waits():
    weights, start = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, -1.0])
    together = hopfield.synchronous(weights, start, steps=5)
    np.testing.assert_array_equal(together.state, [-1.0, 1.0])
    assert not together.settled
    in_turn = hopfield.asynchronous(weights, start, jnp.array([[0, 1], [0, 1]], jnp.int32))
    np.testing.assert_array_equal(in_turn.state, [-1.0, -1.0])
    assert in_turn.settled


def test_a_field_of_zero_changes_nothing():
    weights, start = jnp.zeros((3, 3)), jnp.array([1.0, -1.0, 1.0])
    np.testing.assert_array_equal(hopfield.synchronous(weights, start, steps=1).state, start)
    order = jnp.array([[0, 1, 2]], jnp.int32)
    np.testing.assert_array_equal(hopfield.asynchronous(weights, start, order).state, start)


def test_few_patterns_come_back_from_damaged_ones(key):
    patterns = signs(key, (3, 200))
    damaged = patterns * jnp.where(jnp.arange(200) < 30, -1.0, 1.0).astype(patterns.dtype)[None, :]
    np.testing.assert_allclose(hopfield.overlap(patterns, damaged), 0.7, rtol=1e-6)
    found = hopfield.synchronous(hopfield.hebbian(patterns), damaged, steps=10)
    np.testing.assert_array_equal(hopfield.overlap(patterns, found.state), 1.0)
    assert np.asarray(found.settled).all()


def test_every_sweep_is_a_permutation(key):
    order = np.asarray(hopfield.sweeps(key, 6, 4))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(6), (4, 1)))
    assert len({tuple(row) for row in order}) > 1


def test_dtype_is_the_patterns(key):
    patterns = signs(key).astype(jnp.float32)
    weights = hopfield.hebbian(patterns)
    found = hopfield.synchronous(weights, patterns, steps=2)
    assert weights.dtype == found.state.dtype == found.energies.dtype == jnp.float32


def _calls():
    weights, state = jnp.zeros((3, 3)), jnp.ones(3)
    order = jnp.zeros((1, 3), jnp.int32)
    return {
        "patterns.*got 0.5": lambda: hopfield.hebbian(jnp.array([[1.0, 0.5]])),
        "patterns.*2 axes": lambda: hopfield.hebbian(jnp.ones(3)),
        "weights.*shape.*(2, 3)": lambda: hopfield.energy(jnp.zeros((2, 3)), state),
        "state.*shape.*(4,)": lambda: hopfield.energy(weights, jnp.ones(4)),
        "state.*-1 and 1; got 2": lambda: hopfield.synchronous(weights, 2 * state, steps=1),
        "steps.*>= 1; got 0": lambda: hopfield.synchronous(weights, state, steps=0),
        "order.*<= 2; got 3": lambda: hopfield.asynchronous(weights, state, order + 3),
        "order.*shape": lambda: hopfield.asynchronous(weights, state, order[0]),
        "count.*got 0": lambda: hopfield.sweeps(jax.random.key(0), 3, 0),
        "state.*shape (3); got (4,)": lambda: hopfield.overlap(state, jnp.ones(4)),
    }


@pytest.mark.parametrize("message", list(_calls()))
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        _calls()[message]()


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="patterns.*int"):
        hopfield.hebbian(jnp.ones((2, 3), jnp.int32))
    with pytest.raises(TypeError, match="order.*integers.*float"):
        hopfield.asynchronous(jnp.zeros((3, 3)), jnp.ones(3), jnp.zeros((1, 3)))
    with pytest.raises(TypeError, match="key.*typed.*got 3"):
        hopfield.sweeps(3, 3, 1)
