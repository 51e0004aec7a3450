"""MEASURED: the same training at several widths: networks of all seeds in one program per width."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numdl import checks, trees


class Built(NamedTuple):
    """The networks of one width."""

    width: int
    apply: Any
    params: Any  # every leaf [seeds, ...]
    seeds: int


def built(build, width, seeds):
    """The networks of one width, one for each seed."""
    pairs = [pair(build, width, seed, seeds) for seed in range(seeds)]
    params = [checks.leaves("params", params) for _, params in pairs]
    trees.trainable(params[0])
    return Built(width, pairs[0][0], _stacked(params), seeds)


def check_build(build, seeds):
    """A function of the width, and of a seed where there are several."""
    checks.accepts("build", build, 1 if seeds == 1 else 2, "build(width)" if seeds == 1 else "build(width, seed)")
    return build


def transformation(name, optimizer, *arguments):
    """The optax transformation that is given, or that a function of these arguments returns."""
    made = optimizer if _is_transformation(optimizer) else checks.function(name, optimizer)(*arguments)
    if not _is_transformation(made):
        raise checks.BadType(f"{name} must give an optax transformation, with init and update; got {made!r}")
    return made


def check_optimizer(name, optimizer):
    """A transformation, or a function that makes one."""
    if not _is_transformation(optimizer) and not (callable(optimizer) and _takes_one(optimizer)):
        raise checks.BadType(
            f"{name} must be an optax transformation or a function that returns one; got {optimizer!r}"
        )
    return optimizer


def half_squares(outputs, targets):
    """Half the squared error of an example, in the mean."""
    return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1)) / 2


def check_batch(batch, loss):
    """(x, targets) and the loss of outputs and targets."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise checks.BadType(f"batch must be a pair (x, targets); got {checks.shown(batch)}")
    loss = half_squares if loss is None else checks.accepts("loss", loss, 2, "loss(outputs, targets)")
    return tuple(checks.leaves("batch", part) for part in batch), loss


def _is_transformation(value):
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def _takes_one(function):
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def pair(build, width, seed, seeds):
    """(apply, params) of one network."""
    pair = build(width) if seeds == 1 else build(width, seed)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[0]):
        raise checks.BadType(f"build must return (apply, params); got {checks.shown(pair)} at width {width}")
    return pair


def _stacked(params):
    """Leaves with the seeds in front; the structure of the first, whatever static fields the others have."""
    leaves = zip(*(jax.tree.leaves(one) for one in params), strict=True)
    return jax.tree.unflatten(jax.tree.structure(params[0]), [jnp.stack(each) for each in leaves])
