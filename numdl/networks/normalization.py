"""Normalizations as pure functions, and dense networks that normalize before every activation.

    batch, layer:  gain * (x - mean) / sqrt(variance + eps) + bias        mean, variance over `axis`
    rms:           gain * x / sqrt(mean(x**2) + eps)
    weight:        gain * v / sqrt(sum(v**2) + eps)                       one length for each column of the weights

Where the root is exactly 0 (a constant input at eps = 0) the normalized value is 0 and so is its derivative. Half
precision is normalized in float32. Variances divide by the number of entries, not by one less.

The network:  y_1 = x W_1,   y_{l+1} = activation(norm(y_l)) W_{l+1},   outputs = activation(norm(y_L)) W + b.
A state is what enters the normalization. Parameters: {"first", "hidden", "readout"}, the leaves of "hidden" stacked
along depth; gain and bias of a layer are those of the normalization that follows its map. Statistics of the batch come
from the batch in hand, until `freeze` writes them into the parameters.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl._compiled import compiled
from numdl.networks import _affine, _normalizing
from numdl.networks._batch_statistics import Statistics, normalize, statistics, update
from numdl.networks._normalized_parameters import Settings, init, without_kernel
from numdl.networks._record import Network, fitting, probed, probed_alone, split_probes
from numdl.networks.initializers import Initializer

__all__ = [
    "KINDS",
    "Statistics",
    "batch",
    "freeze",
    "layer",
    "network",
    "normalize",
    "rms",
    "statistics",
    "update",
    "weight",
]

KINDS = ("batch", "layer", "rms")


def batch(
    x: Float[ArrayLike, "..."],
    gain: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    *,
    axis: int | Sequence[int] = 0,
    eps: ScalarLike = 1e-5,
) -> Float[Array, "..."]:
    """Batch normalization: x with mean 0 and variance 1 over the examples, then scaled and shifted feature by feature.

        gain * (x - mean) / sqrt(variance + eps) + bias

    Parameters
    ----------
    x : array [N, ...]
    gain, bias : array          shaped like the axes that are left; 1 and 0 if None
    axis : int or tuple         the axes of the examples (and of places, for images: (0, 1, 2))
    eps : scalar                >= 0
    Returns
    -------
    array                       shape and dtype of x
    Raises
    ------
    ValueError, TypeError       another shape, no such axis, eps < 0, x not of floating-point numbers
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    x, axes, eps = _normalizing.axes(x, axis, eps)
    gain, bias = _normalizing.scales(gain, bias, _normalizing.outside(x, axes))
    return normalize(x, statistics(x, axis=axes), gain, bias, axis=axes, eps=eps)


def layer(
    x: Float[ArrayLike, "..."],
    gain: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: ScalarLike = 1e-5,
) -> Float[Array, "..."]:
    """Layer normalization: x with mean 0 and variance 1 over the features of one example, then scaled and shifted.

        gain * (x - mean) / sqrt(variance + eps) + bias

    Parameters
    ----------
    x : array [..., n]
    gain, bias : array          shaped like the normalized axes; 1 and 0 if None
    axis : int or tuple         the axes of the features
    eps : scalar                >= 0
    Returns
    -------
    array                       shape and dtype of x
    Raises
    ------
    ValueError, TypeError       another shape, no such axis, eps < 0, x not of floating-point numbers
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    x, axes, eps = _normalizing.axes(x, axis, eps)
    gain, bias = _normalizing.scales(gain, bias, tuple(x.shape[a] for a in axes))
    wide = _normalizing.wide(x)
    centred = wide - jnp.mean(wide, axis=axes, keepdims=True)
    scaled = centred * _normalizing.inverse_root(jnp.mean(centred**2, axis=axes, keepdims=True) + eps)
    return _normalizing.scaled_and_shifted(x, scaled, gain, bias, axes)


def rms(
    x: Float[ArrayLike, "..."],
    gain: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    *,
    axis: int | Sequence[int] = -1,
    eps: ScalarLike = 1e-5,
) -> Float[Array, "..."]:
    """Root mean square normalization (RMSNorm): x with mean square 1 over the features, then scaled and shifted.

        gain * x / sqrt(mean(x**2) + eps) + bias                the mean of x stays

    Parameters
    ----------
    x : array [..., n]
    gain, bias : array          shaped like the normalized axes; 1 and 0 if None
    axis : int or tuple         the axes of the features
    eps : scalar                >= 0
    Returns
    -------
    array                       shape and dtype of x
    Raises
    ------
    ValueError, TypeError       another shape, no such axis, eps < 0, x not of floating-point numbers
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    x, axes, eps = _normalizing.axes(x, axis, eps)
    gain, bias = _normalizing.scales(gain, bias, tuple(x.shape[a] for a in axes))
    wide = _normalizing.wide(x)
    scaled = wide * _normalizing.inverse_root(jnp.mean(wide**2, axis=axes, keepdims=True) + eps)
    return _normalizing.scaled_and_shifted(x, scaled, gain, bias, axes)


