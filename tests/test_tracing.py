"""The interpreter on functions of one question each: what is a layer, where is its state, what stays as it is."""

import dataclasses
import time

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl import activations, tracing
from numdl.analysis import layers
from numdl.networks import dense

pytestmark = pytest.mark.float32

FLOAT = jnp.result_type(float)
TOLERANCE = 100 * float(jnp.finfo(FLOAT).eps)


def normal(seed, *shape, dtype=FLOAT):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


X, W, B = normal(0, 5, 4), normal(1, 4, 4), normal(2, 4)


def names(apply, params, x=X):
    return [name for name, _, _ in tracing.trace(apply, params, x).entries]


def states(apply, params, x=X):
    """The function's outputs and its states, with nothing changed."""
    return tracing.place(apply, lambda layer, state, given: (state, state))(params, x)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    inner: list
    weight: jax.Array


# ---- names


@pytest.mark.parametrize(
    "params, expected",
    [
        ({"net": {"Dense_0": {"kernel": W}}}, "net/Dense_0/kernel"),
        ([jnp.zeros(3), [W]], "1/0"),
        (Pair([], W), "weight"),
        (Pair([{"w": W}], jnp.zeros(2)), "inner/0/w"),
        (W, "params"),
    ],
)
def test_the_name_is_the_leafs_path(params, expected):
    def apply(params, x):
        return x @ next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)

    assert names(apply, params) == [expected]


def test_further_uses_of_a_parameter_are_numbered():
    assert names(lambda w, x: (x @ w) @ w @ w.T, {"w": W}["w"]) == ["params", "params#1", "params#2"]


# ---- what is a layer


@pytest.mark.parametrize(
    "made",
    [
        lambda p: p["v"].T,
        lambda p: p["v"].reshape(2, 8).reshape(4, 4),
        lambda p: p["v"].astype(jnp.float16).astype(FLOAT),
        lambda p: jnp.concatenate([p["v"], p["v"]])[2:6],
        lambda p: lax.stop_gradient(p["v"]),
        lambda p: p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=0))[None],  # weight normalization
        lambda p: p["v"] @ p["v"],
        lambda p: jax.jit(lambda v: 2 * v)(p["v"]),
        lambda p: lax.dynamic_slice(p["v"], (0, 0), (4, 4)),
    ],
)
def test_a_weight_may_be_made_from_parameters_alone(made):
    params = {"g": B, "v": W}
    (layer,) = tracing.trace(lambda p, x: x @ made(p), params, X).layers
    assert (layer.name, layer.kind, layer.fan_in, layer.weight_shape) == ("v", "dense", 4, (4, 4))


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: x * w[:1],
        lambda w, x: x @ jnp.ones((4, 2), x.dtype),  # a constant
        lambda w, x: x + (w @ w)[:1],  # parameters alone
        lambda w, x: jnp.einsum("nd,d->nd", x, w[0]),  # nothing is contracted
        lambda w, x: w[jnp.argmax(x, axis=1)],  # an embedding
    ],
)
def test_what_is_no_layer(apply):
    assert tracing.trace(apply, W, X).layers == ()


def test_data_with_data_is_attention():
    layers = tracing.trace(lambda w, x: (x @ x.T) @ (x @ w) @ (x.T @ x), W, X).layers
    assert [(layer.name, layer.kind) for layer in layers] == [
        ("attention/0", "attention"),
        ("params", "dense"),
        ("attention/1", "attention"),
        ("attention/2", "attention"),
        ("attention/3", "attention"),
    ]
    assert layers[0].weight_shape is None


@pytest.mark.parametrize(
    "layout, shape, kernel", [("NHWC", (2, 8, 8, 3), (3, 3, 3, 5)), ("NCHW", (2, 3, 8, 8), (3, 3, 3, 5))]
)
def test_convolutions(layout, shape, kernel):
    def apply(p, x):
        numbers = (layout, "HWIO", layout)
        y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.tanh(y + p["b"].reshape([5 if axis == "C" else 1 for axis in layout]))

    params, x = {"k": normal(3, *kernel), "b": normal(4, 5)}, normal(5, *shape)
    (layer,) = tracing.trace(apply, params, x).layers
    _, (state,) = states(apply, params, x)
    assert (layer.kind, layer.fan_in, layer.units) == ("conv", 27, (layout.index("C"),))
    assert layer.nonlinearity == "tanh"
    close(jnp.tanh(state), apply(params, x))


