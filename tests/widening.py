"""Networks of any width, made as users make them: build(width, seed) -> (apply, params), standard initialization.

Inputs have 8 features, outputs 4. Biases are left out where a framework lets us, since none of the rules is about them.
"""

import itertools

import jax
import jax.numpy as jnp
import pytest

IN, OUT = 8, 4


def normal(key, *shape, fan=None):
    """Entries of variance 1 / fan."""
    return jax.random.normal(key, shape) / (shape[0] if fan is None else fan) ** 0.5


def plain(width, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = itertools.pairwise((IN, width, width, OUT))
    params = [{"weight": normal(key, *size)} for key, size in zip(keys, sizes)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["weight"])
        return x @ params[-1]["weight"]

    return apply, params


def linen(width, seed=0):
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.tanh(nn.Dense(width, use_bias=False)(x))
            return nn.Dense(OUT, use_bias=False)(x)

    model = Model()
    return model.apply, model.init(jax.random.key(seed), jnp.ones((1, IN)))


def nnx(width, seed=0):
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(seed)
    sizes = list(itertools.pairwise((IN, width, width, OUT)))
    layers = [nnx.Linear(*size, use_bias=False, rngs=rngs) for size in sizes]
    model = nnx.Sequential(layers[0], jnp.tanh, layers[1], jnp.tanh, layers[2])
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params


def equinox(width, seed=0):
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = itertools.pairwise((IN, width, width, OUT))
    model = [eqx.nn.Linear(*size, use_bias=False, key=key) for key, size in zip(keys, sizes)]
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, x):
        one, two, three = eqx.combine(params, rest)
        return jax.vmap(lambda x: three(jnp.tanh(two(jnp.tanh(one(x))))))(x)

    return apply, params


def haiku(width, seed=0):
    hk = pytest.importorskip("haiku")

    def forward(x):
        for _ in range(2):
            x = jnp.tanh(hk.Linear(width, with_bias=False)(x))
        return hk.Linear(OUT, with_bias=False)(x)

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(jax.random.key(seed), jnp.ones((1, IN)))


def norm(x, scale):
    """RMSNorm."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale[None, None]


def transformer(width, seed=0, heads=None, blocks=1):
    """Pre-norm blocks with fused qkv; heads of width 8 unless their number is given. x holds 8 features a token."""
    count = heads or width // 8
    key = jax.random.key(seed)
    params = {"embed": normal(jax.random.fold_in(key, 0), IN, width), "norm": jnp.ones(width), "blocks": []}
    for i in range(blocks):
        k = jax.random.split(jax.random.fold_in(key, i + 1), 4)
        params["blocks"].append(
            {
                "qkv": normal(k[0], width, 3 * width), "mix": normal(k[1], width, width),
                "up": normal(k[2], width, 2 * width), "down": normal(k[3], 2 * width, width),
                "norm": jnp.ones(width), "norm2": jnp.ones(width),
            }
        )  # fmt: skip
    params["head"] = normal(jax.random.fold_in(key, 99), width, OUT)

    def attend(p, x):
        q, k, v = (a.reshape(*a.shape[:2], count, width // count) for a in jnp.split(x @ p["qkv"], 3, axis=-1))
        scores = jnp.einsum("nthk,nshk->nhts", q, k) / (width // count) ** 0.5
        return jnp.einsum("nhts,nshk->nthk", jax.nn.softmax(scores), v).reshape(x.shape) @ p["mix"]

    def apply(params, x):
        h = x @ params["embed"]
        for p in params["blocks"]:
            h = h + attend(p, norm(h, p["norm"]))
            h = h + jax.nn.relu(norm(h, p["norm2"]) @ p["up"]) @ p["down"]
        return jnp.mean(norm(h, params["norm"]), axis=1) @ params["head"]

    return apply, params


def wide_heads(width, seed=0):
    """Two heads that widen, q, k and v fused."""
    return transformer(width, seed, heads=2)


def conv(width, seed=0):
    """Two convolutions and a dense head; x holds images of 8 channels."""
    k = jax.random.split(jax.random.key(seed), 3)
    params = {
        "one": normal(k[0], 3, 3, IN, width, fan=9 * IN),
        "two": normal(k[1], 3, 3, width, width, fan=9 * width),
        "head": normal(k[2], width, OUT),
    }

    def apply(params, x):
        for name in ("one", "two"):
            x = jax.lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jnp.tanh(x)
        return x.mean((1, 2)) @ params["head"]

    return apply, params


def scan(width, seed=0):
    """A residual stack under one scan."""
    k = jax.random.split(jax.random.key(seed), 3)
    params = {
        "first": normal(k[0], IN, width),
        "stack": normal(k[1], 3, width, width, fan=width),
        "last": normal(k[2], width, OUT),
    }

    def apply(params, x):
        def block(x, weight):
            return x + jnp.tanh(x @ weight) / 3**0.5, None

        x, _ = jax.lax.scan(block, x @ params["first"], params["stack"])
        return x @ params["last"]

    return apply, params


MODELS = (plain, linen, nnx, equinox, haiku, transformer, conv, scan)
SHAPES = {transformer: (4, IN), wide_heads: (4, IN), conv: (5, 5, IN)}


def inputs(build, count=6, seed=7):
    """A batch that the build takes."""
    return jax.random.normal(jax.random.key(seed), (count, *SHAPES.get(build, (IN,))))


def broadcasting(build):
    """The build where ranks may differ in sums, as its framework needs it."""

    def allowed(width, seed=0):
        with jax.numpy_rank_promotion("allow"):
            apply, params = build(width, seed)

        def applied(params, x):
            with jax.numpy_rank_promotion("allow"):
                return apply(params, x)

        return applied, params

    return allowed
