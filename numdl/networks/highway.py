"""Highway networks: every layer mixes what it computes with what it got, and learns the mixture.

    y_1 = x W_1 + b_1
    y_{l+1} = t * activation(y_l W + b) + (1 - t) * y_l,    t = sigmoid(y_l V + c)
    outputs = y_L W + b

t is the transform gate, a number in (0, 1) for every coordinate and example; 1 - t carries. All entries of c start at
`gate_bias`: far below zero the network starts as the identity, with slope sigmoid(gate_bias) of what is learned.
Parameters: {"first", "layers", "readout"}; "layers" holds kernel, bias, gate_kernel (V) and gate_bias (c), stacked
along depth, which the network reads from there.

Source: Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl._compiled import compiled, jit
from numdl.networks import _affine
from numdl.networks._record import Network, fitting, probed, probed_alone, split_probes
from numdl.networks.initializers import Initializer
from numdl.records import record, static


def network(
    *,
    width: int,
    depth: int,
    outputs: int,
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    gate_bias: ScalarLike,
    weight_variance: ScalarLike | None = None,
    initializer: Initializer | None = None,
    gate_weight_variance: ScalarLike | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """A stack of `depth` highway layers of one width behind an affine map; the states are y_1 and y after each layer.

        y_{l+1} = t * activation(y_l W + b) + (1 - t) * y_l,    t = sigmoid(y_l V + c)

    Parameters
    ----------
    width, depth, outputs : int     each >= 1
    activation : function           elementwise
    weight_variance : scalar        fan_in * Var(W_ij), Gaussian, >= 0; exactly one of this and `initializer`
    bias_variance : scalar          Var(b_i), Gaussian, of all biases but the gates'
    gate_bias : scalar              c at the start; the paper takes -1 to -10, the deeper the lower
    initializer : Initializer       any other law of the weights
    gate_weight_variance : scalar   fan_in * Var(V_ij), Gaussian, if different
    dtype : dtype                   of the parameters; the input's if None
    Returns
    -------
    Network                         x [N, features] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError           a size below 1, a negative variance, two laws or none, gate_bias not finite
    Source: Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387.
    """
    sizes = (checks.whole(name, value) for name, value in (("width", width), ("depth", depth), ("outputs", outputs)))
    weights = _affine.law(weight_variance, initializer)
    settings = _Settings(
        *sizes,
        checks.accepts("activation", activation, 1, "activation(x)"),
        _affine.asked_dtype(dtype),
        weights,
        _affine.law_or("gate_weight_variance", gate_weight_variance, weights),
        checks.variance("bias_variance", bias_variance, shape=()),
        checks.finite("gate_bias", gate_bias, shape=()),
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout))


def gates(network: Network, params: PyTree, x: Float[ArrayLike, "N features"]) -> Float[Array, "depth N width"]:
    """The transform gates t of every layer: how much of each coordinate is new.

    Parameters
    ----------
    network : Network               made by `network`
    params : pytree                 of `network.init`
    x : array [N, features]
    Returns
    -------
    array [depth, N, width]         entries in (0, 1)
    Raises
    ------
    ValueError, TypeError           not a Network, params or x that do not fit it
    """
    checks.instance("network", network, Network, hint="made by highway.network")
    network, params, x = fitting(network, params, x)
    first, stretch = network.states(params, x)
    before = jnp.concatenate([first, stretch[:-1]])
    return jax.vmap(_gate)(params["layers"], before)


@record
class _Settings:
    width: int = static()
    depth: int = static()
    outputs: int = static()
    activation: object = static()
    dtype: object = static()
    weights: Initializer
    gate_weights: Initializer
    bias_variance: float
    gate_bias: float


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=2)
    return _draw(settings, key, x.shape[1], dtype)


@functools.partial(jit, static_argnames=("features", "dtype"))
def _draw(settings, key, features, dtype):
    bias_key, first_key, layers_key, last_key = jax.random.split(key, 4)
    n, depth = settings.width, settings.depth
    shapes = ((n,), (depth, n), (settings.outputs,))
    first, hidden, last = _affine.biases(bias_key, shapes, (settings.bias_variance,) * 3, dtype)
    layers = lax.map(lambda k: _draw_layer(settings, k, dtype), jax.random.split(layers_key, depth))
    return {
        "first": {"kernel": settings.weights.sample(first_key, (features, n), dtype), "bias": first},
        "layers": {**layers, "bias": hidden},
        "readout": {"kernel": settings.weights.sample(last_key, (n, settings.outputs), dtype), "bias": last},
    }


def _draw_layer(settings, key, dtype):
    kernel_key, gate_key = jax.random.split(key)
    n = settings.width
    return {
        "kernel": settings.weights.sample(kernel_key, (n, n), dtype),
        "gate_kernel": settings.gate_weights.sample(gate_key, (n, n), dtype),
        "gate_bias": jnp.broadcast_to(jnp.asarray(settings.gate_bias, dtype), (n,)),
    }


@compiled
def _states(settings, params, x, probes=None):
    checks.shape("x", checks.floating("x", x), (None, params["first"]["kernel"].shape[0]))
    first, others = split_probes(probes, 2)
    y = probed_alone(_affine.apply(params["first"], x), first)

    def step(y, layer):
        weights, probe = layer
        gate = _gate(weights, y)
        y = probed(y + gate * (settings.activation(_affine.apply(weights, y)) - y), probe)
        return y, y

    _, stretch = lax.scan(step, y, (params["layers"], others))
    return y[None], stretch


@compiled
def _readout(params, y):
    return _affine.apply(params["readout"], y)


def _gate(weights, y):
    return jax.nn.sigmoid(y @ weights["gate_kernel"] + weights["gate_bias"][None, :])
