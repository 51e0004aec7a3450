"""Where training broke: the step, and the first layer whose numbers were not finite.

A step has failed when its loss or the parameters that it made are not finite. The chunk in which that happened is
computed again, from the state before it, up to the failing step: that state is the last good one, to the bit.
"""

import jax
import jax.numpy as jnp

from numdl import trees
from numdl.optimize.train._stepping import finite
from numdl.tracing import trace


def last_good(replay, taken, loss_failed):
    """(how many steps were good, the state after them).

    Parameters
    ----------
    replay : function           steps -> state after this many steps of the chunk
    taken : int                 steps that were taken, the last of which failed, or made what is not finite
    loss_failed : bool          whether it was the last one's loss
    """
    # Parameters that are not finite never become finite again: the first such state is found by bisection.
    low, high = 0, taken - 1 if loss_failed else taken
    if loss_failed and finite(replay(high).params):
        return high, replay(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if finite(replay(middle).params) else (low, middle)
    return low, replay(low)


def first_layer(loss, params, batch, key, new_params):
    """What was not finite first, as text: a layer's state on the way forward, else the loss, a gradient, an update."""
    arguments = (batch,) if key is None else (batch, key)
    name = _first_state(loss, params, arguments)
    if name:
        return f"the state of layer {name!r}"
    moving, rest = trees.trainable(params)
    value, gradient = jax.value_and_grad(lambda moving: loss(rest.params(moving), *arguments))(moving)
    if not jnp.isfinite(value):
        return "the loss itself, all layers being finite"
    # Backwards: the last leaf is the first that the gradient reaches.
    for tree, what in ((gradient, "the gradient of"), (new_params, "the new value of")):
        wrong = [name for name, leaf in zip(trees.names(tree), jax.tree.leaves(tree)) if not finite(leaf)]
        if wrong:
            return f"{what} {wrong[-1]!r}"
    return "nothing that could be found again"


def _first_state(loss, params, arguments):
    """The path of the first layer in call order with a state that is not finite, or None."""
    traced = trace(lambda params, arguments: loss(params, *arguments), params, arguments)

    def visit(layer, state, given):
        return state, jnp.all(jnp.isfinite(state))

    _, found = traced.run(params, arguments, visit=visit)
    for name, index, steps in traced.entries:
        if not found[index][steps]:
            return name
    return None
