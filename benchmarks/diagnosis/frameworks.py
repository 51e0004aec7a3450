"""The same families as other people build them: numdl, Flax (Linen, NNX), Equinox, Haiku. (Keras is not installed.)

The framework gives the function and the shapes; the numbers are drawn as the recipe says, by the same laws as `plain`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis import plain
from benchmarks.diagnosis.drawing import generator, weights

FAMILIES = {
    "numdl": ("dense", "residual", "convolution", "recurrent", "attention"),
    "linen": ("dense", "convolution", "recurrent", "attention"),
    "nnx": ("dense", "convolution"),
    "equinox": ("dense",),
    "haiku": ("dense", "residual"),
}


def network(recipe, x, outputs, seed):
    """(apply, params) of a recipe whose maker is a framework."""
    if recipe.family not in FAMILIES[recipe.maker]:
        raise ValueError(f"{recipe.maker} makes {FAMILIES[recipe.maker]} here; got {recipe.family!r}")
    apply, shapes = MAKERS[recipe.maker](recipe, jax.ShapeDtypeStruct(x[:2].shape, x.dtype), outputs)
    return apply, redraw(recipe, shapes, seed)


# --- numbers
def redraw(recipe, shapes, seed):
    """Parameters of these shapes, drawn in the order of their paths."""
    random = generator(recipe.maker, recipe.family, seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf(recipe, random, _words(path), leaf.shape), shapes)


def _words(path):
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]


def _leaf(recipe, random, words, shape):
    last = any("readout" in word for word in words)
    named = [word for word in words if word not in ("value", "raw_value")] or [""]
    if "scale" in named[-1]:
        return np.ones(shape, np.float32)
    if named[-1] in ("bias", "b", "offset") or len(shape) == 1:
        size = recipe.bias + recipe.bias_deviation * random.normal(size=shape)
        return (np.zeros(shape) if last else size).astype(np.float32)
    law, gain = (recipe.last_law, recipe.last) if last else (recipe.init, recipe.gain)
    return _kernel(recipe, random, words, shape, law, gain)


def _kernel(recipe, random, words, shape, law, gain):
    if recipe.maker == "equinox":
        return np.ascontiguousarray(weights(random, shape[::-1], law, gain).T)
    if recipe.maker == "linen" and recipe.family == "attention" and len(shape) == 3:  # [n, heads, d] or [heads, d, n]
        flat = (math.prod(shape[:-1]), shape[-1]) if "out" in words else (shape[0], math.prod(shape[1:]))
        return weights(random, flat, law, gain).reshape(shape)
    window = 4 if recipe.family == "convolution" and len(shape) >= 4 else 2
    count, one = math.prod(shape[:-window]), shape[-window:]
    return np.stack([weights(random, one, law, gain) for _ in range(count)]).reshape(shape)


# --- numdl
def _numdl(recipe, x, outputs):
    from numdl.networks import attention, convolutional, dense, initializers, recurrent, residual

    f, n = plain.ACTIVATIONS[recipe.activation], recipe.width
    laws = {"activation": f, "bias_variance": 0.0, "weight_variance": 1.0}
    one = initializers.variance_scaling(1.0)
    inputs = math.prod(x.shape[1:]) if recipe.family in ("dense", "residual") else x.shape[-1]
    if recipe.family == "dense":
        net = dense.network(widths=(inputs, *[n] * recipe.depth, outputs), **laws)
    elif recipe.family == "residual":
        clock = {"step": recipe.branch, "block": "two_layer"}
        net = residual.network(widths=(inputs, n, outputs), depth=recipe.depth, **clock, **laws)
    elif recipe.family == "convolution":
        first = convolutional.Stage(n, 3, 2, "same")
        rest = [convolutional.Stage(n, 3, 1, "same")] * (recipe.depth - 1)
        net = convolutional.network(stages=[first, *rest], outputs=outputs, **laws)
    elif recipe.family == "recurrent":
        cell = {"width": n, "input_weights": one, "recurrent_weights": one, "bias_variance": 0.0}
        cell = recurrent.vanilla(activation=f, **cell)
        net = recurrent.many_to_one(cell, outputs=outputs, readout_weights=one)
    else:
        net = attention.network(depth=recipe.depth, heads=2, head_width=n // 2, outputs=outputs, skip=True,
                                query_key_weights=one, value_weights=one, mlp_width=2 * n, mlp_weights=one,
                                activation=f)  # fmt: skip
    flat = recipe.family in ("dense", "residual") and len(x.shape) > 2
    shape = (x.shape[0], inputs) if flat else x.shape
    shapes = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, x.dtype))
    return functools.partial(_run_numdl, net, flat), shapes


def _run_numdl(net, flat, params, x):
    return net.apply(params, x.reshape(len(x), -1) if flat else x)


# --- Flax Linen
def _linen(recipe, x, outputs):
    model = _linen_model()(recipe, outputs)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(x.shape, x.dtype))["params"]
    return functools.partial(_run_linen, model), shapes


def _run_linen(model, params, x):
    return model.apply({"params": params}, x)


def convolve(x, kernel, *others, **options):
    """What Flax calls for a convolution of stride one: `plain.convolve`, which can be a product of patches."""
    return plain.convolve(x, kernel)


@functools.cache
def _linen_model():
    from flax import linen as nn

    class Model(nn.Module):
        recipe: object
        outputs: int

        def normalised(self, x):
            kinds = {"none": lambda x: x, "layer": nn.LayerNorm(), "batch": lambda x: plain.normalise(x, "batch")}
            return kinds[self.recipe.norm](x)

        @nn.compact
        def __call__(self, x):
            r, f = self.recipe, plain.ACTIVATIONS[self.recipe.activation]
            if r.family == "dense":
                x = x.reshape(len(x), -1)
                for _ in range(r.depth):
                    x = f(self.normalised(nn.Dense(r.width)(x)))
            elif r.family == "convolution":
                for number in range(r.depth):
                    x = nn.Conv(r.width, (3, 3), conv_general_dilated=convolve)(x)
                    x = f(self.normalised(x))
                    x = nn.avg_pool(x, (2, 2), (2, 2)) if number == 0 else x
                x = x.mean((1, 2))
            elif r.family == "recurrent":
                x = nn.RNN(nn.GRUCell(r.width))(x)[:, -1]
            else:
                x = nn.Dense(r.width)(x) + self.param("position", nn.initializers.normal(0.3), (x.shape[1], r.width))
                for _ in range(r.depth):
                    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(self.normalised(x))
                    x = x + nn.Dense(r.width)(f(nn.Dense(2 * r.width)(self.normalised(x))))
                x = self.normalised(x).mean(1)
            return nn.Dense(self.outputs, name="readout")(x)

    return Model


# --- Flax NNX
def _nnx(recipe, x, outputs):
    from flax import nnx

    inputs = math.prod(x.shape[1:]) if recipe.family == "dense" else x.shape[-1]
    model = nnx.eval_shape(lambda: _nnx_model()(recipe, inputs, outputs, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return functools.partial(_run_nnx, graph), nnx.to_pure_dict(state)


def _run_nnx(graph, params, x):
    from flax import nnx

    return nnx.merge(graph, params)(x)


@functools.cache
def _nnx_model():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, recipe, inputs, outputs, rngs):
            sizes = [inputs, *[recipe.width] * recipe.depth]
            pairs = list(zip(sizes, sizes[1:]))
            self.function, self.family = plain.ACTIVATIONS[recipe.activation], recipe.family
            if recipe.family == "dense":
                layers = [nnx.Linear(a, b, rngs=rngs) for a, b in pairs]
            else:
                layers = [nnx.Conv(a, b, (3, 3), conv_general_dilated=convolve, rngs=rngs) for a, b in pairs]
            norms = [nnx.LayerNorm(recipe.width, rngs=rngs) if recipe.norm == "layer" else _same for _ in layers]
            self.layers, self.norms = nnx.List(layers), nnx.List(norms)
            self.readout = nnx.Linear(recipe.width, outputs, rngs=rngs)

        def __call__(self, x):
            x = x.reshape(len(x), -1) if self.family == "dense" else x
            for layer, norm in zip(self.layers, self.norms):
                x = self.function(norm(layer(x)))
            return self.readout(x if self.family == "dense" else x.mean((1, 2)))

    return Model


def _same(x):
    return x


# --- Equinox
def _equinox(recipe, x, outputs):
    import equinox as eqx

    f = plain.ACTIVATIONS[recipe.activation]
    sizes = (math.prod(x.shape[1:]), *[recipe.width] * recipe.depth)

    def make():
        keys = jax.random.split(jax.random.key(0), len(sizes))
        layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes, sizes[1:], keys)]
        return {"layers": layers, "readout": eqx.nn.Linear(sizes[-1], outputs, key=keys[-1])}

    model = eqx.filter_eval_shape(make)
    params, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return functools.partial(_run_equinox, static, f, recipe.norm), params


def _run_equinox(static, f, norm, params, x):
    import equinox as eqx

    model, x = eqx.combine(params, static), x.reshape(len(x), -1)
    for layer in model["layers"]:
        x = f(plain.normalise(jax.vmap(layer)(x), norm))
    return jax.vmap(model["readout"])(x)


# --- Haiku
def _haiku(recipe, x, outputs):
    import haiku as hk

    f = plain.ACTIVATIONS[recipe.activation]

    def forward(x):
        x = x.reshape(len(x), -1)
        if recipe.family == "dense":
            for _ in range(recipe.depth):
                x = f(plain.normalise(hk.Linear(recipe.width)(x), recipe.norm))
        else:
            x = hk.Linear(recipe.width)(x)
            for _ in range(recipe.depth):
                inner = f(hk.Linear(recipe.width)(plain.normalise(x, recipe.norm)))
                x = x + recipe.branch * hk.Linear(recipe.width)(inner)
        return hk.Linear(outputs, name="readout")(x)

    model = hk.transform(forward)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(x.shape, x.dtype))
    return functools.partial(_run_haiku, model), shapes


def _run_haiku(model, params, x):
    return model.apply(params, None, x)


MAKERS = {"numdl": _numdl, "linen": _linen, "nnx": _nnx, "equinox": _equinox, "haiku": _haiku}
