"""Densely connected networks: every layer sees what all layers before it have computed, side by side.

    y_1 = x W_1 + b_1                                                   width features
    y_{l+1} = activation([y_1, y_2, ..., y_l]) W_{l+1} + b_{l+1}        `growth` new features
    outputs = activation([y_1, y_2, ..., y_L]) W + b

Three stretches: y_1; the new features of each layer; and, as the readout wants it, the whole concatenation as one last
state. Parameters: {"first", "layers", "readout"}. Layer l reads n_l = width + (l - 1) growth features; the kernels of
"layers" are stacked, [depth, width + (depth - 1) growth, growth], and their rows beyond n_l are zero, never read, and
get no gradient (`parameter_count` leaves them out). Their first n_l rows have variance weight_variance / n_l.

One scan runs all layers on a buffer of activated features that fills up from the left; what is not yet filled is 0.

Source: Huang, Liu, van der Maaten & Weinberger 2017, arXiv:1608.06993, without normalization.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree, ScalarLike

from numdl import checks, precision
from numdl._compiled import compiled, jit
from numdl.networks import _affine, initializers
from numdl.networks._record import Network, probed, probed_alone, split_probes
from numdl.networks.initializers import Initializer
from numdl.records import record, static


def network(
    *,
    width: int,
    growth: int,
    depth: int,
    outputs: int,
    activation: Callable[[Array], Array],
    weight_variance: ScalarLike,
    bias_variance: ScalarLike,
    dtype: DTypeLike | None = None,
) -> Network:
    """A densely connected network (DenseNet): a map to `width` features, then `depth` layers of `growth` new ones.

        y_{l+1} = activation([y_1, y_2, ..., y_l]) W_{l+1} + b_{l+1}

    Parameters
    ----------
    width, growth, depth, outputs : int    each >= 1
    activation : function       elementwise
    weight_variance : scalar    fan_in * Var(W_ij), Gaussian, >= 0; fan_in is what the layer reads, n_l
    bias_variance : scalar      Var(b_i), Gaussian, >= 0
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, features] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       a size below 1, a negative variance
    Source: Huang, Liu, van der Maaten & Weinberger 2017, arXiv:1608.06993, without normalization.
    """
    sizes = {"width": width, "growth": growth, "depth": depth, "outputs": outputs}
    settings = _Settings(
        *(checks.whole(name, value) for name, value in sizes.items()),
        checks.accepts("activation", activation, 1, "activation(x)"),
        _affine.asked_dtype(dtype),
        initializers.variance_scaling(weight_variance),
        checks.variance("bias_variance", bias_variance, shape=()),
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def parameter_count(params: PyTree) -> int:
    """How many parameters the outputs depend on: all but the rows of kernels that no layer reads.

    Parameters
    ----------
    params : pytree             of `network`'s init, or their shapes
    Returns
    -------
    int
    Raises
    ------
    ValueError, TypeError       params of another network, leaves that are not arrays
    """
    params = checks.leaves("params", params, shapes=True)
    if not isinstance(params, dict) or "kernel" not in params.get("layers", ()):
        raise checks.BadValue(f"params must be those of a concatenated network, with layers; got {params}")
    kernel = checks.array(
        "params['layers']['kernel']", params["layers"]["kernel"], kind="floating", ndim=3, shapes=True
    )
    depth, _, growth = kernel.shape
    unread = growth**2 * depth * (depth - 1) // 2  # layer l of `depth` leaves (depth - l) * growth rows
    return sum(leaf.size for leaf in jax.tree.leaves(params)) - unread


@record
class _Settings:
    width: int = static()
    growth: int = static()
    depth: int = static()
    outputs: int = static()
    activation: object = static()
    dtype: object = static()
    weights: Initializer
    bias_variance: float


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=2)
    return _draw(settings, key, x.shape[1], dtype)


@functools.partial(jit, static_argnames=("features", "dtype"))
def _draw(settings, key, features, dtype):
    bias_key, first_key, layers_key, last_key = jax.random.split(key, 4)
    width, growth, depth, outputs = settings.width, settings.growth, settings.depth, settings.outputs
    shapes = ((width,), (depth, growth), (outputs,))
    first, hidden, last = _affine.biases(bias_key, shapes, (settings.bias_variance,) * 3, dtype)
    layers = jnp.arange(depth), jax.random.split(layers_key, depth)
    kernels = lax.map(lambda layer: _draw_kernel(settings, *layer, dtype), layers)
    readout = settings.weights.sample(last_key, (width + depth * growth, outputs), dtype)
    return {
        "first": {"kernel": settings.weights.sample(first_key, (features, width), dtype), "bias": first},
        "layers": {"kernel": kernels, "bias": hidden},
        "readout": {"kernel": readout, "bias": last},
    }


def _draw_kernel(settings, number, key, dtype):
    """Weights of all rows; those that are not read are dropped, the others rescaled to their fan_in."""
    rows = settings.width + (settings.depth - 1) * settings.growth
    filled = settings.width + number * settings.growth
    wide = precision.wide(dtype)
    scale = jnp.where(jnp.arange(rows) < filled, jnp.sqrt(rows / filled.astype(wide)), jnp.zeros((), wide))
    return (scale[:, None] * settings.weights.sample(key, (rows, settings.growth), wide)).astype(dtype)


@compiled
def _states(settings, params, x, probes=None):
    checks.shape("x", checks.floating("x", x), (None, params["first"]["kernel"].shape[0]))
    first_probe, probe, last_probe = split_probes(probes, 3)
    first = probed_alone(_affine.apply(params["first"], x), first_probe)
    depth, rows, growth = params["layers"]["kernel"].shape
    starts = first.shape[1] + growth * jnp.arange(depth)
    empty = jnp.zeros((first.shape[0], rows + growth - first.shape[1]), first.dtype)
    buffer = jnp.concatenate([settings.activation(first), empty], axis=1)

    def step(buffer, layer):
        start, weights, probe = layer
        y = probed(_affine.apply(weights, buffer[:, :rows]), probe)
        return lax.dynamic_update_slice_in_dim(buffer, settings.activation(y), start, axis=1), y

    _, stretch = lax.scan(step, buffer, (starts, params["layers"], probe))
    everything = jnp.concatenate([first[None], jnp.swapaxes(stretch, 0, 1).reshape(1, x.shape[0], -1)], axis=2)
    return first[None], stretch, probed(everything, last_probe)


@compiled
def _readout(settings, params, y):
    return _affine.apply(params["readout"], settings.activation(y))
