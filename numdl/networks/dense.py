"""Dense networks: affine maps with an activation between, any depth, equal widths stacked and scanned.

    y_1 = x W_1 + b_1,    y_{l+1} = activation(y_l) W_{l+1} + b_{l+1},    outputs = activation(y_L) W + b

The first layer has no activation before it and is a stretch of its own; after it every run of equal widths is one.
Parameters: {"hidden": ({"kernel": [layers, n_in, n_out], "bias": [layers, n_out]}, ...), "readout": {...}}, one entry
of "hidden" for each stretch. Depth is axis 0 of a leaf, and the network reads it from there.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, ScalarLike

from numdl import checks
from numdl._compiled import compiled, jit
from numdl.networks import _affine
from numdl.networks._record import Network, probed, run_stretch, split_probes
from numdl.networks.initializers import Initializer
from numdl.records import record, static


def network(
    *,
    widths: Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    weight_variance: ScalarLike | None = None,
    law: str | None = None,
    initializer: Initializer | None = None,
    readout_weight_variance: ScalarLike | None = None,
    readout_bias_variance: ScalarLike | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """A dense network (multilayer perceptron, fully connected) with len(widths) - 2 hidden layers.

    Two widths make a linear map, logistic regression.

    Parameters
    ----------
    widths : sequence of int    input, hidden layers, outputs; each >= 1
    activation : function       elementwise; an Activation, to compare with theory
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless, >= 0; exactly one of this and `initializer`
    bias_variance : scalar      Var(b_i), Gaussian, >= 0
    law : str                   of the entries, if not normal: uniform, truncated_normal or rademacher
    initializer : Initializer   any other law, orthogonal for example
    readout_weight_variance, readout_bias_variance : scalar    of the last map, if different; the weights are Gaussian
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, widths[0]] -> outputs [N, widths[-1]]
    Raises
    ------
    ValueError, TypeError       fewer than two widths, a width below 1, a negative variance, two laws for the weights or
                                none, an activation that does not take one array, another dtype than a floating one
    """
    settings = _settings(
        checks.wholes("widths", widths),
        checks.accepts("activation", activation, 1, "activation(x)"),
        _affine.law(weight_variance, initializer, entries=law),
        checks.variance("bias_variance", bias_variance, shape=()),
        readout_weight_variance,
        readout_bias_variance,
        _affine.asked_dtype(dtype),
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


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
        raise checks.BadValue(f"widths must hold at least 2 numbers, input and outputs; got {widths}")
    last_weights, last_bias = _affine.law_or("readout_weight_variance", readout_weight_variance, weights), bias_variance
    if readout_bias_variance is not None:
        last_bias = checks.variance("readout_bias_variance", readout_bias_variance, shape=())
    return _Settings(widths, activation, dtype, weights, bias_variance, last_weights, last_bias)


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype)
    _affine.check_features(x, settings.widths[0], "widths")
    return _draw(settings, key, dtype)


@functools.partial(jit, static_argnames="dtype")
def _draw(settings, key, dtype):
    plan = _stretches(settings.widths)
    bias_key, last_key, *keys = jax.random.split(key, len(plan) + 2)
    shapes = [*((layers, shape[-1]) for layers, shape in plan), settings.widths[-1:]]
    variances = [settings.bias_variance] * len(plan) + [settings.readout_bias_variance]
    *biases, last_bias = _affine.biases(bias_key, shapes, variances, dtype)
    kernels = [_affine.kernels(settings.weights, k, *stretch, dtype) for k, stretch in zip(keys, plan, strict=True)]
    last_kernel = settings.readout_weights.sample(last_key, settings.widths[-2:], dtype)
    return {
        "hidden": tuple({"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)),
        "readout": {"kernel": last_kernel, "bias": last_bias},
    }


def _stretches(widths):
    """(layers, shape) of each stretch: the first layer alone, then runs of equal square layers."""
    shapes = list(itertools.pairwise(widths[:-1]))
    plan = [(1, shape) for shape in shapes[:1]]
    for shape, run in itertools.groupby(shapes[1:]):
        layers = len(list(run))
        plan += [(layers, shape)]  # only square shapes repeat: the next fan_in is this fan_out
    return plan


@compiled
def _states(settings, params, x, probes=None):
    hidden = params["hidden"]
    _affine.check_features(x, (hidden[0] if hidden else params["readout"])["kernel"].shape[-2], "params")
    probes = split_probes(probes, len(hidden))
    y, states = x, []
    for number, (stretch, probe) in enumerate(zip(hidden, probes, strict=True)):
        before = settings.activation if number else _identity
        y, outputs = run_stretch(functools.partial(_layer, before), y, (stretch, probe))
        states.append(outputs)
    return tuple(states)


def _layer(before, y, layer):
    weights, probe = layer
    y = probed(_affine.apply(weights, before(y)), probe)
    return y, y


@compiled
def _readout(settings, params, y):
    return _affine.apply(params["readout"], settings.activation(y) if params["hidden"] else y)


def _identity(y):
    return y
