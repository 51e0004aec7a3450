"""MEASURED: the loss at the points of a line or of a plane, in one compiled call."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from numdl import checks, precision, trees
from numdl._compiled import jit
from numdl.analysis import _parts, _samples
from numdl.records import record
from numdl.typing import Loss


@record
class Line:
    """The loss at params + position * direction."""

    positions: jax.Array  # [n]
    values: jax.Array  # [n]


@record
class Plane:
    """The loss at params + first * u + second * v."""

    first: jax.Array  # [n]
    second: jax.Array  # [m]
    values: jax.Array  # [n, m]


def line(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    along: PyTree,
    *,
    positions: ArrayLike,
    at_a_time: int | None = None,
    frozen: Sequence[str] = (),
) -> Line:
    """MEASURED loss on a line through params, a cut through the loss landscape.

    Parameters
    ----------
    loss : function             loss(params, batch) -> scalar
    params, batch : pytree      where the line passes, floating leaves [..] move; data [N, ...]
    along : pytree              like params: from `direction`, a gradient, an eigenvector
    positions : array [n]       multiples of `along`
    at_a_time : int >= 1        points at a time; None: 1 on a CPU, all elsewhere
    frozen : names              paths of leaves that stay, whatever `along` says
    Returns
    -------
    Line                        positions, values [n]
    Raises
    ------
    ValueError, TypeError       `along` not like params, positions not finite, a loss that is not a scalar
    Source: Goodfellow et al. 2015, arXiv:1412.6544.    Experiment: e9.
    """
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    along = _parts.inward("along", along, params, rest, moving)
    positions = checked_positions("positions", positions, moving)
    values = on_grid(loss, moving, rest, batch, (along,), (positions,), _samples.at_a_time(at_a_time, positions.size))
    return Line(positions, values)


def plane(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    u: PyTree,
    v: PyTree,
    *,
    first: ArrayLike,
    second: ArrayLike,
    at_a_time: int | None = None,
    frozen: Sequence[str] = (),
) -> Plane:
    """MEASURED loss landscape in the plane of two directions, all of it in one compiled call.

    Parameters
    ----------
    loss, params, batch, at_a_time, frozen : as in `line`
    u, v : pytrees              like params
    first, second : arrays [n], [m]     positions along u and v
    Returns
    -------
    Plane                       first [n], second [m], values [n, m]
    Raises
    ------
    ValueError, TypeError       a direction not like params, positions not finite, a loss that is not a scalar
    Source: Li et al. 2018, arXiv:1712.09913.    Experiment: e9.
    """
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    u, v = (_parts.inward(name, tree, params, rest, moving) for name, tree in (("u", u), ("v", v)))
    checks.finite("second", checks.array("second", second, ndim=1))  # before any work on the first
    first, second = checked_positions("first", first, moving), checked_positions("second", second, moving)
    size = _samples.at_a_time(at_a_time, first.size * second.size)
    return Plane(first, second, on_grid(loss, moving, rest, batch, (u, v), (first, second), size))


@functools.partial(jit, static_argnames="size")
def on_grid(loss, moving, rest, batch, directions, positions, size):
    """Values at all combinations of positions, [n] or [n, m]."""

    def one(place):
        moved = moving
        for step, along in zip(place, directions, strict=True):
            moved = trees.axpy(step, along, moved)
        return loss(rest.params(moved), batch)

    grid = jnp.meshgrid(*positions, indexing="ij")
    values = _samples.each(one, tuple(axis.ravel() for axis in grid), size)
    return values.reshape(grid[0].shape)


def checked_positions(name, positions, moving):
    positions = checks.finite(name, checks.array(name, positions, ndim=1))
    return jnp.asarray(positions, precision.wide(jnp.result_type(*jax.tree.leaves(moving))))
