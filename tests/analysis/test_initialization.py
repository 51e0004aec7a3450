"""The explainer against real layers of the frameworks, against the recursions of theory, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import initialization, laws
from numdl.networks import dense, initializers
from numdl.theory import gradients, propagation

pytestmark = pytest.mark.float32


def agree(entries, variance, kurtosis):
    """Sample variance of i.i.d. entries of mean 0 against the stated one, in standard errors."""
    entries = np.asarray(entries, np.float64).ravel()
    error = variance * np.sqrt((kurtosis + 2) / entries.size)
    return (np.mean(entries**2) - variance) / error


KURTOSIS = {"uniform": -1.2, "truncated": -0.6344, "normal": 0.0}


def check(weights, law, part, kurtosis):
    fan_in = law.fan_in[part]
    assert abs(agree(weights, law.weight_variance[part] / fan_in, kurtosis)) < 6
    assert abs(agree(weights, 1.1 * law.weight_variance[part] / fan_in, kurtosis)) > 6, "the test would not see 10 %"


# ---------------------------------------------------------------------------------------------------- defaults


def test_flax_layers_follow_the_stated_law(key):
    nn = pytest.importorskip("flax.linen")
    x = jnp.ones((1, 300), jnp.float32)
    dense_law = initialization.defaults("flax", "dense", (300, 200))
    params = nn.Dense(200).init(key, x)["params"]
    check(params["kernel"], dense_law, 0, KURTOSIS["truncated"])
    assert not params["bias"].any() and dense_law.bias_variance == 0
    kernel = nn.Conv(64, (3, 3)).init(key, jnp.ones((1, 8, 8, 50), jnp.float32))["params"]["kernel"]
    conv_law = initialization.defaults("flax", "conv", kernel.shape)
    assert conv_law.fan_in[0] == 450
    assert conv_law.fan_out[0] == 576
    check(kernel, conv_law, 0, KURTOSIS["truncated"])


def test_flax_recurrent_kernels(key):
    nn = pytest.importorskip("flax.linen")
    x = jnp.ones((1, 300), jnp.float32)
    cell = nn.LSTMCell(200)
    params = cell.init(key, cell.initialize_carry(key, x.shape), x)["params"]
    law = initialization.defaults("flax", "recurrent", (300, 200))
    check(params["ii"]["kernel"], law, 0, KURTOSIS["truncated"])
    square = np.asarray(params["hi"]["kernel"], np.float64)
    np.testing.assert_allclose(200 * np.mean(square**2), law.weight_variance[1], rtol=1e-4)
    assert law.laws[1] == "orthogonal"


def test_equinox_layers_follow_the_stated_law(key):
    eqx = pytest.importorskip("equinox")
    linear = eqx.nn.Linear(300, 200, key=key)
    law = initialization.defaults("equinox", "dense", (300, 200))
    check(linear.weight, law, 0, KURTOSIS["uniform"])
    assert abs(agree(linear.bias, float(law.bias_variance), KURTOSIS["uniform"])) < 6
    assert np.abs(linear.weight).max() <= 300**-0.5
    conv = eqx.nn.Conv2d(50, 64, 3, key=key)
    check(conv.weight, initialization.defaults("equinox", "conv", (3, 3, 50, 64)), 0, KURTOSIS["uniform"])
    cell = eqx.nn.LSTMCell(300, 200, key=key)
    law = initialization.defaults("equinox", "recurrent", (300, 200))
    check(cell.weight_ih, law, 0, KURTOSIS["uniform"])
    check(cell.weight_hh, law, 1, KURTOSIS["uniform"])
    assert cell.weight_ih.shape == law.shapes[0][::-1]


def test_haiku_layers_follow_the_stated_law(key):
    hk = pytest.importorskip("haiku")
    legacy = jax.random.PRNGKey(0)
    x = jnp.ones((1, 300), jnp.float32)
    weights = hk.transform(lambda x: hk.Linear(200)(x)).init(legacy, x)["linear"]["w"]
    check(weights, initialization.defaults("haiku", "dense", (300, 200)), 0, KURTOSIS["truncated"])
    kernel = hk.transform(lambda x: hk.Conv2D(64, 3)(x)).init(legacy, jnp.ones((1, 8, 8, 50), jnp.float32))
    check(kernel["conv2_d"]["w"], initialization.defaults("haiku", "conv", (3, 3, 50, 64)), 0, KURTOSIS["truncated"])


def test_documented_laws_of_pytorch_and_keras():
    torch = initialization.defaults("pytorch", "dense", (300, 200))
    gain_squared = 2 / (1 + 5)  # of kaiming_uniform_ with leaky_relu slope sqrt(5)
    np.testing.assert_allclose(torch.weight_variance, gain_squared)
    np.testing.assert_allclose(torch.bias_variance, 1 / (3 * 300))
    np.testing.assert_allclose(initialization.defaults("pytorch", "recurrent", (300, 200)).bias_variance, 2 / (3 * 200))
    keras = initialization.defaults("keras", "conv", (3, 3, 50, 64))
    np.testing.assert_allclose(keras.weight_variance, 450 * 2 / (450 + 576))
    recurrent = initialization.defaults("keras", "recurrent", (300, 200))
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(800, 200)))
    np.testing.assert_allclose(recurrent.weight_variance[1], 200 * np.mean(q**2))


# ---------------------------------------------------------------------------------------------------- laws

DRAWN = {
    "lecun truncated_normal (flax)": initializers.variance_scaling(1.0, law="truncated_normal"),
    "lecun normal": initializers.lecun_normal,
    "glorot uniform (keras)": initializers.glorot_uniform,
    "glorot normal": initializers.glorot_normal,
    "he uniform": initializers.he_uniform,
    "he normal": initializers.he_normal,
    "+-1/sqrt(fan_in) uniform (equinox, pytorch)": initializers.variance_scaling(1 / 3, law="uniform"),
    "0.77/fan_in truncated_normal (haiku)": initializers.variance_scaling(laws.CUT, law="truncated_normal"),
    "orthogonal": initializers.orthogonal(1.0),
    "~normal": initializers.variance_scaling(1.4),
    "rademacher": initializers.variance_scaling(1.0, law="rademacher"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_law_is_recognised(name, key):
    for seed, shape in enumerate([(200, 60), (3, 3, 30, 40)]):
        weights = DRAWN[name](jax.random.fold_in(key, seed), shape, jnp.float32)
        found = initialization.explain({"w": weights}).candidates[0]
        assert found == (name,), (shape, found)


def test_equal_laws_are_one_and_few_entries_leave_several(key):
    square = initializers.glorot_uniform(key, (80, 80), jnp.float32)
    explained = initialization.explain({"w": square})
    assert explained.laws == ("lecun = glorot uniform (keras)",)
    small = initializers.lecun_normal(key, (4, 3), jnp.float32)
    explained = initialization.explain({"w": small})
    assert explained.laws == ("unknown",)
    assert len(explained.candidates[0]) > 1
    assert "lecun normal" in explained.candidates[0]


def test_weights_without_a_law(key):
    normal = np.asarray(jax.random.normal(key, (60, 50)), np.float64)
    cases = {
        "zeros": np.zeros((6, 5)),
        "constant 0.5": np.full((6, 5), 0.5),
        "identity": np.eye(7),
        "orthogonal x 3": 3 * np.linalg.qr(normal)[0],
    }
    for name, weights in cases.items():
        assert initialization.explain({"w": weights}).laws == (name,)
    trained = normal + 3 * normal[:, :1] * normal[:1]
    assert initialization.explain({"w": trained}).candidates == ((),)
    assert initialization.explain({"w": normal + 0.5}).candidates == ((),), "a mean is seen"
    assert initialization.explain({"w": np.where(normal > 2, np.nan, normal)}).candidates == ((),)


# ---------------------------------------------------------------------------------------------------- gains


def test_gains_of_defaults_are_those_of_theory():
    """Exact variances: lengths and gradients must follow the recursions of theory to rounding."""
    widths = (100, 100, 100, 100, 100)
    explained = initialization.explain(
        [initialization.defaults("pytorch", "dense", (100, 100))] * 4, activation=activations.tanh
    )
    physics = {"activation": activations.tanh, "weight_variance": 1 / 3, "bias_variance": 1 / 300}
    np.testing.assert_allclose(explained.length, propagation.lengths(1.0, depth=4, **physics), rtol=1e-9)
    growth = gradients.growth(1.0, widths=widths, **physics)
    np.testing.assert_allclose(explained.log_gradient[:-1], growth.log_products, rtol=1e-9)
    np.testing.assert_allclose(np.log(explained.length), explained.log_length, rtol=1e-12)
    np.testing.assert_allclose(explained.length_gain[1:], explained.length[1:] / explained.length[:-1])


def test_relu_gains_by_hand(key):
    keys = jax.random.split(key, 3)
    shapes = [(30, 50), (50, 40), (40, 10)]
    params = {f"layer{i}": {"w": jax.random.normal(k, s, jnp.float32)} for i, (k, s) in enumerate(zip(keys, shapes))}
    explained = initialization.explain(params, activation=activations.relu)
    variance = np.array([np.var(np.asarray(layer["w"], np.float64)) for layer in params.values()])
    np.testing.assert_allclose(explained.weight_variance, variance * [30, 50, 40], rtol=1e-9)
    np.testing.assert_allclose(explained.backward_variance, variance * [50, 40, 10], rtol=1e-9)
    np.testing.assert_allclose(explained.gradient_gain, variance * [30, 25, 20], rtol=1e-9)
    second, third = np.log(variance[1] * 25), np.log(variance[2] * 20)
    np.testing.assert_allclose(explained.log_gradient, [second + third, third, 0], rtol=1e-9)
    assert explained.set_weight_variance == 2
    assert "fan_in * Var(W) = 2 " in repr(explained)


def test_a_call_gives_order_orientation_and_lengths(key):
    """Names against the order of the call, weights stored (out, in), lengths as measured."""
    keys = jax.random.split(key, 4)
    params = {
        "b": {"weight": jax.random.normal(keys[0], (50, 30), jnp.float32), "bias": jnp.full(50, 0.5, jnp.float32)},
        "a": {"weight": jax.random.normal(keys[1], (20, 50), jnp.float32)},
    }
    x = 3 * jax.random.normal(keys[2], (8, 30), jnp.float32)

    def apply(params, x):
        y = x @ params["b"]["weight"].T + params["b"]["bias"][None, :]
        return jnp.tanh(y) @ params["a"]["weight"].T

    explained = initialization.explain(params, apply=apply, x=x)
    assert explained.names == ("b/weight", "a/weight")
    assert explained.activation == "tanh"
    np.testing.assert_array_equal(explained.fan_in, [30, 50])
    np.testing.assert_array_equal(explained.fan_out, [50, 20])
    hidden = x @ params["b"]["weight"].T + 0.5
    outputs = jnp.tanh(hidden) @ params["a"]["weight"].T
    expected = [float(jnp.mean(y**2)) for y in (hidden, outputs)]
    np.testing.assert_allclose(explained.length, expected, rtol=1e-5)
    np.testing.assert_allclose(explained.log_length[-1], np.log(expected[1] / float(jnp.mean(x**2))), rtol=1e-5)
    np.testing.assert_allclose(explained.bias_variance, [0.25, 0])
    stored = initialization.explain(params, activation=activations.tanh, transposed=True)
    assert stored.names == ("a/weight", "b/weight")
    np.testing.assert_array_equal(stored.fan_in, [50, 30])
    np.testing.assert_array_equal(initialization.explain(params).fan_in, [20, 50])


def test_a_stack_is_one_row_a_layer(key):
    physics = {"activation": activations.tanh, "weight_variance": 1.5, "bias_variance": 0.1}
    network = dense.network(widths=(12, 20, 20, 20, 5), **physics)
    x = jax.random.normal(key, (4, 12), jnp.float32)
    params = network.init(key, x)
    stored = initialization.explain(params, activation=activations.tanh, stacked="hidden/*")
    called = initialization.explain(params, activation=activations.tanh, apply=network.apply, x=x)
    kernels = params["hidden"][1]["kernel"]
    variances = 20 * np.var(np.asarray(kernels, np.float64), axis=(1, 2))
    for explained in (stored, called):
        assert len(explained.names) == 4
        np.testing.assert_allclose(explained.weight_variance[1:3], variances, rtol=1e-6)
        np.testing.assert_allclose(explained.bias_variance[2], np.mean(params["hidden"][1]["bias"][1] ** 2), rtol=1e-5)


def test_layers_are_in_natural_order_and_a_misfit_begins_anew():
    weights = {f"layer_{i}": np.full((4, 4), 0.1) + np.eye(4) for i in range(12)}
    weights["other"] = np.ones((3, 2)) + np.eye(3, 2)
    explained = initialization.explain(weights, activation=activations.relu)
    assert explained.names[2] == "layer_2"
    assert explained.names[10] == "layer_10"
    assert explained.log_gradient[11] == 0
    np.testing.assert_allclose(explained.length_gain[-1], explained.weight_variance[-1])


# ---------------------------------------------------------------------------------------------------- advice


@pytest.mark.parametrize("name", ["tanh", "relu", "erf", "gelu", "selu", "sin", "hard_tanh"])
@pytest.mark.parametrize("bias_variance", [0.0, 0.3])
def test_advice_is_theory_s_critical_weight_variance(name, bias_variance):
    activation = activations.named(name)
    ours = initialization.critical_weight_variance(activation, bias_variance)
    theory = propagation.critical_weight_variance(activation=activation, bias_variance=bias_variance)
    np.testing.assert_allclose(ours, theory, rtol=1e-6)


def test_advice_says_for_which_biases(key):
    weights = {"w": jax.random.normal(key, (9, 9), jnp.float32)}
    given = initialization.explain(weights, activation=activations.tanh, bias_variance=0.05)
    np.testing.assert_allclose(given.set_weight_variance, 1.760955, rtol=1e-6)
    assert given.set_bias_variance == 0.05
    without = initialization.explain(weights, activation=activations.relu, bias_variance=0.05)
    assert (without.set_weight_variance, without.set_bias_variance) == (2, 0)
    assert "at bias variance 0.05 none" in without.advice
    none = initialization.explain(weights, activation=activations.gelu)
    assert np.isnan(none.set_weight_variance)
    assert "at length 1" in none.advice
    assert "No activation" in initialization.explain(weights).advice


# ---------------------------------------------------------------------------------------------------- at the door


def test_bad_arguments_are_named():
    weights = {"w": np.ones((3, 3))}
    with pytest.raises(ValueError, match=r"params must hold a weight.*b \(3,\)"):
        initialization.explain({"b": np.ones(3)})
    with pytest.raises(ValueError, match="apply and x must be given together"):
        initialization.explain(weights, x=np.ones((2, 3)))
    with pytest.raises(TypeError, match="activation must be an Activation.*'relu'"):
        initialization.explain(weights, activation="relu")
    with pytest.raises(ValueError, match=r"bias_variance.*-1"):
        initialization.explain(weights, bias_variance=-1.0)
    with pytest.raises(ValueError, match="framework must be one of flax, .*'jax'"):
        initialization.defaults("jax", "dense", (3, 3))
    with pytest.raises(ValueError, match="layer must be one of dense, .*'pool'"):
        initialization.defaults("flax", "pool", (3, 3))
    with pytest.raises(ValueError, match=r"shape must be HWIO for a conv layer; got \(3, 3\)"):
        initialization.defaults("flax", "conv", (3, 3))
    with pytest.raises(ValueError, match=r"shape\[1\].*0"):
        initialization.defaults("flax", "dense", (3, 0))


def test_table_is_readable():
    law = initialization.defaults("flax", "dense", (64, 64))
    text = repr(initialization.explain([law] * 30, activation=activations.relu))
    lines = text.splitlines()
    assert len(lines) == 28, "title, head, 25 rows, advice"
    assert "... 6 more" in text
    assert max(map(len, lines)) < 200
