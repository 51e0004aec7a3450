"""Recurrent cells and heads against NumPy loops and Flax's cells with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, initializers, recurrent
from tests.selection import in_turn

pytestmark = pytest.mark.float32

WIDTH, FEATURES, STEPS, EXAMPLES = 4, 3, 6, 2
LAWS = {
    "width": WIDTH,
    "input_weights": initializers.variance_scaling(1.0),
    "recurrent_weights": initializers.orthogonal(1.0),
    "bias_variance": 0.3,
}
CELLS = {
    "vanilla": lambda **more: recurrent.vanilla(activation=jnp.tanh, **{**LAWS, **more}),
    "lstm": lambda **more: recurrent.lstm(**{**LAWS, "forget_bias": 1.0, **more}),
    "gru": lambda **more: recurrent.gru(**{**LAWS, **more}),
}
READOUT = {"readout_weights": initializers.lecun_normal}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_step(kind, params, carry, x):
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    if kind == "vanilla":
        return (np.tanh(carry[0] @ p["recurrent"] + x @ p["input"] + p["bias"]),)
    h = carry[0]
    if kind == "lstm":
        i, f, g, o = (h @ p["recurrent"][k] + x @ p["input"][k] + p["bias"][k] for k in range(4))
        c = sigmoid(f) * carry[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    r, u = (sigmoid(h @ p["recurrent"][k] + x @ p["input"][k] + p["bias"][k]) for k in range(2))
    g = np.tanh(x @ p["input"][2] + p["bias"][2] + r * (h @ p["recurrent"][2] + p["candidate_bias"]))
    return ((1 - u) * g + u * h,)


def numpy_run(kind, params, x):
    """Carries [T, N, size] for x [N, T, d]."""
    parts = 2 if kind == "lstm" else 1
    carry, out = tuple(np.zeros((x.shape[0], WIDTH)) for _ in range(parts)), []
    for t in range(x.shape[1]):
        carry = numpy_step(kind, params, carry, np.asarray(x[:, t], np.float64))
        out.append(np.concatenate(carry, axis=-1))
    return np.stack(out)


def inputs(key, shape=(EXAMPLES, STEPS, FEATURES)):
    return jax.random.normal(key, shape, jnp.result_type(float))


def tolerance(x):
    return 100 * float(jnp.finfo(x.dtype).eps)


@pytest.mark.parametrize("kind", CELLS)
def test_heads_are_a_plain_loop(key, kind):
    cell, x = CELLS[kind](), inputs(key)
    one = recurrent.many_to_one(cell, outputs=5, **READOUT)
    params = one.init(key, x)
    params["readout"]["bias"] = jnp.arange(5, dtype=x.dtype)
    kernel = np.asarray(params["readout"]["kernel"], np.float64)
    carries = numpy_run(kind, params["cell"], x)
    (states,) = one.states(params, x)
    np.testing.assert_allclose(states, carries, atol=tolerance(x))
    np.testing.assert_allclose(one.apply(params, x), carries[-1, :, :WIDTH] @ kernel + np.arange(5), atol=tolerance(x))
    many = recurrent.many_to_many(cell, outputs=5, **READOUT)
    expected = np.swapaxes(carries[..., :WIDTH] @ kernel + np.arange(5), 0, 1)
    np.testing.assert_allclose(many.apply(params, x), expected, atol=tolerance(x))


@pytest.mark.parametrize("kind", in_turn(CELLS, 1))
@pytest.mark.parametrize("feedback", [False, True])
def test_one_to_many_is_a_plain_loop(key, kind, feedback):
    x = inputs(key, (EXAMPLES, FEATURES))
    net = recurrent.one_to_many(CELLS[kind](), outputs=FEATURES, steps=STEPS, feedback=feedback, **READOUT)
    params = net.init(key, x)
    kernel = np.asarray(params["readout"]["kernel"], np.float64)
    carry, fed, expected = tuple(np.zeros((EXAMPLES, WIDTH)) for _ in range(2)), np.asarray(x, np.float64), []
    for _ in range(STEPS):
        carry = numpy_step(kind, params["cell"], carry, fed)
        expected.append(carry[0] @ kernel)
        fed = expected[-1] if feedback else np.zeros_like(fed)
    np.testing.assert_allclose(net.apply(params, x), np.stack(expected, axis=1), atol=tolerance(x))


@pytest.mark.parametrize("name", CELLS)
def test_a_start_in_half_precision_is_carried_in_that_of_the_inputs(key, name):
    cell, x = CELLS[name](), inputs(key)
    params, rows = cell.init(key, FEATURES, x.dtype), jnp.swapaxes(x, 0, 1)
    wanted, found = (recurrent.run(cell, params, cell.start(EXAMPLES, dtype), rows) for dtype in (x.dtype, jnp.float16))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), wanted, found)


def test_lstm_is_flax_s(key):
    linen = pytest.importorskip("flax.linen")
    cell, x = CELLS["lstm"](), inputs(key)
    params = cell.init(key, FEATURES, x.dtype)
    tree = {}
    for number, letter in enumerate("ifgo"):
        tree["i" + letter] = {"kernel": params["input"][number]}
        tree["h" + letter] = {"kernel": params["recurrent"][number], "bias": params["bias"][number]}
    theirs = linen.OptimizedLSTMCell(WIDTH, param_dtype=x.dtype)
    carry = (jnp.zeros((EXAMPLES, WIDTH), x.dtype),) * 2
    ours = recurrent.run(cell, params, cell.start(EXAMPLES, x.dtype), jnp.swapaxes(x, 0, 1))
    for t in range(STEPS):
        carry, _ = theirs.apply({"params": tree}, carry, x[:, t])
        np.testing.assert_allclose(ours.cell[t], carry[0], atol=tolerance(x))
        np.testing.assert_allclose(ours.hidden[t], carry[1], atol=tolerance(x))


def test_gru_is_flax_s(key):
    linen = pytest.importorskip("flax.linen")
    cell, x = CELLS["gru"](), inputs(key)
    params = cell.init(key, FEATURES, x.dtype)
    tree = {}
    for number, letter in enumerate("rzn"):
        tree["i" + letter] = {"kernel": params["input"][number], "bias": params["bias"][number]}
        tree["h" + letter] = {"kernel": params["recurrent"][number]}
    tree["hn"]["bias"] = params["candidate_bias"]
    theirs = linen.GRUCell(WIDTH, param_dtype=x.dtype)
    carry = jnp.zeros((EXAMPLES, WIDTH), x.dtype)
    ours = recurrent.run(cell, params, cell.start(EXAMPLES, x.dtype), jnp.swapaxes(x, 0, 1))
    for t in range(STEPS):
        carry, _ = theirs.apply({"params": tree}, carry, x[:, t])
        np.testing.assert_allclose(ours[t], carry, atol=tolerance(x))


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_through_time_are_differences(key, kind):
    x = inputs(key)
    net = recurrent.many_to_many(CELLS[kind](), outputs=2, **READOUT)
    params = net.init(key, x)
    carries, _ = core.state_gradients(net, params, x, lambda outputs: jnp.sum(outputs**2))
    clean = core.zero_probes(net, params, x)
    step = float(jnp.finfo(x.dtype).eps) ** (1 / 3)
    for t, unit in ((0, 1), (2, carries.shape[-1] - 1), (STEPS - 1, 0)):

        def loss(size, t=t, unit=unit):
            probes = (clean[0].at[t, 1, unit].set(size), clean[1])
            return jnp.sum(net.readout(params, core.last_state(net.states(params, x, probes), x)) ** 2)

        difference = (loss(step) - loss(-step)) / (2 * step)
        np.testing.assert_allclose(carries[t, 1, unit], difference, atol=100 * step**2)


def test_forget_bias_shifts_its_gate_only(key):
    one, other = (CELLS["lstm"](forget_bias=b).init(key, FEATURES, jnp.float32) for b in (0.0, 3.0))
    shift = np.asarray(other["bias"] - one["bias"])
    np.testing.assert_allclose(shift, np.array([0, 3, 0, 0])[:, None] * np.ones(WIDTH), atol=1e-6)


def test_laws_of_the_weights(key):
    cell = CELLS["lstm"](width=100, input_weights=initializers.variance_scaling(2.0))
    params = cell.init(key, 50, jnp.float32)
    entries = np.asarray(params["input"], np.float64).ravel()
    assert abs(np.mean(entries**2) - 2 / 50) < 6 * 2 / 50 * np.sqrt(2 / entries.size)
    for gate in np.asarray(params["recurrent"], np.float64):
        np.testing.assert_allclose(gate.T @ gate, np.eye(100), atol=1e-4)
    assert not np.allclose(params["recurrent"][0], params["recurrent"][1])
    bias = np.asarray(params["bias"], np.float64)[[0, 2, 3]]
    assert abs(np.mean(bias**2) - 0.3) < 6 * 0.3 * np.sqrt(2 / bias.size)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: CELLS["lstm"](width=0), ValueError, "width .*got 0"),
        (lambda x: CELLS["gru"](bias_variance=-1.0), ValueError, "bias_variance .*got -1"),
        (lambda x: CELLS["gru"](input_weights=jnp.ones), TypeError, "input_weights must be an Initializer"),
        (lambda x: CELLS["lstm"](forget_bias=np.nan), ValueError, "forget_bias .*got nan"),
        (lambda x: recurrent.vanilla(activation="tanh", **LAWS), TypeError, "activation .*got 'tanh'"),
        (lambda x: recurrent.many_to_one("lstm", outputs=1, **READOUT), TypeError, "cell must be a Cell.*'lstm'"),
        (lambda x: recurrent.many_to_one(CELLS["gru"](), outputs=0, **READOUT), ValueError, "outputs .*got 0"),
        (
            lambda x: recurrent.one_to_many(CELLS["gru"](), outputs=2, steps=3, feedback=True, **READOUT).init(
                jax.random.key(0), x[:, 0]
            ),
            ValueError,
            "outputs must be x's 3 features .*got 2",
        ),
        (
            lambda x: recurrent.many_to_one(CELLS["gru"](), outputs=2, **READOUT).init(jax.random.key(0), x[0]),
            ValueError,
            r"x must have 3 axes; got shape \(6, 3\)",
        ),
    ],
)
def test_bad_input_is_named(key, call, error, message):
    with pytest.raises(error, match=message):
        call(inputs(key))


def test_input_of_other_features_is_named(key):
    x = inputs(key)
    net = recurrent.many_to_one(CELLS["lstm"](), outputs=2, **READOUT)
    with pytest.raises(ValueError, match=r"x must have shape \(any, any, 3\); got \(2, 6, 2\)"):
        net.apply(net.init(key, x), x[..., :2])


def test_carries_and_gates_are_offered_beside_the_cells(key):
    laws = {"input_weights": initializers.lecun_normal, "recurrent_weights": initializers.lecun_normal}
    cell = recurrent.lstm(width=3, bias_variance=0.0, forget_bias=2.0, **laws)
    assert isinstance(cell.start(2, jnp.float32), recurrent.Memory)
    bias = cell.init(key, 2, jnp.float32)["bias"]
    assert [float(b) for b in bias[:, 0]] == [2.0 * (gate == "forget") for gate in recurrent.LSTM_GATES]
    with pytest.raises(TypeError, match="dtype must be a real floating-point dtype; got int32"):
        cell.init(key, 2, jnp.int32)
