"""Gradient steps, compiled: `descend` as one pure scan, and the chunks that `fit` is made of.

A chunk is one program with a loop whose number of steps is an argument: chunks of every length run the same machine
code, compiled in the one way (runs=None), so where the boundaries fall changes no bit of the result. The loop
stops at the first loss that is not finite.
Nothing is donated: the state at the start of a chunk outlives it, and any step inside can be computed again.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from numdl import checks, trees
from numdl._compiled import compiled, jit
from numdl._hyperparameters import as_data
from numdl.tracing._programs import bodies
from numdl.typing import Loss

if TYPE_CHECKING:
    import optax


class State(NamedTuple):
    """What a step changes."""

    params: Any
    memory: Any  # the optimizer's


def descend(
    loss: Loss, params: PyTree, optimizer: "optax.GradientTransformation", batches: PyTree
) -> tuple[PyTree, Float[Array, "steps"]]:
    """The parameters after one step for each batch, and the loss before each step; pure: jit, vmap and grad it.

        params <- params + update(gradient of loss(params, batch))

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    optimizer : GradientTransformation      of optax
    batches : pytree            every leaf [steps, ...]: data, or indices into data that the loss holds
    Returns
    -------
    params, losses              losses [steps]
    Raises
    ------
    TypeError, ValueError       a loss that is not a real scalar, not an optax transformation, leaves with different
                                numbers of steps, params without a floating leaf
    Source: the definition of gradient descent.
    """
    loss = checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    transformation("optimizer", optimizer)
    batches = steps_of_batches(batches)
    moving, rest = trees.trainable(params)
    moving, losses = _descend(loss, as_data(optimizer), moving, rest, batches)
    return rest.params(moving), losses


def transformation(name, value):
    """An optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise checks.BadType(f"{name} must be an optax transformation, optax.adam(1e-3); got {value!r}")
    return value


def steps_of_batches(batches):
    """Leaves [steps, ...] with one number of steps, as arrays."""
    batches = checks.leaves("batches", batches)
    checks.length("batches", batches, of="steps")
    return batches


def start(optimizer, params):
    """The state before the first step, in fixed dtypes: weakly typed leaves would change theirs in the first step."""
    moving, rest = trees.trainable(params)
    # Copies: what the caller writes into an array of NumPy's later is not seen here.
    params = jax.tree.map(_fixed, rest.params(moving))
    return State(params, jax.tree.map(_fixed, optimizer.init(trees.trainable(params)[0])))


def bound(loss):
    """The loss as a pytree: arrays that a Partial binds are arguments of the compiled step, not constants in it."""
    if isinstance(checks.function("loss", loss), Partial):
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
    return _convolves(_slope.trace(loss, state.params, *arguments).jaxpr.jaxpr)


def chunk(loss, optimizer, gather, state, data, rows, key, first, count, *, dtype, singly):
    """(state, losses, done, healthy): `count` steps from step `first` on, one for each of the first rows.

    `done` counts the steps taken, the one with a loss that is not finite included: it is the last. (Single programs
    go on past it; what they return is not used.) `healthy` says that the losses and the parameters are finite.
    """
    optimizer = as_data(optimizer)
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
    """Whether every number of the tree is finite; whole numbers, bools and keys are."""
    inexact = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in inexact], jnp.ones((), bool))


@compiled
def _descend(loss, optimizer, moving, rest, batches):
    import optax

    def step(state, batch):
        moving, memory = state
        value, gradient = jax.value_and_grad(lambda moving: loss(rest.params(moving), batch))(moving)
        update, memory = optimizer.update(gradient, memory, moving)
        return (optax.apply_updates(moving, update), memory), value

    (moving, _), losses = lax.scan(step, (moving, optimizer.init(moving)), batches)
    return moving, losses


@functools.partial(jit, static_argnames="gather", runs=None)
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


@functools.partial(jit, static_argnames="gather", runs=None)
def _single(loss, optimizer, gather, state, data, row, key, step):
    return _step(loss, optimizer, gather, state, data, row, key, step)


def _step(loss, optimizer, gather, state, data, row, key, step):
    import optax

    batch = gather(data, row)
    arguments = (batch,) if key is None else (batch, jax.random.fold_in(key, step))
    # The optimizer sees what moves, and only that.
    moving, rest = trees.trainable(state.params)

    def here(moving):
        return loss(rest.params(moving), *arguments)

    value, gradient = jax.value_and_grad(here)(moving)
    # Line searches and plateaus ask for more than the gradient; the others ignore it.
    more = {"value": value, "grad": gradient, "value_fn": here}
    update = optax.with_extra_args_support(optimizer).update
    change, memory = update(gradient, state.memory, moving, **more)
    new = State(rest.params(optax.apply_updates(moving, change)), memory)
    return jax.tree.map(kept, new, state), value


def _convolves(jaxpr):
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_convolves(getattr(body, "jaxpr", body)) for body in bodies(equation))
        for equation in jaxpr.eqns
    )


@jit
def _slope(loss, params, *arguments):
    moving, rest = trees.trainable(params)
    return jax.grad(lambda moving: loss(rest.params(moving), *arguments))(moving)


def _row(rows, index):
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), rows)


def _fixed(leaf):
    if isinstance(leaf, jax.Array):
        return leaf if checks.is_key(leaf) else jnp.asarray(leaf, leaf.dtype)
    return jnp.array(leaf, jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype))


def kept(new, old):
    """A step keeps its dtypes, whatever a schedule in float64 makes of them."""
    return new if checks.is_key(old) else jnp.asarray(new, old.dtype)