def test_grouped_convolution_counts_what_is_contracted():
    def apply(k, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4)

    (layer,) = tracing.trace(apply, normal(3, 3, 3, 1, 8), normal(5, 2, 8, 8, 4)).layers
    assert layer.fan_in == 9


# ---- where the state lies


@pytest.mark.parametrize(
    "apply, expected",
    [
        (lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]), lambda p, x: x @ p["w"] + p["b"][None]),
        (lambda p, x: jnp.tanh(p["b"][None] + x @ p["w"]), lambda p, x: x @ p["w"] + p["b"][None]),
        (lambda p, x: jnp.tanh(x @ p["w"]) + p["b"][None], lambda p, x: x @ p["w"]),
        (lambda p, x: x @ p["w"] + 2 * x, lambda p, x: x @ p["w"]),  # added data is no bias
        (lambda p, x: x @ p["w"] + p["e"], lambda p, x: x @ p["w"]),  # one number an example is no bias
        (lambda p, x: jnp.einsum("nd,de->en", x, p["w"]).T, lambda p, x: x @ p["w"]),  # examples first
        (lambda p, x: jax.vmap(lambda one: p["w"] @ one)(x), lambda p, x: x @ p["w"].T),
        (lambda p, x: (x @ p["w"]).reshape(5, 2, 2) + p["b"].reshape(1, 2, 2), lambda p, x: None),
        (lambda p, x: (y := x @ p["w"]) * (y + p["b"][None]), lambda p, x: x @ p["w"]),  # also read without bias
        (
            lambda p, x: jax.nn.relu(jax.jit(jnp.matmul)(x, p["w"]) + p["b"][None]),
            lambda p, x: x @ p["w"] + p["b"][None],
        ),
    ],
)
def test_the_state_is_past_a_bias_and_a_transposition(apply, expected):
    params = {"w": W, "b": B, "e": normal(3, 5, 4)}
    outputs, (state,) = states(apply, params)
    wanted = expected(params, X)
    close(state, outputs if wanted is None else wanted)


@pytest.mark.parametrize(
    "f, expected",
    [
        (jnp.tanh, "tanh"),
        (jax.nn.relu, "relu"),
        (lambda y: jnp.maximum(y, 0), "relu"),
        (jax.nn.sigmoid, "sigmoid"),
        (lax.erf, "erf"),
        (jax.nn.silu, "silu"),
        (lambda y: y / (1 + jnp.exp(-y)), "silu"),
        (jax.nn.gelu, "gelu_tanh"),
        (lambda y: jax.nn.gelu(y, approximate=False), "gelu"),
        (lambda y: 0.5 * y * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (y + 0.044715 * y**3))), "gelu_tanh"),
        (jax.nn.softplus, "softplus"),
        (jax.nn.elu, "elu"),
        (lambda y: jnp.where(y > 0, y, 0), "relu"),
        (lambda y: jax.nn.relu(0.5 * y), "relu"),
        (jax.nn.leaky_relu, "leaky_relu"),
        (lambda y: jnp.maximum(y, 0.3 * y), "leaky_relu"),
        (lambda y: jnp.maximum(y, 1.5 * y), None),
        (lambda y: jnp.maximum(y, 1), None),
        (lambda y: jnp.tanh(y) + y, None),
        (lambda y: y, None),
    ],
)
def test_the_nonlinearity_that_follows(f, expected):
    (layer,) = tracing.trace(lambda p, x: f(x @ p[0] + p[1][None]), (W, B), X).layers
    assert layer.nonlinearity == expected


def norm(y):
    centred = y - y.mean(0, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, 0, keepdims=True) + 1e-5)


