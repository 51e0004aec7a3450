"""MEASURED: softmax attention of any JAX function, and tokens and gradients along the stream of a transformer.

    softmax_moments             ln Z, participation, entropy and largest logits of every attention, found by tracing
    stream, stream_of           length and correlation of tokens after every sublayer, of examples, effective rank
    gradients, weight_gradients    by every state; of queries and keys beside those of values

The same field names as in theory.transformer, its twin; means over rows, tokens or pairs, natural logarithms.
"""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, PyTree

from numdl import _effort, checks, precision
from numdl._compiled import jit
from numdl.analysis import _softmax
from numdl.networks import core
from numdl.records import record, static
from numdl.typing import Apply, LossOfOutputs


@record
class SoftmaxMoments:
    """Means over the rows of each attention; a scanned one has an entry per step, 'path[i]'."""

    names: tuple = static()  # of the scores' layers, as `layers.probe` calls them
    masks: tuple = static()  # what says which keys are closed: as of `attention.logits`
    log_partition: jax.Array  # [A] ln sum of exp(logit - the row's mean logit), over open keys
    participation: jax.Array  # [A] sum of squared weights
    entropy: jax.Array  # [A] nats
    deviation: jax.Array  # [A] root of the mean variance of a row's logits; nan where no row has two keys
    logit_max: jax.Array  # [A] max |logit|


@record
class Stream:
    """Token matrices layer by layer, the first state first."""

    q: jax.Array  # [S, N] mean square of the tokens' entries
    c: jax.Array  # [S, N] mean product of two tokens of an example, over q; nan with one token
    gap: jax.Array  # [S, N] 1 - c, from the tokens' deviations: right where they are nearly equal
    example_c: jax.Array  # [S] mean product of one place's tokens in two examples, over q; nan with one example
    effective_rank: jax.Array  # [S, N] (tr G)^2 / tr G^2 of the tokens' Gram matrix G: 1 to T


@record
class Gradients:
    """Mean over examples of gradients by the tokens, over the |g_i|^2 at the last state."""

    spread: jax.Array  # [S] A: mean over tokens of |g_i|^2
    pooled: jax.Array  # [S] B: mean over pairs of tokens of g_i . g_i'; nan with one token
    log_scale: jax.Array  # [] ln of A at the last state before the division


@record
class WeightGradients:
    """Squared gradients of attention's weights, over that of its values."""

    query: jax.Array  # [...] |dW_Q|^2 / |dW_V|^2
    key: jax.Array  # [...] |dW_K|^2 / |dW_V|^2


def softmax_moments(apply: Apply, params: PyTree, x: PyTree, *, examples: PyTree = None) -> SoftmaxMoments:
    """MEASURED softmax of every attention of any JAX function (participation, ln Z, entropy); traceable: jit it.

        log_partition = ln sum_j exp(s_j - mean s),   participation = sum_j P_j^2,   entropy = -sum_j P_j ln P_j

    Where a softmax is found and which of its keys are closed: `attention.logits`.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure
    params, x : pytree          where; arrays [N, ...]
    examples : names or pytree  which leaves of x have the examples, and where: `tracing.example_axes`
    Returns
    -------
    SoftmaxMoments              each [A]; A = 0 where there is no attention
    Raises
    ------
    ValueError, TypeError       apply is not a function of two arguments, a leaf that is not an array
    Source: the definitions.    Twin: theory.transformer.softmax_moments.    Experiments: g2, g8.
    """
    columns = ("log_partition", "participation", "entropy", "deviation", "logit_max")
    return SoftmaxMoments(*_softmax.measured(apply, params, x, examples, _softmax.moments, columns))


def stream(network: core.Network, params: PyTree, x: PyTree) -> Stream:
    """MEASURED residual stream of a network whose states are token matrices of one width: length and correlation.

        q = mean of x_i . x_i / d,   c = mean over pairs of x_i . x_j / (d q)

    Parameters
    ----------
    network : Network           states [layers, N, T, d], as of networks.transformer
    params : pytree             of the network
    x : array                   token matrices of the states' shape are counted as the first state
    Returns
    -------
    Stream                      S states, [S, N] or [S]
    Raises
    ------
    ValueError, TypeError       states that are not token matrices of one shape, params that do not fit
    Source: the definitions.    Twin: theory.transformer.stream, attention_map, gram_stream.
    Experiments: g1, g3, g4, g7.
    """
    network, params, x = core.fitting(network, params, x)
    _one_shape(jax.eval_shape(network.states, params, x))
    return _stream(network, params, x)


def stream_of(states: Float[ArrayLike, "S N T d"]) -> Stream:
    """MEASURED length, correlation and effective rank of token matrices that were captured somewhere.

    `analysis.layers.capture` and `tap` give the states of any JAX function.

    Parameters
    ----------
    states : array [S, N, T, d]    S token matrices for each of N examples
    Returns
    -------
    Stream                      [S, N] or [S]
    Raises
    ------
    ValueError, TypeError       another number of axes, not of floating-point numbers
    Source: the definitions.    Twin: theory.transformer.stream.
    Experiments: g1, g3.
    """
    return _stream_of(jnp.asarray(checks.floating("states", states, ndim=4)))


