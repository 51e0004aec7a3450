"""Probe, capture and tap: each statistic against NumPy, the switches, the limits, the frameworks' special cases."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import tracing
from numdl.analysis import _listening, layers
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


# ---- the leaves of params


LEAVES = {
    "embedding": normal(20, 7, 4),
    "scale": 1 + 0.1 * normal(21, 4),
    "w": normal(22, 4, 4),
    "v": normal(23, 4, 4),
    "gain": normal(24, 4),
    "bias": normal(25, 4),
    "mask": jnp.array([True, False, True, True]),
    "unused": jnp.zeros(3),
    "start": normal(26, 4),
    "decay": 0.1 * normal(27, 4),
    "ragged": normal(28, 2, 4, 4),
    "inside": 0.1 * normal(29, 4, 4),
    "table": jnp.arange(7)[::-1],
}
TOKENS = jnp.array([[0, 1, 2], [3, 4, 5]])


def squared(y):
    return jnp.mean((y - 1) ** 2)


def without_while(p, tokens):
    h = p["embedding"][p["table"][tokens]]
    h = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True)) * p["scale"][None, None] * p["mask"][None, None]
    h = jnp.tanh(h @ p["w"] + p["bias"][None, None]) @ (
        p["gain"][None] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)
    )
    first = jnp.broadcast_to(p["start"], (2, 4))
    last = jax.lax.scan(lambda c, now: (p["decay"][None] * c + now, None), first, jnp.swapaxes(h, 0, 1))[0]
    rows = jax.lax.ragged_dot(h.reshape(6, 4), p["ragged"], jnp.array([2, 4])).reshape(2, 3, 4)
    return (last + rows.sum(1)) @ p["embedding"].T


def with_while(p, tokens):
    def step(c):
        return c[0] + 1, c[1] @ jax.lax.stop_gradient(p["inside"])

    return jax.lax.while_loop(lambda c: c[0] < 2, step, (0, without_while(p, tokens)[:, :4]))[1]


def test_every_leaf_has_its_gradient_as_grad_gives_it():
    flow = layers.probe(without_while, LEAVES, TOKENS, loss=squared)
    expected = jax.jit(jax.grad(lambda p: squared(without_while(p, TOKENS)), allow_int=True))(LEAVES)
    assert flow.leaf_names == tuple(sorted(LEAVES))
    assert flow.leaf_shapes == tuple(LEAVES[name].shape for name in sorted(LEAVES))
    for i, name in enumerate(flow.leaf_names):
        if name in ("mask", "table"):
            assert np.isnan(flow.leaf_gradient_rms[i])
            assert np.isnan(flow.leaf_rms[i])
        else:
            close(flow.leaf_gradient_rms[i], np.sqrt(np.mean(np.square(expected[name]))))
            close(flow.leaf_rms[i], np.sqrt(np.mean(np.square(LEAVES[name]))))


def test_every_leaf_says_what_it_is_used_for():
    traced = layers.probe(with_while, LEAVES, TOKENS)
    uses = dict(zip(traced.leaf_names, traced.leaf_uses))
    assert uses == {
        "bias": ("bias: elementwise sum",),
        "decay": ("scan: elementwise product",),
        "embedding": ("embedding: gather", "embedding"),
        "gain": ("v",),
        "inside": ("not entered: while",),
        "mask": ("not floating: bool", "elementwise product"),
        "ragged": ("ragged_dot_general",),
        "scale": ("norm scale: elementwise product",),
        "start": ("initial state of a scan",),
        "table": (
            "not floating: int32" if LEAVES["table"].dtype == jnp.int32 else "not floating: int64",
            "embedding: gather",
        ),
        "unused": ("unused",),
        "v": ("v",),
        "w": ("w",),
    }
    assert "leaf scale: norm scale: elementwise product; rms" in repr(traced)


def test_gradients_of_complex_leaves_are_measured():
    w = normal(1, 4, 3, dtype=jnp.complex64)
    loss = lambda y: jnp.mean(jnp.abs(y) ** 2)  # noqa: E731
    flow = layers.probe(lambda w, x: x.astype(w.dtype) @ w, w, X, loss=loss)
    expected = jax.grad(lambda w: loss(X.astype(w.dtype) @ w))(w)
    np.testing.assert_allclose(flow.leaf_gradient_rms[0], np.sqrt(np.mean(np.abs(expected) ** 2)), rtol=1e-5)


def test_the_optimizers_first_update():
    optax = pytest.importorskip("optax")
    optimizer = optax.sgd(0.5)
    flow = layers.probe(without_while, LEAVES, TOKENS, loss=squared, optimizer=optimizer)
    moves = ~np.isnan(flow.leaf_rms) & (np.asarray(flow.leaf_rms) > 0)
    ratio, gradient, size = (
        np.asarray(each)[moves] for each in (flow.leaf_update_ratio, flow.leaf_gradient_rms, flow.leaf_rms)
    )
    np.testing.assert_allclose(ratio, 0.5 * gradient / size, rtol=1e-5)
    adam = optax.adam(1e-3)
    flow = layers.probe(relu_net, PARAMS, X, loss=mean_square, optimizer=adam)
    gradients = jax.grad(lambda p: mean_square(relu_net(p, X)))(PARAMS)
    updates = jax.tree.leaves(adam.update(gradients, adam.init(PARAMS), PARAMS)[0])
    sizes = [np.sqrt(np.mean(np.square(update))) for update in updates]
    np.testing.assert_allclose(flow.leaf_update_ratio * flow.leaf_rms, sizes, rtol=1e-5)
    with pytest.raises(ValueError, match="loss must be given with an optimizer"):
        layers.probe(relu_net, PARAMS, X, optimizer=optimizer)
    with pytest.raises(TypeError, match="optimizer must be an optax transformation, with init and update; got 0.1"):
        layers.probe(relu_net, PARAMS, X, loss=mean_square, optimizer=0.1)


def test_exact_zeros_need_no_second_program():
    """A head that starts at zero: zeros below it, and the first program's answer is taken."""

    def apply(p, x):
        return jnp.tanh(x @ p["w"]) @ p["head"]

    params = {"w": normal(1, 4, 4, dtype=jnp.float32), "head": jnp.zeros((4, 2), jnp.float32)}
    x = X.astype(jnp.float32)
    traced, cost, run = layers._prepared(apply, squared, params, x, None, 64)
    flow, trusted = run(params, x, traced.constants, cost.constants, careful=False)
    assert bool(trusted)
    assert float(flow.state_gradient_rms[0]) == float(flow.weight_gradient_rms[0]) == float(flow.leaf_rms[0]) == 0
    small = params | {"head": jnp.full((4, 2), 1e-30, jnp.float32)}
    assert not bool(run(small, x, traced.constants, cost.constants, careful=False)[1])


