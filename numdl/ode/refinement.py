"""Parameters as functions of time: finer and coarser in depth, and the penalties that keep them smooth.

A leaf of theta has time as axis 0. interpolation="constant": one entry for each step, theta[n] on step n;
"linear": one for each grid time (one more than steps), straight in between. A network is refined by looking at the same
function of time on more steps, with h = T / steps.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from numdl import checks, trees
from numdl.precision import narrow, widen

INTERPOLATIONS = ("constant", "linear")


def prolong(theta: PyTree, *, steps: int, interpolation: str) -> PyTree:
    """The same function of time on a finer grid.

    Nothing is approximated: the finer grid holds the coarser one, so restrict(prolong(theta)) = theta.

    Parameters
    ----------
    theta : pytree              leaves [coarse steps, ...] or, if linear, [coarse steps + 1, ...]
    steps : int                 of the finer grid: a multiple of the coarse number
    interpolation : str         "constant" or "linear"
    Returns
    -------
    pytree                      leaves [steps, ...] or [steps + 1, ...]
    Raises
    ------
    ValueError, TypeError       steps is not a multiple, the leaves differ in length or are not floats
    """
    theta, coarse = _counted(theta, interpolation)
    steps = checks.whole("steps", steps)
    if steps % coarse:
        raise checks.BadValue(f"steps must be a multiple of the {coarse} steps that theta has; got {steps}")
    finer = functools.partial(_repeat if interpolation == "constant" else _fill, steps // coarse)
    return jax.tree.map(finer, theta)


def restrict(theta: PyTree, *, steps: int, interpolation: str) -> PyTree:
    """The nearest function of time on a coarser grid: means over the merged steps, or the values at the kept times.

    The means are the best approximation in L2 and keep the integral over time.

    Parameters
    ----------
    theta : pytree              leaves [fine steps, ...] or, if linear, [fine steps + 1, ...]
    steps : int                 of the coarser grid: it divides the number that theta has
    interpolation : str         "constant" or "linear"
    Returns
    -------
    pytree                      leaves [steps, ...] or [steps + 1, ...]
    Raises
    ------
    ValueError, TypeError       steps does not divide, the leaves differ in length or are not floats
    """
    theta, fine = _counted(theta, interpolation)
    steps = checks.whole("steps", steps)
    if fine % steps:
        raise checks.BadValue(f"steps must divide the {fine} steps that theta has; got {steps}")
    factor = fine // steps
    if interpolation == "linear":
        return jax.tree.map(lambda leaf: leaf[::factor], theta)
    return jax.tree.map(functools.partial(_means, steps, factor), theta)


def coarse_to_fine(train: Callable, theta: PyTree, *, steps: Sequence[int], interpolation: str) -> tuple[PyTree, ...]:
    """Train on a coarse grid, prolong, train on the next: the trained theta of every level, coarsest first.

    Parameters
    ----------
    train : function            (theta, number of steps) -> trained theta of the same shapes
    theta : pytree              the start, with steps[0] steps or a divisor of that
    steps : sequence of int     each a multiple of the one before
    interpolation : str         "constant" or "linear"
    Returns
    -------
    tuple of pytrees            one for each entry of steps
    Raises
    ------
    ValueError, TypeError       steps that are not multiples, no function, leaves that differ in length
    Source: Haber & Ruthotto 2017, arXiv:1705.03341; Haber, Ruthotto, Holtham & Jun 2018, arXiv:1703.02009.
    """
    checks.accepts("train", train, 2, "train(theta, steps)")
    numbers = checks.wholes("steps", steps)
    theta = checks.leaves("theta", theta)
    before = step_count(theta, interpolation=interpolation)
    for number in numbers:
        if number % before:
            raise checks.BadValue(f"steps must be multiples of those before, {before} of theta first; got {numbers}")
        before = number
    levels = []
    for number in numbers:
        theta = train(prolong(theta, steps=number, interpolation=interpolation), number)
        levels.append(theta)
    return tuple(levels)


def smoothness(theta: PyTree, *, step: ArrayLike, interpolation: str) -> Array:
    """Half the integral over time of |d theta / dt|^2: the regulariser of Meganet's opTimeDer.

        step / 2 * sum over l of |(theta[l + 1] - theta[l]) / step|**2

    Exact for "linear", over all of [t0, t1]. For "constant" it is exact for the straight lines between the midpoints of
    the steps, from the first midpoint to the last: jumps have no derivative. A single constant step gives 0.

    Parameters
    ----------
    theta : pytree              leaves [steps, ...] or, if linear, [steps + 1, ...]
    step : scalar               h = (t1 - t0) / steps > 0
    interpolation : str         "constant" or "linear"
    Returns
    -------
    scalar
    Raises
    ------
    ValueError, TypeError       a step that is not positive, leaves that differ in length or are not floats
    Source: Haber & Ruthotto 2017, arXiv:1705.03341; github.com/XtractOpen/Meganet.m
    """
    theta, _ = _counted(theta, interpolation)
    step = checks.positive("step", step, shape=())
    return _squares(jax.tree.map(lambda leaf: jnp.diff(leaf, axis=0), widen(theta))) / (2 * step)


def tikhonov(theta: PyTree, *, step: ArrayLike, interpolation: str) -> Array:
    """Half the integral over time of |theta|^2, exact for both interpolations.

        constant    step / 2 * sum over steps of |theta[l]|**2
        linear      step / 6 * sum over steps of |theta[l]|**2 + theta[l] . theta[l + 1] + |theta[l + 1]|**2

    Parameters
    ----------
    theta : pytree              leaves [steps, ...] or, if linear, [steps + 1, ...]
    step : scalar               h = (t1 - t0) / steps > 0
    interpolation : str         "constant" or "linear"
    Returns
    -------
    scalar
    Raises
    ------
    ValueError, TypeError       a step that is not positive, leaves that differ in length or are not floats
    Source: elementary.
    """
    theta, _ = _counted(theta, interpolation)
    step = checks.positive("step", step, shape=())
    if interpolation == "constant":
        return step / 2 * _squares(theta)
    left, right = (jax.tree.map(lambda leaf, s=s: leaf[s], theta) for s in (slice(None, -1), slice(1, None)))
    return step / 6 * (_squares(left) + jnp.real(trees.inner(left, right)) + _squares(right))


def step_count(theta: PyTree, *, interpolation: str) -> int:
    """The number of steps that theta's leaves have.

    Parameters
    ----------
    theta : pytree              leaves [steps, ...] or, if linear, [steps + 1, ...]
    interpolation : str         "constant" or "linear"
    Raises
    ------
    ValueError, TypeError       leaves that differ in length, are too short or are not floats
    """
    return _counted(theta, interpolation, shapes=True)[1]


def _counted(theta, interpolation, shapes=False):
    """(theta, native; the number of its steps)."""
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    theta = checks.floats("theta", theta, shapes=shapes)
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(theta)}
    least = 1 + (interpolation == "linear")
    if len(lengths) != 1 or min(lengths) < least:
        raise checks.BadValue(
            f"theta must have leaves of one length >= {least} along axis 0; got lengths {sorted(lengths)}"
        )
    return theta, lengths.pop() - (interpolation == "linear")


def _repeat(factor, leaf):
    return jnp.repeat(leaf, factor, axis=0)


def _means(steps, factor, leaf):
    return narrow(widen(leaf).reshape(steps, factor, *jnp.shape(leaf)[1:]).mean(axis=1), leaf)


def _fill(factor, leaf):
    """`factor` points for every interval, by weights that are exact at the old times."""
    wide = widen(leaf)
    part = (jnp.arange(factor, dtype=wide.dtype) / factor).reshape(1, factor, *[1] * (wide.ndim - 1))
    inner = wide[:-1, None] * (1 - part) + wide[1:, None] * part
    points = inner.reshape(inner.shape[0] * factor, *wide.shape[1:])
    return narrow(jnp.concatenate([points, wide[-1:]]), leaf)


def _squares(theta):
    return jnp.real(trees.inner(theta, theta))
