"""What a stack of attention layers binds, and how its parameters are drawn."""

import functools

import jax
from jax import lax

from numdl._compiled import jit
from numdl.networks import _affine
from numdl.networks.initializers import Initializer
from numdl.records import record, static


@record
class Settings:
    """What the builder binds."""

    depth: int = static()
    heads: int = static()
    head_width: int = static()
    outputs: int = static()
    skip: bool = static()
    mlp_width: object = static()
    activation: object = static()
    selection: str = static()
    causal: bool = static()
    query_key: Initializer
    value: Initializer
    mlp: object
    key: object
    temperature: float


def init(settings, key, x):
    """Parameters for token matrices like x."""
    dtype = _affine.dtype_at_init(key, x, ndim=3)
    return draw(settings, key, x.shape[-1], dtype)


@functools.partial(jit, static_argnames=("width", "dtype"))
def draw(settings, key, width, dtype):
    """{"layers", "readout"} at random, the leaves of "layers" stacked along depth."""
    layers_key, last_key = jax.random.split(key)
    layer = functools.partial(_draw_layer, settings, width, dtype)
    readout = settings.value.sample(last_key, (width, settings.outputs), dtype)
    return {"layers": lax.map(layer, jax.random.split(layers_key, settings.depth)), "readout": {"kernel": readout}}


def _draw_layer(settings, width, dtype, key):
    h, k = settings.heads, settings.head_width
    keys = jax.random.split(key, 6)
    parts = (("query", settings.query_key), ("key", settings.query_key), ("value", settings.value))
    layer = {
        name: jax.vmap(lambda one, law=law: law.sample(one, (width, k), dtype))(jax.random.split(keys[i], h))
        for i, (name, law) in enumerate(parts)
    }
    # One map from all heads: its fan_in is heads * head_width.
    layer["output"] = settings.value.sample(keys[3], (h * k, width), dtype).reshape(h, k, width)
    if settings.mlp_width is not None:
        layer["mlp_in"] = settings.mlp.sample(keys[4], (width, settings.mlp_width), dtype)
        layer["mlp_out"] = settings.mlp.sample(keys[5], (settings.mlp_width, width), dtype)
    return layer