# ---- dead and saturated units


def bound(f, share=0.05):
    """Where the slope of f, from the left, first exceeds a share of the steepest; by differences in float64."""
    z = np.linspace(-30, 30, 600001)
    slope = np.abs(np.gradient(f(z), z))
    return z[np.argmax(slope > share * slope.max())]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "softplus", "elu"])
def test_where_a_unit_is_dead(name):
    from math import erf, pi, sqrt

    f = {
        "gelu": lambda z: z * (1 + np.vectorize(erf)(z / sqrt(2))) / 2,
        "gelu_tanh": lambda z: z * (1 + np.tanh(sqrt(2 / pi) * (z + 0.044715 * z**3))) / 2,
        "silu": lambda z: z / (1 + np.exp(-z)),
        "softplus": lambda z: np.logaddexp(z, 0),
        "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    }[name]
    assert abs(bound(f) - _listening.DEATH[name]) < 1e-3


def batch_norm(y):
    return (y - y.mean(0, keepdims=True)) / (y.std(0, keepdims=True) + 1e-5)


def test_dead_units_are_seen_past_a_norm():
    params = {"w": normal(0, 4, 8), "b": jnp.where(jnp.arange(8) < 3, -1e3, 0.0)[None]}
    flow = layers.probe(lambda p, x: jax.nn.relu(batch_norm(x @ p["w"]) + p["b"]), params, X)
    assert float(flow.dead[0]) == 3 / 8
    flow = layers.probe(lambda p, x: jax.nn.gelu(x @ p["w"] + p["b"]), params, X)
    assert float(flow.dead[0]) == 3 / 8


def test_a_sum_of_layers_saturates_together():
    params = {"u": normal(0, 4, 4), "w": normal(1, 4, 4)}
    flow = layers.probe(lambda p, x: jnp.tanh(20 * (x @ p["u"] - x @ p["w"])), params, X)
    share = np.mean(np.abs(20 * (X @ params["u"] - X @ params["w"])) > _listening.SATURATION["tanh"])
    close(flow.saturated, [share, share])


# ---- examples that cannot be followed


def test_a_leaf_that_is_one_layers_weight_is_heard_there():
    """Scanned, checkpointed or plain, its gradient is that of the steps together; shared over steps it is not."""

    def apply(p, x):
        x = jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, p["deep"])[0]
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ p["shared"]), None), x, None, length=3)[0]
        return x @ p["twice"] @ p["twice"] @ p["half"].astype(jnp.float32)

    params = {"deep": normal(1, 3, 4, 4), "shared": normal(2, 4, 4), "twice": normal(3, 4, 4), "half": normal(4, 4, 2)}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x = X.astype(jnp.float32)
    assert list(tracing.trace(apply, params, x).only_uses) == [0, 1]
    flow = layers.probe(apply, params, x, loss=lambda y: 1e-30 * mean_square(y))  # both programs run
    expected = jax.jit(jax.grad(lambda p: mean_square(apply(p, x))))(params)
    for name, found in zip(flow.leaf_names, flow.leaf_gradient_rms):
        np.testing.assert_allclose(found / 1e-30, np.sqrt(np.mean(np.square(expected[name]))), rtol=1e-4)


