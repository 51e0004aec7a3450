"""Gradient steps, compiled: `descend` as one pure scan, and the chunks that `fit` is made of.

A chunk is one program with a loop whose number of steps is an argument: chunks of every length run the same machine
code, so where the boundaries fall changes no bit of the result. The loop stops at the first loss that is not finite.
Nothing is donated: the state at the start of a chunk outlives it, and any step inside can be computed again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from numdl import checks


class State(NamedTuple):
    """What a step changes."""

    params: Any
    memory: Any  # the optimizer's


def descend(loss, params, optimizer, batches):
    """The parameters after one step for each batch, and the loss before each step; pure: jit, vmap and grad it.

        params <- params + update(gradient of loss(params, batch))

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    optimizer : GradientTransformation      of optax
    batches : pytree            every leaf [steps, ...]: data, or indices into data that the loss holds
    Returns
    -------
    params, losses              losses [steps]
    """
    import optax

    def step(state, batch):
        params, memory = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        update, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, update), memory), value

    (params, _), losses = lax.scan(step, (params, optimizer.init(params)), batches)
    return params, losses


def start(optimizer, params):
    """The state before the first step, in fixed dtypes: weakly typed leaves would change theirs in the first step."""
    params = jax.tree.map(jnp.asarray, params)
    return State(*jax.tree.map(_fixed, (params, optimizer.init(params))))


def bound(loss):
    """The loss as a pytree: arrays that a Partial binds are arguments of the compiled step, not constants in it."""
    if isinstance(loss, Partial):
        return loss
    try:
        hash(loss)
    except TypeError:
        return Partial(lambda *arguments: loss(*arguments))
    return Partial(loss)


def one_by_one(loss, state, batch, key):
    """Whether steps run as single programs: on a CPU, a convolution's weight gradient is slow inside of any loop."""
    if jax.default_backend() != "cpu":
        return False
    arguments = (batch,) if key is None else (batch, key)
    return "conv_general_dilated" in str(jax.make_jaxpr(jax.grad(loss))(state.params, *arguments))


def chunk(loss, optimizer, gather, state, data, rows, key, first, count, *, dtype, singly):
    """(state, losses, done, healthy): `count` steps from step `first` on, one for each of the first rows.

    `done` counts the steps taken, the one with a loss that is not finite included: it is the last. (Single programs
    go on past it; what they return is not used.) `healthy` says that the losses and the parameters are finite.
    """
    if not singly:
        empty = np.zeros(jax.tree.leaves(rows)[0].shape[0], dtype)
        return _loop(loss, optimizer, gather, state, data, rows, empty, key, first, count)
    losses = []
    for index in range(count):
        row = jax.tree.map(lambda leaf, index=index: leaf[index], rows)
        state, value = _single(loss, optimizer, gather, state, data, row, key, first + index)
        losses.append(value)
    losses = np.array([np.asarray(value) for value in losses], dtype)
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        return state, losses[: bad[0] + 1], bad[0] + 1, False
    return state, losses, count, finite(state.params)


@jax.jit
def finite(tree):
    """Whether every number of the tree is finite."""
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


@functools.partial(jax.jit, static_argnames=("optimizer", "gather"))
def _loop(loss, optimizer, gather, state, data, rows, empty, key, first, count):
    def go_on(carry):
        index, _, _, last = carry
        return (index < count) & jnp.isfinite(last)

    def body(carry):
        index, state, losses, _ = carry
        state, value = _step(loss, optimizer, gather, state, data, _row(rows, index), key, first + index)
        return index + 1, state, losses.at[index].set(value), value

    begin = jnp.zeros((), jnp.int32), state, empty, jnp.zeros((), empty.dtype)
    done, state, losses, last = lax.while_loop(go_on, body, begin)
    return state, losses, done, jnp.isfinite(last) & finite(state.params)


@functools.partial(jax.jit, static_argnames=("optimizer", "gather"))
def _single(loss, optimizer, gather, state, data, row, key, step):
    return _step(loss, optimizer, gather, state, data, row, key, step)


def _step(loss, optimizer, gather, state, data, row, key, step):
    import optax

    batch = gather(data, row)
    arguments = (batch,) if key is None else (batch, jax.random.fold_in(key, step))
    value, gradient = jax.value_and_grad(loss)(state.params, *arguments)
    # Line searches and plateaus ask for more than the gradient; the others ignore it.
    more = {"value": value, "grad": gradient, "value_fn": lambda params: loss(params, *arguments)}
    update = optax.with_extra_args_support(optimizer).update
    change, memory = update(gradient, state.memory, state.params, **more)
    new = State(optax.apply_updates(state.params, change), memory)
    return jax.tree.map(kept, new, state), value


def _row(rows, index):
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), rows)


def _fixed(leaf):
    return leaf if checks.is_key(leaf) else jnp.asarray(leaf, jnp.asarray(leaf).dtype)


def kept(new, old):
    """A step keeps its dtypes, whatever a schedule in float64 makes of them."""
    return new if checks.is_key(old) else jnp.asarray(new, old.dtype)
