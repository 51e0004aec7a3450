"""MEASURED: how much the gradients at two inputs have in common, layer by layer: the shattering of gradients.

    g_l(x) = d (v . f(x)) / d y_l,    one v for all inputs,    gradient[p, l] = <g_l, g'_l> / (|g_l| |g'_l|)

Twin: theory.shattering. A network that normalizes over the batch is to be frozen first: `networks.residual.freeze`,
`networks.normalization.freeze`. What is left is a function of one input.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from numdl import checks
from numdl._compiled import jit
from numdl.analysis import _pairs
from numdl.networks import _segments, core


def gradient_correlations(
    network: core.Network,
    params: PyTree,
    x: Float[ArrayLike, "pairs 2 ..."],
    cotangent: Float[ArrayLike, "..."],
) -> Float[Array, "pairs layers"]:
    """MEASURED correlation of the gradients at two inputs, layer by layer: gradient correlation, shattered gradients.

        gradient[p, l] = <g_l, g'_l> / (|g_l| |g'_l|),    g_l = d (cotangent . f(x)) / d y_l

    Parameters
    ----------
    network : Network           any whose examples do not see each other
    params : pytree             of the network
    x : array [P, 2, ...]       P pairs of inputs
    cotangent : array           shaped like the outputs of one example; the same for all inputs
    Returns
    -------
    array [P, L]                nan where a gradient is exactly 0
    Raises
    ------
    ValueError, TypeError       x without pairs along axis 1, a cotangent of another shape; not a Network, or one that
                                does not take params and x
    Source: Balduzzi et al. 2017, arXiv:1702.08591.
    Twins: theory.shattering.dense, theory.shattering.residual.    Experiment: b13.
    """
    x = _pairs.pairs(x)
    network, params, rows = core.fitting(network, params, x.reshape(-1, *x.shape[2:]))
    outputs = jax.eval_shape(network.apply, params, rows)
    v = checks.shape("cotangent", checks.floating("cotangent", cotangent), outputs.shape[1:])
    return _correlations(network, params, rows, v.astype(outputs.dtype))


@jit
def _correlations(network, params, rows, v):
    def loss(outputs):
        return jnp.sum(outputs * v[None])

    gradients = _segments.of_examples(network, params, rows, core.state_gradients(network, params, rows, loss))
    return core.per_layer(_pairs.cosines, gradients).reshape(-1, rows.shape[0] // 2).T
