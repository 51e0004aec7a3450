"""MEASURED: gradient growth per layer, and the correlation of examples, in networks that normalize (or do not).

Batch-normalized networks couple the examples, so every figure is of a whole batch; spread comes from seeds.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _random, checks
from numdl._compiled import jit
from numdl.analysis import _samples
from numdl.networks import _segments, core
from numdl.precision import widen
from numdl.records import record


@record
class GradientGrowth:
    """Growth of the squared gradient from the outputs towards the input, in logarithms."""

    log_square: jax.Array  # [seeds, L]: log |dloss/dy_l|^2, summed over batch and units
    log_ratio: jax.Array  # [seeds, L - 1]: log |dloss/dy_l|^2 - log |dloss/dy_{l+1}|^2

    def rate(self, start, stop):
        """Mean log growth per layer between layers `start` and `stop` (from 1), one number for each seed."""
        depth = self.log_square.shape[-1]
        start = checks.whole("start", start, least=1, most=depth - 1)
        stop = checks.whole("stop", stop, least=start + 1, most=depth)
        return (self.log_square[..., start - 1] - self.log_square[..., stop - 1]) / (stop - start)


def gradient_growth(
    key: Key[Array, ""],
    *,
    network: core.Network,
    x: Float[ArrayLike, "N ..."],
    seeds: int,
    at_a_time: int | None = None,
) -> GradientGrowth:
    """MEASURED squared gradient of a random linear loss at every layer, for independently drawn networks.

        loss = sum(outputs * v),  v ~ N(0, I) of the outputs' shape;   log_ratio[l] = log |g_l|^2 - log |g_{l+1}|^2

    Shows batch norm's growth, the gradient explosion of batch normalization. The prediction is a stationary rate: the
    layers next to the input and to the outputs have their own, so ask `rate(start, stop)` for the layers between, and
    compare with the logarithm of the prediction. The finite width leaves a bias of order 1/width.

    Parameters
    ----------
    key : key                   of the networks' parameters and of v
    network : Network           any; its init is called once for each seed
    x : array [N, ...]          one batch for all seeds
    seeds : int                 number of networks, >= 1
    at_a_time : int             networks at a time; None: 1 on a CPU, all elsewhere
    Returns
    -------
    GradientGrowth              log_square [seeds, L], log_ratio [seeds, L - 1]
    Raises
    ------
    ValueError, TypeError       a network with less than 2 layers, a count below 1, not a key
    Source: Yang et al. 2019, arXiv:1902.08129.
    Twin: theory.normalization.gradient_growth.    Experiment: b10.
    """
    checks.key("key", key)
    seeds, network, x = checks.whole("seeds", seeds), core.traceable(network), checks.floating("x", x)
    at_a_time = _samples.at_a_time(at_a_time, seeds)
    shapes = _shapes(network, key, x)
    if core.layer_count(shapes) < 2:
        raise checks.BadValue(f"network must have at least 2 layers; got {core.layer_count(shapes)}")
    keys = jax.random.split(key, seeds)
    log_square = _growth(network, keys, x, at_a_time)
    return GradientGrowth(log_square, log_square[:, :-1] - log_square[:, 1:])


def correlation(network: core.Network, params: PyTree, x: Float[ArrayLike, "N ..."]) -> Float[Array, "layers"]:
    """MEASURED correlation of two different examples' states at every layer, averaged over pairs.

        c[l] = sum_{a != b} y_a . y_b / (N - 1) / sum_a |y_a|^2,   y the states of layer l

    In float32 at least; nan where the states are 0.

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [N, ...]          one batch, N >= 2
    Returns
    -------
    c : array [L]
    Raises
    ------
    ValueError, TypeError       fewer than 2 examples, x of integers, not a Network
    Source: Yang et al. 2019, arXiv:1902.08129.    Twin: theory.normalization.correlation.    Experiment: b10.
    """
    x = checks.floating("x", x, least_ndim=1)
    if x.shape[0] < 2:
        raise checks.BadValue(f"x must hold at least 2 examples; got shape {tuple(x.shape)}")
    return _correlation(*core.fitting(network, params, x))


def _shapes(network, key, x):
    return jax.eval_shape(lambda k: network.states(network.init(k, x), x), key)


@functools.partial(jit, static_argnames="at_a_time")
def _growth(network, keys, x, at_a_time):
    def one(key):
        init_key, loss_key = jax.random.split(key)
        params = network.init(init_key, x)

        def loss(outputs):
            return jnp.sum(outputs * _random.normal(loss_key, outputs.shape, outputs.dtype))

        return core.per_layer(_log_square, core.state_gradients(network, params, x, loss))

    return _samples.each(one, keys, at_a_time)


@jit
def _correlation(network, params, x):
    def one(y):
        y, _ = _unscaled(y.reshape(y.shape[0], -1))
        squares = jnp.sum(y**2)
        return (jnp.sum(jnp.sum(y, axis=0) ** 2) - squares) / (y.shape[0] - 1) / squares

    return core.per_layer(one, _segments.of_examples(network, params, x, network.states(params, x)))


def _log_square(y):
    """log |y|^2; -inf at 0."""
    y, scale = _unscaled(y)
    return jnp.log(jnp.sum(y**2)) + 2 * jnp.log(scale)


def _unscaled(y):
    """y in float32 at least, without its largest entry, and that: squares would leave the range; 1 for zeros."""
    y = widen(y)
    largest = jnp.max(jnp.abs(y))
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return y / scale, scale
