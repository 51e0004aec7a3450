"""What lies between two layers, on small programs of every kind, and the elementwise function against jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl import activations, tracing
from numdl.analysis._recognition import recognised
from numdl.tracing._paths import paths

GRID = np.array([-2.0, -0.5, 0.25, 1.0, 3.0])
WIDTH = 4


def square(*leading):
    return jnp.ones((*leading, WIDTH, WIDTH), jnp.float32)


PARAMS = {
    "a": square(),
    "b": square(),
    "stack": square(3),
    "bias": jnp.ones(WIDTH, jnp.float32),
    "biases": jnp.ones((3, WIDTH), jnp.float32),
    "table": jnp.ones((9, WIDTH), jnp.float32),
    "kernel": square(3, 3),
}
X = jnp.ones((2, WIDTH), jnp.float32)
SEQUENCE = jnp.ones((2, 5, WIDTH), jnp.float32)
IMAGE = jnp.ones((2, 5, 5, WIDTH), jnp.float32)


def found(apply, x=X):
    """{layer's name: (source, what lies between, function or None, first)} of what a call shows."""
    traced = tracing.trace(apply, PARAMS, x)
    seen = paths(traced.program, traced.layers, traced.parameters)
    return {traced.layers[i].name: path for i, path in seen.paths.items()}, traced, seen


def layer_norm(x, scale=1.0):
    centered = x - x.mean(-1, keepdims=True)
    return centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * scale


def batch_norm(x):
    mean = x.mean(0, keepdims=True)
    return (x - mean) * lax.rsqrt((x**2).mean(0, keepdims=True) - mean**2 + 1e-5)


def convolved(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def excited(p, y):
    return y * jax.nn.sigmoid(y.mean(1, keepdims=True) @ p["b"])


# What a function between layers a and b does -> what must be named.
BETWEEN = {
    "nothing": (lambda p, y: y, X, set()),
    "activation": (lambda p, y: jnp.tanh(y), X, set()),
    "silu written out": (lambda p, y: y * jax.nn.sigmoid(y), X, set()),
    "bias of the layer": (lambda p, y: jnp.tanh(y + p["bias"][None]), X, set()),
    "checkpoint": (lambda p, y: jax.checkpoint(jnp.tanh)(y), X, set()),
    "jit": (lambda p, y: jax.jit(jnp.tanh)(y), X, set()),
    "reshape": (lambda p, y: jnp.tanh(y.reshape(1, 2, -1)).reshape(2, -1), X, set()),
    "layer norm": (lambda p, y: layer_norm(y), X, {"normalization"}),
    "layer norm with scale": (lambda p, y: layer_norm(y, p["bias"][None]) + p["bias"][None], X, {"normalization"}),
    "batch norm": (lambda p, y: batch_norm(y), X, {"normalization"}),
    "softmax": (lambda p, y: jax.nn.softmax(y), X, {"normalization"}),
    "own size": (lambda p, y: y / jnp.linalg.norm(y, axis=-1, keepdims=True), X, {"normalization"}),
    "gated halves": (lambda p, y: jnp.tile(y[:, :2] * jax.nn.sigmoid(y[:, 2:]), 2), X, {"gate"}),
    "mean over positions": (lambda p, y: jnp.tanh(y).mean(1), SEQUENCE, {"pooling"}),
    "scale": (lambda p, y: y * p["bias"][None], X, {"a scale"}),
    "positions": (lambda p, y: jnp.tanh(y) + p["biases"][None, :1], SEQUENCE, {"an added parameter"}),
    "mask": (lambda p, y: y * np.array([[1.0, 0.0, 1.0, 0.0]], np.float32), X, {"a fixed array"}),
    "joined": (lambda p, y: jnp.concatenate([jnp.sin(y)[:, :2], y[:, 2:]], 1), X, {"concatenation"}),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_lies_between_two_layers_is_named(name):
    between, x, expected = BETWEEN[name]
    by_layer, _, _ = found(lambda p, x: between(p, x @ p["a"]) @ p["b"], x)
    got = {kind for kind in by_layer["b"].between if kind not in ("split", "slice")}
    assert expected <= got and bool(got) == bool(expected), got
    assert by_layer["a"].starts and not by_layer["b"].starts
    if not expected:
        assert by_layer["b"].source == 0


@jax.custom_vjp
def ruled(x, w):
    return jnp.tanh(x @ w)


ruled.defvjp(lambda x, w: (ruled(x, w), (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


STRUCTURES = {
    "custom rule": (lambda p, x: ruled(x, p["a"]) @ p["b"], X, "b", {"a custom rule"}),
    "ragged product": (
        lambda p, x: lax.ragged_dot(x, p["stack"], jnp.array([1, 1, 0], jnp.int32)) @ p["b"],
        X,
        "b",
        {"ragged_dot_general"},
    ),
    "skip": (
        lambda p, x: (lambda y: (y + jnp.tanh(y @ p["b"])) @ p["kernel"][0, 0])(x @ p["a"]),
        X,
        "kernel",
        {"skip"},
    ),
    "sum": (lambda p, x: (x @ p["a"] + jnp.sin(x) @ p["b"]) @ p["kernel"][0, 0], X, "kernel", {"a sum of layers"}),
    "gate": (lambda p, x: (x @ p["a"] * (x @ p["b"])) @ p["kernel"][0, 0], X, "kernel", {"gate"}),
    "squeeze and excite": (lambda p, x: excited(p, x @ p["a"]) @ p["kernel"][0, 0], SEQUENCE, "kernel", {"gate"}),
    "scanned skip": (
        lambda p, x: lax.scan(lambda y, w: (y + jnp.tanh(y) @ w, None), x @ p["a"], p["stack"])[0],
        X,
        "stack",
        {"skip"},
    ),
    "scanned chain": (
        lambda p, x: lax.scan(
            lambda y, w: (jnp.tanh(y) @ w[0] + w[1][None], None), x @ p["a"], (p["stack"], p["biases"])
        )[0],
        X,
        "stack",
        set(),
    ),
    "convolutions": (lambda p, x: convolved(jnp.tanh(x @ p["a"]), p["kernel"]), IMAGE, "kernel", set()),
    "branch": (
        lambda p, x: lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x @ p["a"]) @ p["b"],
        X,
        "b",
        {"branch"},
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_told_apart(name):
    apply, x, layer, expected = STRUCTURES[name]
    by_layer, _, _ = found(apply, x)
    assert set(by_layer[layer].between) == expected
    assert not by_layer[layer].starts


def test_a_scanned_chain_reads_the_step_before_and_first_what_came_in():
    by_layer, traced, seen = found(STRUCTURES["scanned chain"][0])
    path = by_layer["stack"]
    names = [layer.name for layer in traced.layers]
    assert names[path.source] == "stack" and names[path.first.source] == "a"
    for each in (path, path.first):
        np.testing.assert_allclose(each.function(GRID), np.tanh(GRID))
    (bias,) = seen.biases[names.index("stack")]
    assert (bias.leaf, bias.made, bias.levels) == ("biases", "leaf", (0,))


def test_weights_that_are_cut_scaled_or_computed():
    def apply(p, x):
        y = jnp.tanh(x @ p["a"].T) @ p["stack"][1]
        y = jnp.tanh(y) @ (0.5 * p["b"])
        return y @ (p["kernel"][0, 0] / jnp.linalg.norm(p["kernel"]))

    _, traced, seen = found(apply)
    made = {traced.layers[i].name: weight.made for i, weight in seen.weights.items()}
    assert made == {"a": "leaf", "stack": "part", "b": "scaled", "kernel": "derived"}


def test_a_looked_up_input_is_a_start():
    by_layer, _, _ = found(
        lambda p, tokens: jnp.tanh(p["table"][tokens] @ p["a"]) @ p["b"], jnp.zeros((2, 3), jnp.int32)
    )
    assert by_layer["a"].source == ("lookup", "table") and by_layer["a"].starts and not by_layer["b"].between


@pytest.mark.parametrize("name", [*activations.names(), "leaky_relu(0.2)", "2.5 tanh"])
def test_an_activation_is_recognised_by_its_values(name):
    """Through jax's own form of it, whatever primitives that is made of."""
    f = (lambda x: 2.5 * jnp.tanh(x)) if name[0] == "2" else activations.named(name)
    by_layer, _, _ = found(lambda p, x: f(x @ p["a"]) @ p["b"])
    path = by_layer["b"]
    if path.function is not None:
        np.testing.assert_allclose(path.function(GRID), np.asarray(f(jnp.asarray(GRID))), rtol=1e-5, atol=1e-6)
    assert recognised(path.function).name == name
    odd, _, _ = found(lambda p, x: jnp.cos(x @ p["a"]) @ p["b"])
    assert recognised(odd["b"].function) is None


def test_a_step_that_normalizes_its_carry_comes_after_the_step_before():
    def norm(y):
        return (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)

    def block(y, w):
        return y + jnp.tanh(norm(y) @ w), None

    path = found(lambda p, x: lax.scan(block, x, p["stack"])[0])[0]["stack"]
    assert not path.starts and set(path.between) == {"normalization", "skip"}
    assert path.first.starts, "at first it is x itself that is normalized"
    path = found(lambda p, x: lax.scan(jax.checkpoint(block), x @ p["a"], p["stack"])[0])[0]["stack"]
    assert not path.first.starts and set(path.first.between) == {"normalization"}
    alone = found(lambda p, x: lax.scan(lambda y, w: (norm(y), x @ w), x, p["stack"])[1])[0]["stack"]
    assert alone.starts and not alone.between


def test_what_a_first_pass_takes_for_a_bias_is_none():
    """The carry starts from 0: until the body is known its product looks like a parameter."""

    def apply(p, x):
        return lax.scan(lambda h, u: (jnp.tanh(h @ p["b"] + u @ p["a"]), None), jnp.zeros_like(x), x[None])[0]

    _, _, seen = found(apply)
    assert not seen.biases


def test_a_mask_behind_a_norm_and_an_activation_is_no_part_of_the_norm():
    def apply(p, x, drop=True):
        y = x @ p["a"]
        y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True) * p["bias"][None]
        y = jnp.maximum(y, 0)
        kept = jnp.broadcast_to(p["b"][:1] > 0, y.shape)
        return (jnp.where(kept, y / 0.8, 0) if drop else y) @ p["b"]

    by_layer, _, _ = found(apply)
    assert set(by_layer["b"].between) == {"normalization", "a fixed array"}
    by_layer, _, _ = found(lambda p, x: apply(p, x, drop=False))
    assert set(by_layer["b"].between) == {"normalization"}
