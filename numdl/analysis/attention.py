"""MEASURED: rank collapse of token matrices in logarithms, beside the rounding floor; logits and entropy of attention.

The residual of tokens X [tokens, d] is what is left when the best matrix with equal rows is taken away; in the
Frobenius norm that is the token mean:  res(X) = X - 1 mean(X)'.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from numdl import _effort, checks
from numdl.analysis import _softmax
from numdl.networks import core
from numdl.records import record, static
from numdl.typing import Apply


@record
class RankCollapse:
    """How far the tokens of every example are from being equal; natural logarithms, input first."""

    log_residual: jax.Array  # [L + 1, N]: ln |res(X)|_F / |X|_F; nan where not resolved
    log_diameter: jax.Array  # [L + 1, N]: ln max_ij |x_i - x_j|; nan where not resolved
    log_floor: jax.Array  # [L + 1, N]: ln of the relative residual that rounding alone may leave; -inf if exact
    resolved: jax.Array  # [L + 1, N] bool: the residual is above the floor; otherwise it is at most the floor


@record
class AttentionLogits:
    """What enters the softmax of each attention, masked and scaled; a scanned one has an entry per step, 'path[i]'."""

    names: tuple = static()  # of the scores' layers, as `layers.probe` calls them
    masks: tuple = static()  # what says which keys are closed: "select", "added term", "weight", ...; "none seen"
    logit_max: jax.Array  # [A] max |logit| of open keys; nan where one is not finite, or no key is open
    entropy: jax.Array  # [A] mean over rows of H / ln(open keys): 1 uniform, 0 one key; nan without rows of two
    shut: jax.Array  # [A] share of rows in which a mask leaves no key


def rank_collapse(
    network: core.Network, params: PyTree, x: Float[ArrayLike, "N tokens d"], *, rounding: ArrayLike | None = None
) -> RankCollapse:
    """MEASURED rank collapse (token uniformity): relative residual and diameter of the tokens after every layer.

        log_residual[l] = ln |X_l - 1 mean(X_l)'|_F / |X_l|_F

    Below the floor a computed residual is rounding of the mean and is not reported. `rank_collapse_of` has no floor.

    Parameters
    ----------
    network : Network           states are token matrices [N, tokens, d], of one width throughout
    params : pytree             of the network
    x : array [N, tokens, d]    input tokens
    rounding : scalar           relative rounding of one product; eps of the dtype if None. Say 2**-11 for float32 on
                                hardware that multiplies in TF32.
    Returns
    -------
    RankCollapse                tables [L + 1, N], input first
    Raises
    ------
    ValueError, TypeError       states or x are not token matrices of one width, rounding <= 0
    Source: Dong, Cordonnier & Loukas 2021, arXiv:2103.03404; the floor is numdl's own.
    Twin: theory.attention.rank_collapse (attention's bound).    Experiment: b9.
    """
    network, params, x = core.fitting(network, params, checks.floating("x", x, ndim=3))
    if rounding is not None:
        rounding = float(checks.positive("rounding", rounding, shape=()))
    states = jax.eval_shape(network.states, params, x)
    if any(stretch.shape[2:] != x.shape[1:] for stretch in states):
        shapes = [tuple(stretch.shape[1:]) for stretch in states]
        raise checks.BadValue(f"network must have states of x's shape {tuple(x.shape)}; got {shapes}")
    states = network.states(params, x)
    tokens = jnp.concatenate([x[None].astype(states[0].dtype), *states])
    rounding = float(jnp.finfo(tokens.dtype).eps) if rounding is None else rounding
    return _measure(tokens, rounding * _operations(*x.shape[1:]))


def logits(apply: Apply, params: PyTree, x: PyTree, *, examples: PyTree = None) -> AttentionLogits:
    """MEASURED size of attention's logits and entropy of its softmax, in any JAX function; traceable: jit it.

        entropy = mean over rows of  -sum_j p_j ln p_j / ln(open keys),    p = softmax(logits)

    A softmax is found from its score (a contraction of data with data) past scales, masks and soft caps; not in fused
    kernels. Closed are keys that the call marks (by a select, a term added to scores, a weight of 0) and whose weight
    is rounded away. nan where an added array has graded numbers beside such of which the exponential is 0.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure
    params, x : pytree          where; arrays [N, ...]
    examples : names or pytree  which leaves of x have the examples, and where: `tracing.example_axes`
    Returns
    -------
    AttentionLogits             logit_max, entropy, shut [A]; A = 0 where there is no attention
    Raises
    ------
    ValueError, TypeError       apply is not a function of two arguments, a leaf that is not an array
    Source: Zhai et al. 2023, arXiv:2303.06296, for the entropy; Dehghani et al. 2023, arXiv:2302.05442, for the logits.
    """
    columns = ("logit_max", "entropy", "shut")
    return AttentionLogits(*_softmax.measured(apply, params, x, examples, _softmax.sizes, columns))


def rank_collapse_of(split: Any) -> RankCollapse:
    """MEASURED rank collapse of tokens kept as mean and deviation: no rounding floor, at any depth.

        X_l = 1 mean_l' + exp(log_scale_l) deviation_l,    sum of deviation_l over tokens = 0

    Parameters
    ----------
    split : record              mean [L + 1, N, d], deviation [L + 1, N, tokens, d], log_scale [L + 1, N], such as
                                `networks.attention.split_states` returns
    Returns
    -------
    RankCollapse                tables [L + 1, N], input first; log_floor is -inf
    Raises
    ------
    ValueError, TypeError       a field that is missing or of another shape
    Source: the definition.    Twin: theory.attention.rank_collapse.    Experiment: b9.
    """
    for field in ("mean", "deviation", "log_scale"):
        if not hasattr(split, field):
            raise checks.BadType(f"split must be a record with mean, deviation and log_scale; got {split!r}")
    deviation = checks.floating("split.deviation", split.deviation, ndim=4)
    layers, examples, _, width = deviation.shape
    mean = checks.shape("split.mean", checks.floating("split.mean", split.mean), (layers, examples, width))
    scale = checks.shape("split.log_scale", checks.floating("split.log_scale", split.log_scale), (layers, examples))
    return _measure_split(mean, deviation, scale)


def _operations(tokens, width):
    """How many roundings pile up, in units of one: a random walk over the two inner products, and a margin of 2."""
    return 2 * np.sqrt(tokens + width)


@_effort.jit
def _measure(tokens, floor):
    centred = tokens - jnp.mean(tokens, axis=2, keepdims=True)
    log_residual = _log_norm(centred, (2, 3)) - _log_norm(tokens, (2, 3))
    log_floor = jnp.full_like(log_residual, jnp.log(jnp.asarray(floor, log_residual.dtype)))
    resolved = log_residual > log_floor
    diameter = jnp.where(resolved, _log_diameter(centred), jnp.nan)
    return RankCollapse(jnp.where(resolved, log_residual, jnp.nan), diameter, log_floor, resolved)


@_effort.jit
def _measure_split(mean, deviation, log_scale):
    tokens = deviation.shape[2]
    log_part = _log_norm(deviation, (2, 3)) + log_scale
    log_common = _log_norm(mean, (2,)) + jnp.log(jnp.asarray(tokens, mean.dtype)) / 2
    log_residual = log_part - jnp.logaddexp(2 * log_part, 2 * log_common) / 2
    exact = jnp.full_like(log_residual, -jnp.inf)
    diameter = _log_diameter(deviation) + log_scale
    return RankCollapse(log_residual, diameter, exact, jnp.isfinite(log_residual))


def _log_norm(array, axes):
    """ln of the Euclidean norm over these axes; the largest entry is taken out before squaring."""
    largest = jnp.max(jnp.abs(array), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    square = jnp.sum((array / scale) ** 2, axis=axes)
    return jnp.log(square) / 2 + jnp.log(jnp.reshape(scale, square.shape))


def _log_diameter(tokens):
    """ln of the largest distance between two rows, one row after the other to save memory."""

    def farthest(row):
        return _log_norm(tokens - jnp.expand_dims(row, 2), (3,)).max(axis=-1)

    return jnp.max(jax.lax.map(farthest, jnp.moveaxis(tokens, 2, 0)), axis=0)
