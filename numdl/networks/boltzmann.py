"""Restricted Boltzmann machines: binary units in two layers, and the exact law of small ones.

    p(v, h) = exp(v . visible + h . hidden + v W h) / Z,    v_i, h_j = 0 or 1

Each layer is independent units given the other one, so Gibbs sampling draws a layer at a time; Z is a sum over the
states of the smaller layer, exact as long as that has at most 20 units. Parameters are a dictionary of `visible` [v],
`hidden` [h] and `weights` [v, h]; `jax.grad` of a mean of `log_likelihood` is the exact gradient.
Source: Smolensky 1986; Hinton 2002, Neural Computation 14, 1771.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _effort, _random, checks
from numdl._compiled import compiled
from numdl.records import record

MOST = 20  # units whose states are enumerated


@record
class Belief:
    """What a deep belief net makes of each example."""

    likelihood: jax.Array  # [N]: ln p(x)
    bound: jax.Array  # [N]: of the lower machine's posterior, never above


def init(key: Key[Array, ""], *, visible: int, hidden: int, entry_variance: ScalarLike) -> dict[str, Array]:
    """Parameters with Gaussian weights and biases of 0.

    Parameters
    ----------
    key : key                   of the weights
    visible, hidden : int       units, >= 1
    entry_variance : scalar     of each weight, >= 0
    Returns
    -------
    dict                        visible [v], hidden [h], weights [v, h]
    Raises
    ------
    ValueError, TypeError       a number below 1, a negative variance, not a typed key
    """
    checks.key("key", key)
    shape = checks.whole("visible", visible), checks.whole("hidden", hidden)
    variance = checks.variance("entry_variance", entry_variance, shape=())
    weights = jnp.sqrt(variance) * _random.normal(key, shape)
    return {"visible": jnp.zeros(shape[0]), "hidden": jnp.zeros(shape[1]), "weights": weights}


def states(units: int) -> np.ndarray:
    """All states of this many binary units, as rows of 0 and 1.

    Parameters
    ----------
    units : int                 n, 1 to 20
    Returns
    -------
    array [2^n, n] float32      the first unit changes slowest
    Raises
    ------
    ValueError, TypeError       no integer in 1..20
    """
    units = checks.whole("units", units, most=MOST)
    return ((np.arange(2**units)[:, None] >> np.arange(units)[::-1]) & 1).astype(np.float32)


def free_energy(params: PyTree, v: Float[ArrayLike, "*batch v"]) -> Float[Array, "*batch"]:
    """The energy of visible states once the hidden units are summed over.

        F(v) = -v . visible - sum over j of ln(1 + exp(hidden_j + (v W)_j)),    p(v) = exp(-F(v)) / Z

    Parameters
    ----------
    params : dict               of `init`
    v : array [..., v]          0 and 1
    Returns
    -------
    array [...]
    Raises
    ------
    ValueError, TypeError       params of another structure, v with another number of units
    Source: the definition.
    """
    params, v = _admitted(params, "v", v)
    return _free_energy(params, v)


def log_likelihood(params: PyTree, v: Float[ArrayLike, "*batch v"]) -> Float[Array, "*batch"]:
    """The exact ln p(v), by enumeration of the smaller layer.

        ln p(v) = -F(v) - ln Z,    Z = sum over the states of one layer, the other summed in closed form

    Parameters
    ----------
    params : dict               of `init`; its smaller layer has at most 20 units
    v : array [..., v]          0 and 1
    Returns
    -------
    array [...]                 in nats; differentiable in params
    Raises
    ------
    ValueError, TypeError       params of another structure, v with another number of units, layers that are too large
    Source: the definition.    Experiment: f12.
    """
    params, v = _admitted(params, "v", v)
    return _log_likelihood(params, v)


def gibbs(
    key: Key[Array, ""], params: PyTree, v: Float[ArrayLike, "*batch v"], *, steps: int
) -> Float[Array, "*batch v"]:
    """Visible states after some steps of Gibbs sampling: all hidden units, then all visible ones.

        h ~ sigmoid(hidden + v W),    v ~ sigmoid(visible + W h)

    Parameters
    ----------
    key : key                   of the draws
    params : dict               of `init`
    v : array [..., v]          where chains start, 0 and 1
    steps : int                 >= 0
    Returns
    -------
    array [..., v]              0 and 1
    Raises
    ------
    ValueError, TypeError       params of another structure, v with another number of units, steps < 0, not a typed key
    Source: Hinton 2002.    Experiment: f12.
    """
    checks.key("key", key)
    params, v = _admitted(params, "v", v)
    steps = checks.whole("steps", steps, least=0)
    return _gibbs(params, v, jax.random.split(key, steps))


def contrastive_divergence(
    key: Key[Array, ""], params: PyTree, x: Float[ArrayLike, "N v"], *, steps: int
) -> dict[str, Array]:
    """The CD-k estimate of the gradient of -mean ln p(x): chains of k steps stand for the model.

        mean over x of dF(x)/dparams - mean over chains of dF(v_k)/dparams,    v_0 = x

    Parameters
    ----------
    key : key                   of the chains
    params : dict               of `init`
    x : array [N, v]            examples, 0 and 1
    steps : int                 k >= 1
    Returns
    -------
    dict like params            hand it to an optimizer of optax
    Raises
    ------
    ValueError, TypeError       params of another structure, x with another number of units, steps < 1, not a typed key
    Source: Hinton 2002, Neural Computation 14, 1771.    Experiment: f12.
    """
    params, x = _admitted(params, "x", x)
    chains = gibbs(key, params, x, steps=checks.whole("steps", steps))
    return _difference(params, x, chains)


def transition(params: PyTree) -> Float[Array, "states states"]:
    """The matrix of one step of Gibbs sampling between visible states: row v is the law of the next one.

        T(v, v') = sum over h of p(h | v) p(v' | h)

    Its stationary law is p(v); its second eigenvalue says how fast chains forget, and how fast the bias of CD-k falls.

    Parameters
    ----------
    params : dict               of `init`; both layers of at most 12 units
    Returns
    -------
    array [2^v, 2^v]            in the order of `states`
    Raises
    ------
    ValueError, TypeError       params of another structure, layers that are too large
    Source: the definition; Fischer & Igel 2011, Neural Computation 23, 664 (bias of CD-k).    Experiment: f12.
    """
    params = _parameters(params)
    for name in ("visible", "hidden"):
        _few(params[name].shape[0])
    return _transition(params)


def deep_belief(lower: PyTree, top: PyTree, x: Float[ArrayLike, "N v"]) -> Belief:
    """The exact likelihood of a deep belief net of two machines, and the bound that greedy training raises.

        p(x) = sum over h of p_lower(x | h) p_top(h),    ln p(x) >= sum over h of q(h | x) ln (p(x, h) / q(h | x))

    with q(h | x) of the lower machine. A top machine with the lower one's parameters turned round gives the lower one's
    own likelihood twice: from there, whatever raises the mean of ln p_top(h) under q raises the bound.

    Parameters
    ----------
    lower : dict                of `init`, at most 16 hidden units
    top : dict                  of `init`, with as many visible units
    x : array [N, v]            examples, 0 and 1
    Returns
    -------
    Belief                      in nats for each example
    Raises
    ------
    ValueError, TypeError       params of another structure, machines that do not fit, too many hidden units
    Source: Hinton, Osindero & Teh 2006, Neural Computation 18, 1527, section 4.    Experiment: f12.
    """
    top, units = _parameters(top, "top"), _parameters(lower, "lower")["hidden"].shape[0]
    if units > 16:
        raise checks.BadValue(f"lower must have at most 16 hidden units; got {units}")
    checks.shape("top['visible']", top["visible"], (units,))
    lower, x = _admitted(lower, "x", x, of="lower")
    return _belief(lower, top, x)


@_effort.jit
def _belief(lower, top, x):
    h = jnp.asarray(states(lower["hidden"].shape[0]), x.dtype)
    logits, given = _down(lower, h), _up(lower, x)
    joint = x @ logits.T - jnp.sum(jax.nn.softplus(logits), axis=1)[None]
    joint = joint + _log_likelihood(top, h)[None]
    posterior = given @ h.T - jnp.sum(jax.nn.softplus(given), axis=1, keepdims=True)
    bound = jnp.sum(jnp.exp(posterior) * (joint - posterior), axis=1)
    return Belief(jax.nn.logsumexp(joint, axis=1), bound)


@_effort.jit
def _transition(params):
    v, h = (jnp.asarray(states(params[name].shape[0])) for name in ("visible", "hidden"))
    return _law(_up(params, v), h) @ _law(_down(params, h), v)


@_effort.jit
def _difference(params, x, chains):
    """The gradient of the mean free energy of the examples less that of the chains."""
    return jax.grad(lambda params: jnp.mean(_free_energy(params, x)) - jnp.mean(_free_energy(params, chains)))(params)


@_effort.jit
def _log_likelihood(params, v):
    return -_free_energy(params, v) - _log_partition(params)


def _few(units):
    if units > 12:
        raise checks.BadValue(f"params must have layers of at most 12 units; got {units}")


def _up(params, v):
    """Log-odds of the hidden units."""
    drive = v @ params["weights"]
    return drive + jnp.broadcast_to(params["hidden"], drive.shape)


def _down(params, h):
    """Log-odds of the visible units."""
    drive = h @ params["weights"].T
    return drive + jnp.broadcast_to(params["visible"], drive.shape)


def _law(logits, states):
    """Probabilities [..., states] of all states of independent units."""
    return jnp.exp(logits @ states.T - jnp.sum(jax.nn.softplus(logits), axis=-1, keepdims=True))


@compiled
def _gibbs(params, v, keys):
    return lax.scan(lambda v, key: (_swept(key, params, v), None), v, keys)[0]


def _swept(key, params, v):
    up, down = jax.random.split(key)
    h = _drawn(up, _up(params, v))
    return _drawn(down, _down(params, h))


def _drawn(key, logits):
    return _random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


@_effort.jit
def _free_energy(params, v):
    return -v @ params["visible"] - jnp.sum(jax.nn.softplus(_up(params, v)), axis=-1)


def _log_partition(params):
    weights = params["weights"]
    if weights.shape[0] > weights.shape[1]:
        params = {"visible": params["hidden"], "hidden": params["visible"], "weights": weights.T}
    units = min(weights.shape)
    if units > MOST:
        raise checks.BadValue(f"params must have a layer of at most {MOST} units to enumerate; got {weights.shape}")
    return jax.nn.logsumexp(-_free_energy(params, jnp.asarray(states(units), weights.dtype)))


def _parameters(params, name="params"):
    weights = params.get("weights") if isinstance(params, dict) else None
    v, h = np.shape(weights) if np.ndim(weights) == 2 else (1, 1)
    shapes = {"visible": (v,), "hidden": (h,), "weights": (v, h)}
    wanted = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    return jax.device_put(checks.floats(name, checks.like(name, params, wanted, of="a machine")))


def _admitted(params, name, v, of="params"):
    params, v = _parameters(params, of), checks.floating(name, v, least_ndim=1)
    checks.shape(name, v, (*v.shape[:-1], params["visible"].shape[0]))
    return params, jnp.asarray(v, params["weights"].dtype)
