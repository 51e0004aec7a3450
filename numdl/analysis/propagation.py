"""MEASURED: how lengths and angles travel forward through a network, over random networks or at given parameters.

Everything is uncentred, as in mean-field theory: the length of layer l is the mean square of y_l over units and
examples, the correlation of two inputs is <y_l(1), y_l(2)> / (|y_l(1)| |y_l(2)|) over units. Units are all axes but the
batch: positions and channels of a convolutional network alike.

The samples over seeds come one network at a time on a CPU and all at once elsewhere; `at_a_time` changes that. A
network is data of the compiled measurement: the same architecture at other variances is not compiled again.

    >>> from numdl import activations
    >>> from numdl.networks import dense
    >>> physics = dict(activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    >>> network = dense.network(widths=(4, 50, 50, 2), **physics)
    >>> lengths(jax.random.key(0), network, jnp.ones((3, 4)), seeds=5).shape  # [seeds, layers]
    (5, 2)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Real, Shaped

from numdl import checks, precision
from numdl._compiled import jit
from numdl.analysis import _pairs, _samples
from numdl.networks import _segments, core
from numdl.records import record


def lengths(
    key: Key[Array, ""],
    network: core.Network,
    x: Float[ArrayLike, "N ..."],
    *,
    seeds: int,
    at_a_time: int | None = None,
) -> Float[Array, "seeds layers"]:
    """MEASURED length map (variance map) of forward propagation: mean square of every state, independent networks.

        q[s, l] = mean over examples and units of y_l**2,   network s

    Parameters
    ----------
    key : key                   of the networks' parameters
    network : Network           any; its init is called once for each seed
    x : array [N, ...]          one batch for all networks
    seeds : int                 number of networks, >= 1
    at_a_time : int             networks at a time; None: 1 on a CPU, all elsewhere
    Returns
    -------
    q : array [seeds, L]
    Raises
    ------
    ValueError, TypeError       seeds or at_a_time below 1, x without axes or of integers, not a Network, not a key
    Source: Poole et al. 2016, arXiv:1606.05340, sec. 2.
    Twin: theory.propagation.lengths.    Experiments: a2, b3.
    """
    return _over_seeds(lengths_at, key, network, x, seeds, at_a_time)


def lengths_at(network: core.Network, params: PyTree, x: ArrayLike) -> Float[Array, "layers"]:
    """MEASURED mean square of every state over units and examples at these parameters.

        q[l] = mean over examples and units of y_l**2

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [N, ...]          one batch
    Returns
    -------
    q : array [L]
    Raises
    ------
    ValueError, TypeError       not a Network, or one that does not take params and x
    Source: Poole et al. 2016, arXiv:1606.05340, sec. 2.
    Twin: theory.propagation.lengths.    Experiments: a2, b3.
    """
    network, params, x = core.fitting(network, params, x)
    return core.per_layer(lambda y: jnp.mean(_square(y)), network.states(params, x))


def correlations(
    key: Key[Array, ""],
    network: core.Network,
    x: Float[ArrayLike, "pairs 2 ..."],
    *,
    seeds: int,
    at_a_time: int | None = None,
) -> Float[Array, "seeds pairs layers"]:
    """MEASURED correlation map: correlation of the states of each pair of inputs, layer by layer, independent networks.

        c[s, p, l] = <y_l(x[p, 0]), y_l(x[p, 1])> / (|y_l(x[p, 0])| |y_l(x[p, 1])|)

    The cosine of the angle between inputs on their way; nan where a state is exactly 0 (a relu network without biases
    whose units are all dead).

    Parameters
    ----------
    key : key                   of the networks' parameters
    network : Network           any; its init is called once for each seed
    x : array [P, 2, ...]       P pairs of inputs
    seeds : int                 number of networks, >= 1
    at_a_time : int             networks at a time; None: 1 on a CPU, all elsewhere
    Returns
    -------
    c : array [seeds, P, L]
    Raises
    ------
    ValueError, TypeError       x without pairs along axis 1; else as for `lengths`
    Source: Poole et al. 2016, arXiv:1606.05340, sec. 3.
    Twins: theory.propagation.correlations, theory.residual.correlations, theory.residual.tanh_laws.
    Experiments: a3, a4, b12.
    """
    x = _pairs.pairs(x)
    return _over_seeds(correlations_at, key, network, x, seeds, at_a_time)


def correlations_at(
    network: core.Network, params: PyTree, x: Float[ArrayLike, "pairs 2 ..."]
) -> Float[Array, "pairs layers"]:
    """MEASURED correlation of the states of each pair of inputs at these parameters.

        c[p, l] = <y_l(x[p, 0]), y_l(x[p, 1])> / (|y_l(x[p, 0])| |y_l(x[p, 1])|)

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [P, 2, ...]       P pairs of inputs
    Returns
    -------
    c : array [P, L]            nan where a state is exactly 0, or of a lifted function whose examples are not known
    Raises
    ------
    ValueError, TypeError       x without pairs along axis 1; not a Network, or one that does not take params and x
    Source: Poole et al. 2016, arXiv:1606.05340, sec. 3.
    Twin: theory.propagation.correlations.    Experiment: a3.
    """
    x = _pairs.pairs(x)
    network, params, rows = core.fitting(network, params, x.reshape(-1, *x.shape[2:]))
    states = _segments.of_examples(network, params, rows, network.states(params, rows))
    return core.per_layer(_pairs.cosines, states).reshape(-1, x.shape[0]).T


def branch_shares(network: core.Network, params: PyTree, x: Float[ArrayLike, "N ..."]) -> Float[Array, "blocks"]:
    """MEASURED share of the residual branch: of every state's mean square, what the last layer has added.

        share[l] = mean (y_l - y_{l-1})^2 / mean y_l^2,    l = 2..L, over the batch and units

    Parameters
    ----------
    network : Network           any whose states have one shape
    params : pytree             of the network
    x : array [N, ...]          one batch
    Returns
    -------
    array [L - 1]               nan where a state is exactly 0
    Raises
    ------
    ValueError, TypeError       states of several shapes; not a Network, or one that does not take params and x
    Source: De & Smith 2020, arXiv:2002.10444.    Twin: theory.residual.branch_shares.    Experiment: b14.
    """
    network, params, x = core.fitting(network, params, x)
    shapes = {stretch.shape[1:] for stretch in jax.eval_shape(network.states, params, x)}
    if len(shapes) > 1:
        raise checks.BadValue(f"network must have states of one shape; got {sorted(shapes)}")
    return _branch_shares(network, params, x)


def covariances(
    key: Key[Array, ""],
    network: core.Network,
    x: Float[ArrayLike, "N ..."],
    *,
    seeds: int,
    at_a_time: int | None = None,
) -> Float[Array, "seeds layers N N"]:
    """MEASURED second moments between examples over units, layer by layer, for independent networks.

        k[s, l, i, j] = <y_l(x_i), y_l(x_j)> / number of units

    Parameters
    ----------
    key : key                   of the networks' parameters
    network : Network           any; its init is called once for each seed
    x : array [N, ...]          one batch for all networks
    seeds : int                 number of networks, >= 1
    at_a_time : int             networks at a time; None: 1 on a CPU, all elsewhere
    Returns
    -------
    k : array [seeds, L, N, N]
    Raises
    ------
    ValueError, TypeError       as for `lengths`
    Source: the definition.
    Twins: theory.propagation.correlations of pairs, theory.kernels.nngp of one layer at a time.    Experiments: a3, a4.
    """
    return _over_seeds(covariances_at, key, network, x, seeds, at_a_time)


def covariances_at(network: core.Network, params: PyTree, x: Shaped[ArrayLike, "N ..."]) -> Float[Array, "layers N N"]:
    """MEASURED second moments between examples over units at these parameters.

        k[l, i, j] = <y_l(x_i), y_l(x_j)> / number of units

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [N, ...]          one batch
    Returns
    -------
    k : array [L, N, N]         nan where a lifted function's examples are not known
    Raises
    ------
    ValueError, TypeError       not a Network, or one that does not take params and x
    Source: the definition.    Twin: theory.kernels.nngp, one layer at a time.
    """
    network, params, x = core.fitting(network, params, x)
    return core.per_layer(_second_moments, _segments.of_examples(network, params, x, network.states(params, x)))


@record
class DepthScale:
    """The depth xi over which a quantity falls by a factor e, fitted over a window of layers."""

    value: np.ndarray | np.float64  # [...]: -1 / mean slope, layers; negative in growth, nan where it is not positive
    stderr: np.ndarray | np.float64  # [...]: over seeds, stderr of the slope times value**2
    slopes: np.ndarray  # [seeds, ...]: of log(values) against the layer's number, natural log


def depth_scale(values: Real[ArrayLike, "seeds *axes layers"], *, start: int, stop: int) -> DepthScale:
    """MEASURED depth scale (xi_q, xi_c) of a decaying quantity: least squares of its logarithm, a line for each seed.

        log values[s, l] ~ a[s] + slopes[s] * l,   l = start..stop;    value = -1 / mean of slopes

    The window is the caller's choice: after the transient, before the noise floor.

    Parameters
    ----------
    values : array [seeds, ..., L]    |q_l - q*| or |c_l - c*| (the correlation length) for example; seeds >= 2
    start, stop : int           first and last layer of the window, counted from 1; at least 3 layers
    Returns
    -------
    DepthScale                  value [...] in layers, stderr [...], slopes [seeds, ...]
    Raises
    ------
    ValueError, TypeError       a window outside 1..L or of fewer than 3 layers, fewer than 2 seeds
    Source: Schoenholz et al. 2017, arXiv:1611.01232.
    Twin: theory.propagation.fixed_point.    Experiments: a3, b2.
    """
    values = np.asarray(checks.array("values", values), np.float64)
    if values.ndim < 2 or values.shape[0] < 2:
        raise checks.BadValue(f"values must have shape (seeds, ..., L) with at least 2 seeds; got {values.shape}")
    start = checks.whole("start", start, most=values.shape[-1])
    stop = checks.whole("stop", stop, least=start + 2, most=values.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = _log_slopes(values[..., start - 1 : stop])
        slope, error = slopes.mean(axis=0), slopes.std(axis=0, ddof=1) / np.sqrt(len(slopes))
        return DepthScale(-1 / slope, error / slope**2, slopes)


def _over_seeds(measure, key, network, x, seeds, at_a_time):
    key, network = checks.key("key", key), core.traceable(network)
    x = checks.floating("x", x, least_ndim=1)
    seeds = checks.whole("seeds", seeds)
    return _sample(network, x, key, measure, seeds, _samples.at_a_time(at_a_time, seeds))


@functools.partial(jit, static_argnames=("measure", "seeds", "at_a_time"))
def _sample(network, x, key, measure, seeds, at_a_time):
    example = x.reshape(-1, *x.shape[2:]) if measure is correlations_at else x

    def one(key):
        return measure(network, network.init(key, example), x)

    return _samples.each(one, jax.random.split(key, seeds), at_a_time)


@jit
def _branch_shares(network, params, x):
    states = jnp.concatenate(network.states(params, x))
    largest = jnp.max(jnp.abs(states), axis=tuple(range(1, states.ndim)))
    inverse = _wide(1 / largest[1:]).reshape(-1, *(1,) * (states.ndim - 1))
    mean = functools.partial(jnp.mean, axis=tuple(range(1, states.ndim)))
    return mean(_square((states[1:] - states[:-1]) * inverse)) / mean(_square(states[1:] * inverse))


def _wide(y):
    return y.astype(precision.wide(y.dtype))


def _square(y):
    return jnp.abs(_wide(y)) ** 2


def _second_moments(y):
    rows = _pairs.rows(y)
    return jnp.matmul(rows, rows.T, precision=lax.Precision.HIGHEST) / rows.shape[1]


def _log_slopes(values):
    layers = np.arange(values.shape[-1]) - (values.shape[-1] - 1) / 2
    logs = np.log(np.where(values > 0, values, np.nan))
    return (logs * layers).sum(axis=-1) / (layers**2).sum()
