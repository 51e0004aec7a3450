"""Networks in plain JAX: a recipe's parameters and its function of (params, x). Equal layers are scanned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.diagnosis.drawing import affine, generator, stack, weights

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "erf": lax.erf,
    "sin": jnp.sin,
    "identity": lambda x: x,
}
SANE = {"tanh": "lecun", "sigmoid": "glorot", "erf": "lecun", "softsign": "lecun", "selu": "lecun", "sin": "lecun"}


def sane_law(activation):
    """The usual initialisation for an activation."""
    return SANE.get(activation, "he")


def apply_affine(layer, x):
    return x @ layer["w"] + layer["b"]


def standardised(x, axis):
    return (x - x.mean(axis, keepdims=True)) * lax.rsqrt(x.var(axis, keepdims=True) + 1e-5)


def normalise(x, norm):
    """none; layer: over features; batch: over all but the features, with the batch's own statistics."""
    if norm == "none":
        return x
    return standardised(x, -1 if norm == "layer" else tuple(range(x.ndim - 1)))


def layer_draw(recipe, random):
    """(n_in, n_out) -> a hidden layer as the recipe draws it."""
    return lambda n_in, n_out, **other: affine(
        random, n_in, n_out, **{"law": recipe.init, "gain": recipe.gain, "bias": recipe.bias,
                                "bias_deviation": recipe.bias_deviation, **other})  # fmt: skip


def readout(recipe, random, outputs):
    return affine(random, recipe.width, outputs, recipe.last_law, recipe.last)


def drop(x, rate, key, number):
    if not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


# --- dense
def dense_params(recipe, inputs, outputs, seed):
    random = generator("dense", seed)
    draw = layer_draw(recipe, random)
    first = draw(inputs, recipe.width)
    rest = [draw(recipe.width, recipe.width) for _ in range(recipe.depth - 1)]
    rest = stack(rest) if recipe.scanned else rest
    return {"first": first, "hidden": rest, "out": readout(recipe, random, outputs)}


def dense(recipe, params, x, key=None):
    f = ACTIVATIONS[recipe.activation]

    def step(x, layer):
        return f(normalise(apply_affine(layer, x), recipe.norm))

    x = drop(step(x.reshape(len(x), -1), params["first"]), recipe.dropout, key, 0)
    if recipe.scanned:
        x, _ = lax.scan(lambda x, layer: (step(x, layer), None), x, params["hidden"])
    else:
        for number, layer in enumerate(params["hidden"]):
            x = drop(step(x, layer), recipe.dropout, key, number + 1)
    return apply_affine(params["out"], x)


# --- residual
def residual_params(recipe, inputs, outputs, seed):
    random = generator("residual", seed)
    draw = layer_draw(recipe, random)
    first = affine(random, inputs, recipe.width, "lecun")

    def block():
        a, b = draw(recipe.width, recipe.width), draw(recipe.width, recipe.width)
        second = b["w"] * recipe.second
        return {"a": a["w"], "c": a["b"], "b": second.astype(np.float32), "d": b["b"]}

    blocks = [block() for _ in range(recipe.depth)]
    blocks = stack(blocks) if recipe.scanned else blocks
    return {"first": first, "blocks": blocks, "out": readout(recipe, random, outputs)}


def residual(recipe, params, x, key=None):
    f = ACTIVATIONS[recipe.activation]

    def step(x, layer):
        inner = f(normalise(x, recipe.norm) @ layer["a"] + layer["c"])
        return x + recipe.branch * (inner @ layer["b"] + layer["d"])

    x = apply_affine(params["first"], x.reshape(len(x), -1))
    if recipe.scanned:
        x, _ = lax.scan(lambda x, layer: (step(x, layer), None), x, params["blocks"])
    else:
        for number, layer in enumerate(params["blocks"]):
            x = drop(step(x, layer), recipe.dropout, key, number)
    return apply_affine(params["out"], normalise(x, recipe.norm))


# --- convolution
PATCHES = False  # convolutions as products of patches: fast inside a loop on a CPU, where XLA's own are slow


