"""Dense networks: affine maps with an activation between, any depth, equal widths stacked and scanned.

    y_1 = x W_1 + b_1,    y_{l+1} = activation(y_l) W_{l+1} + b_{l+1},    outputs = activation(y_L) W + b

The first layer has no activation before it and is a stretch of its own; after it every run of equal widths is one.
Parameters: {"hidden": ({"kernel": [layers, n_in, n_out], "bias": [layers, n_out]}, ...), "readout": {...}}, one entry
of "hidden" for each stretch. Depth is axis 0 of a leaf, and the network reads it from there.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from numdl import checks
from numdl.networks import core, initializers
from numdl.networks.initializers import Initializer
from numdl.records import record, static


def network(
    *,
    widths,
    activation,
    bias_variance,
    weight_variance=None,
    law=None,
    initializer=None,
    readout_weight_variance=None,
    readout_bias_variance=None,
    dtype=None,
):
    """A dense network with len(widths) - 2 hidden layers; two widths make a linear map, logistic regression.

    Parameters
    ----------
    widths : sequence of int    input, hidden layers, outputs
    activation : function       elementwise; an Activation, to compare with theory
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless; exactly one of this and `initializer`
    bias_variance : scalar      Var(b_i), Gaussian
    law : str                   of the entries, if not normal: uniform, truncated_normal or rademacher
    initializer : Initializer   any other law, orthogonal for example
    readout_weight_variance, readout_bias_variance : scalar    of the last map, if different; the weights are Gaussian
    dtype : dtype               of the parameters; the input's if None
    Raises
    ------
    ValueError, TypeError       fewer than two widths, a negative variance, two laws for the weights or none
    """
    settings = _settings(
        tuple(checks.whole(f"widths[{i}]", width) for i, width in enumerate(widths)),
        checks.function("activation", activation),
        _weights(weight_variance, law, initializer),
        checks.variance("bias_variance", bias_variance, shape=()),
        readout_weight_variance,
        readout_bias_variance,
        None if dtype is None else initializers.float_dtype("dtype", dtype),
    )
    return core.Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


@record
class _Settings:
    widths: tuple = static()
    activation: object = static()
    dtype: object = static()
    weights: Initializer
    bias_variance: float
    readout_weights: Initializer
    readout_bias_variance: float


def _settings(widths, activation, weights, bias_variance, readout_weight_variance, readout_bias_variance, dtype):
    if len(widths) < 2:
        raise ValueError(f"widths must hold at least 2 numbers, input and outputs; got {widths}")
    last_weights, last_bias = weights, bias_variance
    if readout_weight_variance is not None:
        checks.variance("readout_weight_variance", readout_weight_variance, shape=())
        last_weights = initializers.variance_scaling(readout_weight_variance)
    if readout_bias_variance is not None:
        last_bias = checks.variance("readout_bias_variance", readout_bias_variance, shape=())
    return _Settings(widths, activation, dtype, weights, bias_variance, last_weights, last_bias)


def _weights(weight_variance, law, initializer):
    if (weight_variance is None) == (initializer is None):
        got = "neither" if initializer is None else f"weight_variance={weight_variance!r} and {initializer!r}"
        raise ValueError(f"exactly one of weight_variance and initializer must be given; got {got}")
    if initializer is None:
        return initializers.variance_scaling(weight_variance, law="normal" if law is None else law)
    if law is not None:
        raise ValueError(f"law must be None where an initializer is given; got {law!r}")
    return checks.instance("initializer", initializer, Initializer, hint="such as initializers.orthogonal(1.0)")


def _init(settings, key, x):
    checks.key("key", key)
    _check_input(x, settings.widths[0], "widths")
    return _draw(settings, key, settings.dtype or initializers.float_dtype("x's dtype", x.dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _draw(settings, key, dtype):
    plan = _stretches(settings.widths)
    bias_key, last_key, *keys = jax.random.split(key, len(plan) + 2)
    *biases, last_bias = _draw_biases(settings, plan, bias_key, dtype)
    kernels = [_draw_kernels(settings.weights, k, *stretch, dtype) for k, stretch in zip(keys, plan, strict=True)]
    last_kernel = settings.readout_weights.sample(last_key, settings.widths[-2:], dtype)
    return {
        "hidden": tuple({"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)),
        "readout": {"kernel": last_kernel, "bias": last_bias[0]},
    }


def _stretches(widths):
    """(layers, shape) of each stretch: the first layer alone, then runs of equal square layers."""
    shapes = list(itertools.pairwise(widths[:-1]))
    plan = [(1, shape) for shape in shapes[:1]]
    for shape, run in itertools.groupby(shapes[1:]):
        layers = len(list(run))
        plan += [(layers, shape)]  # only square shapes repeat: the next fan_in is this fan_out
    return plan


def _draw_kernels(weights, key, layers, shape, dtype):
    if layers == 1:
        return weights.sample(key, shape, dtype)[None]
    # A map, not a vmap: small draws stay in the cache, and a batched QR would hold all its matrices at once.
    return lax.map(lambda layer_key: weights.sample(layer_key, shape, dtype), jax.random.split(key, layers))


def _draw_biases(settings, plan, key, dtype):
    """All biases from one draw, [layers, n_out] for each stretch and the readout: every generator costs compilation."""
    shapes = [*((layers, shape[-1]) for layers, shape in plan), (1, settings.widths[-1])]
    variances = [settings.bias_variance] * len(plan) + [settings.readout_bias_variance]
    sizes = [math.prod(shape) for shape in shapes]
    unit = initializers.normal(1.0).sample(key, (sum(sizes),), jnp.promote_types(dtype, jnp.float32))
    parts = jnp.split(unit, list(itertools.accumulate(sizes))[:-1])
    return [
        (jnp.sqrt(jnp.asarray(variance, unit.dtype)) * part).astype(dtype).reshape(shape)
        for part, variance, shape in zip(parts, variances, shapes, strict=True)
    ]


def _states(settings, params, x, probes=None):
    hidden = params["hidden"]
    _check_input(x, (hidden[0] if hidden else params["readout"])["kernel"].shape[-2], "params")
    probes = core.split_probes(probes, len(hidden))
    y, states = x, []
    for number, (stretch, probe) in enumerate(zip(hidden, probes, strict=True)):
        before = settings.activation if number else _identity
        y, outputs = _run(functools.partial(_layer, before), y, (stretch, probe))
        states.append(outputs)
    return tuple(states)


def _run(layer, y, stretch):
    if jax.tree.leaves(stretch)[0].shape[0] > 1:
        return lax.scan(layer, y, stretch)
    y, _ = layer(y, jax.tree.map(lambda leaf: leaf[0], stretch))
    return y, y[None]


def _layer(before, y, layer):
    weights, probe = layer
    y = _affine(weights, before(y))
    y = y if probe is None else y + probe.astype(y.dtype)
    return y, y


def _readout(settings, params, y):
    return _affine(params["readout"], settings.activation(y) if params["hidden"] else y)


def _affine(weights, y):
    return y @ weights["kernel"] + weights["bias"][None, :]


def _identity(y):
    return y


def _check_input(x, features, source):
    checks.floating("x", x)
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(f"x must have shape (N, {features}), as {source} want; got {tuple(x.shape)}")