def gradients(network: core.Network, params: PyTree, x: PyTree, loss: LossOfOutputs) -> Gradients:
    """MEASURED gradients by every token matrix of a network (per-block gradients): A of tokens, B of pairs of them.

        A = mean over examples and tokens of |g_i|^2,   B = mean over pairs of g_i . g_i',   over A at the last state

    Parameters
    ----------
    network : Network           states [layers, N, T, d], as of networks.transformer
    params : pytree             of the network
    x : array                   token matrices of the states' shape are counted as the first state
    loss : function             outputs -> scalar
    Returns
    -------
    Gradients                   [S]
    Raises
    ------
    ValueError, TypeError       states that are not token matrices of one shape, a loss that is not one real number
    Source: the definitions.    Twin: theory.transformer.gradients.
    Experiments: g3, g4, g7.
    """
    loss = checks.returning("loss", loss, 1, "loss(outputs)", scalar=True)
    network, params, x = core.fitting(network, params, x)
    _one_shape(jax.eval_shape(network.states, params, x))
    return _gradients(network, params, x, loss)


def weight_gradients(*, query: ArrayLike, key: ArrayLike, value: ArrayLike, stacked: int = 0) -> WeightGradients:
    """MEASURED vanishing query and key gradients: squared norms of gradients by W_Q and W_K over that by W_V.

    Parameters
    ----------
    query, key, value : array   gradients, leading axes of depth alike
    stacked : int               how many leading axes are kept: 1 for blocks under a scan
    Returns
    -------
    WeightGradients             shaped as the kept axes
    Raises
    ------
    ValueError, TypeError       arrays whose leading axes differ, not of floating-point numbers
    Source: the definition.    Twin: theory.transformer.weight_gradients.
    Experiment: g5.
    """
    kept = checks.whole("stacked", stacked, least=0)
    given = {"query": query, "key": key, "value": value}
    arrays = {name: checks.floating(name, array, least_ndim=kept) for name, array in given.items()}
    for name, array in arrays.items():
        if array.shape[:kept] != arrays["value"].shape[:kept]:
            leading = arrays["value"].shape[:kept]
            raise checks.BadValue(f"{name} must have the leading axes of value, {leading}; got shape {array.shape}")
    logs = {name: _log_square(jnp.asarray(array), tuple(range(kept, array.ndim))) for name, array in arrays.items()}
    return WeightGradients(jnp.exp(logs["query"] - logs["value"]), jnp.exp(logs["key"] - logs["value"]))


def _one_shape(states):
    shapes = [tuple(stretch.shape[1:]) for stretch in states]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) != 3:
        raise checks.BadValue(f"network must have states that are token matrices [N, T, d] of one shape; got {shapes}")


@jit
def _stream(network, params, x):
    states = network.states(params, x)
    return _stream_of(jnp.concatenate([*_first(x, states), *states]))


def _first(x, states):
    """The input, where it is a token matrix like the states."""
    shape, dtype = states[0].shape[1:], states[0].dtype
    alike = isinstance(x, jax.Array) and x.shape == shape and jnp.issubdtype(x.dtype, jnp.floating)
    return [x[None].astype(dtype)] if alike else []


@_effort.jit
def _stream_of(states):
    states = states.astype(precision.wide(states.dtype))
    examples, tokens, width = states.shape[1:]
    q = jnp.mean(states**2, axis=(2, 3))
    mean = jnp.mean(states, axis=2, keepdims=True)
    # Of the deviations, the sum over pairs is minus the sum of squares: no difference of large numbers.
    spread = jnp.mean((states - mean) ** 2, axis=(2, 3)) / q
    gap = spread * tokens / (tokens - 1) if tokens > 1 else jnp.full_like(spread, jnp.nan)
    gram = jnp.einsum("sntd,snud->sntu", states, states) / width
    rank = (tokens * q) ** 2 / jnp.sum(gram**2, axis=(2, 3))
    return Stream(q, 1 - gap, gap, _between(states, q, examples), rank)


def _between(states, q, examples):
    if examples < 2:
        return jnp.full(states.shape[0], jnp.nan, states.dtype)
    common = jnp.mean(jnp.mean(states, axis=1) ** 2, axis=(1, 2)) / jnp.mean(q, axis=1)
    return (common * examples - 1) / (examples - 1)


@jit
def _gradients(network, params, x, loss):
    probes = core.zero_probes(network, params, x)
    first = _first(x, jax.eval_shape(network.states, params, x))
    start = first[0][0] if first else None

    def total(start, probes):
        data = x if start is None else start
        return loss(network.readout(params, core.last_state(network.states(params, data, probes), data)))

    by_start, by_probes = jax.grad(total, argnums=(0, 1))(start, probes)
    g = jnp.concatenate([*([] if start is None else [by_start[None]]), *by_probes])
    g = g.astype(precision.wide(g.dtype))
    tokens = g.shape[2]
    scale = jnp.maximum(jnp.max(jnp.abs(g), axis=(1, 2, 3), keepdims=True), jnp.finfo(g.dtype).tiny)
    square = jnp.mean(jnp.sum((g / scale) ** 2, axis=3), axis=(1, 2))
    joint = jnp.mean(jnp.sum(jnp.sum(g / scale, axis=2) ** 2, axis=2), axis=1) / tokens
    logs = jnp.log(square) + 2 * jnp.log(scale[:, 0, 0, 0])
    spread = jnp.exp(logs - logs[-1])
    pooled = (joint / square - 1) / (tokens - 1) if tokens > 1 else jnp.full_like(spread, jnp.nan)
    return Gradients(spread, spread * pooled, logs[-1])


def _log_square(array, axes):
    """ln of the sum of squares over these axes, the largest entry taken out first."""
    array = array.astype(precision.wide(array.dtype))
    largest = jnp.max(jnp.abs(array), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    square = jnp.sum((array / scale) ** 2, axis=axes)
    return jnp.log(square) + 2 * jnp.log(jnp.reshape(scale, square.shape))