def convolve(x, kernel):
    """Stride one, zero padding: [N, height, width, channels] with [k, k, channels, filters]."""
    if not PATCHES:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    x = jnp.pad(x, ((0, 0), *[(size // 2, (size - 1) // 2)] * 2, (0, 0)))
    shifted = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])


def convolution_params(recipe, channels, outputs, seed):
    random = generator("convolution", seed)

    def kernel(n_in):
        w = weights(random, (3, 3, n_in, recipe.width), recipe.init, recipe.gain)
        b = recipe.bias + recipe.bias_deviation * random.normal(size=recipe.width)
        return {"w": w, "b": b.astype(np.float32)}

    first, rest = kernel(channels), [kernel(recipe.width) for _ in range(recipe.depth - 1)]
    rest = stack(rest) if recipe.scanned else rest
    return {"first": first, "hidden": rest, "out": readout(recipe, random, outputs)}


def convolution(recipe, params, x, key=None):
    f = ACTIVATIONS[recipe.activation]

    def step(x, layer):
        return f(normalise(convolve(x, layer["w"]) + layer["b"], recipe.norm))

    x = step(x, params["first"])
    x = x.reshape(len(x), 4, 2, 4, 2, -1).mean((2, 4)) if x.shape[1] == 8 else x
    if recipe.scanned:
        x, _ = lax.scan(lambda x, layer: (step(x, layer), None), x, params["hidden"])
    else:
        for number, layer in enumerate(params["hidden"]):
            x = drop(step(x, layer), recipe.dropout, key, number)
    return apply_affine(params["out"], x.mean((1, 2)))


# --- recurrent
def recurrent_params(recipe, inputs, outputs, seed):
    random = generator("recurrent", seed)
    first = affine(random, inputs, recipe.width, "lecun", bias=recipe.bias, bias_deviation=recipe.bias_deviation)
    law = "orthogonal" if recipe.init in ("he", "lecun", "glorot", "orthogonal") else recipe.init
    w = weights(random, (recipe.width, recipe.width), law, recipe.gain)
    return {"in": first, "w": w, "out": readout(recipe, random, outputs)}


def recurrent(recipe, params, x, key=None):
    f = ACTIVATIONS[recipe.activation]

    def step(h, u):
        return f(normalise(apply_affine(params["in"], u) + h @ params["w"], recipe.norm)), None

    h, _ = lax.scan(step, jnp.zeros((len(x), recipe.width), x.dtype), x.swapaxes(0, 1))
    return apply_affine(params["out"], drop(h, recipe.dropout, key, 0))


# --- attention
def attention_params(recipe, inputs, outputs, seed, tokens):
    random = generator("attention", seed)
    draw, width = layer_draw(recipe, random), recipe.width

    def block():
        maps = {n: weights(random, (width, width), "lecun", recipe.gain * g) for n, g in
                (("q", recipe.query), ("k", recipe.query), ("v", 1.0), ("o", recipe.second))}  # fmt: skip
        up, down = draw(width, 2 * width), draw(2 * width, width, law="lecun")
        return {
            **maps,
            "up": up["w"],
            "up_b": up["b"],
            "down": down["w"] * np.float32(recipe.second),
            "down_b": down["b"],
        }

    blocks = [block() for _ in range(recipe.depth)]
    return {
        "in": affine(random, inputs, width, "lecun"),
        "position": (0.5 * random.normal(size=(tokens, width))).astype(np.float32),
        "blocks": stack(blocks) if recipe.scanned else blocks,
        "out": readout(recipe, random, outputs),
    }


def attention(recipe, params, x, key=None, mask=None):
    """One head, pre-norm (norm "layer"), post-norm ("post") or none; the mean over tokens is read out."""
    f, pre = ACTIVATIONS[recipe.activation], recipe.norm == "layer"
    before = functools.partial(standardised, axis=-1) if pre else lambda x: x
    after = functools.partial(standardised, axis=-1) if recipe.norm == "post" else lambda x: x

    def attend(layer, x):
        q, k, v = x @ layer["q"], x @ layer["k"], x @ layer["v"]
        logits = q @ k.swapaxes(-1, -2) / recipe.width**0.5
        return jax.nn.softmax(logits if mask is None else logits + mask, -1) @ v @ layer["o"]

    def step(x, layer):
        x = after(x + recipe.branch * attend(layer, before(x)))
        inner = f(before(x) @ layer["up"] + layer["up_b"])
        return after(x + recipe.branch * (inner @ layer["down"] + layer["down_b"]))

    x = apply_affine(params["in"], x) + (params["position"] if recipe.position else 0)
    if recipe.scanned:
        x, _ = lax.scan(lambda x, layer: (step(x, layer), None), x, params["blocks"])
    else:
        for number, layer in enumerate(params["blocks"]):
            x = drop(step(x, layer), recipe.dropout, key, number)
    return apply_affine(params["out"], before(x).mean(1))


APPLY = {f.__name__: f for f in (dense, residual, convolution, recurrent, attention)}


def params(recipe, x, outputs, seed):
    """Parameters for inputs like x."""
    if recipe.family == "attention":
        return attention_params(recipe, x.shape[-1], outputs, seed, x.shape[1])
    make = {"dense": dense_params, "residual": residual_params, "convolution": convolution_params,
            "recurrent": recurrent_params}[recipe.family]  # fmt: skip
    inputs = x[0].size if recipe.family in ("dense", "residual") else x.shape[-1]
    return make(recipe, inputs, outputs, seed)


def network(recipe, x, outputs, seed):
    """(apply, params); apply(params, x, key) with dropout."""
    return functools.partial(APPLY[recipe.family], recipe), params(recipe, x, outputs, seed)
