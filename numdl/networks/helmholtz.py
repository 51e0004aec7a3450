"""Helmholtz machines: a generative net of binary units, and a recognition net that guesses causes from what is seen.

    generative     h ~ sigmoid(prior),  x ~ sigmoid(visible + h W)
    recognition    h ~ sigmoid(hidden + x R), unit by unit

Wake-sleep trains each with the other's samples. With at most 16 hidden units likelihood and bound are exact sums.
Parameters are {"generative": {prior [h], visible [v], weights [h, v]}, "recognition": {hidden [h], weights [v, h]}}.
Source: Dayan, Hinton, Neal & Zemel 1995, Neural Computation 7, 889; Hinton et al. 1995, Science 268, 1158.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _effort, _random, checks
from numdl.networks import boltzmann
from numdl.records import record

MOST = 16  # hidden units whose states are enumerated


@record
class Evidence:
    """What the two nets make of each example, in nats."""

    likelihood: jax.Array  # [N]: ln p(x)
    bound: jax.Array  # [N]: ln p(x) - KL(q(h | x) | p(h | x))


def init(key: Key[Array, ""], *, visible: int, hidden: int, entry_variance: ScalarLike) -> dict[str, dict[str, Array]]:
    """Parameters with Gaussian weights and biases of 0.

    Parameters
    ----------
    key : key                   of the weights
    visible, hidden : int       units, >= 1
    entry_variance : scalar     of each weight, >= 0
    Returns
    -------
    dict                        generative and recognition, as in the module
    Raises
    ------
    ValueError, TypeError       a number below 1, a negative variance, not a typed key
    """
    checks.key("key", key)
    v, h = checks.whole("visible", visible), checks.whole("hidden", hidden)
    scale = jnp.sqrt(checks.variance("entry_variance", entry_variance, shape=()))
    down, up = _drawn(key, scale, h, v)
    return {
        "generative": {"prior": jnp.zeros(h), "visible": jnp.zeros(v), "weights": down},
        "recognition": {"hidden": jnp.zeros(h), "weights": up},
    }


def evidence(params: PyTree, x: Float[ArrayLike, "N v"]) -> Evidence:
    """The exact likelihood of examples, and the bound that the recognition net gives: differentiable in params.

        ln p(x) = ln sum over h of p(h) p(x | h) >= sum over h of q(h | x) ln (p(h) p(x | h) / q(h | x))

    Parameters
    ----------
    params : dict               of `init`, at most 16 hidden units
    x : array [N, v]            0 and 1
    Returns
    -------
    Evidence
    Raises
    ------
    ValueError, TypeError       params of another structure, x with another number of units, too many hidden units
    Source: Dayan et al. 1995, eq. (3).    Experiment: f13.
    """
    params, x = _admitted(params, x)
    units = params["generative"]["prior"].shape[0]
    if units > MOST:
        raise checks.BadValue(f"params must have at most {MOST} hidden units; got {units}")
    return _evidence(params, x)


def wake_sleep(key: Key[Array, ""], params: PyTree, x: Float[ArrayLike, "N v"]) -> dict[str, dict[str, Array]]:
    """One draw of the two phases' gradients.

        wake     h ~ q(h | x):           -mean d ln p(x, h) / d generative       of minus the bound, exactly in the mean
        sleep    h, x' ~ p, N dreams:    -mean d ln q(h | x') / d recognition    of KL(p | q): not of the bound

    Parameters
    ----------
    key : key                   of the draws
    params : dict               of `init`
    x : array [N, v]            examples, 0 and 1
    Returns
    -------
    dict like params            hand it to an optimizer of optax
    Raises
    ------
    ValueError, TypeError       params of another structure, x with another number of units, not a typed key
    Source: Hinton, Dayan, Frey & Neal 1995, Science 268, 1158.    Experiment: f13.
    """
    checks.key("key", key)
    params, x = _admitted(params, x)
    return _phases(key, params, x)


def dream(key: Key[Array, ""], params: PyTree, *, count: int) -> Float[Array, "count v"]:
    """Examples of the generative net.

        h ~ sigmoid(prior),    x ~ sigmoid(visible + h W)

    Parameters
    ----------
    key : key                   of the draws
    params : dict               of `init`
    count : int                 >= 1
    Returns
    -------
    array [count, v]            0 and 1
    Raises
    ------
    ValueError, TypeError       params of another structure, count < 1, not a typed key
    Source: Dayan et al. 1995.
    """
    checks.key("key", key)
    return _dreamed(key, _parameters(params), checks.whole("count", count))[1]


@functools.partial(_effort.jit, static_argnums=(2, 3))
def _drawn(key, scale, h, v):
    return [scale * _random.normal(k, shape) for k, shape in zip(jax.random.split(key), ((h, v), (v, h)))]


@_effort.jit
def _evidence(params, x):
    h = jnp.asarray(boltzmann.states(params["generative"]["prior"].shape[0]), x.dtype)
    prior = _log_law(jnp.broadcast_to(params["generative"]["prior"], h.shape), h)
    logits = _down(params, h)
    joint = prior[None] + x @ logits.T - jnp.sum(jax.nn.softplus(logits), axis=1)[None]
    guess = _up(params, x)
    posterior = guess @ h.T - jnp.sum(jax.nn.softplus(guess), axis=1, keepdims=True)
    return Evidence(jax.nn.logsumexp(joint, axis=1), jnp.sum(jnp.exp(posterior) * (joint - posterior), axis=1))


@_effort.jit
def _phases(key, params, x):
    wake, sleep = jax.random.split(key)
    causes = _bernoulli(wake, _up(params, x))
    dreamed, dreams = _dreamed(sleep, params, len(x))

    def value(moving):
        prior = _log_law(jnp.broadcast_to(moving["generative"]["prior"], causes.shape), causes)
        awake = jnp.mean(prior + _log_law(_down(moving, causes), x))
        return -awake - jnp.mean(_log_law(_up(moving, dreams), dreamed))

    return jax.grad(value)(params)


@functools.partial(_effort.jit, static_argnums=2)
def _dreamed(key, params, count):
    """(causes [count, h], examples [count, v]) of the generative net."""
    causes, seen = jax.random.split(key)
    prior = params["generative"]["prior"]
    h = _bernoulli(causes, jnp.broadcast_to(prior, (count, *prior.shape)))
    return h, _bernoulli(seen, _down(params, h))


def _up(params, x):
    drive = x @ params["recognition"]["weights"]
    return drive + jnp.broadcast_to(params["recognition"]["hidden"], drive.shape)


def _down(params, h):
    drive = h @ params["generative"]["weights"]
    return drive + jnp.broadcast_to(params["generative"]["visible"], drive.shape)


def _log_law(logits, units):
    """ln of the probability of independent units."""
    return jnp.sum(units * logits - jax.nn.softplus(logits), axis=-1)


def _bernoulli(key, logits):
    return _random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


def _parameters(params):
    made = params.get("generative") if isinstance(params, dict) else None
    weights = made.get("weights") if isinstance(made, dict) else None
    shape = np.shape(weights) if hasattr(weights, "shape") else ()
    h, v = shape if len(shape) == 2 else (1, 1)
    shapes = {
        "generative": {"prior": (h,), "visible": (v,), "weights": (h, v)},
        "recognition": {"hidden": (h,), "weights": (v, h)},
    }
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), shapes, is_leaf=lambda s: isinstance(s, tuple))
    return jax.device_put(checks.floats("params", checks.like("params", params, wanted, of="a machine")))


def _admitted(params, x):
    params, x = _parameters(params), checks.floating("x", x, ndim=2)
    checks.shape("x", x, (None, params["generative"]["visible"].shape[0]))
    return params, jnp.asarray(x, params["generative"]["weights"].dtype)
