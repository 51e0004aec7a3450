"""Probe, capture and tap: each statistic against NumPy, the switches, the limits, the frameworks' special cases."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import layers
from tests.selection import in_turn

pytestmark = pytest.mark.float32

FLOAT = jnp.result_type(float)
EPS = float(jnp.finfo(FLOAT).eps)


def normal(seed, *shape, dtype=FLOAT):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


X = normal(0, 6, 4)
PARAMS = {"a": {"w": normal(1, 4, 8), "b": normal(2, 8)}, "c": {"w": normal(3, 8, 3)}}


def relu_net(params, x):
    return jax.nn.relu(x @ params["a"]["w"] + params["a"]["b"][None]) @ params["c"]["w"]


def mean_square(outputs):
    return jnp.mean(jnp.abs(outputs) ** 2)


def chain(f):
    """A scanned network of square layers."""
    return lambda w, x: jax.lax.scan(lambda x, w: (f(x @ w), None), x, w)[0]


def close(found, expected, *, times=200):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=times * EPS, atol=times * EPS)


# ---- statistics


def test_forward_statistics_are_numpys():
    flow = layers.probe(relu_net, PARAMS, X)
    w, b, c = (np.asarray(a, np.float64) for a in (PARAMS["a"]["w"], PARAMS["a"]["b"], PARAMS["c"]["w"]))
    first = np.asarray(X, np.float64) @ w + b
    second = np.maximum(first, 0) @ c
    for i, (y, weight) in enumerate([(first, w), (second, c)]):
        gram = y @ y.T
        norms = np.sqrt(np.diag(gram))
        cosines = (gram / np.outer(norms, norms))[~np.eye(6, dtype=bool)]
        expected = {
            "fan_in": len(weight),
            "weight_variance": len(weight) * weight.var(),
            "state_mean": y.mean(),
            "state_rms": np.sqrt((y**2).mean()),
            "state_max": np.abs(y).max(),
            "effective_rank": np.trace(gram) ** 2 / np.trace(gram @ gram),
            "mean_cosine": cosines.mean(),
            "state_nonfinite": 0,
        }
        for name, value in expected.items():
            close(getattr(flow, name)[i], value)
    assert flow.dead[0] == (first <= 0).all(0).mean()
    assert flow.nonlinearities == ("relu", None)
    assert np.isnan(
        [flow.dead[1], *flow.saturated, flow.value, *flow.state_gradient_rms, *flow.weight_gradient_rms]
    ).all()
    assert list(flow.gradient_nonfinite) == [-1, -1]
    assert flow.shapes == ((6, 8), (6, 3))
    assert (flow.kinds, flow.examples) == (("dense", "dense"), 6)


def test_dead_units_are_counted():
    bias = jnp.array([-1e3, 0, 0, -1e3, 0, 0, 0, 0], FLOAT)
    params = {**PARAMS, "a": {**PARAMS["a"], "b": bias}}
    assert float(layers.probe(relu_net, params, X).dead[0]) >= 0.25
    everything = {**PARAMS, "a": {**PARAMS["a"], "b": bias - 1e3}}
    assert float(layers.probe(relu_net, everything, X).dead[0]) == 1


def test_a_convolutions_unit_is_a_channel():
    def apply(k, x):
        y = jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y)

    kernel = jnp.abs(normal(1, 3, 3, 2, 4)) * jnp.array([1, -1, 1, -1], FLOAT)[None, None, None]
    assert float(layers.probe(apply, kernel, jnp.abs(normal(2, 3, 5, 5, 2))).dead[0]) == 0.5


@pytest.mark.parametrize(
    "f, slope",
    [
        (jnp.tanh, lambda y: 1 - np.tanh(y) ** 2),
        (jax.nn.sigmoid, lambda y: 4 / (1 + np.exp(-y)) / (1 + np.exp(y))),
        (jax.lax.erf, lambda y: np.exp(-(y**2))),
    ],
)
def test_saturated_is_a_slope_under_five_percent(f, slope):
    y = np.linspace(-8, 8, 1001).reshape(-1, 1)
    flow = layers.probe(lambda w, x: f(x @ w), jnp.ones((1, 1), FLOAT), jnp.asarray(y, FLOAT))
    assert float(flow.saturated[0]) == pytest.approx((slope(y) < 0.05).mean(), abs=1e-6)


def test_gradients_are_those_of_grad():
    flow = layers.probe(relu_net, PARAMS, X, loss=mean_square)
    gradients = jax.grad(lambda p: mean_square(relu_net(p, X)))(PARAMS)
    close(flow.weight_gradient_rms, [np.sqrt(np.mean(g["w"] ** 2)) for g in (gradients["a"], gradients["c"])])
    outputs = relu_net(PARAMS, X)
    close(flow.state_gradient_rms[1], 6 * np.sqrt(np.mean((2 * outputs / outputs.size) ** 2)))
    close(flow.value, mean_square(outputs))


def test_twice_the_batch_leaves_the_per_example_cotangents():
    once = layers.probe(relu_net, PARAMS, X, loss=mean_square)
    twice = layers.probe(relu_net, PARAMS, jnp.concatenate([X, X]), loss=mean_square)
    close(once.state_gradient_rms, twice.state_gradient_rms)


def test_a_weight_used_twice_has_one_gradient_for_each_use():
    def apply(w, x):
        return jnp.tanh(x @ w) @ w

    flow = layers.probe(apply, PARAMS["a"]["w"][:, :4], X, loss=mean_square)
    w = PARAMS["a"]["w"][:, :4]
    parts = jax.grad(lambda u, v: mean_square(jnp.tanh(X @ u) @ v), (0, 1))(w, w)
    assert flow.names == ("params", "params#1")
    close(flow.weight_gradient_rms, [np.sqrt(np.mean(part**2)) for part in parts])


def test_rank_examples_chooses_how_many():
    x = normal(5, 100, 50)
    w = normal(6, 50, 50)
    full = layers.probe(chain(jnp.tanh), w[None], x, rank_examples=100)
    some = layers.probe(chain(jnp.tanh), w[None], x, rank_examples=10)
    for flow, rows in ((full, x), (some, x[::10])):
        gram = np.asarray(rows @ w, np.float64) @ np.asarray(rows @ w, np.float64).T
        close(flow.effective_rank[0], np.trace(gram) ** 2 / np.sum(gram**2))
    assert float(some.effective_rank[0]) < 10 < float(full.effective_rank[0])


# ---- the ends of the range


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e25])
def test_squares_that_leave_the_range_of_float32(size):
    w = jnp.ones((1, 4, 4), jnp.float32)
    x = size * normal(7, 6, 4, dtype=jnp.float32)
    flow = layers.probe(chain(lambda y: y), w, x, loss=lambda outputs: jnp.sum(outputs) * 1e-33)
    state = np.asarray(x, np.float64) @ np.ones((4, 4))
    assert float(flow.state_rms[0]) == pytest.approx(np.sqrt((state**2).mean()), rel=1e-5)
    assert float(flow.state_gradient_rms[0]) == pytest.approx(6e-33, rel=1e-5)
    assert float(flow.weight_gradient_rms[0]) == pytest.approx(
        1e-33 * np.sqrt((np.asarray(x, np.float64).sum(0) ** 2).mean()), rel=1e-4
    )
    gram = state @ state.T
    assert float(flow.effective_rank[0]) == pytest.approx(np.trace(gram) ** 2 / np.sum(gram**2), rel=1e-5)
    assert int(flow.first_nonfinite) == -1


def test_the_first_layer_that_is_not_finite_is_named():
    w = jnp.stack([normal(8, 4, 4), normal(9, 4, 4).at[0, 0].set(jnp.inf), normal(10, 4, 4)])
    flow = layers.probe(chain(jnp.tanh), w, X.at[:, :].set(0), loss=mean_square)
    assert flow.names[int(flow.first_nonfinite)] == "params[1]"
    assert list(flow.state_nonfinite) == [0, 6, 24]
    assert int(flow.gradient_nonfinite[2]) == 24
    assert "first not finite at params[1]" in repr(flow)


def test_a_large_mean_does_not_swallow_the_weights_variance():
    w = (1e4 + normal(1, 1, 64, 64, dtype=jnp.float32)).astype(jnp.float32)
    flow = layers.probe(chain(lambda y: y), w, normal(0, 3, 64, dtype=jnp.float32))
    assert float(flow.weight_variance[0]) == pytest.approx(64 * np.var(np.asarray(w, np.float64)), rel=1e-4)


@pytest.mark.parametrize("dtype", in_turn([jnp.bfloat16, jnp.float16, jnp.complex64], 0))
def test_other_dtypes_are_measured_in_float32(dtype):
    w, x = 0.5 * normal(1, 3, 16, 16, dtype=dtype), normal(0, 6, 16, dtype=dtype)

    def apply(w, x):
        for i in range(3):
            x = jnp.tanh(x @ w[i])
        return x

    flow = layers.probe(apply, w, x, loss=lambda outputs: mean_square(outputs).astype(jnp.float32))
    assert flow.state_rms.dtype == jnp.float32
    rounding = max(float(jnp.finfo(dtype).eps), 1e-5)  # a compiled program may keep more digits between operations
    first = np.asarray(x @ w[0]).astype(np.complex128)
    assert float(flow.state_rms[0]) == pytest.approx(np.sqrt(np.mean(np.abs(first) ** 2)), rel=rounding)
    variance = np.mean(np.abs(np.asarray(w[0]).astype(np.complex128)) ** 2)
    variance -= np.abs(np.mean(np.asarray(w[0]).astype(np.complex128))) ** 2
    assert float(flow.weight_variance[0]) == pytest.approx(16 * variance, rel=1e-4)
    gradient = jax.grad(lambda y: mean_square(jnp.tanh(y)).astype(jnp.float32))(
        jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) @ w[2]
    )
    wide = np.abs(np.asarray(gradient).astype(np.complex128))
    assert float(flow.state_gradient_rms[2]) == pytest.approx(6 * np.sqrt((wide**2).mean()), rel=2e-2)
    assert np.isfinite(flow.state_gradient_rms).all()


# ---- running it


def test_the_second_call_traces_nothing():
    calls = []

    def apply(params, x):
        calls.append("apply")
        return relu_net(params, x)

    def loss(outputs):
        calls.append("loss")
        return mean_square(outputs)

    one = layers.probe(apply, PARAMS, X, loss=loss)
    two = layers.probe(apply, jax.tree.map(lambda a: 2 * a, PARAMS), X, loss=loss)
    assert calls == ["apply", "loss"]
    assert float(two.state_rms[1]) > 2 * float(one.state_rms[1])
    layers.probe(apply, PARAMS, X[:3], loss=loss)
    assert calls == ["apply", "loss"] * 2


def test_a_bound_method_is_the_same_function_every_time():
    calls = []

    class Model:
        def apply(self, params, x):
            calls.append(1)
            return relu_net(params, x)

    model = Model()
    layers.probe(model.apply, PARAMS, X)
    layers.probe(model.apply, PARAMS, X)
    layers.probe(Model().apply, PARAMS, X)
    assert len(calls) == 2


def test_jit_and_vmap_over_seeds_give_the_same():
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), PARAMS)
    flows = jax.vmap(lambda p: layers.probe(relu_net, p, X, loss=mean_square))(stacked)
    plain = layers.probe(relu_net, PARAMS, X, loss=mean_square)
    double = jax.jit(lambda p: layers.probe(relu_net, p, X, loss=mean_square))(jax.tree.map(lambda a: 2 * a, PARAMS))
    for name in ("state_rms", "state_gradient_rms", "weight_gradient_rms", "effective_rank", "value"):
        close(getattr(flows, name)[0], getattr(plain, name))
        close(getattr(flows, name)[1], getattr(double, name))
    assert "2x2" in repr(flows)


def test_arrays_known_under_jit_are_measured_too():
    value = jax.jit(lambda scale: scale * layers.probe(relu_net, PARAMS, X, loss=mean_square).value)(2.0)
    close(value, 2 * mean_square(relu_net(PARAMS, X)))


def test_the_loss_can_be_differentiated_through_the_probe():
    found = jax.grad(lambda p: layers.probe(relu_net, p, X, loss=mean_square).value)(PARAMS)
    expected = jax.grad(lambda p: mean_square(relu_net(p, X)))(PARAMS)
    close(found["a"]["w"], expected["a"]["w"])


def test_effects_and_closed_over_keys_pass(capfd):
    key = jax.random.key(5)

    def apply(params, x):
        jax.debug.print("seen {}", x.shape[0])
        return relu_net(params, x * jax.random.bernoulli(key, 0.5, x.shape))

    flow = layers.probe(apply, PARAMS, X, loss=mean_square)
    jax.effects_barrier()
    assert "seen 6" in capfd.readouterr().out
    close(flow.value, mean_square(relu_net(PARAMS, X * jax.random.bernoulli(key, 0.5, X.shape))))


def test_a_loss_that_closes_over_a_tracer_is_not_kept():
    def measure(targets):
        return layers.probe(relu_net, PARAMS, X, loss=lambda y: jnp.mean((y - targets) ** 2)).value

    targets = jnp.stack([relu_net(PARAMS, X), 0 * relu_net(PARAMS, X)])
    close(jax.vmap(measure)(targets), [0, mean_square(targets[0])])


def test_the_loss_reaches_its_targets_as_an_argument():
    targets = normal(4, 6, 3)
    flow = layers.probe(relu_net, PARAMS, X, loss=lambda y: jnp.mean((y - targets) ** 2))
    close(flow.value, np.mean((np.asarray(relu_net(PARAMS, X)) - np.asarray(targets)) ** 2))


def test_a_branch_not_taken_is_nan():
    def apply(p, x):
        return jax.lax.cond(jnp.sum(x) > 1e9, lambda x: x @ p, lambda x: jnp.sin(x @ p), x)

    flow = layers.probe(apply, PARAMS["a"]["w"], X, loss=mean_square)
    assert sorted(np.isnan(flow.state_rms)) == [False, True]
    assert sorted(np.asarray(flow.state_gradient_rms) == 0) == [False, True]


def test_memory_does_not_grow_with_the_states():
    depth, width = 30, 128
    w, x = normal(1, depth, width, width, dtype=jnp.float32) / 12, normal(2, 128, width, dtype=jnp.float32)
    apply = chain(jnp.tanh)
    traced, cost, run = layers._prepared(apply, mean_square, w, x, None, 64)
    probe = run.lower(w, x, traced.constants, cost.constants, careful=False).compile().memory_analysis()
    plain = jax.jit(jax.value_and_grad(lambda w, x: mean_square(apply(w, x)))).lower(w, x).compile().memory_analysis()
    assert probe.temp_size_in_bytes <= 1.1 * plain.temp_size_in_bytes


# ---- capture


@pytest.mark.parametrize(
    "select, expected",
    [
        (None, ["a/w", "c/w"]),
        ("a/*", ["a/w"]),
        ("c/w", ["c/w"]),
        (re.compile("^c"), ["c/w"]),
        (lambda name: name.startswith("a"), ["a/w"]),
        (["a/w", re.compile("c")], ["a/w", "c/w"]),
    ],
)
def test_capture_selects_by_name(select, expected):
    outputs, found = layers.capture(relu_net, select)(PARAMS, X)
    assert list(found) == expected
    close(outputs, relu_net(PARAMS, X))


def test_capture_stacks_steps_and_composes():
    w = normal(1, 3, 4, 4)
    captured = layers.capture(chain(jnp.tanh))
    outputs, found = jax.jit(captured)(w, X)
    assert found["params"].shape == (3, 6, 4)
    close(jnp.tanh(found["params"][2]), outputs)
    gradient = jax.grad(lambda w: jnp.sum(captured(w, X)[1]["params"][0] ** 2))(w)
    close(gradient[0], 2 * X.T @ (X @ w[0]))
    assert np.all(gradient[1:] == 0)
    assert jax.vmap(captured, (0, None))(jnp.stack([w, w]), X)[1]["params"].shape == (2, 3, 6, 4)


def test_capture_keeps_call_order_under_jit():
    def apply(params, x):
        for i in range(11):
            x = jnp.tanh(x @ params[f"layer{i}"])
        return x

    params = {f"layer{i}": normal(i, 4, 4) for i in range(11)}
    assert list(jax.jit(layers.capture(apply))(params, X)[1]) == list(params)


def test_taps_are_captured_and_probed():
    def apply(params, x):
        return layers.tap(jnp.sin(relu_net(params, x)), "sine")

    outputs, found = layers.capture(apply, "sine")(PARAMS, X)
    flow = layers.probe(apply, PARAMS, X, loss=mean_square)
    close(found["sine"], outputs)
    assert (flow.names[2], flow.kinds[2]) == ("sine", "tap")
    close(flow.state_rms[2], np.sqrt(np.mean(np.asarray(outputs) ** 2)))
    assert np.isnan(flow.weight_variance[2])
    assert np.isnan(flow.weight_gradient_rms[2])


# ---- errors


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ((3, PARAMS, X), TypeError, "apply must be a function; got 3"),
        ((relu_net, {"a": 3, "b": PARAMS}, X), TypeError, r"params\['a'\] must be an array; got 3"),
        ((relu_net, PARAMS, [[1.0]]), TypeError, r"x\[0\]\[0\] must be an array; got 1.0"),
        (
            (relu_net, PARAMS, X[:0]),
            ValueError,
            r"x must be an array \[N, ...\] with at least one example; got \(0, 4\)",
        ),
        ((relu_net, PARAMS, X[0, 0]), ValueError, r"with at least one example; got \(\)"),
        ((relu_net, PARAMS, ()), ValueError, "with at least one example; got no array"),
        ((lambda p, x: x * p["a"]["w"][0, 0], PARAMS, X), ValueError, "no layer. Parameters: a/b, a/w, c/w"),
        ((lambda p, x: x, {}, X), ValueError, "no layer. Parameters: none"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        layers.probe(*arguments)


@pytest.mark.parametrize(
    "loss", [lambda y: y, lambda y: jnp.argmax(y), lambda y: (jnp.sum(y), 0), lambda y: jnp.sum(y) * 1j]
)
def test_the_loss_must_be_one_real_number(loss):
    with pytest.raises(ValueError, match="loss must return one real number"):
        layers.probe(relu_net, PARAMS, X, loss=loss)


def test_other_bad_options():
    with pytest.raises(TypeError, match="loss must be a function; got 'mse'"):
        layers.probe(relu_net, PARAMS, X, loss="mse")
    with pytest.raises(ValueError, match="rank_examples must be an integer >= 2; got 1"):
        layers.probe(relu_net, PARAMS, X, rank_examples=1)
    with pytest.raises(ValueError, match=r"select must choose at least one layer; got 'b\*', the layers are a/w, c/w"):
        layers.capture(relu_net, "b*")(PARAMS, X)
    with pytest.raises(TypeError, match="select must be .* a function .*; got 3"):
        layers.capture(relu_net, 3)


def test_what_is_not_entered_is_reported():
    def apply(p, x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: jnp.abs(x @ p) + 1, x)

    w = normal(1, 4, 4)
    with pytest.raises(ValueError, match=r"found no layer; not entered: while holding params. Parameters: params"):
        layers.probe(apply, w, X)
    flow = layers.probe(lambda p, x: apply(p, x) @ p, w, X)
    assert flow.not_entered == ("while holding params",)
    assert "not entered: while holding params" in repr(flow)
    assert "not entered: while holding params" in flow._repr_html_()


# ---- the table


def test_the_table_has_a_row_for_every_layer_up_to_24():
    short = repr(layers.probe(chain(jnp.tanh), normal(1, 24, 4, 4), X, loss=mean_square))
    long = layers.probe(chain(jnp.tanh), normal(1, 40, 4, 4), X, loss=mean_square)
    assert len(short.splitlines()) == 2 + 24
    assert len(repr(long).splitlines()) == 2 + 25
    assert "... 16 more" in repr(long)
    assert "params[11] " in repr(long)
    assert "params[12] " not in repr(long)
    assert long._repr_html_().count("<tr>") == 1 + 25
    assert all(len(line) <= 130 for line in repr(long).splitlines())


# ---- frameworks


def test_linen_batch_norm_and_dropout_through_partial():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(8)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
            return nn.Dense(3)(x)

    model = Model()
    variables = model.init(jax.random.key(0), X, train=False)
    call = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})

    def apply(params, x):
        with jax.numpy_rank_promotion("allow"):
            return call({"params": params, "batch_stats": variables["batch_stats"]}, x)[0]

    flow = layers.probe(apply, variables["params"], X, loss=mean_square)
    assert flow.names == ("Dense_0/kernel", "Dense_1/kernel")
    gradients = jax.grad(lambda p: mean_square(apply(p, X)))(variables["params"])
    expected = [np.sqrt(np.mean(np.square(gradients[name]["kernel"]))) for name in ("Dense_0", "Dense_1")]
    np.testing.assert_allclose(flow.weight_gradient_rms, expected, rtol=1e-5)


def test_a_partial_with_its_updates_can_be_probed_through_the_loss():
    nn = pytest.importorskip("flax.linen")
    model = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=False), nn.Dense(2)])
    with jax.numpy_rank_promotion("allow"):
        variables = model.init(jax.random.key(0), X)
        apply = functools.partial(model.apply, mutable=["batch_stats"])
        flow = layers.probe(apply, variables, X, loss=lambda outputs: mean_square(outputs[0]))
    assert flow.names == ("params/layers_0/kernel", "params/layers_2/kernel")
    assert np.isfinite(flow.state_gradient_rms).all()


def test_haiku():
    hk = pytest.importorskip("haiku")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([5, 3], activation=jnp.tanh)(x)))
    params = network.init(jax.random.key(0), X)
    flow = layers.probe(network.apply, params, X, loss=mean_square)
    assert flow.names == ("mlp/~/linear_0/w", "mlp/~/linear_1/w")
    assert flow.nonlinearities == ("tanh", None)
    first = X @ params["mlp/~/linear_0"]["w"] + params["mlp/~/linear_0"]["b"][None]
    np.testing.assert_allclose(flow.state_rms[0], np.sqrt(np.mean(np.square(first))), rtol=1e-5)