@pytest.mark.parametrize(
    "apply, expected",
    [
        (lambda p, x: jax.nn.relu(norm(x @ p["w"]) * p["b"][None] + p["b"][None]), ["relu"]),
        (lambda p, x: jax.nn.silu((x @ p["w"] - x.mean()) / x.std()), ["silu"]),
        (lambda p, x: jnp.tanh(x @ p["w"] + x @ p["u"] + p["b"][None]), ["tanh", "tanh"]),
        (lambda p, x: jax.nn.relu(x + norm(x @ p["w"])), ["relu"]),
        (lambda p, x: (y := norm(x @ p["w"])) + jax.nn.relu(y), [None]),  # the skip carries the gradient on
        (lambda p, x: jax.nn.relu(jnp.sort(x @ p["w"])), [None]),
        (lambda p, x: jnp.tanh((y := x @ p["w"])[:, :2]) * jax.nn.sigmoid(y[:, 2:]), [None]),  # gates in one kernel
        (lambda p, x: (lambda a, b: a * jax.nn.sigmoid(b))(*jnp.split(x @ p["w"], 2, axis=1)), [None]),
        (lambda p, x: (x @ p["w"]) * jax.nn.sigmoid(x @ p["u"]), [None, "sigmoid"]),
    ],
)
def test_the_nonlinearity_past_norms_and_sums(apply, expected):
    found = tracing.trace(apply, {"w": W, "u": 2 * W, "b": B}, X).layers
    assert [layer.nonlinearity for layer in found] == expected
    assert all((layer.activation is None) == (layer.nonlinearity is None) for layer in found if layer.name != "u")


def linen_norms():
    nn = pytest.importorskip("flax.linen")
    for norm in (nn.LayerNorm(), nn.GroupNorm(num_groups=2), nn.RMSNorm(), nn.InstanceNorm(),
                 nn.BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=True)):  # fmt: skip
        variables = norm.init(jax.random.key(0), FOUR)
        yield lambda y, norm=norm, v=variables: norm.apply(v, y, mutable=["batch_stats"])[0]


def haiku_norms():
    hk = pytest.importorskip("haiku")
    for make in (lambda: hk.LayerNorm(-1, True, True), lambda: hk.LayerNorm((1, 2, 3), True, True),
                 lambda: hk.GroupNorm(2), lambda: hk.RMSNorm(-1), lambda: hk.InstanceNorm(True, True)):  # fmt: skip
        norm = hk.without_apply_rng(hk.transform(lambda y, make=make: make()(y)))
        params = norm.init(jax.random.key(0), FOUR)
        yield lambda y, norm=norm, params=params: norm.apply(params, y)


def equinox_norms():
    nn = pytest.importorskip("equinox").nn
    for norm in (nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)):
        yield lambda y, norm=norm: jax.vmap(norm)(y.reshape(-1, 4)).reshape(y.shape)


FOUR = normal(7, 5, 3, 3, 4)


@pytest.mark.parametrize("norms", [linen_norms, haiku_norms, equinox_norms])
def test_the_nonlinearity_past_the_norms_of_libraries(norms):
    for norm in norms():
        (layer,) = tracing.trace(lambda w, x, norm=norm: jax.nn.relu(norm(x @ w)), W, FOUR).layers
        assert layer.nonlinearity == "relu"


@pytest.mark.parametrize("x", [X, X[:1]])
def test_a_product_of_two_layers_has_no_nonlinearity_of_one(x):
    found = tracing.trace(lambda p, x: jax.nn.relu((x @ p[0]) * jnp.exp(x @ p[1])), (W, 2 * W), x).layers
    assert [layer.nonlinearity for layer in found] == [None, None]


def steps(body, last=lambda y: y):
    """A network that scans its layers, and what it makes of the last state."""
    return lambda params, x: last(lax.scan(body, x, params)[0])


def relu_first(y, w):
    return jax.nn.relu(y) @ w, None


def stacked(y, w):
    state = jax.nn.relu(y) @ w
    return state, state


def sown(y, w):
    state = y @ w
    return jax.nn.relu(state), {"state": state, "size": state.sum() * jnp.exp(state)}


def twice(y, pair):
    return lax.scan(relu_first, y, pair)[0], None


