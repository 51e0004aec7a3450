"""MEASURED: the loss along lines, in planes and between solutions, and where its gradient is 0.

    direction, plane_of_trajectory      where to look: random, with the filters' sizes; the plane of a training
    line, plane                         the loss there, in one compiled call
    interpolation, connect, align       paths between two solutions: straight, curved, after sorting the hidden units
    critical_point                      a point without gradient, and how many directions lead down from it

`loss(params, batch)` is a scalar, nothing random in it, batch statistics frozen. On a CPU the points of a grid are
computed one after the other, elsewhere together; `batch_size` changes that.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from numdl import checks, trees
from numdl.analysis.alignment import Alignment, align
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

_VECTORS = {"b", "bias", "scale", "offset", "gain", "gamma", "beta", "mean", "var"}


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


@record
class CriticalPoint:
    """Where the search for a vanishing gradient ended."""

    params: Any  # pytree
    loss: jax.Array  # []
    gradient_norm: jax.Array  # []
    eigenvalues: jax.Array  # [n]: of the Hessian, ascending
    index: jax.Array  # []: how many are negative, beyond rounding: 0 at a minimum
    flat: jax.Array  # []: how many are 0 within rounding
    steps: jax.Array  # []
    converged: jax.Array  # [] bool: the gradient is below the tolerance


def direction(key, params, *, normalize="filter", vectors=False):
    """A random direction in parameter space, each filter as long as the one in `params`.

        d_f <- d_f |w_f| / |d_f|,   d ~ N(0, 1)

    A filter is what feeds one output unit: all axes of a leaf but its last, and but the first of stacked leaves (3 or
    5 axes: depth first). Biases and norm scales (one axis, or a name such as "bias", "scale") are left where they are.
    A filter that is 0 does not move; nothing is divided by 0.

    Parameters
    ----------
    normalize : "filter" | "layer" | "none"     the length of each filter, of each leaf, or no change
    vectors : bool              move biases and norm scales too, each leaf as a whole
    Source: Li et al. 2018, arXiv:1712.09913, section 4.
    """
    checks.one_of("normalize", normalize, ("filter", "layer", "none"))
    checks.key("key", key)
    return _direction(key, params, normalize=normalize, vectors=bool(vectors))


def line(loss, params, batch, along, *, positions, batch_size=None):
    """MEASURED loss on a line through params: a `Line`.

    Parameters
    ----------
    loss : function             loss(params, batch) -> scalar
    along : pytree              like params: from `direction`, a gradient, an eigenvector
    positions : array [n]
    batch_size : int            points at a time; None: 1 on a CPU, all elsewhere
    """
    checks.function("loss", loss)
    along = checks.like("along", along, params)
    positions = _positions("positions", positions, params)
    values = _on_grid(_partial(loss), params, batch, (along,), (positions,), _size(batch_size, positions.size))
    return Line(positions, values)


def plane(loss, params, batch, u, v, *, first, second, batch_size=None):
    """MEASURED loss in the plane of two directions, all of it in one compiled call: a `Plane`.

    Parameters
    ----------
    u, v : pytrees              like params
    first, second : arrays [n], [m]     positions along u and v
    batch_size : int            points at a time; None: 1 on a CPU, all elsewhere
    """
    checks.function("loss", loss)
    u, v = checks.like("u", u, params), checks.like("v", v, params)
    first, second = _positions("first", first, params), _positions("second", second, params)
    size = _size(batch_size, first.size * second.size)
    return Plane(first, second, _on_grid(_partial(loss), params, batch, (u, v), (first, second), size))


@jax.jit
def plane_of_trajectory(trajectory):
    """The plane of the two largest principal components of a trajectory, about its last point: a `TrajectoryPlane`.

    Parameters
    ----------
    trajectory : pytree         params with a leading axis T >= 3
    Source: Li et al. 2018, arXiv:1712.09913, section 7. A random walk looks flat too: see Antognini & Sohl-Dickstein
            2018, arXiv:1806.08805.
    """
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(trajectory)}
    if len(lengths) != 1 or min(lengths) < (3,):
        raise ValueError(f"trajectory must be params with one leading axis T >= 3; got leading axes {sorted(lengths)}")
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    rows = jax.vmap(lambda point: trees.ravel(jax.tree.map(jnp.subtract, point, last))[0])(trajectory)
    centered = rows - jnp.mean(rows, axis=0, keepdims=True)
    squares, weights = jnp.linalg.eigh(jnp.matmul(centered, centered.T, precision="highest"))
    basis = weights[:, :-3:-1].T @ centered  # T x T, not a decomposition of T x parameters
    basis = jnp.stack([_unit(basis[0]), _unit(basis[1] - jnp.vdot(_unit(basis[0]), basis[1]) * _unit(basis[0]))])
    unravel = trees.ravel(last)[1]
    shares = jnp.maximum(squares[:-3:-1], 0) / jnp.maximum(jnp.sum(squares), jnp.finfo(squares.dtype).tiny)
    return TrajectoryPlane(last, (unravel(basis[0]), unravel(basis[1])), rows @ basis.T, shares)


def interpolation(loss, start, stop, batch, *, points=51, batch_size=None):
    """MEASURED loss on the straight line between two parameters: a `Path` with barrier and largest rise.

        barrier = max over t of L(t) - ((1 - t) L(0) + t L(1))

    From initialization to solution the loss is often monotone (Goodfellow et al. 2015); between two solutions that
    shared their first steps there is often no barrier (Frankle et al. 2020).
    Source: Goodfellow et al. 2015, arXiv:1412.6544; Frankle et al. 2020, arXiv:1912.05671.
    """
    checks.function("loss", loss)
    stop = checks.like("stop", stop, start, of="start")
    points = checks.whole("points", points, least=3)
    positions = _positions("points", np.linspace(0, 1, points), start)
    along = jax.tree.map(jnp.subtract, stop, start)
    size = _size(batch_size, points)
    return _path(positions, _on_grid(_partial(loss), start, batch, (along,), (positions,), size))


def connect(key, loss, start, stop, batch, *, steps, learning_rate, points=51):
    """MEASURED curve of low loss between two solutions: a `Connection`, its middle found by Adam at random t.

    Parameters
    ----------
    steps : int                 one random t each, the whole batch
    learning_rate : scalar      of Adam
    Source: Garipov et al. 2018, arXiv:1802.10026, eq. (2) and the Bezier curve.
    """
    checks.key("key", key)
    checks.function("loss", loss)
    checks.whole("steps", steps)
    checks.positive("learning_rate", learning_rate, shape=())
    points = checks.whole("points", points, least=3)
    straight = interpolation(loss, start, stop, batch, points=points)
    rate = jnp.asarray(learning_rate, jnp.float32)
    middle, losses, values = _connect(key, _partial(loss), start, stop, batch, rate, straight.positions, steps=steps)
    return Connection(middle, _path(straight.positions, values), straight, losses)


def critical_point(loss, params, batch, *, steps=200, tolerance=1e-6, damping=1e-3):
    """MEASURED point near params where the gradient vanishes, a saddle as well as a minimum: a `CriticalPoint`.

        step = -H (H H + damping |g| 1)^{-1} g,    halved until |g| falls: descent on |g|^2 / 2

    The Hessian is a matrix here: for up to a few thousand parameters.

    Parameters
    ----------
    steps : int                 at most
    tolerance : scalar          of the gradient's norm; `converged` says whether it was reached
    damping : scalar            >= 0
    Source: Pennington & Bahri 2017, ICML; Frye et al. 2021, arXiv:2003.10397 (|g|^2 has other minima: `converged`).
    """
    checks.function("loss", loss)
    checks.whole("steps", steps)
    for name, value in (("tolerance", tolerance), ("damping", damping)):
        checks.finite(name, value, least=0.0, shape=())
    return _critical_point(_partial(loss), params, batch, steps, tolerance, damping)


# ---- grids ---------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="size")
def _on_grid(loss, params, batch, directions, positions, size):
    """Values at all combinations of positions, [n] or [n, m]."""

    def one(place):
        moved = params
        for step, along in zip(place, directions, strict=True):
            moved = trees.axpy(step, along, moved)
        return loss(moved, batch)

    grid = jnp.meshgrid(*positions, indexing="ij")
    values = lax.map(one, tuple(axis.ravel() for axis in grid), batch_size=size if size > 1 else None)
    return values.reshape(grid[0].shape)


def _size(batch_size, points):
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else points
    return min(checks.whole("batch_size", batch_size), points)


def _positions(name, positions, params):
    checks.finite(name, positions, shape=(np.size(positions),))
    real = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.asarray(positions, jnp.promote_types(jnp.result_type(*real), jnp.float32))


@functools.partial(jax.jit, static_argnames=("normalize", "vectors"))
def _direction(key, params, normalize, vectors):
    noise = jax.tree.leaves(trees.random_like(key, params))
    leaves, structure = jax.tree.flatten(params)
    triples = zip(trees.names(params), noise, leaves, strict=True)
    return jax.tree.unflatten(structure, [_normalized(*triple, normalize, vectors) for triple in triples])


def _normalized(name, noise, leaf, normalize, vectors):
    is_vector = jnp.ndim(leaf) <= 1 or name.rpartition("/")[2] in _VECTORS
    if is_vector and not vectors:
        return jnp.zeros_like(noise)
    if normalize == "none":
        return noise
    axes = None
    if normalize == "filter" and not is_vector:
        axes = tuple(range(1 if jnp.ndim(leaf) in (3, 5) else 0, jnp.ndim(leaf) - 1))
    lengths = [jnp.sqrt(jnp.sum(a**2, axis=axes, keepdims=True)) for a in (noise, leaf)]
    return noise * (lengths[1] / jnp.where(lengths[0] > 0, lengths[0], jnp.ones_like(lengths[0])))


# ---- paths ---------------------------------------------------------------------------------------------------------


def _path(positions, values):
    chord = (1 - positions) * values[0] + positions * values[-1]
    lowest = lax.cummin(values)
    return Path(positions, values, jnp.max(values - chord), jnp.max(values - lowest))


@functools.partial(jax.jit, static_argnames="steps")
def _connect(key, loss, start, stop, batch, rate, positions, steps):
    import optax

    def at(middle, t):
        def point(a, m, b):
            return ((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b).astype(m.dtype)

        return jax.tree.map(point, start, middle, stop)

    def step(state, key):
        middle, memory = state
        t = jax.random.uniform(key, (), positions.dtype)
        value, gradient = jax.value_and_grad(lambda middle: loss(at(middle, t), batch))(middle)
        update, memory = optimizer.update(gradient, memory, middle)
        return (optax.apply_updates(middle, update), memory), value

    optimizer = optax.adam(rate)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, start, stop)
    (middle, _), losses = lax.scan(step, (middle, optimizer.init(middle)), jax.random.split(key, steps))
    return middle, losses, lax.map(lambda t: loss(at(middle, t), batch), positions)


# ---- critical points -----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="steps")
def _critical_point(loss, params, batch, steps, tolerance, damping):
    flat, unravel = trees.ravel(params)

    def value(vector):
        return loss(unravel(vector), batch)

    gradient, hessian = jax.grad(value), jax.hessian(value)

    def unfinished(state):
        _, norm, count, stuck = state
        return (norm > tolerance) & (count < steps) & ~stuck

    def step(state):
        vector, norm, count, _ = state
        g, h = gradient(vector), hessian(vector)
        values, vectors = jnp.linalg.eigh(h)
        squares = values**2 + damping * norm
        alive = squares > 0
        inverse = jnp.where(alive, values / jnp.where(alive, squares, jnp.ones_like(squares)), jnp.zeros_like(squares))
        toward = -vectors @ (inverse * (vectors.T @ g))
        sizes = 0.5 ** jnp.arange(20, dtype=flat.dtype)
        norms = lax.map(lambda size: jnp.linalg.norm(gradient(vector + size * toward)), sizes)
        better = norms < norm
        size = sizes[jnp.argmax(better)]
        found = jnp.any(better)
        vector = jnp.where(found, vector + size * toward, vector)
        return vector, jnp.where(found, jnp.linalg.norm(gradient(vector)), norm), count + 1, ~found

    first = flat, jnp.linalg.norm(gradient(flat)), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    vector, norm, count, _ = lax.while_loop(unfinished, step, first)
    eigenvalues = jnp.linalg.eigvalsh(hessian(vector))
    # A flat direction's eigenvalue is rounding, or as small as what is left of the gradient.
    edge = flat.size * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(eigenvalues)) + norm
    index, level = jnp.sum(eigenvalues < -edge), jnp.sum(jnp.abs(eigenvalues) <= edge)
    return CriticalPoint(unravel(vector), value(vector), norm, eigenvalues, index, level, count, norm <= tolerance)


def _unit(vector):
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)
