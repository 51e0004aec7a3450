"""The part of a network between two states, as a function of flat vectors: y_start -> y_stop at one example.

Layers count from 1; start = 0 is the input and stop = L + 1 the outputs. From a state inside the network the function
adds its argument as a probe, so its derivative at zero is the Jacobian dy_stop / dy_start.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from numdl import checks
from numdl.networks import _record


def segment(shapes: Sequence[ArrayLike | jax.ShapeDtypeStruct], start: int, stop: int) -> tuple[int, int]:
    """(start, stop), checked against the layers that states of these shapes have.

    Parameters
    ----------
    shapes : tuple of arrays [layers, N, ...]    the states, or their shapes
    start, stop : int           0 <= start < stop <= L + 1
    Returns
    -------
    (int, int)
    Raises
    ------
    ValueError, TypeError       out of range, not whole numbers
    """
    depth = _record.layer_count(shapes)
    start = checks.whole("start", start, least=0, most=depth)
    return start, checks.whole("stop", stop, least=start + 1, most=depth + 1)


def sizes(network, params, x, start, stop):
    """(size of y_start, size of y_stop), nothing computed."""
    reach, point = between(network, params, x, start, stop)
    return point.size, jax.eval_shape(reach, point).size


def between(network, params, x, start, stop):
    """The function y_start [n] -> y_stop [m], and the point [n] where its derivative is the network's.

    The point is x where start is 0, and a probe of zeros elsewhere. Arguments as the doors have returned them.
    """
    if start == 0:
        return lambda flat: _arrive(network, params, flat.reshape(x.shape), None, stop), x.ravel()
    shapes = jax.eval_shape(network.states, params, x)
    stretch, index = _place(shapes, start)
    _, *shape = shapes[stretch].shape

    def reach(flat):
        probes = [jnp.zeros(one.shape, one.dtype) for one in shapes]
        probes[stretch] = probes[stretch].at[index].set(flat.reshape(shape))
        return _arrive(network, params, x, tuple(probes), stop)

    return reach, jnp.zeros(math.prod(shape), shapes[stretch].dtype)


def _arrive(network, params, x, probes, stop):
    states = network.states(params, x, probes)
    if stop > _record.layer_count(states):
        return network.readout(params, _record.last_state(states, x)).ravel()
    stretch, index = _place(states, stop)
    return states[stretch][index].ravel()


def _place(states, layer):
    """The stretch that holds this layer (from 1), and the place in it."""
    places = [(number, index) for number, stretch in enumerate(states) for index in range(stretch.shape[0])]
    return places[layer - 1]


def of_examples(network, params, x, stretches):
    """For measures that compare examples: the stretches [layers, N, ...], nan where a lifted function has lost them.

    Then a state is not of examples (an expert's queue, one example at a time); its stretch becomes [layers, N, 1].
    """
    told = getattr(getattr(network.states, "func", network.states), "of_examples", None)
    if told is None:
        return stretches
    known, count = told(params, x)
    return tuple(
        y if own else jnp.full((y.shape[0], count, 1), jnp.nan, y.dtype)
        for y, own in zip(stretches, known, strict=True)
    )
