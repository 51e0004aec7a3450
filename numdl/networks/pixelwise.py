"""Fully convolutional networks: an answer for every pixel of a picture of any size, none of them shrunk.

    y_1 = x * K_1 + b_1,    y_{l+1} = f(y_l) * K_{l+1} + b_{l+1},    outputs = f(y_L) W + b  at every pixel

* is a convolution with zeros around the picture; L = depth. A pixel's answer depends on the 1 + depth (window - 1) rows
and columns around it. States: the first layer alone, then all others, stacked along depth under one scan.
Parameters: {"layers": ({"kernel", "bias"}, ...), "readout": {"kernel", "bias"}}; they do not know the picture's size.
"""

import functools
from collections.abc import Callable

import jax
from jax.tree_util import Partial
from jaxtyping import Array, DTypeLike, ScalarLike

from numdl import checks
from numdl._compiled import compiled, jit
from numdl.networks import _affine
from numdl.networks._record import Network, probed, run_stretch, split_probes
from numdl.networks.convolutional import convolve
from numdl.networks.initializers import Initializer
from numdl.records import record, static


def network(
    *,
    width: int,
    depth: int,
    outputs: int,
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    window: int = 3,
    weight_variance: ScalarLike | None = None,
    initializer: Initializer | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """`depth` convolutions of `width` channels that keep the picture's size, and an affine readout of every pixel.

    Parameters
    ----------
    width, depth, outputs : int    channels, convolutions, numbers for each pixel, each >= 1
    activation : function          elementwise
    bias_variance : scalar         Var(b_i), Gaussian, >= 0
    window : int                   height and width of the kernels, odd
    weight_variance : scalar       fan_in * Var of an entry, fan_in = window**2 * channels; Gaussian
    initializer : Initializer      any other law; exactly one of this and `weight_variance`
    dtype : dtype                  of the parameters; the input's if None
    Returns
    -------
    Network                        x [N, height, width, channels] -> outputs [N, height, width, outputs]
    Raises
    ------
    ValueError, TypeError          a size below 1, an even window, a negative variance, two laws for the weights or none
    Source: Long, Shelhamer & Darrell 2015, arXiv:1411.4038, here without pooling.    Experiment: f7.
    """
    window = checks.whole("window", window)
    if window % 2 == 0:
        raise checks.BadValue(f"window must be odd, so that pixels keep their places; got {window}")
    settings = _Settings(
        checks.whole("width", width),
        checks.whole("depth", depth),
        checks.whole("outputs", outputs),
        window,
        checks.accepts("activation", activation, 1, "activation(x)"),
        _affine.asked_dtype(dtype),
        _affine.law(weight_variance, initializer),
        checks.variance("bias_variance", bias_variance, shape=()),
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


@record
class _Settings:
    width: int = static()
    depth: int = static()
    outputs: int = static()
    window: int = static()
    activation: object = static()
    dtype: object = static()
    weights: Initializer
    bias_variance: float


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=4)
    return _draw(settings, key, x.shape[-1], dtype)


@functools.partial(jit, static_argnames=("channels", "dtype"))
def _draw(settings, key, channels, dtype):
    square, width = (settings.window,) * 2, settings.width
    plan = [(1, (*square, channels, width)), (settings.depth - 1, (*square, width, width))]
    plan = [stretch for stretch in plan if stretch[0]] + [(1, (width, settings.outputs))]
    bias_key, *keys = jax.random.split(key, len(plan) + 1)
    kernels = [_affine.kernels(settings.weights, k, *stretch, dtype) for k, stretch in zip(keys, plan, strict=True)]
    shapes = [(layers, shape[-1]) for layers, shape in plan]
    biases = _affine.biases(bias_key, shapes, [settings.bias_variance] * len(plan), dtype)
    *layers, last = ({"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True))
    return {"layers": tuple(layers), "readout": {name: leaf[0] for name, leaf in last.items()}}


@compiled
def _states(settings, params, x, probes=None):
    layers = params["layers"]
    y, states = checks.shape("x", checks.floating("x", x), (None, None, None, layers[0]["kernel"].shape[-2])), []
    probes = split_probes(probes, len(layers))
    for number, stretch in enumerate(zip(layers, probes, strict=True)):
        before = settings.activation if number else _identity
        y, outputs = run_stretch(functools.partial(_layer, before), y, stretch)
        states.append(outputs)
    return tuple(states)


def _layer(before, y, layer):
    weights, probe = layer
    y = probed(_affine.apply(weights, before(y), product=functools.partial(convolve, padding="same")), probe)
    return y, y


@compiled
def _readout(settings, params, y):
    return _affine.apply(params["readout"], settings.activation(y))


def _identity(y):
    return y
