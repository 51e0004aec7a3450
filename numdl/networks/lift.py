"""Any JAX function as a Network: its layers' outputs are the states, and a probe can be added to each.

    network = lift(apply, params, x)      # then every analysis written for a Network takes the model

Which layers there are, and what they are called, says `numdl.tracing`. A scanned layer is one stretch [steps, N, ...]
in the order of the calls, any other layer a stretch [1, N, ...]; two layers in one scanned block are two stretches.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree

from numdl import checks, tracing
from numdl.networks._record import Network
from numdl.typing import Apply


def lift(apply: Apply, params: PyTree, x: PyTree, *, examples: PyTree = None) -> Network:
    """`apply(params, x)` as a Network whose states are its layers' outputs, before the activations.

    Where the program loses the examples (`tracing.trace` says why) a state is as it has it: what compares examples is
    nan there. The last state is the outputs: if `apply` does something after its last layer (a softmax, a norm), or
    that is scanned, the outputs are added as one more state, so that the readout returns the last state as it is.
    Each state costs one array; for a large model `analysis.layers.probe` measures without keeping any.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, one array [N, ...]; examples along x's first axis
    params : pytree of arrays   the network's init returns it, whatever the key
    x : array [N, ...]          or a pytree, an example batch; its shape and dtype are used, other N are traced anew
    examples : pytree of axes, or paths   which leaves of x have the examples, see `tracing.example_axes`
    Returns
    -------
    Network                     one stretch [steps, N, ...] for each layer
    Raises
    ------
    ValueError                  no layer in `apply` (the parameter paths are listed)
    TypeError                   apply is not a function of two, or returns other than one floating-point array
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    params, x = checks.leaves("params", params, empty=True), checks.leaves("x", x, shapes=True)
    tracing.example_axes(x, examples)
    _traced(apply, params, x, examples)

    def states(params, x, probes=None):
        return _states(apply, params, x, probes, examples)

    def of_examples(params, x):
        traced = _traced(apply, params, x, examples)
        known = [layer.note is None for layer in traced.layers]
        return (*known, *(() if traced.ends_in_layer else (True,))), traced.examples

    states.of_examples = of_examples
    return Network(Partial(_kept, params), states, _last)


def state_names(apply: Apply, params: PyTree, x: PyTree, *, examples: PyTree = None) -> tuple[str, ...]:
    """The name of each stretch of the lifted network's states: a parameter's path, or 'outputs'.

    Parameters
    ----------
    apply : function            as for `lift`
    params : pytree of arrays
    x : array [N, ...]          or a pytree
    examples : pytree of axes, or paths   as for `lift`
    Returns
    -------
    tuple of str                one for each stretch
    Raises
    ------
    ValueError, TypeError       as `lift`
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    x = checks.leaves("x", x, shapes=True)
    tracing.example_axes(x, examples)
    traced = _traced(apply, params, x, examples)
    return (*(layer.name for layer in traced.layers), *(() if traced.ends_in_layer else ("outputs",)))


def _kept(params, key, x):
    return params


def _last(params, y):
    return y


def _states(apply, params, x, probes, examples):
    traced = _traced(apply, params, x, examples)
    orders = _orders(traced)
    count = len(traced.layers) + (not traced.ends_in_layer)
    if probes is not None and len(probes) != count:
        raise ValueError(f"probes must hold one array for each of {count} stretches; got {len(probes)}")

    def visit(layer, state, probe):
        state = state if probe is None else state + probe
        return state, state

    given = None
    if probes is not None:
        pairs = zip(traced.layers, orders, probes, strict=False)
        given = [_to_steps(layer, order, probe) for layer, order, probe in pairs]
    outputs, found = traced.run(params, x, visit=visit, given=given)
    stretches = [_from_steps(layer, order, state) for layer, order, state in zip(traced.layers, orders, found)]
    if not traced.ends_in_layer:
        stretches.append((outputs if probes is None else outputs + probes[-1][0])[None])
    return tuple(stretches)


def _orders(traced):
    """Of each layer: its steps, as places in the flattened step axes, in call order."""
    orders = [[] for _ in traced.layers]
    for _, index, at in traced.entries:
        orders[index].append(int(np.ravel_multi_index(at, traced.layers[index].steps)) if at else 0)
    return [np.array(order) for order in orders]


def _from_steps(layer, order, state):
    return state.reshape(math.prod(layer.steps), *layer.shape)[order]


def _to_steps(layer, order, probe):
    return probe[np.argsort(order)].reshape(*layer.steps, *layer.shape)


def _traced(apply, params, x, examples):
    traced = tracing.trace(apply, params, x, examples=examples)
    if not traced.layers:
        raise checks.BadValue(
            "apply must contract a parameter with data (dot_general or convolution) at least once; got none: "
            "found no layer. "
            f"Parameters: {', '.join(traced.parameters) or 'none'}"
        )
    outputs = jax.tree.leaves(traced.outputs)
    if len(outputs) != 1 or not hasattr(traced.outputs, "shape") or not jnp.issubdtype(outputs[0].dtype, jnp.inexact):
        raise checks.BadType(f"apply must return one array of floating-point numbers [N, ...]; got {traced.outputs}")
    return traced