@pytest.mark.parametrize(
    "apply, expected",
    [
        (steps(relu_first, jax.nn.relu), ["relu"]),
        (steps(relu_first, lambda y: jax.nn.relu(y) @ jnp.ones((4, 1))), ["relu"]),
        (steps(relu_first, jnp.tanh), [None]),  # the last state enters another function
        (steps(relu_first), [None]),  # or none
        (steps(relu_first, lambda y: jax.nn.relu(y) + y), [None]),
        (steps(jax.checkpoint(relu_first), jax.nn.relu), ["relu"]),
        (steps(lambda y, w: (jnp.tanh(y @ w), None)), ["tanh"]),
        (steps(lambda y, w: (y + jax.nn.relu(y) @ w, None), jax.nn.relu), [None]),  # the skip carries the state on
        (lambda params, x: jax.nn.relu(lax.scan(stacked, x, params)[0]), ["relu"]),
        (lambda params, x: jax.nn.relu(lax.scan(stacked, x, params)[1][-1]), ["relu"]),
        (lambda params, x: jax.nn.relu(lax.scan(stacked, x, params)[1][2]), ["relu"]),
        (lambda params, x: jax.nn.relu(lax.scan(stacked, x, params[:1])[1][0]), ["relu"]),
        (lambda params, x: jax.nn.relu(lax.scan(stacked, x, params)[1].sum(0)), [None]),
        (lambda params, x: lax.scan(sown, x, params)[0], ["relu"]),
        (lambda params, x: lax.scan(jax.checkpoint(sown), x, params)[0], ["relu"]),
        (lambda params, x: lax.scan(sown, x, params), [None]),
        (lambda params, x: lax.scan(stacked, x, params), [None]),  # all states are returned
        (lambda params, x: jax.nn.relu(lax.scan(twice, x, params.reshape(2, 2, 4, 4))[0]), ["relu"]),
        (lambda params, x: jax.nn.relu(lax.cond(x[0, 0] > 0, stacked, stacked, x, params[0])[0]), ["relu", "relu"]),
    ],
)
def test_the_nonlinearity_in_the_next_step(apply, expected):
    found = tracing.trace(apply, jnp.stack([jnp.eye(4)] * 4), normal(7, 5, 4)).layers
    assert [layer.nonlinearity for layer in found] == expected


@pytest.mark.parametrize("widths", [(4, 1), (4, 6, 1), (4, 6, 6, 1), (4, *[6] * 5, 1), (4, *[6] * 5, *[3] * 4, 1)])
def test_what_acts_on_every_hidden_layer_of_our_own_networks_is_known(widths):
    settings = {"weight_variance": 2.0, "bias_variance": 0.0}
    network, x = dense.network(widths=widths, activation=activations.relu, **settings), normal(7, 5, 4)
    params = network.init(jax.random.key(0), x)
    *hidden, readout = tracing.trace(network.apply, params, x).layers
    assert readout.nonlinearity is None and all(layer.nonlinearity == "relu" for layer in hidden)
    if len(widths) > 4:  # a unit of the scanned layers 2 and 4 is dead, whatever comes
        bias = params["hidden"][1]["bias"].at[jnp.asarray([0, 2]), 1].set(-1e3)
        params["hidden"][1]["bias"] = bias
        every = [state for part in network.states(params, x) for state in np.asarray(part)]
        expected = [np.mean(np.max(state, axis=0) <= 0) for state in every]
        found = np.asarray(layers.probe(network.apply, params, x).dead)
        np.testing.assert_allclose(found, [*expected, np.nan], atol=1e-6)
        assert min(expected[1], expected[3]) > 0


def test_the_input_of_the_nonlinearity_can_be_watched():
    traced = tracing.trace(lambda w, x: jax.nn.relu(norm(x @ w).T), W, X)
    _, ((state, _, watched),) = traced.run(
        W, X, visit=lambda layer, y, given: (y, y), watch=lambda layer, y: y
    )  # fmt: skip
    close(state, X @ W)
    close(watched, norm(X @ W))
    assert traced.layers[0].activation.units == (1,)


def test_units_are_the_axes_that_come_from_the_weight():
    (layer,) = tracing.trace(
        lambda w, x: jnp.einsum("ntd,dhe->nhte", x, w), normal(1, 4, 2, 3), normal(0, 5, 6, 4)
    ).layers
    assert layer.shape == (5, 2, 6, 3)
    assert layer.units == (1, 3)


# ---- going in


