"""MEASURED: how squared gradients travel back through a network, over random networks or at given parameters.

    log_square[s, l] = ln mean over examples and units of (N dloss/dy_l)^2,    network s, state y_l, l = 1..L

N is the number of examples and the loss a mean over them, so that these are the gradients of single examples. Nothing
under- or overflows on the way: where a gradient comes near the edge of its dtype, the backward pass is begun anew at
the last safe layer with a cotangent of size 1, and the logarithms of the scales are added.

    >>> from numdl import activations
    >>> from numdl.networks import dense
    >>> tiny = dict(activation=activations.tanh, weight_variance=1e-30, bias_variance=0.0)
    >>> network = dense.network(widths=(4, 30, 30, 2), **tiny)
    >>> found = growth(jax.random.key(0), network, jnp.ones((3, 4)), seeds=5)
    >>> found.log_square.shape, bool(jnp.all(found.log_square[:, 0] < -130))  # [seeds, layers]; e^-130 is 0 in float32
    ((5, 2), True)
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _random, checks, precision
from numdl._compiled import jit
from numdl.analysis import _samples, layers
from numdl.networks import core
from numdl.records import record
from numdl.typing import Apply, LossOfOutputs

# fold_in(key, i) is the i-th key of split(key): init uses the first ones, and the readout's weights would be this draw.
_APART = 2**31 - 1


@record
class GradientSamples:
    """Natural logarithms of mean squared gradients."""

    log_square: jax.Array  # [seeds, L]: of y_l; -inf where it is exactly 0 (dead units)
    log_cotangent: jax.Array  # [seeds]: of the outputs

    @property
    def log_ratio(self):
        """ln of mean squares relative to the outputs', [seeds, L]: what theory.gradients.growth predicts."""
        return self.log_square - self.log_cotangent[..., None]


def growth(
    key: Key[Array, ""],
    network: core.Network,
    x: Float[ArrayLike, "N ..."],
    loss: LossOfOutputs | None = None,
    *,
    seeds: int,
    at_a_time: int | None = None,
) -> GradientSamples:
    """MEASURED mean squares of the gradients of every state, for independent networks, in logarithms.

        log_square[s, l] = ln mean over examples and units of (N dloss/dy_l)^2,    network s

    Vanishing gradients and exploding gradients of backward propagation: chi_1 is the factor from layer to layer, its
    critical initialization the edge of chaos. Without a loss the outputs' cotangent is random, N(0, 1), for each
    network anew, and what comes out is the network's own doing: `log_ratio` is what theory predicts.

    Parameters
    ----------
    key : key                   of the networks' parameters and the random cotangents
    network : Network           any; its init is called once for each seed
    x : array [N, ...]          one batch for all networks
    loss : function             outputs [N, d_out] -> scalar, a mean over examples; None: random cotangents
    seeds : int                 number of networks, >= 1
    at_a_time : int             networks at a time; None: 1 on a CPU, all elsewhere
    Returns
    -------
    GradientSamples             log_square [seeds, L], log_cotangent [seeds]
    Raises
    ------
    ValueError, TypeError       seeds or at_a_time below 1, x without axes, network or loss of another kind
    Source: Schoenholz et al. 2017, arXiv:1611.01232.
    Twins: theory.gradients.growth, theory.gradients.log_norm (spread).    Experiments: b1, b2, b4, b6, b7.
    """
    checks.key("key", key)
    network = core.traceable(network)
    x = checks.floating("x", x, least_ndim=1)
    seeds = checks.whole("seeds", seeds)
    return _sample(network, x, key, _loss(loss), seeds, _samples.at_a_time(at_a_time, seeds))


