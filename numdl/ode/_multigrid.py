"""Multigrid reduction over a recurrence: its slices are travelled side by side, a coarser recurrence joins them.

A level holds the steps y[n+1] = step(y[n], shared, drive[n]) and cuts them into slices. Its points are the states where
slices begin, and the last one. One cycle, with F one whole slice and G the coarse step over it:

    relax       points[j+1] = F(points[j])                              this many times, all slices at once
    correct     new[j+1] = F(points[j]) + (G(new[j]) - G(points[j]))    a sweep, or the same cycle one level down

Two levels without relaxation are parareal. On a coarser level the step is the corrected one, in full approximation; in
this order of the sum a slice whose beginning is exact has an exact end, to the last bit of F.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from numdl import trees


class Level(NamedTuple):
    """The steps of one level and how they are cut."""

    step: Callable  # (y, shared, x) -> y_new
    shared: Any
    drive: Any  # leaves [steps, ...]
    slices: int  # a divisor of steps
    shift: Any = None  # (ends, guesses), leaves [steps, ...]: y_new = ends + (step(...) - guesses)


class Spread(NamedTuple):
    """Where slices are travelled: on one device, or along one axis of a mesh."""

    mesh: Any = None
    axis: Any = None

    def __call__(self, function, shared, *rows):
        """function(shared, *row) for every row, all rows at once."""

        def here(shared, *rows):
            return jax.vmap(functools.partial(function, shared))(*rows)

        if self.mesh is None or length(rows) % self.mesh.shape[self.axis]:
            return here(shared, *rows)
        along = PartitionSpec(self.axis)
        specs = PartitionSpec(), *(along for _ in rows)
        there = jax.shard_map(
            here, mesh=self.mesh, in_specs=specs, out_specs=along, axis_names={self.axis}, check_vma=False
        )
        return there(shared, *rows)

    def gathered(self, tree):
        """The rows on every device, once: a sweep over rows that lie apart would fetch them one by one."""
        if self.mesh is None:
            return tree

        def place(leaf):
            spec = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1))
            return lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec))

        return jax.tree.map(place, tree)


class Solution(NamedTuple):
    """The points of the finest level after the last cycle, and how well slices meet."""

    points: Any  # leaves [slices + 1, ...]
    count: jax.Array  # []
    residuals: jax.Array  # [most + 1]: |F(points) - points| / |points|, repeated after the last cycle


def solve(levels, first, guess, *, most, relaxations, tolerance, spread):
    """At most `most` cycles from a guess of the points, or from the coarsest level's own solution."""
    if guess is None:
        points = _begin(levels, first, spread)
    else:
        points = jax.tree.map(
            lambda leaf, rest: jnp.concatenate([leaf[None], rest[1:].astype(leaf.dtype)]), first, guess
        )
    ends = travel(levels[0], points, spread)
    start = _mismatch(points, ends)
    residuals = jnp.full(most + 1, jnp.inf, start.dtype).at[0].set(start)

    def proceed(state):
        _, _, count, residuals = state
        return (count < most) & (residuals[count] > tolerance)  # false for nan, too

    def cycle(state):
        points, ends, count, residuals = state
        points = _correct(levels, points, ends, relaxations, spread)
        ends = travel(levels[0], points, spread)
        return points, ends, count + 1, residuals.at[count + 1].set(_mismatch(points, ends))

    points, _, count, residuals = lax.while_loop(proceed, cycle, (points, ends, 0, residuals))
    later = jnp.arange(most + 1) > count
    return Solution(points, count, jnp.where(later, residuals[count], residuals))


def travel(level, points, spread):
    """Where each slice ends that begins at its point, leaves [slices, ...]."""
    return spread.gathered(_slices(level, points, spread, _end))


def inside(level, points, spread):
    """All states of a level, leaves [steps + 1, ...]: the points, and between them the way through each slice."""
    states = _slices(level, points, spread, _way)

    def joined(leaf, point):
        between = jnp.concatenate([leaf[:, :-1], point[1:, None]], axis=1)
        return jnp.concatenate([point[:1], between.reshape(-1, *point.shape[1:])])

    return spread.gathered(jax.tree.map(joined, states, points))


def sweep(level, first):
    """All states of a level, one step after the other."""

    def body(y, row):
        y = _moved(level.step, y, level.shared, row)
        return y, y

    _, later = lax.scan(body, first, (level.drive, level.shift))
    return before(first, later)


def before(first, later):
    """The rows with one more in front."""
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, later)


def cut(tree, slices):
    """Leaves [steps, ...] as [slices, steps / slices, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(slices, -1, *leaf.shape[1:]), tree)


def length(tree):
    """The number of rows."""
    return jax.tree.leaves(tree)[0].shape[0]


def starts(points):
    """All points but the last."""
    return jax.tree.map(lambda leaf: leaf[:-1], points)


def _begin(levels, first, spread):
    coarse = levels[1]
    if len(levels) == 2:
        return spread.gathered(sweep(coarse, first))
    return inside(coarse, _begin(levels[1:], first, spread), spread)


def _correct(levels, points, ends, relaxations, spread):
    """New points of the first level from its points and from where its slices end."""
    first = jax.tree.map(lambda leaf: leaf[0], points)
    for _ in range(relaxations):
        points = spread.gathered(before(first, ends))
        ends = travel(levels[0], points, spread)
    coarse = levels[1]
    guesses = spread.gathered(
        spread(functools.partial(_one, coarse.step), coarse.shared, spread.gathered(starts(points)), coarse.drive)
    )
    coarse = coarse._replace(shift=(ends, guesses))
    if len(levels) == 2:
        return spread.gathered(sweep(coarse, first))
    size = length(coarse.drive) // coarse.slices
    kept = jax.tree.map(lambda leaf: leaf[::size], points)
    corrected = _correct((coarse, *levels[2:]), kept, travel(coarse, kept, spread), relaxations, spread)
    return inside(coarse, corrected, spread)


def _slices(level, points, spread, way):
    rows = cut((level.drive, level.shift), level.slices)
    return spread(functools.partial(way, level.step), level.shared, spread.gathered(starts(points)), rows)


def _one(step, shared, y, x):
    return step(y, shared, x)


def _end(step, shared, y, rows):
    return lax.scan(lambda y, row: (_moved(step, y, shared, row), None), y, rows)[0]


def _way(step, shared, y, rows):
    def body(y, row):
        y = _moved(step, y, shared, row)
        return y, y

    return lax.scan(body, y, rows)[1]


def _moved(step, y, shared, row):
    x, shift = row
    y = step(y, shared, x)
    if shift is None:
        return y
    return jax.tree.map(lambda end, new, old: end + (new - old), shift[0], y, shift[1])


def _mismatch(points, ends):
    later = jax.tree.map(lambda leaf: leaf[1:], points)
    gap, size = trees.norm(trees.axpy(-1.0, later, ends)), trees.norm(later)
    return gap / jnp.where(size == 0, jnp.ones_like(size), size)
