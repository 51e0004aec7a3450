"""Lifted functions against numbers by hand: order of the steps, outputs as last state, what core does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, lift

pytestmark = pytest.mark.float32

FLOAT = jnp.result_type(float)
TOLERANCE = 100 * float(jnp.finfo(FLOAT).eps)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, FLOAT)


X = normal(0, 5, 4)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def stacked(params, x):
    x = x @ params["a"]
    x = jax.lax.scan(lambda x, w: (jnp.tanh(x) @ w, None), x, params["s"], reverse=True)[0]
    return jax.nn.softmax(jnp.sin(x) @ params["c"])


PARAMS = {"a": normal(1, 4, 4), "s": normal(2, 3, 4, 4), "c": normal(3, 4, 2)}


def by_hand(params, x, added=(0, 0, 0, 0, 0, 0)):
    states = [x @ params["a"] + added[0]]
    for index in (2, 1, 0):
        states.append(jnp.tanh(states[-1]) @ params["s"][index] + added[len(states)])
    states.append(jnp.sin(states[-1]) @ params["c"] + added[4])
    shares = jnp.exp(states[-1])
    return [*states, shares / shares.sum(1, keepdims=True) + added[5]]


def loss(outputs):
    return jnp.mean(outputs[:, 0] ** 2)


def test_stretches_are_in_call_order_and_end_with_the_outputs():
    network = lift.lift(stacked, PARAMS, X)
    states = network.states(PARAMS, X)
    assert [s.shape for s in states] == [(1, 5, 4), (3, 5, 4), (1, 5, 2), (1, 5, 2)]
    assert lift.state_names(stacked, PARAMS, X) == ("a", "s", "c", "outputs")
    expected = by_hand(PARAMS, X)
    for found, wanted in zip([row for stretch in states for row in stretch], expected, strict=True):
        close(found, wanted)
    close(network.apply(PARAMS, X), stacked(PARAMS, X))


def test_state_gradients_are_those_by_hand():
    network = lift.lift(stacked, PARAMS, X)
    found = [row for stretch in core.state_gradients(network, PARAMS, X, loss) for row in stretch]
    zeros = [jnp.zeros_like(state) for state in by_hand(PARAMS, X)]
    expected = jax.grad(lambda added: loss(by_hand(PARAMS, X, added)[-1]))(zeros)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


def test_probes_flow_on_and_come_out_with_the_states():
    network = lift.lift(stacked, PARAMS, X)
    probes = tuple(normal(7, *stretch.shape) for stretch in network.states(PARAMS, X))
    found = [row for stretch in network.states(PARAMS, X, probes) for row in stretch]
    for one, other in zip(found, by_hand(PARAMS, X, [row for probe in probes for row in probe]), strict=True):
        close(one, other)


def test_jacobian_between_two_layers():
    network = lift.lift(stacked, PARAMS, X)
    found = core.jacobian(network, PARAMS, X[:1], start=2, stop=4)
    second = by_hand(PARAMS, X[:1])[1]

    def rest(y):
        return (jnp.tanh(jnp.tanh(y) @ PARAMS["s"][1]) @ PARAMS["s"][0]).ravel()

    close(found, jax.jacobian(rest)(second).reshape(4, 4))


def test_outputs_that_are_the_last_state_are_not_doubled():
    def apply(w, x):
        return jnp.tanh(x @ w) @ w

    network = lift.lift(apply, PARAMS["a"], X)
    states = network.states(PARAMS["a"], X)
    assert len(states) == 2
    close(states[1][0], apply(PARAMS["a"], X))
    assert lift.state_names(apply, PARAMS["a"], X) == ("params", "params#1")
    close(network.init(jax.random.key(0), X), PARAMS["a"])


def test_nested_scans_are_one_stretch():
    def apply(w, x):
        return jax.lax.scan(lambda x, v: jax.lax.scan(lambda x, u: (jnp.sin(x @ u), None), x, v), x, w)[0]

    w = normal(4, 2, 3, 4, 4)
    states = lift.lift(apply, w, X).states(w, X)
    assert states[0].shape == (6, 5, 4)
    close(states[1][0], jnp.sin(states[0][5]))
    close(states[0][4], jnp.sin(states[0][3]) @ w[1, 1])


@pytest.mark.parametrize(
    "apply, kind, message",
    [
        (3, TypeError, "apply must be a function; got 3"),
        (lambda p, x: x, ValueError, "found no layer. Parameters: a, c, s"),
        (lambda p, x: (x @ p["a"], x), TypeError, "apply must return one array of floating-point numbers"),
        (lambda p, x: jnp.argmax(x @ p["a"], 1), TypeError, "apply must return one array of floating-point numbers"),
    ],
)
def test_bad_functions_are_refused(apply, kind, message):
    with pytest.raises(kind, match=message):
        lift.lift(apply, PARAMS, X)


def test_the_number_of_probes_is_checked():
    network = lift.lift(stacked, PARAMS, X)
    with pytest.raises(ValueError, match="probes must hold one array for each of 4 stretches; got 1"):
        network.states(PARAMS, X, (jnp.zeros((1, 5, 4), FLOAT),))
