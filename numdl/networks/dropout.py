"""Dropout: some units are 0 for one pass, the others are scaled so that the mean over all masks is the unit itself.

    mask * x / keep_probability,    mask ~ Bernoulli(keep_probability),    mean x,    variance (1 - q) / q * x^2

Nothing is to be scaled when the network is used: `dense.network(...).apply` is the mean network. Another key at every
step of training; `train.fit(..., key=key)` hands one to the loss.

    >>> import jax, jax.numpy as jnp
    >>> sorted(set(drop(jax.random.key(0), jnp.ones(50), keep_probability=0.5).tolist()))
    [0.0, 2.0]
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _random, checks
from numdl._compiled import compiled
from numdl.networks import _affine
from numdl.networks._record import run_stretch


def drop(key: Key[Array, ""], x: Float[ArrayLike, "..."], *, keep_probability: ScalarLike) -> Float[Array, "..."]:
    """x with some entries 0 and the others divided by the probability of being kept (inverted dropout).

        mask * x / q,    mask ~ Bernoulli(q)

    Parameters
    ----------
    key : key                   of the mask
    x : array                   of floating-point numbers
    keep_probability : scalar   q in (0, 1]; with 1 nothing changes
    Returns
    -------
    array                       shape and dtype of x
    Raises
    ------
    ValueError, TypeError       a probability out of (0, 1], no typed key, x not of floating-point numbers
    Source: Srivastava et al. 2014, J. Mach. Learn. Res. 15, section 10.    Experiment: f17.
    """
    key, x, keep = checks.key("key", key), checks.floating("x", x), _kept(keep_probability)
    return _dropped(key, jnp.asarray(x), keep)


def outputs(
    key: Key[Array, ""],
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    *,
    activation: Callable[[Array], Array],
    keep_probability: ScalarLike,
) -> Float[Array, "N k"]:
    """The outputs of a dense network with dropout after the activation of each hidden layer: another mask in each.

        y_1 = x W_1 + b_1,    y_{l+1} = drop(f(y_l)) W_{l+1} + b_{l+1},    outputs = drop(f(y_L)) W + b

    Parameters
    ----------
    key : key                   of the masks
    params : pytree             of `dense.network(...).init`
    x : array [N, d]
    activation : function       f, elementwise: the network's own
    keep_probability : scalar   q in (0, 1]; with 1 these are the network's outputs
    Returns
    -------
    array [N, k]
    Raises
    ------
    ValueError, TypeError       as `drop`; x that does not fit params
    Source: Srivastava et al. 2014, J. Mach. Learn. Res. 15.    Experiment: f17.
    """
    return _pass(key, params, x, activation, keep_probability)[0]


def states(
    key: Key[Array, ""],
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    *,
    activation: Callable[[Array], Array],
    keep_probability: ScalarLike,
) -> tuple[Float[Array, "layers N n"], ...]:
    """The pre-activations y_1 ... y_L of the pass of `outputs` with this key: what `Network.states` gives without it.

        y_1 = x W_1 + b_1,    y_{l+1} = drop(f(y_l)) W_{l+1} + b_{l+1}

    Every row of x has masks of its own: two equal rows are two passes of one input.

    Parameters
    ----------
    key, params, x, activation, keep_probability : key, pytree, array, ...     as in `outputs`
    Returns
    -------
    tuple of array [layers, N, n]    a stretch each
    Raises
    ------
    ValueError, TypeError       as `outputs`
    Source: Srivastava et al. 2014, J. Mach. Learn. Res. 15.    Experiment: a4.
    """
    return _pass(key, params, x, activation, keep_probability)[1]


def _pass(key, params, x, activation, keep_probability):
    """(the outputs, the pre-activations)."""
    checks.key("key", key)
    params, x = _affine.of_dense(params), checks.floating("x", x, ndim=2)
    activation, keep = checks.accepts("activation", activation, 1, "activation(x)"), _kept(keep_probability)
    first = params["hidden"][0] if params["hidden"] else params["readout"]
    _affine.check_features(x, first["kernel"].shape[-2], "params")
    return _passed(key, params, x, keep, activation=activation)


@functools.partial(compiled, static=("activation",))
def _passed(key, params, y, keep, activation):
    found = []

    def layer(y, given):
        weights, key = given
        state = _affine.apply(weights, y)
        return _dropped(key, activation(state), keep), state

    for number, stretch in enumerate(params["hidden"]):
        keys = jax.random.split(jax.random.fold_in(key, number), len(stretch["bias"]))
        y, before = run_stretch(layer, y, (stretch, keys))
        found.append(before)
    return _affine.apply(params["readout"], y), tuple(found)


def _kept(keep_probability):
    return checks.finite("keep_probability", keep_probability, above=0.0, most=1.0, shape=())


def _dropped(key, x, keep):
    keep = jnp.asarray(keep, x.dtype)
    # A bernoulli of x's own dtype would keep too few in half precision
    kept = _random.uniform(key, x.shape, jnp.float32) < keep
    return jnp.where(kept, x / keep, jnp.zeros_like(x))
