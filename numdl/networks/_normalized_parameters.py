"""What a normalized network binds, and how its parameters are drawn."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from numdl._compiled import jit
from numdl.networks import _affine
from numdl.networks.initializers import Initializer
from numdl.records import record, static


@record
class Settings:
    """What the builder binds."""

    width: int = static()
    depth: int = static()
    outputs: int = static()
    activation: object = static()
    kind: str = static()
    dtype: object = static()
    weights: Initializer
    eps: float


def init(settings, key, x):
    """Parameters for inputs like x, everything checked."""
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=2)
    return draw(settings, key, x.shape[1], dtype)


@functools.partial(jit, static_argnames=("features", "dtype"))
def draw(settings, key, features, dtype):
    """{"first", "hidden", "readout"} at random; gains 1, biases 0."""
    n, first_key, hidden_key, last_key = settings.width, *jax.random.split(key, 3)

    def layer(rows, key):
        kernel = settings.weights.sample(key, (rows, n), dtype)
        return {"kernel": kernel, "gain": jnp.ones(n, dtype), "bias": jnp.zeros(n, dtype)}

    hidden = lax.map(functools.partial(layer, n), jax.random.split(hidden_key, settings.depth - 1))
    last = settings.weights.sample(last_key, (n, settings.outputs), dtype)
    readout = {"kernel": last, "bias": jnp.zeros(settings.outputs, dtype)}
    return {"first": layer(features, first_key), "hidden": hidden, "readout": readout}


def without_kernel(layer):
    """Gain and bias of a layer, and statistics where they are frozen."""
    return {name: leaf for name, leaf in layer.items() if name != "kernel"}