def growth_at(
    network: core.Network, params: PyTree, x: ArrayLike, cotangent: Float[ArrayLike, "N ..."]
) -> GradientSamples:
    """MEASURED mean squares of the gradients of every state at these parameters for this cotangent of the outputs.

    The cotangent is that of single examples: N * dloss/doutputs. All examples are pulled back at once, so that one
    whose gradients are 1e30 times smaller than another's adds nothing.

    Parameters
    ----------
    network : Network           any
    params : pytree             of the network
    x : array [N, ...]          one batch
    cotangent : array [N, d_out]    shaped like the outputs
    Returns
    -------
    GradientSamples             log_square [L], log_cotangent []
    Raises
    ------
    ValueError, TypeError       a cotangent of another shape; not a Network, or one that does not take params and x
    Twin: theory.gradients.growth.    Experiments: b1, b4.
    """
    network, params, x = core.fitting(network, params, x)
    expected = jax.eval_shape(network.apply, params, x)
    cotangent = checks.shape("cotangent", checks.floating("cotangent", cotangent), expected.shape)
    return GradientSamples(*_log_squares(network, params, x, cotangent.astype(expected.dtype)))


def growth_of_function(
    key: Key[Array, ""],
    apply: Apply,
    init: Callable[[Key[Array, ""]], PyTree],
    x: PyTree,
    *,
    loss: LossOfOutputs,
    seeds: int,
) -> GradientSamples:
    """MEASURED mean squares of the gradients of every layer of any JAX function, through `layers.probe`.

    Parameters
    ----------
    key : key                   of the parameters
    apply : function            apply(params, x) -> outputs, with any layers in it
    init : function             key -> params
    x : pytree                  one batch for all draws, leaves [N, ...]
    loss : function             outputs -> scalar, a mean over the N examples
    seeds : int                 number of draws of the parameters, one at a time
    Returns
    -------
    GradientSamples             log_square [seeds, L], log_cotangent [seeds]; layers in the order of `layers.probe`
    Raises
    ------
    ValueError, TypeError       seeds < 1, leaves of x of other lengths, no functions, a loss that is not scalar
    Twin: theory.gradients.growth.    Experiments: b1, b4.
    """
    checks.key("key", key)
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    init = checks.returning("init", init, 1, "init(key)")
    loss = checks.returning("loss", loss, 1, "loss(outputs)", scalar=True)
    seeds, x = checks.whole("seeds", seeds), checks.leaves("x", x, examples=True)
    return _sample_function(key, apply, init, x, loss, seeds)


# ---- samples over seeds --------------------------------------------------------------------------------------------


def _loss(loss):
    return loss if loss is None else checks.returning("loss", loss, 1, "loss(outputs)", scalar=True)


@functools.partial(jit, static_argnames=("seeds", "at_a_time"))
def _sample(network, x, key, loss, seeds, at_a_time):
    def one(key):
        # The network's key is the one that the other analyses give it: same seeds, same networks.
        params = network.init(key, x)

        def cotangent(outputs):
            if loss is None:
                return _random.normal(jax.random.fold_in(key, _APART), outputs.shape, outputs.dtype)
            return x.shape[0] * jax.grad(loss)(outputs)

        return GradientSamples(*_backward(network, params, x, cotangent))

    return _samples.each(one, jax.random.split(key, seeds), at_a_time)


@functools.partial(jit, static_argnames="seeds")
def _sample_function(key, apply, init, x, loss, seeds):
    def one(key):
        params = jax.tree.map(jnp.asarray, init(key))  # of NumPy, jax keeps what another precision made of them
        flow = layers.probe(apply, params, x, loss=loss)
        heads = jax.tree.leaves(jax.grad(loss)(apply(params, x)))
        cotangent = jnp.concatenate([(flow.examples * head).ravel() for head in heads])
        return GradientSamples(2 * jnp.log(flow.state_gradient_rms), _log_mean_square(cotangent))

    return lax.map(one, jax.random.split(key, seeds))


# ---- one backward pass, in safe pieces -----------------------------------------------------------------------------


@jit
def _log_squares(network, params, x, cotangent):
    return _backward(network, params, x, lambda outputs: cotangent)


