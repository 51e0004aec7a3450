"""A network is a record of three pure functions; parameters are a pytree.

    y_0 = x ---> layer 1 --(+)--> y_1 ---> layer 2 --(+)--> y_2 ---> ... ---> y_L ---> readout ---> outputs
                            ^                        ^
                         probe 1                  probe 2

*State.* y_l is what comes out of layer l, in a dense network before the activation. The input y_0 is the caller's;
the last affine map is the readout and no state.

*Stretch.* Consecutive layers whose states have one shape are stacked into one array [layers, N, ...]: they ran in one
`lax.scan`, so depth 1000 is one array and compiles like depth 10. `states` returns a tuple of stretches, input first.

*Probe.* An array like the states, zero by default. Probe l is added to y_l, and the sum is the state that comes out and
flows on. The gradient with respect to a zero probe is therefore dloss/dy_l, and the derivative of y_k with respect to
probe l is the Jacobian dy_k/dy_l: no hooks, no second copy of the network.

*Randomness and batch statistics.* A network has no hidden state. A random network (dropout, noise) takes its key when
it is built or finds it in `params`: the same arguments give the same outputs. Batch statistics are computed from the
batch in hand; a network with frozen statistics keeps them in `params`.

*A network is a pytree.* Its functions may be `jax.tree_util.Partial`s, whose bound numbers are then data: one compiled
measurement serves every variance. `traceable` turns plain functions into such, known by identity.

So the gradient at every layer and the Jacobian between two layers are the same few lines for every architecture. *Any
JAX function is a network too*: `lift(apply, params, x)` finds its layers and makes it one.
"""

import functools

import jax
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from numdl import checks
from numdl._compiled import jit
from numdl.networks import _segments
from numdl.networks._record import (
    Network,
    fitting,
    last_state,
    layer_count,
    one_example,
    per_layer,
    split_probes,
    traceable,
    zero_probes,
)
from numdl.networks._segments import segment
from numdl.networks.lift import lift
from numdl.typing import LossOfOutputs

__all__ = [
    "Network",
    "fitting",
    "jacobian",
    "last_state",
    "layer_count",
    "lift",
    "one_example",
    "per_layer",
    "segment",
    "split_probes",
    "state_gradients",
    "traceable",
    "zero_probes",
]


def state_gradients(network: Network, params: PyTree, x: PyTree, loss: LossOfOutputs) -> tuple[Array, ...]:
    """dloss/dy_l for every layer (backpropagation through the states), as stretches shaped like the states.

        g_l = d loss(outputs) / d probe_l   at probes 0

    Parameters
    ----------
    network : Network
    params : pytree             of `network.init`
    x : array [N, ...]          the batch; a lifted function may take a pytree
    loss : function             outputs [N, d_out] -> scalar. A mean over examples puts 1/N into every gradient.
    Returns
    -------
    tuple of arrays [layers, N, ...]
    Raises
    ------
    ValueError, TypeError       not a Network, params or x that do not fit it, a loss that is not one real number
    Source: the definition.
    """
    loss = checks.returning("loss", loss, 1, "loss(outputs)", scalar=True)
    return _state_gradients(*fitting(network, params, x), loss)


def jacobian(
    network: Network, params: PyTree, x: Num[ArrayLike, "1 ..."], *, start: int, stop: int
) -> Float[Array, "m n"]:
    """The matrix d y_stop / d y_start at one example, [size of y_stop, size of y_start].

    Layers count from 1; start = 0 is the input and stop = L + 1 the outputs. States with several axes are flattened.
    Forward or reverse mode, whichever needs fewer passes.

    Parameters
    ----------
    network : Network
    params : pytree             of `network.init`
    x : array [1, ...]          one example; integers (tokens) where start >= 1
    start, stop : int           0 <= start < stop <= L + 1
    Returns
    -------
    array [m, n]                m = size of y_stop, n = size of y_start
    Raises
    ------
    ValueError, TypeError       several examples, start and stop out of range, params that do not fit, not a Network
    """
    network, params, x = fitting(network, params, one_example(x, start))
    return _jacobian(network, params, x, *segment(jax.eval_shape(network.states, params, x), start, stop))


@jit
def _state_gradients(network, params, x, loss):
    def probed(probes):
        return loss(network.readout(params, last_state(network.states(params, x, probes), x)))

    return jax.grad(probed)(zero_probes(network, params, x))


@functools.partial(jit, static_argnames=("start", "stop"))
def _jacobian(network, params, x, start, stop):
    reach, point = _segments.between(network, params, x, start, stop)
    wide = jax.eval_shape(reach, point).size >= point.size
    return (jax.jacfwd if wide else jax.jacrev)(reach)(point)