def test_what_needs_examples_is_nan_without_them():
    def experts(p, x):
        chosen = jax.nn.one_hot(jnp.argmax(x @ p["gate"], 1), 6)  # as many experts as examples
        queue = jnp.einsum("ne,nd->ed", chosen, x)
        return jnp.einsum("ne,ef->nf", chosen, jnp.einsum("ed,edf->ef", queue, p["experts"]))

    params = {"gate": normal(1, 4, 6), "experts": normal(2, 6, 4, 3)}
    flow = layers.probe(experts, params, X, loss=mean_square)
    place = flow.names.index("experts")
    assert np.isnan([flow.mean_cosine[place], flow.effective_rank[place], flow.state_gradient_rms[place]]).all()
    assert np.isfinite([flow.state_rms[place], flow.weight_gradient_rms[place]]).all()
    assert "experts: the examples are summed over before it" in flow.notes
    assert "note: experts: the examples are summed over" in repr(flow)
    assert "experts" in layers.capture(experts).notes(params, X)


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
        ((relu_net, PARAMS, X[0, 0]), ValueError, "with at least one example; got -?[0-9.]+"),
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


def test_states_and_weights_without_numbers_have_no_statistics():
    params = {"w": normal(1, 4, 0), "e": normal(2, 0, 3), "none": normal(3, 0, 4, 4), "v": normal(4, 4, 3)}

    def apply(p, x):
        return chain(jnp.tanh)(p["none"], x) @ p["v"] + (x @ p["w"]) @ p["e"]

    flow = layers.probe(apply, params, X, loss=mean_square)
    assert sorted(flow.names) == ["e", "v", "w"]  # no step of the scan
    row = flow.names.index("w")
    assert np.isnan([flow.state_rms[row], flow.weight_variance[row], flow.weight_gradient_rms[row]]).all()
    close(flow.state_rms[flow.names.index("v")], np.sqrt(np.mean(np.asarray(X @ params["v"]) ** 2)))


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


def test_a_stacked_leaf_has_the_gradient_of_all_its_steps():
    kernels, x = (
        jnp.asarray(np.sin(np.arange(48.0)).reshape(3, 4, 4)),
        jnp.asarray(np.cos(np.arange(20.0)).reshape(5, 4)),
    )

    def apply(params, x):
        return jax.lax.scan(lambda y, kernel: (jnp.tanh(y @ kernel), None), x, params)[0]

    def loss(y):
        return jnp.mean(y**2)

    flow = layers.probe(apply, kernels, x, loss=loss)
    wanted = jnp.sqrt(jnp.mean(jax.grad(lambda k: loss(apply(k, x)))(kernels) ** 2))
    np.testing.assert_allclose(flow.leaf_gradient_rms, [wanted], rtol=1e-5)
