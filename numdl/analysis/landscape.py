"""MEASURED: the loss along lines, in planes and between solutions, and where its gradient is 0.

    direction, plane_of_trajectory      where to look: random, with the filters' sizes; the plane of a training
    line, plane                         the loss there, in one compiled call
    interpolation, connect, align       paths between two solutions: straight, curved, after sorting the hidden units
    critical_point                      a point without gradient, and how many directions lead down from it

`loss(params, batch)` is a scalar, nothing random in it. Real floating leaves of params move, complex ones as two reals;
all else stays as it is, and what `frozen` names: batch statistics, for one. On a CPU the points of a grid are computed
one after the other, elsewhere together; `at_a_time` changes that.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import checks, precision, trees
from numdl.analysis import _parts, _samples, filters
from numdl.analysis._alignment import Alignment, align
from numdl.analysis.critical import CriticalPoint, critical_point
from numdl.records import record

__all__ = [
    "Alignment",
    "Connection",
    "CriticalPoint",
    "Line",
    "Path",
    "Plane",
    "TrajectoryPlane",
    "align",
    "connect",
    "critical_point",
    "direction",
    "interpolation",
    "line",
    "plane",
    "plane_of_trajectory",
]


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


@record
class TrajectoryPlane:
    """The plane in which a trajectory varies most, through its last point."""

    origin: Any  # pytree: the last params
    directions: tuple  # two pytrees of norm 1, orthogonal
    coordinates: jax.Array  # [T, 2]: of the trajectory's points in it
    explained: jax.Array  # [2]: shares of the trajectory's variance


@record
class Path:
    """The loss between two parameters, t = 0 to 1."""

    positions: jax.Array  # [n]
    values: jax.Array  # [n]
    barrier: jax.Array  # []: the most that the loss lies above the line between its end values, >= 0
    rise: jax.Array  # []: the largest sum of consecutive rises minus falls: 0 if the loss never rises

    @property
    def monotone(self):
        """Whether the loss never rises on the way from t = 0 to t = 1."""
        return self.rise == 0


@record
class Connection:
    """A Bezier curve of low loss, (1 - t)^2 start + 2 t (1 - t) middle + t^2 stop, beside the straight line."""

    middle: Any  # pytree
    curve: Path
    straight: Path
    losses: jax.Array  # [steps]: at the random t of each step


def direction(
    key,
    params,
    *,
    normalize="filter",
    vectors=False,
    apply=None,
    x=None,
    outputs=None,
    stacked=(),
    frozen=(),
):
    """A random direction in parameter space, each filter as long as the one in `params`.

        d_f <- d_f |w_f| / |d_f|,   d ~ N(0, 1)

    A filter is what feeds one output unit. With `apply` and `x` it is taken from how the call contracts the leaf; else
    it is all of a leaf but its last axis, unless `outputs` and `stacked` say otherwise. Vectors are left where they
    are: leaves that the call does not contract; without a call those of one axis. A filter that is 0 does not move.

    Parameters
    ----------
    normalize : "filter" | "layer" | "none"     the length of each filter, of each leaf, or no change
    vectors : bool              move biases and norm scales too, each leaf as a whole
    apply, x : function, pytree     apply(params, x), traced, not run
    outputs : int, tuple, or dict of them by path or glob   axes that number output units, None for a vector: 0 for
              (out, in, ...) of PyTorch and Equinox, (1, 2) for an attention query (features, heads, head_dim)
    stacked : paths or globs    leaves whose first axis is depth; without a call, which shows it
    frozen : names              paths of leaves that stay, beside those that are no floating-point numbers
    Raises
    ------
    ValueError, TypeError       a name that fits no leaf, an axis that is none, a leaf that a call uses in several ways
    Source: Li et al. 2018, arXiv:1712.09913, section 4.
    """
    checks.one_of("normalize", normalize, ("filter", "layer", "none"))
    checks.key("key", key)
    moving, rest = trees.trainable(params, frozen=frozen)
    found = filters.find(params, apply=apply, x=x, outputs=outputs, stacked=stacked)
    found = tuple(None if kind == "kept" else one for one, kind in zip(found, rest.kinds))
    nothing = trees.Rest(tuple(np.zeros(()) for _ in rest.kept), rest.structure, rest.kinds)
    vectors = checks.flag("vectors", vectors)
    return _parts.outward(rest.moving(_direction(key, nothing.params(moving), found, normalize, vectors)), rest)


def line(loss, params, batch, along, *, positions, at_a_time=None, frozen=()):
    """MEASURED loss on a line through params: a `Line`.

    Parameters
    ----------
    loss : function             loss(params, batch) -> scalar
    along : pytree              like params: from `direction`, a gradient, an eigenvector
    positions : array [n]
    at_a_time : int             points at a time; None: 1 on a CPU, all elsewhere
    frozen : names              paths of leaves that stay, whatever `along` says
    """
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    along = _parts.inward("along", along, params, rest, moving)
    positions = _positions("positions", positions, moving)
    values = _on_grid(loss, moving, rest, batch, (along,), (positions,), _samples.at_a_time(at_a_time, positions.size))
    return Line(positions, values)


def plane(loss, params, batch, u, v, *, first, second, at_a_time=None, frozen=()):
    """MEASURED loss in the plane of two directions, all of it in one compiled call: a `Plane`.

    Parameters
    ----------
    u, v : pytrees              like params
    first, second : arrays [n], [m]     positions along u and v
    at_a_time, frozen           those of `line`
    """
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    u, v = (_parts.inward(name, tree, params, rest, moving) for name, tree in (("u", u), ("v", v)))
    first, second = _positions("first", first, moving), _positions("second", second, moving)
    size = _samples.at_a_time(at_a_time, first.size * second.size)
    return Plane(first, second, _on_grid(loss, moving, rest, batch, (u, v), (first, second), size))


def plane_of_trajectory(trajectory, *, frozen=()):
    """The plane of the two largest principal components of a trajectory, about its last point: a `TrajectoryPlane`.

    Parameters
    ----------
    trajectory : pytree         params with a leading axis T >= 3
    frozen : names              paths of leaves that do not count: the origin holds their last values
    Source: Li et al. 2018, arXiv:1712.09913, section 7. A random walk looks flat too: see Antognini & Sohl-Dickstein
            2018, arXiv:1806.08805.
    """
    checks.length("trajectory", checks.leaves("trajectory", trajectory), of="points", least=3)
    moving, rest = trees.trainable(trajectory, frozen=frozen, name="trajectory")
    last, directions, coordinates, shares = _principal(moving)
    rest = jax.tree.map(lambda leaf: leaf[-1], rest)
    u, v = (_parts.outward(along, rest) for along in directions)
    return TrajectoryPlane(rest.params(last), (u, v), coordinates, shares)


@jax.jit
def _principal(trajectory):
    """(last point, two directions, coordinates [T, 2], shares [2])."""
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    rows = jax.vmap(lambda point: trees.ravel(jax.tree.map(jnp.subtract, point, last))[0])(trajectory)
    centered = rows - jnp.mean(rows, axis=0, keepdims=True)
    squares, weights = jnp.linalg.eigh(jnp.matmul(centered, centered.T, precision="highest"))
    basis = weights[:, :-3:-1].T @ centered  # T x T, not a decomposition of T x parameters
    basis = jnp.stack([_unit(basis[0]), _unit(basis[1] - jnp.vdot(_unit(basis[0]), basis[1]) * _unit(basis[0]))])
    unravel = trees.ravel(last)[1]
    shares = jnp.maximum(squares[:-3:-1], 0) / jnp.maximum(jnp.sum(squares), jnp.finfo(squares.dtype).tiny)
    return last, (unravel(basis[0]), unravel(basis[1])), rows @ basis.T, shares


def interpolation(loss, start, stop, batch, *, points=51, at_a_time=None, frozen=()):
    """MEASURED loss on the straight line between two parameters: a `Path` with barrier and largest rise.

        barrier = max over t of L(t) - ((1 - t) L(0) + t L(1))

    From initialization to solution the loss is often monotone (Goodfellow et al. 2015); between two solutions that
    shared their first steps there is often no barrier (Frankle et al. 2020). What does not move, leaves that are no
    floating-point numbers and those that `frozen` names, is that of `start` all along.
    Source: Goodfellow et al. 2015, arXiv:1412.6544; Frankle et al. 2020, arXiv:1912.05671.
    """
    points = checks.whole("points", points, least=3)
    loss, moving, rest, batch = _parts.opened(loss, start, batch, frozen, "start")
    stop, size = _parts.inward("stop", stop, start, rest, moving, of="start"), _samples.at_a_time(at_a_time, points)
    positions = _positions("points", np.linspace(0, 1, points), moving)
    along = jax.tree.map(jnp.subtract, stop, moving)
    return _path(positions, _on_grid(loss, moving, rest, batch, (along,), (positions,), size))


def connect(key, loss, start, stop, batch, *, steps, learning_rate, points=51, frozen=()):
    """MEASURED curve of low loss between two solutions: a `Connection`, its middle found by Adam at random t.

    Parameters
    ----------
    steps : int                 one random t each, the whole batch
    learning_rate : scalar      of Adam, which sees only what moves
    frozen : names              as for `interpolation`
    Source: Garipov et al. 2018, arXiv:1802.10026, eq. (2) and the Bezier curve.
    """
    checks.key("key", key)
    steps = checks.whole("steps", steps)
    rate = np.float32(checks.positive("learning_rate", learning_rate, shape=()))
    straight = interpolation(loss, start, stop, batch, points=points, frozen=frozen)
    loss, moving, rest, batch = _parts.opened(loss, start, batch, frozen, "start")
    ends = moving, _parts.inward("stop", stop, start, rest, moving, of="start")
    middle, losses, values = _connect(key, loss, ends, rest, batch, rate, straight.positions, steps=steps)
    return Connection(rest.params(middle), _path(straight.positions, values), straight, losses)


# ---- grids ---------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="size")
def _on_grid(loss, moving, rest, batch, directions, positions, size):
    """Values at all combinations of positions, [n] or [n, m]."""

    def one(place):
        moved = moving
        for step, along in zip(place, directions, strict=True):
            moved = trees.axpy(step, along, moved)
        return loss(rest.params(moved), batch)

    grid = jnp.meshgrid(*positions, indexing="ij")
    values = _samples.each(one, tuple(axis.ravel() for axis in grid), size)
    return values.reshape(grid[0].shape)


def _positions(name, positions, moving):
    positions = checks.finite(name, checks.array(name, positions, ndim=1))
    return jnp.asarray(positions, precision.wide(jnp.result_type(*jax.tree.leaves(moving))))


@functools.partial(jax.jit, static_argnames=("found", "normalize", "vectors"))
def _direction(key, params, found, normalize, vectors):
    noise = jax.tree.leaves(trees.random_like(key, params))
    leaves, structure = jax.tree.flatten(params)
    triples = zip(found, noise, leaves, strict=True)
    return jax.tree.unflatten(structure, [_normalized(*triple, normalize, vectors) for triple in triples])


def _normalized(filters, noise, leaf, normalize, vectors):
    if filters is None and not vectors:
        return jnp.zeros_like(noise)
    if normalize == "none":
        return noise
    axes = None
    if normalize == "filter" and filters is not None:
        axes = tuple(axis for axis in range(jnp.ndim(leaf)) if axis not in filters.kept)
    lengths = [jnp.sqrt(jnp.sum(jnp.abs(a) ** 2, axis=axes, keepdims=True)) for a in (noise, leaf)]
    return noise * (lengths[1] / jnp.where(lengths[0] > 0, lengths[0], jnp.ones_like(lengths[0])))


# ---- paths ---------------------------------------------------------------------------------------------------------


def _path(positions, values):
    chord = (1 - positions) * values[0] + positions * values[-1]
    lowest = lax.cummin(values)
    return Path(positions, values, jnp.max(values - chord), jnp.max(values - lowest))


@functools.partial(jax.jit, static_argnames="steps")
def _connect(key, loss, ends, rest, batch, rate, positions, steps):
    import optax

    start, stop = ends

    def value_at(middle, t):
        def point(a, m, b):
            return ((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b).astype(m.dtype)

        return loss(rest.params(jax.tree.map(point, start, middle, stop)), batch)

    def step(state, key):
        middle, memory = state
        t = jax.random.uniform(key, (), positions.dtype)
        value, gradient = jax.value_and_grad(value_at)(middle, t)
        update, memory = optimizer.update(gradient, memory, middle)
        return (optax.apply_updates(middle, update), memory), value

    optimizer = optax.adam(rate)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, start, stop)
    (middle, _), losses = lax.scan(step, (middle, optimizer.init(middle)), jax.random.split(key, steps))
    return middle, losses, lax.map(lambda t: value_at(middle, t), positions)


def _unit(vector):
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, jnp.ones_like(norm))
