"""One block of a transformer: sublayers with their norms, skips and gains, and many of them under one scan."""

import jax
import jax.numpy as jnp
from jax import lax

from numdl.networks import _split_tokens, attention, normalization
from numdl.networks._record import probed
from numdl.networks.initializers import Initializer
from numdl.records import record, static


@record
class Blocks:
    """What `blocks` binds: shapes and switches are structure, gains and laws are data."""

    depth: int = static()
    heads: int = static()
    key_value_heads: int = static()
    head_width: int = static()
    mlp_width: object = static()
    activation: object = static()
    norm: str = static()
    normalization: str = static()
    scale: str = static()
    causal: bool = static()
    gated: bool = static()
    gated_skip: bool = static()
    trained_skip: bool = static()  # a gain of the stream for each sublayer and feature
    rotary: bool = static()
    mask: object  # [T, T] bool, or None
    skip_gain: object  # of the stream
    branch_gain: object  # of what a sublayer adds
    weight_gain: object  # of the deviations of value and of all MLP weights but the last
    last_gain: object  # of those of output and of the MLP's last weight: what ends a branch
    eps: object
    query_key: Initializer
    value: Initializer
    mlp: object


def sublayers(blocks, crossed=False):
    """Names of a block's sublayers, in order."""
    return ("attention", *(("cross",) if crossed else ()), *(("mlp",) if blocks.mlp_width else ()))


def run(blocks, layers, y, probe=None, memory=None):
    """States after every sublayer, [depth * sublayers, N, T, d]."""
    names = sublayers(blocks, memory is not None)
    stacked = None if probe is None else probe.reshape(blocks.depth, len(names), *probe.shape[1:])

    def step(y, now):
        layer, push = now
        states = []
        for place, name in enumerate(names):
            y = probed(_sublayer(blocks, name, layer[name], y, memory), None if push is None else push[place])
            states.append(y)
        return y, jnp.stack(states)

    states = lax.scan(step, y, (layers, stacked))[1]
    return states.reshape(-1, *y.shape)


def normalized(blocks, params, x):
    """Layer or RMS normalization, with the gains of this place."""
    if blocks.normalization == "layer":
        return normalization.layer(x, params["gain"], params["bias"], eps=blocks.eps)
    return normalization.rms(x, params["gain"], eps=blocks.eps)


def squares(blocks, layers, y):
    """Mean squares of what every sublayer adds, [depth, sublayers]."""

    def step(y, layer):
        added = []
        for name in sublayers(blocks):
            made = _branch(blocks, name, layer[name], y, None)
            added.append(jnp.mean(made**2))
            y = _joined(blocks, layer[name], y, made)
        return y, jnp.stack(added)

    return lax.scan(step, y, layers)[1]


def _sublayer(blocks, name, params, y, memory):
    return _joined(blocks, params, y, _branch(blocks, name, params, y, memory))


def _branch(blocks, name, params, y, memory):
    inner = normalized(blocks, params["norm"], y) if blocks.norm in ("pre", "sandwich") else y
    made = _mlp(blocks, params, inner) if name == "mlp" else _attention(blocks, name, params, inner, memory)
    return normalized(blocks, params["norm_out"], made) if blocks.norm == "sandwich" else made


def _joined(blocks, params, y, made):
    gain = params["gate"] if blocks.gated_skip else jnp.asarray(blocks.branch_gain, y.dtype)
    skip = params["skip"] if blocks.trained_skip else jnp.asarray(blocks.skip_gain, y.dtype)
    total = jnp.broadcast_to(skip, y.shape) * y + gain * made
    return normalized(blocks, params["norm"], total) if blocks.norm == "post" else total


def _mlp(blocks, params, x):
    hidden = blocks.activation(x @ params["in"])
    return (hidden * (x @ params["side"]) if blocks.gated else hidden) @ params["out"]