def _backward(network, params, x, cotangent_of):
    """ln of the mean square of every state's gradient, [L], and of the cotangent, a function of the outputs.

    One forward pass gives the outputs, which the cotangent may need, and what the backward pass keeps.
    """
    probes = core.zero_probes(network, params, x)
    states, pull = jax.vjp(lambda probes: network.states(params, x, probes), probes)
    outputs, push_back = jax.vjp(lambda y: network.readout(params, y), core.last_state(states, x))
    cotangent = cotangent_of(outputs)
    unit, scale = _unit(cotangent)
    last, depth = push_back(unit)[0], core.layer_count(states)
    if not depth:
        return jnp.zeros((0,), scale.dtype), _log_mean_square(cotangent)
    numbers = _numbered(states)
    # As if a pass had reached the last state only.
    reached = tuple(jnp.broadcast_to(last, y.shape[:1] + last.shape) if y is states[-1] else y for y in states)
    logs = jnp.full((depth,), -jnp.inf, scale.dtype)

    def unfinished(carry):
        return carry[0] >= 0

    def restart(carry):
        layer, gradients, offset, logs = carry
        chosen, scale = _unit_of_layer(gradients, numbers, layer)
        gradients, offset = pull(chosen)[0], offset + jnp.log(scale)
        here = 2 * offset + core.per_layer(_log_mean_square, gradients)
        logs = jnp.where(jnp.arange(depth) <= layer, here.astype(logs.dtype), logs)
        return _next_start(core.per_layer(_largest, gradients), layer), gradients, offset, logs

    start = jnp.asarray(depth - 1, jnp.int32), reached, jnp.log(scale), logs
    return lax.while_loop(unfinished, restart, start)[3], _log_mean_square(cotangent)


def _next_start(sizes, layer):
    """Where to begin anew: the last safe layer before the edge of the dtype comes near; -1 when nothing is to be done.

    If one layer alone leaves the safe range, its own numbers are begun with, unless they are lost already.
    """
    limits = jnp.finfo(sizes.dtype)
    safe = (sizes > float(limits.tiny) ** 0.5) & (sizes < float(limits.max) ** 0.5)
    places = jnp.arange(sizes.size, dtype=jnp.int32)
    edge = jnp.max(jnp.where(~safe & (places < layer), places, -1))
    usable = (sizes[edge] > 0) & jnp.isfinite(sizes[edge]) & (edge > 0)
    return jnp.where(edge < 0, -1, jnp.where(edge + 1 < layer, edge + 1, jnp.where(usable, edge, -1)))


def _numbered(states):
    """The number of each layer, from 0, shaped like the stretches' first axes."""
    counts = np.cumsum([0, *(stretch.shape[0] for stretch in states)])
    return tuple(np.arange(start, stop) for start, stop in itertools.pairwise(counts))


def _unit_of_layer(gradients, numbers, layer):
    """Stretches that are 0 but at one layer, where the gradient is divided by its largest entry; and that entry."""
    chosen = tuple(
        jnp.where((jnp.asarray(n) == layer).reshape(-1, *(1,) * (g.ndim - 1)), g, jnp.zeros_like(g))
        for g, n in zip(gradients, numbers, strict=True)
    )
    scale = _safe(functools.reduce(jnp.maximum, [_largest(g) for g in chosen]))
    return tuple((g / scale.astype(g.dtype)).astype(g.dtype) for g in chosen), scale


def _unit(array):
    scale = _safe(_largest(array))
    return (array / scale.astype(array.dtype)).astype(array.dtype), scale


def _largest(array):
    return jnp.max(_size(array))


def _size(array):
    real = jnp.finfo(array.dtype).dtype
    return jnp.abs(array).astype(precision.wide(real))


def _safe(scale):
    return jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))


def _log_mean_square(array):
    """ln mean |array|^2, the largest entry taken out before squaring; -inf where all are 0."""
    size = _size(array)
    scale = _safe(jnp.max(size))
    return jnp.log(jnp.mean((size / scale) ** 2)) + 2 * jnp.log(scale)