def weight(
    direction: Float[ArrayLike, "..."],
    gain: Float[ArrayLike, "..."] | None = None,
    *,
    axis: int | Sequence[int] = 0,
    eps: ScalarLike = 0.0,
) -> Float[Array, "..."]:
    """Weight normalization: columns with the lengths `gain`, in the directions given; a column of zeros stays 0.

        gain * direction / sqrt(sum(direction**2) + eps)

    Parameters
    ----------
    direction : array           (fan_in, fan_out), or a kernel HWIO with axis=(0, 1, 2)
    gain : array                shaped like the axes that are left; 1 if None
    axis : int or tuple         the axes of one column
    eps : scalar                >= 0
    Returns
    -------
    array                       shape and dtype of `direction`
    Raises
    ------
    ValueError, TypeError       another shape, no such axis, eps < 0, direction not of floating-point numbers
    Source: Salimans & Kingma 2016, arXiv:1602.07868.
    """
    direction, axes, eps = _normalizing.axes(direction, axis, eps, "direction")
    gain, _ = _normalizing.scales(gain, None, _normalizing.outside(direction, axes))
    wide = _normalizing.wide(direction)
    scaled = wide * _normalizing.inverse_root(jnp.sum(wide**2, axis=axes, keepdims=True) + eps)
    return _normalizing.scaled_and_shifted(direction, scaled, gain, None, _normalizing.others(direction, axes))


def network(
    *,
    width: int,
    depth: int,
    outputs: int,
    activation: Callable[[Array], Array],
    weight_variance: ScalarLike | None = None,
    initializer: Initializer | None = None,
    kind: str = "batch",
    eps: ScalarLike = 1e-5,
    dtype: DTypeLike | None = None,
) -> Network:
    """A dense network of `depth` equal layers with a normalization before every activation; gain 1, bias 0 at first.

    Parameters
    ----------
    width, depth, outputs : int    each >= 1
    activation : function       elementwise; an Activation, to compare with theory
    weight_variance : scalar    fan_in * Var(W_ij), Gaussian; forward, all but the readout does not depend on it
    initializer : Initializer   any other law of the weights; exactly one of this and `weight_variance`
    kind : str                  batch, layer or rms
    eps : scalar                >= 0; 0 to compare with theory
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, features] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       a size below 1, a negative variance or eps, two laws or none, an unknown kind
    Source: Yang et al. 2019, arXiv:1902.08129.
    """
    settings = Settings(
        *(checks.whole(n, v) for n, v in (("width", width), ("depth", depth), ("outputs", outputs))),
        checks.accepts("activation", activation, 1, "activation(x)"),
        checks.one_of("kind", kind, KINDS),
        _affine.asked_dtype(dtype),
        _affine.law(weight_variance, initializer),
        checks.finite("eps", eps, least=0.0, shape=()),
    )
    return Network(Partial(init, settings), Partial(_states, settings), Partial(_readout, settings))


def freeze(network: Network, params: PyTree, x: Float[ArrayLike, "N features"]) -> PyTree:
    """The parameters with the statistics of this batch written in: every example is then on its own.

    y = network.apply(freeze(network, params, x), x) is network.apply(params, x), up to rounding.

    Parameters
    ----------
    network : Network           made by `network`; without kind="batch" nothing changes in what it computes
    params : pytree             of `network.init`; statistics that are in it are replaced
    x : array [N, features]     the batch
    Returns
    -------
    pytree                      params with "mean" and "variance" beside gain and bias
    Raises
    ------
    ValueError, TypeError       not a Network, params or x that do not fit it
    """
    checks.instance("network", network, Network, hint="made by normalization.network")
    _, clean, x = fitting(network, params, x)
    for part in ("first", "hidden"):
        clean[part] = {name: leaf for name, leaf in clean[part].items() if name in ("kernel", "gain", "bias")}
    first, *hidden = network.states(clean, x)
    for part, states in zip(("first", "hidden"), (first, *hidden), strict=False):
        known = jax.vmap(statistics)(states)
        known = Statistics(known.mean[0], known.variance[0]) if part == "first" else known
        clean[part] = {**clean[part], "mean": known.mean, "variance": known.variance}
    return clean


@compiled
def _states(settings, params, x, probes=None):
    checks.shape("x", checks.floating("x", x), (None, params["first"]["kernel"].shape[0]))
    depth = params["hidden"]["kernel"].shape[0]
    probes = split_probes(probes, 2 if depth else 1)
    y = probed_alone(x @ params["first"]["kernel"], probes[0])
    if depth == 0:
        return (y[None],)
    # The map of a layer follows the normalization that belongs to the layer before it.
    normalizations = jax.tree.map(
        lambda one, rest: jnp.concatenate([one[None], rest[:-1]]), without_kernel(params["first"]), _norms(params)
    )

    def step(y, layer):
        kernel, norm, probe = layer
        y = probed(_active(settings, norm, y) @ kernel, probe)
        return y, y

    _, hidden = lax.scan(step, y, (params["hidden"]["kernel"], normalizations, probes[1]))
    return y[None], hidden


@compiled
def _readout(settings, params, y):
    depth = params["hidden"]["kernel"].shape[0]
    norm = jax.tree.map(lambda leaf: leaf[-1], _norms(params)) if depth else without_kernel(params["first"])
    return _affine.apply(params["readout"], _active(settings, norm, y))


def _active(settings, norm, y):
    if settings.kind == "batch" and "mean" in norm:
        known = Statistics(norm["mean"], norm["variance"])
        return settings.activation(normalize(y, known, norm["gain"], norm["bias"], eps=settings.eps))
    function = {"batch": batch, "layer": layer, "rms": rms}[settings.kind]
    return settings.activation(function(y, norm["gain"], norm["bias"], eps=settings.eps))


def _norms(params):
    return without_kernel(params["hidden"])