def _attention(blocks, name, params, x, memory):
    source = memory if name == "cross" else x
    queries, keys, values = (
        _split_tokens.heads(data, params[part]) for data, part in ((x, "query"), (source, "key"), (source, "value"))
    )
    queries, keys = _prepared(blocks, name, queries), _prepared(blocks, name, keys)
    keys, values = (jnp.repeat(part, blocks.heads // blocks.key_value_heads, axis=-3) for part in (keys, values))
    alone = name == "attention"
    scale = 1 / blocks.head_width if blocks.scale == "width" else None
    mask = blocks.mask if alone else None
    mixed = attention.attend(queries, keys, values, causal=blocks.causal and alone, mask=mask, scale=scale)
    return jnp.einsum("...htv,hvd->...td", mixed, params["output"])


def _prepared(blocks, name, x):
    """Queries or keys [..., H, T, k]: of mean square 1 if asked for, turned by their places if asked for."""
    x = normalization.rms(x, eps=blocks.eps) if blocks.scale == "qk_norm" else x
    return turned(x) if blocks.rotary and name == "attention" else x


def turned(x, base=10000.0):
    """Rotary positions: the pairs (i, i + k/2) of token t turned by t base^(-2i/k)."""
    tokens, width = x.shape[-2:]
    rates = base ** (-2 * jnp.arange(width // 2) / width)
    angles = jnp.outer(jnp.arange(tokens), rates).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = (jnp.broadcast_to(part, first.shape) for part in (jnp.cos(angles), jnp.sin(angles)))
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def waves(tokens, width, dtype):
    """Sinusoidal positions [T, d]: sines, then cosines, of t 10000^(-2i/d)."""
    half = -(-width // 2)
    angles = jnp.outer(jnp.arange(tokens), 10000.0 ** (-2 * jnp.arange(half) / width))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width].astype(dtype)


def drawn(blocks, key, width, dtype, crossed=False):
    """The blocks' parameters at random, every leaf stacked along depth."""
    one = lambda key: _drawn_block(blocks, key, width, dtype, crossed)  # noqa: E731
    return lax.map(one, jax.random.split(key, blocks.depth))


def norm_parameters(blocks, width, dtype):
    """Gain 1 and, for layer normalization, bias 0."""
    gain = {"gain": jnp.ones(width, dtype)}
    return gain | {"bias": jnp.zeros(width, dtype)} if blocks.normalization == "layer" else gain


def _drawn_block(blocks, key, width, dtype, crossed):
    names = sublayers(blocks, crossed)
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    made = {name: (_drawn_mlp if name == "mlp" else _drawn_heads)(blocks, keys[name], width, dtype) for name in names}
    for params in made.values():
        if blocks.norm != "none":
            params["norm"] = norm_parameters(blocks, width, dtype)
        if blocks.norm == "sandwich":
            params["norm_out"] = norm_parameters(blocks, width, dtype)
        if blocks.gated_skip:
            params["gate"] = jnp.zeros((), dtype)
        if blocks.trained_skip:
            params["skip"] = jnp.ones(width, dtype)
    return made


def _drawn_heads(blocks, key, width, dtype):
    h, g, k = blocks.heads, blocks.key_value_heads, blocks.head_width
    keys = jax.random.split(key, 4)
    laws = (("query", blocks.query_key, h), ("key", blocks.query_key, g), ("value", blocks.value, g))
    made = {
        name: jax.vmap(lambda one, law=law: law.sample(one, (width, k), dtype))(jax.random.split(keys[i], count))
        for i, (name, law, count) in enumerate(laws)
    }
    # One map from all heads: its fan_in is heads * head_width.
    made["output"] = blocks.value.sample(keys[3], (h * k, width), dtype).reshape(h, k, width)
    return made | {name: _times(blocks, name, made[name]) for name in ("value", "output")}


def _drawn_mlp(blocks, key, width, dtype):
    keys = jax.random.split(key, 3)
    shapes = {"in": (width, blocks.mlp_width), "out": (blocks.mlp_width, width)}
    shapes |= {"side": (width, blocks.mlp_width)} if blocks.gated else {}
    return {
        name: _times(blocks, name, blocks.mlp.sample(one, shape, dtype))
        for (name, shape), one in zip(shapes.items(), keys, strict=False)
    }


def _times(blocks, name, weights):
    gain = blocks.last_gain if name in ("output", "out") else blocks.weight_gain
    return weights * jnp.asarray(gain, weights.dtype)