def test_scan_has_a_row_per_step_and_sees_its_given():
    def apply(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), x.sum()), x, w)[0]

    stack, added = normal(3, 3, 4, 4), normal(4, 3, 5, 4)
    traced = tracing.trace(apply, stack, X)
    outputs, (found,) = traced.run(
        stack, X, visit=lambda layer, state, extra: (state + extra, state), given=[added]
    )  # fmt: skip
    x, rows = X, []
    for w, extra in zip(stack, added):
        rows.append(x @ w)
        x = jnp.tanh(rows[-1] + extra)
    close(outputs, x)
    close(found, jnp.stack(rows))
    assert names(apply, stack) == ["params[0]", "params[1]", "params[2]"]


def test_entries_are_in_call_order_through_nested_and_reversed_scans():
    def inner(x, p):
        return jnp.tanh(x @ p["a"]) @ p["b"], None

    def apply(p, x):
        return lax.scan(lambda x, q: lax.scan(inner, x, q, reverse=True), x @ p["c"], p["n"])[0]

    params = {"n": {"a": normal(1, 2, 2, 4, 4), "b": normal(2, 2, 2, 4, 4)}, "c": W}
    steps = [(0, 1), (0, 0), (1, 1), (1, 0)]
    assert names(apply, params) == ["c", *(f"n/{leaf}[{i}][{j}]" for i, j in steps for leaf in "ab")]
    outputs, found = states(apply, params)
    assert [f.shape for f in found] == [(5, 4), (2, 2, 5, 4), (2, 2, 5, 4)]
    close(outputs, found[2][1, 0])


def test_a_recurrence_that_starts_from_zeros_carries_data():
    def apply(p, xs):
        return lax.scan(lambda h, x: (jnp.tanh(h @ p["h"] + x @ p["x"]), None), jnp.zeros((5, 4), FLOAT), xs)[0]

    params = {"h": W, "x": normal(3, 4, 4)}
    assert names(apply, params, normal(4, 2, 5, 4)) == ["h[0]", "x[0]", "h[1]", "x[1]"]


def test_parameters_carried_through_a_scan_stay_parameters():
    def apply(w, x):
        return lax.scan(lambda c, _: ((c[0], jnp.tanh(c[1] @ c[0])), None), (w, x), None, length=2)[0][1]

    assert names(apply, W) == ["params[0]", "params[1]"]


def test_fori_loop_with_known_length_is_entered():
    def apply(w, x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)

    assert names(apply, normal(1, 3, 4, 4)) == ["params[0]", "params[1]", "params[2]"]


def test_remat_keeps_its_policy_and_settings():
    policy = jax.checkpoint_policies.dots_saveable

    def apply(w, x):
        return jax.checkpoint(lambda x: jnp.sin(x @ w), policy=policy, prevent_cse=False)(x)

    placed = tracing.place(apply, lambda layer, state, given: (state, state))
    (equation,) = [e for e in jax.make_jaxpr(placed)(W, X).eqns if e.primitive is jex.primitives.remat_p]
    assert equation.params["policy"] is policy
    assert equation.params["prevent_cse"] is False
    close(states(apply, W)[1][0], X @ W)


@pytest.mark.parametrize("sign", [1, -1])
def test_cond_finds_nan_in_the_branch_not_taken(sign):
    def apply(p, x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ p["a"], lambda x: jnp.tanh(x @ p["b"]) @ p["b"], x)

    x = sign * jnp.abs(X)
    params = {"a": W, "b": 2 * W}
    assert names(apply, params) == ["b", "b#1", "a"]
    outputs, found = states(apply, params, x)
    close(outputs, apply(params, x))
    taken = [not np.isnan(f).any() for f in found]
    assert taken == ([False, False, True] if sign > 0 else [True, True, False])
    assert all(np.isnan(f).all() for f, t in zip(found, taken) if not t)


def test_switch_is_entered():
    def apply(p, x):
        return lax.switch(x.shape[0] % 3 + jnp.zeros((), int), [lambda x: x, lambda x: 2 * x, lambda x: x @ p], x)

    _, (found,) = states(apply, W)
    close(found, X @ W)


