"""MEASURED: what `robustness` computes once its arguments are checked; attacks on a batch, walks for each example."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from numdl import _effort, _random
from numdl._compiled import jit
from numdl.precision import widen

OVERSHOOT = 1.02  # of a step to the linearized boundary, so that a curved one is crossed
HALVINGS = 30


def _rows(values, like):
    """[N] with as many axes as `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def _size(way, norm):
    """Length of each row, [N]."""
    flat = way.reshape(len(way), -1)
    return jnp.max(jnp.abs(flat), axis=1) if norm == "max" else jnp.linalg.norm(flat, axis=1)


def _unit(slope, norm):
    if norm == "max":
        return jnp.sign(slope)
    # Scaled first: squares of tiny slopes would be 0
    scaled = slope / _rows(_or_one(_size(slope, "max")), slope)
    return scaled / _rows(_or_one(_size(scaled, norm)), slope)


def _or_one(size):
    return jnp.where(size == 0, jnp.ones_like(size), size)


def _projected(x, center, radius, norm, bounds):
    way = x - center
    if norm == "max":
        way = jnp.clip(way, -radius, radius)
    else:
        size = _size(way, norm)
        way = way * _rows(jnp.minimum(1.0, radius / _or_one(size)).astype(way.dtype), way)
    return center + way if bounds is None else jnp.clip(center + way, *bounds)


@functools.partial(_effort.jit, static_argnames="norm")
def drawn(key, x, norm):
    """Uniform in the unit ball, for every example."""
    if norm == "max":
        return _random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
    shell, depth = jax.random.split(key)
    way = _unit(_random.normal(shell, x.shape, x.dtype), norm)
    share = _random.uniform(depth, x.shape[:1], x.dtype) ** (len(x) / x.size)
    return way * _rows(share, x)


@functools.partial(jit, static_argnames=("steps", "norm"))
def attacked(apply, loss, params, center, targets, start, radius, step, bounds, *, steps, norm):
    """(x, distances [N], whether nothing has moved [N]) after the steps of an attack."""
    radius, step = (jnp.asarray(value, center.dtype) for value in (radius, step))
    slope = jax.grad(lambda x: loss(apply(params, x), targets))

    def move(state, _):
        x, stuck = state
        g = slope(x)
        moved = _projected(x + step * _unit(g, norm), center, radius, norm, bounds)
        return (moved, stuck & (_size(g, "max") == 0)), None

    begin = _projected(start, center, radius, norm, bounds)
    (x, stuck), _ = lax.scan(move, (begin, jnp.ones(len(center), bool)), length=steps)
    return x, _size(x - center, norm), stuck


def _of_one(apply, params, like):
    """The outputs of one example, flat [n] -> [k]."""
    return lambda z: apply(params, z.reshape(1, *like.shape[1:]))[0]


def _nearest(f, z, label, norm):
    """(distance to the nearest class's linearized boundary, the step there)."""
    outputs, slopes = f(z), jax.jacrev(f)(z)
    gaps, ways = outputs[label] - outputs, slopes - slopes[label][None]
    dual = jnp.sum(jnp.abs(ways), axis=1) if norm == "max" else jnp.linalg.norm(ways, axis=1)
    other = (jnp.arange(len(gaps)) != label) & (dual > 0)
    distances = jnp.where(other, gaps / _or_one(dual), jnp.inf)
    k = jnp.argmin(distances)
    return distances[k], ways[k] / _or_one(dual)[k] * distances[k]


@functools.partial(jit, static_argnames="norm")
def linear(apply, params, x, norm):
    """Distances [N] to the nearest linearized boundary."""
    f = _of_one(apply, params, x)
    return lax.map(lambda z: _nearest(f, z, jnp.argmax(f(z)), norm)[0], x.reshape(len(x), -1))


@functools.partial(jit, static_argnames="steps")
def crossed(apply, params, x, steps):
    """(points, distances, classes, whether found), each [N, ...]."""
    f = _of_one(apply, params, x)
    ends, labels, found = lax.map(Partial(_walk, f, steps), x.reshape(len(x), -1))
    distance = jnp.linalg.norm(ends - x.reshape(ends.shape), axis=1)
    return ends.reshape(x.shape), jnp.where(found, distance, jnp.nan), labels, found


def _walk(f, steps, z):
    """(a point of another class on the segment to where linearization led, its class, whether there is one)."""
    label = jnp.argmax(f(z))

    def ahead(state):
        at, count = state
        return (jnp.argmax(f(at)) == label) & (count < steps) & jnp.all(jnp.isfinite(at))

    def step(state):
        at, count = state
        way = _nearest(f, at, label, "euclidean")[1]
        # On the boundary itself the step is 0: a nudge of rounding's size crosses it
        nudge = 1 + OVERSHOOT * 4 * jnp.finfo(at.dtype).eps
        return ((at + (OVERSHOOT * way) * nudge).astype(at.dtype), count + 1)

    end, _ = lax.while_loop(ahead, step, (z, 0))
    found = jnp.all(jnp.isfinite(end)) & (jnp.argmax(f(end)) != label)

    def halve(_, ends):
        near, far = ends
        middle = (near + far) / 2
        across = jnp.argmax(f(middle)) != label
        return jnp.where(across, near, middle), jnp.where(across, middle, far)

    _, far = lax.fori_loop(0, HALVINGS, halve, (z, end))
    return far, jnp.argmax(f(far)), found


@jit
def norms(apply, params, x):
    """Spectral norms of the Jacobians, [N]."""
    f = _of_one(apply, params, x)
    return lax.map(lambda z: jnp.linalg.norm(widen(jax.jacrev(f)(z)), ord=2), x.reshape(len(x), -1))
