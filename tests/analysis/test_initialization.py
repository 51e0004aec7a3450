"""The explainer against real layers of the frameworks, against the recursions of theory, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import _laws, initialization
from numdl.audit import verdicts
from numdl.networks import dense, initializers
from numdl.theory import gradients, propagation
from tests.doors import bad, refused

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
    "0.77/fan_in truncated_normal (haiku)": initializers.variance_scaling(_laws.CUT, law="truncated_normal"),
    "orthogonal": initializers.orthogonal(1.0),
    "~normal": initializers.variance_scaling(1.4),
    "rademacher": initializers.variance_scaling(1.0, law="rademacher"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_law_is_recognised(name, key):
    for seed, shape in enumerate([(200, 60), (3, 3, 30, 40)]):
        weights = DRAWN[name](jax.random.fold_in(key, seed), shape, jnp.float32)
        found = initialization.explain({"w": weights}, layouts={"w": "HWIO"[-len(shape) :]}).candidates[0]
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
    assert verdicts.initialization(explained).weight_variance == 2
    assert "fan_in * Var(W) = 2 " in repr(verdicts.initialization(explained))


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
    np.testing.assert_allclose(explained.bias_variance, 0)
    np.testing.assert_allclose(explained.bias_mean, [0.5, 0])
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


def test_advice_says_for_which_biases(key):
    weights = {"w": jax.random.normal(key, (9, 9), jnp.float32)}
    given = verdicts.initialization(initialization.explain(weights, activation=activations.tanh), bias_variance=0.05)
    np.testing.assert_allclose(given.weight_variance, 1.760955, rtol=1e-6)
    assert given.bias_variance == 0.05
    without = verdicts.initialization(initialization.explain(weights, activation=activations.relu), bias_variance=0.05)
    assert (without.weight_variance, without.bias_variance) == (2, 0)
    assert "at bias variance 0.05 none" in without.text
    none = verdicts.initialization(initialization.explain(weights, activation=activations.gelu))
    assert np.isnan(none.weight_variance)
    assert "at length 1" in none.text
    assert "No activation" in verdicts.initialization(initialization.explain(weights)).text


def test_advice_that_is_followed_already_or_cures_nothing():
    widths, settings = [(64, 64)] * 6, {"activation": activations.sigmoid}

    def drawn(variance):
        """Six square matrices whose entries have this variance exactly, times fan_in."""
        found = {}
        for i, shape in enumerate(widths):
            entries = np.random.default_rng(i).normal(size=shape)
            found[f"w{i}"] = (entries - entries.mean()) / entries.std() * np.sqrt(variance / 64)
        return found

    followed = verdicts.initialization(initialization.explain(drawn(1.0), activation=activations.tanh))
    assert "already so" in followed.text and "set" not in followed.text.split("settle")[0]
    # Most is lost where the first length of 100 falls to 44, and that is lost at 103, too.
    cures_nothing = verdicts.initialization(initialization.explain(drawn(100.0), **settings))
    assert np.isnan(cures_nothing.weight_variance) and "none" in cures_nothing.text.replace("no weight", "none")
    cures = verdicts.initialization(initialization.explain(drawn(4.0), **settings))
    np.testing.assert_allclose(cures.weight_variance, 103.00755, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- what is stored


def test_layouts_are_said_and_not_guessed():
    """Fans against the definition: products in one output, outputs that one input reaches."""
    cases = {
        "in, out": ((6, 4), None, (6, 4)),
        "OI": ((4, 6), "OI", (6, 4)),
        "OIHW as wide as its outputs": ((3, 8, 3, 3), "OIHW", (72, 27)),
        "HWIO": ((3, 3, 4, 8), "HWIO", (36, 72)),
        "depthwise of Keras": ((3, 3, 8, 1), "HWGO", (9, 9)),
        "depthwise of PyTorch": ((8, 1, 3, 3), ("OIHW", 8), (9, 9)),
        "grouped": ((3, 3, 2, 8), ("HWIO", 4), (18, 18)),
        "query": ((16, 4, 8), "IOO", (16, 32)),
        "out": ((4, 8, 16), "IIO", (32, 16)),
        "experts": ((3, 4, 5), "GIO", (4, 5)),
    }
    rng = np.random.default_rng(0)
    for name, (shape, letters, fans) in cases.items():
        weights = {"w": rng.normal(size=shape)}
        explained = initialization.explain(weights, layouts={"w": letters} if letters else None)
        assert (explained.fan_in[0], explained.fan_out[0]) == fans, name
        np.testing.assert_allclose(explained.weight_variance, fans[0] * weights["w"].var(), rtol=1e-12)
        assert not explained.notes
    stack = initialization.explain({"w": rng.normal(size=(3, 4, 6))}, layouts={"w": "SOI"})
    assert stack.names == ("w[0]", "w[1]", "w[2]") and set(stack.fan_in) == {6}


def test_what_leaves_do_not_tell_is_nan_with_a_note():
    depthwise = initialization.explain({"w": np.ones((3, 3, 8, 1)) + np.eye(8)[:, :1]})
    assert np.isnan(depthwise.fan_in[0]) and depthwise.fan_out[0] == 9
    gray = initialization.explain({"w": np.random.default_rng(0).normal(size=(3, 3, 1, 8))})
    assert gray.fan_in[0] == 9 and np.isnan(gray.fan_out[0])
    assert "w: three axes or more are read as [window ..., in, out]" in gray.notes[0]
    leaves = {"w": np.eye(4) + 0.1, "scale": np.full((1, 1, 1, 4), 2.0), "token": np.full((1, 1, 4), 2.0)}
    explained = initialization.explain(leaves)
    assert explained.names == ("w",) and np.isnan(explained.bias_variance[0]) and "which of" in explained.notes[0]
    positions = {"w": np.eye(4) + 0.1, "positions": np.full((1, 7, 4), 2.0)}
    assert initialization.explain(positions, layouts={"positions": None}).names == ("w",)
    zeros = initialization.explain([np.eye(4) + 0.1, np.zeros(4)])
    assert zeros.bias_variance[0] == 0 and not zeros.notes


def test_the_bias_beside_a_weight():
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(16, 16)), 3 * rng.normal(size=16)
    for params in (
        {"w": weight, "b": bias},
        {"fc.weight": weight, "fc.bias": bias},
        [{"kernel": weight, "bias": bias}],
    ):
        np.testing.assert_allclose(initialization.explain(params).bias_variance, np.mean(bias**2))
    for params in ([weight, bias], {"v": weight, "g": bias}, {"w": weight, "u": weight, "b": bias}):
        assert np.isnan(initialization.explain(params).bias_variance).all()
    large = initialization.explain({"w": weight, "b": bias + 100})
    np.testing.assert_allclose([large.bias_variance[0], large.bias_mean[0]], [bias.var(), 100 + bias.mean()])
    np.testing.assert_allclose(large.length, large.weight_variance + np.mean((bias + 100) ** 2))


# ---------------------------------------------------------------------------------------------------- a call


def normal(seed, *shape, variance=1.0):
    fan_in = np.prod(shape[:-1])
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * np.sqrt(variance / fan_in), jnp.float32)


def squares(states):
    return [float(jnp.mean(y**2)) for y in states]


def test_a_residual_network_is_measured_and_no_chain():
    params = [normal(i, 16, 16, variance=0.1) for i in range(12)]
    x = normal(99, 8, 16, variance=8.0)

    def run(params, x, probes):
        states = []
        for weight, probe in zip(params, probes):
            states.append(jax.nn.relu(x) @ weight if probe is None else jax.nn.relu(x) @ weight + probe)
            x = x + states[-1]
        return x, states

    def loss(outputs):
        return jnp.mean(outputs[:, 0])

    zeros = [jnp.zeros((8, 16), jnp.float32)] * 12
    explained = initialization.explain(params, apply=lambda p, x: run(p, x, [None] * 12)[0], x=x, loss=loss)
    cotangents = jax.grad(lambda probes: loss(run(params, x, probes)[0]))(zeros)
    sizes = np.array([float(jnp.sum(c**2)) for c in cotangents])
    np.testing.assert_allclose(explained.log_gradient, np.log(sizes / sizes[-1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(explained.gradient_gain[1:], sizes[:-1] / sizes[1:], rtol=1e-4)
    np.testing.assert_allclose(explained.length, squares(run(params, x, zeros)[1]), rtol=1e-4)
    assert explained.breaks == ((), *[("skip",)] * 11)
    assert explained.activation == "relu"
    assert (
        np.isnan(verdicts.initialization(explained).weight_variance)
        and "skip" in verdicts.initialization(explained).text
    )
    assert explained.predicted_log_gradient[0] < -20 < 0 < explained.log_gradient[0]


def test_a_chain_is_measured_beside_its_prediction():
    """Wide random layers: the recursion holds; two heads and a bias of large mean do not hide it."""
    params = {
        "in": (normal(0, 64, 256, variance=2.0), jnp.zeros(256, jnp.float32)),
        "mid": (normal(1, 256, 256, variance=1.0), jnp.full(256, 0.1, jnp.float32)),
        "heads": [normal(2, 256, 20), normal(3, 256, 30)],
    }
    x = normal(9, 64, 64, variance=64.0)

    def apply(params, x):
        for weight, bias in (params["in"], params["mid"]):
            x = jax.nn.relu(x @ weight + bias[None])
        return [x @ head for head in params["heads"]]

    explained = initialization.explain(params, apply=apply, x=x)
    assert explained.names == ("in/0", "mid/0", "heads/0", "heads/1")
    assert explained.activation == "relu" and not any(explained.breaks) and not explained.notes
    np.testing.assert_allclose(explained.bias_mean, [0, 0.1, 0, 0])
    np.testing.assert_allclose(explained.bias_variance, 0)
    np.testing.assert_allclose(explained.length_gain[:2], explained.predicted_length_gain[:2], rtol=0.1)
    # Both heads read the second layer's state, whose gradient is the sum of what comes from the two.
    heads = explained.predicted_gradient_gain[2:] * np.exp(explained.log_gradient[2:])
    np.testing.assert_allclose(heads.sum(), np.exp(explained.log_gradient[1]), rtol=0.2)
    np.testing.assert_allclose(explained.gradient_gain[1], explained.predicted_gradient_gain[1], rtol=0.2)
    np.testing.assert_allclose(explained.length_gain[2:], explained.length[2:] / explained.length[1], rtol=1e-6)
    assert verdicts.initialization(explained).weight_variance == 2


@pytest.mark.parametrize("layout", ["OIHW", "depthwise", "transposed"])
def test_fans_of_a_call(layout):
    names = ("NCHW", "OIHW", "NCHW")
    kernel, x = normal(0, 3, 6, 3, 3), normal(1, 2, 6, 8, 8)
    fans = 54, 27
    if layout == "depthwise":
        kernel, fans = normal(0, 6, 1, 3, 3), (9, 9)
    if layout == "transposed":
        kernel, fans = normal(0, 4, 4, 6, 3), (24, 48)

    def apply(p, x):
        if layout == "transposed":
            x = x.transpose(0, 2, 3, 1)
            return jax.lax.conv_transpose(x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        groups = 6 if layout == "depthwise" else 1
        return jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
        )

    explained = initialization.explain({"w": kernel}, apply=apply, x=x)
    assert (explained.fan_in[0], explained.fan_out[0]) == fans
    np.testing.assert_allclose(explained.backward_variance, fans[1] * np.var(np.asarray(kernel, np.float64)), rtol=1e-5)


def test_a_recurrent_weight_is_one_row_however_long_the_sequence():
    params = {"u": normal(0, 6, 8), "w": normal(1, 8, 8), "b": normal(2, 8)}

    def apply(params, x):
        def step(h, row):
            return jnp.tanh(row @ params["u"] + h @ params["w"] + params["b"][None]), None

        return jax.lax.scan(step, jnp.zeros((x.shape[0], 8), jnp.float32), x.swapaxes(0, 1))[0]

    explained = initialization.explain(params, apply=apply, x=normal(3, 4, 20, 6))
    assert explained.names == ("u", "w") and explained.shapes == ((6, 8), (8, 8))
    variances = [n * np.var(np.asarray(params[k], np.float64)) for k, n in (("u", 6), ("w", 8))]
    np.testing.assert_allclose(explained.weight_variance, variances, rtol=1e-6)
    assert "shared weight" in explained.breaks[1] and np.isnan(verdicts.initialization(explained).weight_variance)
    np.testing.assert_array_equal(explained.bias_variance, 0)  # it is added to a sum of two


def test_derived_weights_and_looked_up_inputs():
    params = {"table": normal(0, 9, 12), "v": normal(1, 12, 12), "g": jnp.ones(12, jnp.float32), "w": normal(2, 12, 5)}

    def contracted(params):
        return params["g"][None] * params["v"] / jnp.linalg.norm(params["v"], axis=0, keepdims=True)

    def apply(params, tokens):
        return jnp.tanh(params["table"][tokens] @ contracted(params)) @ params["w"]

    explained = initialization.explain(params, apply=apply, x=np.arange(8).reshape(2, 4))
    assert explained.names == ("v", "w")
    exact = 12 * np.var(np.asarray(contracted(params), np.float64))
    np.testing.assert_allclose(explained.weight_variance[0], exact, rtol=1e-5)
    assert explained.breaks[0] == ("derived weight",) and explained.laws[0] == "unknown"
    assert np.isnan(explained.length_gain[0]) and explained.log_length[0] == 0
    assert "not x itself" in explained.notes[0]


# ---------------------------------------------------------------------------------------------------- at the door


WEIGHTS = {"w": np.ones((3, 3), np.float32), "k": np.ones((3, 3, 2, 4), np.float32)}
X = np.ones((2, 3), np.float32)


def explain(**settings):
    return lambda: initialization.explain(WEIGHTS, **settings)


def linear(params, x):
    return x @ params["w"]


PLAIN = initialization.explain({"w": np.ones((3, 3))})
DOORS = [
    bad(lambda: initialization.explain({}), "params"),
    bad(lambda: initialization.explain({"n": np.ones((3, 3), int)}), "params", shown="n"),
    bad(explain(activation=np.tanh), "activation"),
    bad(explain(apply=linear), "apply and x"),
    bad(explain(apply=3, x=X), "apply", shown="3"),
    bad(explain(apply=linear, x=[]), "x"),
    bad(explain(apply=linear, x=X, loss=3), "loss", shown="3"),
    bad(explain(apply=linear, x=X, transposed=True), "transposed", shown="True"),
    bad(explain(apply=linear, x=X, stacked="w"), "stacked", shown="w"),
    bad(explain(apply=linear, x=X, layouts={"w": "IO"}), "layouts"),
    bad(explain(loss=np.mean), "loss"),
    bad(explain(examples=0), "examples", shown="0"),
    bad(lambda: verdicts.initialization(PLAIN, bias_variance=-1), "bias_variance", shown="-1"),
    bad(lambda: verdicts.initialization(PLAIN, bias_variance="0"), "bias_variance", shown="0"),
    bad(lambda: verdicts.initialization(PLAIN, bias_variance=np.ones(2)), "bias_variance", shown="(2,)"),
    bad(lambda: verdicts.initialization(PLAIN, bias_variance=np.nan), "bias_variance", shown="nan"),
    bad(explain(transposed=3), "transposed", shown="3"),
    bad(explain(transposed="v"), "transposed", shown="v"),
    bad(explain(stacked="v"), "stacked", shown="v"),
    bad(explain(stacked=1), "stacked", shown="1"),
    bad(explain(layouts="OIHW"), "layouts", shown="OIHW"),
    bad(explain(layouts={"v": "IO"}), "layouts", shown="v"),
    bad(explain(layouts={"w": "IOO"}), "layouts", shown="IOO"),
    bad(explain(layouts={"w": "XY"}), "layouts", shown="XY"),
    bad(explain(layouts={"w": "HW"}), "layouts", shown="HW"),
    bad(explain(layouts={"w": 3}), "layouts", shown="3"),
    bad(explain(layouts={"k": ("HWIO", 3)}), "layouts", shown="3"),
    bad(explain(layouts={"k": ("HWIO", 0)}), "layouts", shown="0"),
    bad(lambda: initialization.defaults("jax", "dense", (3, 3)), "framework", shown="jax"),
    bad(lambda: initialization.defaults(["flax"], "dense", (3, 3)), "framework"),
    bad(lambda: initialization.defaults("flax", "pool", (3, 3)), "layer", shown="pool"),
    bad(lambda: initialization.defaults("flax", "conv", (3, 3)), "shape", shown="(3, 3)"),
    bad(lambda: initialization.defaults("flax", "dense", (3, 3, 3)), "shape", shown="(3, 3, 3)"),
    bad(lambda: initialization.defaults("flax", "dense", (3, 0)), "shape[1]", shown="0"),
    bad(lambda: initialization.defaults("flax", "dense", (3, 2.5)), "shape[1]", shown="2.5"),
    bad(lambda: initialization.defaults("flax", "dense", 3), "shape", shown="3"),
    bad(lambda: initialization.defaults("flax", "dense", "33"), "shape", shown="33"),
]


@pytest.mark.parametrize("row", DOORS, ids=str)
def test_bad_calls_are_refused(row):
    refused(row)


def test_bad_arguments_are_named():
    weights = {"w": np.ones((3, 3))}
    with pytest.raises(ValueError, match=r"params must hold a weight.*b \(3,\)"):
        initialization.explain({"b": np.ones(3)})
    with pytest.raises(ValueError, match="apply and x must be given together"):
        initialization.explain(weights, x=np.ones((2, 3)))
    with pytest.raises(TypeError, match="activation must be an Activation.*'relu'"):
        initialization.explain(weights, activation="relu")
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
    assert len(lines) == 27, "title, head, 25 rows"
    assert "... 6 more" in text
    assert max(map(len, lines)) < 200


def test_layers_inside_a_custom_rule_are_nobodys(key):
    """What lies inside stands in no row, and in no other row's place: the first layer still reads x."""
    keys = jax.random.split(key, 5)
    params = {name: jax.random.normal(k, (6, 6)) for name, k in zip(("w", "a", "b", "o"), keys)}
    x = jax.random.normal(keys[4], (20, 6))
    two = jax.custom_vjp(lambda x, a, b: jnp.tanh(x @ a) @ b)
    two.defvjp(lambda *args: (two(*args), args), lambda args, ct: tuple(jnp.ones_like(each) for each in args))

    def apply(p, x):
        return jnp.tanh(two(jnp.tanh(x @ p["w"]), p["a"], p["b"])) @ p["o"]

    found = initialization.explain(params, apply=apply, x=x)
    assert found.names == ("w", "o") and found.breaks == ((), ("a layer not entered",))
    gain = np.mean(np.asarray(x @ params["w"]) ** 2) / np.mean(np.asarray(x) ** 2)
    np.testing.assert_allclose(found.length_gain[0], gain, rtol=1e-4)


def test_the_first_step_of_a_scan_on_x_reads_x(key):
    """Nothing was made by a step before it: its gain is that from x."""
    stack, x = jax.random.normal(key, (3, 6, 6)), jax.random.normal(jax.random.fold_in(key, 1), (20, 6))

    def apply(stack, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, stack)[0]

    found = initialization.explain(stack, apply=apply, x=x)
    assert found.begins.tolist() == [True, False, False] and not any(found.breaks) and not found.notes
    gain = np.mean(np.asarray(x @ stack[0]) ** 2) / np.mean(np.asarray(x) ** 2)
    np.testing.assert_allclose(found.length_gain[0], gain, rtol=1e-4)