def test_while_is_run_as_it_is_and_named():
    def apply(p, x):
        x = x @ p["a"]
        return lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: jnp.abs(x @ p["b"]) + 1, x)

    params = {"a": W, "b": W}
    traced = tracing.trace(apply, params, X)
    assert [layer.name for layer in traced.layers] == ["a"]
    assert traced.not_entered == ("while holding b",)
    close(states(apply, params)[0], apply(params, X))


def test_vmap_over_parameters_gives_batched_layers():
    def apply(w, x):
        return jax.vmap(lambda w: jnp.tanh(x @ w))(w)

    stack = normal(3, 3, 4, 4)
    _, (found,) = states(apply, stack)
    expected = np.einsum("nd,sde->sne", X, stack)
    close(found if found.shape[0] == 3 else jnp.moveaxis(found, 0, 1), expected)


# ---- what stays as it is


def test_relu_keeps_its_slope_at_zero():
    def apply(w, x):
        return jax.nn.relu(x @ w)

    placed = tracing.place(apply, lambda layer, state, given: (state, None))
    gradient = jax.grad(lambda x: placed(W, x)[0].sum())(jnp.zeros((2, 4), FLOAT))
    assert np.all(gradient == 0)  # max(x, 0) alone would give 1/2 of each weight


def crooked(f):
    """f with a backward rule that no derivative has: 7 for every input."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda *a: (f(*a), a), lambda a, ct: tuple(jnp.full_like(v, 7) for v in a))
    return g


def test_a_custom_rule_around_one_layer_is_the_layer():
    rule = crooked(lambda x, w: jnp.sin(x @ w))
    (layer,) = tracing.trace(lambda w, x: rule(x, w), W, X).layers
    assert layer.name == "params"
    placed = tracing.place(lambda w, x: rule(x, w), lambda layer, state, given: (2 * state, state))
    outputs, (state,) = placed(W, X)
    close(outputs, 2 * state)
    assert np.all(jax.grad(lambda w: placed(w, X)[0].sum())(W) == 7)


@jax.custom_vjp
def aside(params, x):
    """A layer that is the second output, of params of which it reads a part."""
    return jnp.sum(x), jnp.sin(x @ params["w"].T + params["b"][None])


aside.defvjp(lambda *a: (aside(*a), a), lambda a, ct: jax.tree.map(jnp.ones_like, a))


@jax.custom_vjp
def scaled(x, w, s):
    return x @ (w * s[None])


scaled.defvjp(lambda *a: (scaled(*a), a), lambda a, ct: jax.tree.map(jnp.ones_like, a))


def test_a_custom_rules_weight_and_state_are_followed_not_the_largest_and_the_first():
    params = {"w": W, "b": B, "table": 100 * normal(5, 50, 4), "v": normal(6, 4, 3), "s": jnp.full(3, 2.0)}

    def apply(p, x):
        return scaled(aside(p, x)[1] + p["table"][:1], p["v"], p["s"])

    traced = tracing.trace(apply, params, X)
    assert [layer.name for layer in traced.layers] == ["w", "v"]
    assert traced.uses[traced.parameters.index("table")] == ("bias: elementwise sum",)
    _, found = traced.run(params, X, visit=lambda l, y, g: (y, y), weigh=lambda l, w, g: (w, w))
    close(found[0][0], jnp.sin(X @ W.T + B[None]) + params["table"][:1])  # past what is added, as ever
    close(found[0][1], W)
    assert found[1][1] is None and traced.layers[1].weight_shape is None  # w * s is computed inside


def test_a_custom_rule_around_several_layers_is_kept_and_named():
    rule = crooked(lambda x, w: (x @ w) @ w)
    traced = tracing.trace(lambda w, x: rule(x, w) @ w, W, X)
    assert len(traced.layers) == 1
    assert traced.not_entered == ("custom_vjp_call holding params, params",)
    placed = tracing.place(lambda w, x: rule(x, w) @ w, lambda layer, state, given: (state, None))
    assert np.all(jax.grad(lambda x: placed(W, x)[0].sum())(X) == 7)


def test_closed_over_arrays_are_arguments():
    big, wide = normal(3, 4, 64), normal(4, 64, 4)
    traced = tracing.trace(lambda w, x: jax.jit(lambda x: x @ big)(x) @ wide @ w, W, X)
    assert sorted(c.shape for c in traced.constants) == [(4, 64), (64, 4)]

    def run(x, constants):
        return traced.run(W, x, visit=lambda layer, y, given: (y, None), constants=constants)[0]

    close(jax.jit(run)(X, traced.constants), X @ big @ wide @ W)
    close(jax.jit(run)(X, [2 * c for c in traced.constants]), 4 * (X @ big @ wide @ W))


def test_weigh_sees_the_operand_and_may_change_it():
    traced = tracing.trace(lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0], normal(1, 2, 4, 4), X)
    stack = normal(1, 2, 4, 4)
    outputs, ((seen, weights),) = traced.run(
        stack, X, visit=lambda layer, y, given: (y, y), weigh=lambda layer, w, given: (2 * w, w)
    )
    close(weights, stack)
    close(outputs, 4 * (X @ stack[0] @ stack[1]))
    close(seen[1], outputs)


def test_forward_mode_vmap_and_jit_compose():
    def apply(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    stack = normal(1, 2, 4, 4)
    placed = jax.jit(tracing.place(apply, lambda layer, state, given: (state, jnp.sum(state**2))))
    _, (tangent, _) = jax.jvp(lambda w: placed(w, X), (stack,), (jnp.ones_like(stack),))
    close(tangent, jax.jvp(lambda w: apply(w, X), (stack,), (jnp.ones_like(stack),))[1])
    outputs, (squares,) = jax.vmap(placed, (0, None))(jnp.stack([stack, 2 * stack]), X)
    close(outputs[1], apply(2 * stack, X))
    assert squares.shape == (2, 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_other_dtypes_pass_through(dtype):
    x, w = normal(0, 5, 4, dtype=dtype), normal(1, 4, 4, dtype=dtype)
    outputs, (state,) = states(lambda w, x: jnp.tanh(x @ w), w, x)
    assert outputs.dtype == state.dtype == dtype


# ---- taps and errors


def test_a_tap_is_a_place_anywhere():
    def block(x, w):
        return tracing.tap(jnp.sin(x * w[0, 0]), "inside"), None

    def apply(w, x):
        x = jax.jit(lambda x: tracing.tap(x + 1, "first"))(x)
        return lax.scan(jax.checkpoint(block), x, jnp.stack([w, w]))[0]

    _, (first, inside) = states(apply, W)
    assert names(apply, W) == ["first", "inside[0]", "inside[1]"]
    close(first, X + 1)
    close(inside[0], jnp.sin((X + 1) * W[0, 0]))
    close(tracing.tap(X, "alone"), X)


@pytest.mark.parametrize("name", ["", 3])
def test_a_taps_name_is_text(name):
    with pytest.raises(TypeError, match=f"name must be a non-empty string; got {name!r}"):
        tracing.tap(X, name)


def test_apply_must_be_a_function():
    with pytest.raises(TypeError, match="apply must be a function; got 3"):
        tracing.trace(3, W, X)


def test_two_hundred_layers_are_traced_quickly():
    def apply(params, x):
        for w, b in params:
            x = jnp.tanh(x @ w + b[None])
        return x

    params = [(W, B)] * 200
    start = time.process_time()
    traced = tracing.trace(apply, params, X)
    jax.make_jaxpr(lambda p, x: traced.run(p, x, visit=lambda layer, y, given: (y, None)))(params, X)
    assert time.process_time() - start < 1.5
    assert len(traced.layers) == 200


def test_statistics_that_are_thrown_away_are_unused():
    def apply(p, x):
        y = x @ p["w"]
        p["mean"] * 0.9 + 0.1 * jnp.mean(y, axis=0)  # as a norm in training, whose new state is dropped
        lax.scan(lambda c, u: (c * p["mean"] + u, None), p["start"], y)
        return y - p["shift"][None]

    leaf = jnp.ones(3)
    params = {"w": jnp.ones((4, 3)), "mean": leaf, "start": leaf, "shift": leaf}
    traced = tracing.trace(apply, params, jnp.ones((2, 4)))
    uses = dict(zip(traced.parameters, traced.uses))
    assert uses["mean"] == uses["start"] == ("unused",)
    assert uses["w"] == ("w",) and uses["shift"] == ("bias: elementwise sum",)
