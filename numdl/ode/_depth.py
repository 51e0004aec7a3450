"""A recurrence solved by multigrid over its steps, forward and backward: the levels of both, and the gradient."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from numdl.ode import _grids, _multigrid
from numdl.ode._multigrid import Level, Spread


class Plan(NamedTuple):
    """How a solve is cut, how often it is corrected and where its slices are travelled; hashable."""

    coarsening: tuple[int, ...]  # steps of each level that make one step of the next
    iterations: int
    adjoint_iterations: int
    relaxations: int
    coarse: Callable | None  # (t, h, y, theta) -> y over one slice, in place of the scheme's own long step
    tolerance: float | None  # None: 100 units of rounding
    spread: Spread


class Back(NamedTuple):
    """What one way back gives."""

    solution: _multigrid.Solution  # points from the end to the beginning
    cotangents: Any  # of the shared, of the drive


def forward(plan, recurrence, y, shared, drive, guess=None):
    """The solution's points at the slices, by at most `plan.iterations` cycles."""
    levels = _levels(plan, recurrence, shared, drive)
    return _multigrid.solve(levels, y, guess, **_options(plan, plan.iterations, y))


def backward(plan, recurrence, points, shared, drive, cotangent, source=None, guess=None):
    """The adjoint equation by the same cycles, along the way that leads through the points:

    a[n] = (d step / d y)^T a[n+1] + source[n],    a[steps] = cotangent
    """
    levels = _levels(plan, recurrence, shared, drive)
    finest = levels[0]
    way = _multigrid.starts(_multigrid.inside(finest, points, plan.spread))
    rows = _turned((way, drive, source))
    turned = [finest._replace(step=functools.partial(_pull, finest.step), drive=rows)]
    stride = 1
    for level in levels[1:]:
        begin = jax.tree.map(lambda leaf, stride=stride: leaf[:-1:stride], points)
        rows = _turned((begin, level.drive, None))
        turned.append(level._replace(step=functools.partial(_pull, level.step), drive=rows))
        stride *= _multigrid.length(level.drive) // level.slices
    solution = _multigrid.solve(turned, cotangent, guess, **_options(plan, plan.adjoint_iterations, cotangent))
    return Back(solution, _collect(plan, finest, turned[0], solution.points))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def integrate(plan, recurrence, save, y, shared, drive):
    """What `numdl.ode.adjoints` say that a solve returns, with the mismatch of the slices as its residuals."""
    return _integrate(plan, recurrence, save, y, shared, drive)[0]


def _integrate(plan, recurrence, save, y, shared, drive):
    solution = forward(plan, recurrence, y, shared, drive)
    points = solution.points
    last = jax.tree.map(lambda leaf: leaf[-1], points)
    steps = _multigrid.length(drive)
    residual = jnp.full(steps, solution.residuals[-1])
    if not save:
        return (last, (None, residual)), points
    finest = _levels(plan, recurrence, shared, drive)[0]
    later = jax.tree.map(lambda leaf: leaf[1:], _multigrid.inside(finest, points, plan.spread))
    return (last, (later, residual)), points


def _integrate_forward(plan, recurrence, save, y, shared, drive):
    result, points = _integrate(plan, recurrence, save, y, shared, drive)
    return result, (points, shared, drive)


def _integrate_backward(plan, recurrence, save, kept, cotangents):
    points, shared, drive = kept
    last, (later, _) = cotangents
    source = None
    if save:  # the state that step n leaves is the beginning of step n + 1
        last = jax.tree.map(lambda a, rest: a + rest[-1], last, later)
        source = jax.tree.map(lambda rest: jnp.concatenate([jnp.zeros_like(rest[:1]), rest[:-1]]), later)
    back = backward(plan, recurrence, points, shared, drive, last, source)
    return jax.tree.map(lambda leaf: leaf[-1], back.solution.points), *back.cotangents


integrate.defvjp(_integrate_forward, _integrate_backward)


def solved(plan, y):
    """The residual below which a solve counts as converged."""
    return _grids.solved(y) if plan.tolerance is None else plan.tolerance


def _options(plan, most, y):
    return {"most": most, "relaxations": plan.relaxations, "tolerance": solved(plan, y), "spread": plan.spread}


def _levels(plan, recurrence, shared, drive):
    """Finest first; the steps of each are the slices of the one before."""
    steps = _multigrid.length(drive)
    step = functools.partial(_step, recurrence.step)
    levels = [Level(step, shared, drive, steps // plan.coarsening[0])]
    if plan.coarse is not None:
        rows = plan.spread.gathered(_multigrid.cut(drive, levels[0].slices))
        return [*levels, Level(functools.partial(_given, plan.coarse), shared, rows, 1)]
    stride = 1
    for factor, further in zip(plan.coarsening, (*plan.coarsening[1:], None), strict=True):
        stride *= factor
        slices = 1 if further is None else steps // (stride * further)
        longer, rows = recurrence.coarsen(shared, drive, stride)
        levels.append(Level(step, longer, plan.spread.gathered(rows), slices))
    return levels


def _step(step, y, shared, x):
    return step(y, shared, x)[0]


def _given(coarse, y, shared, x):
    (h, theta), (times, local) = shared, x
    return coarse(times[0], h * times.shape[0], y, theta if local is None else local)


def _turned(tree):
    return jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0), tree)


def _pull(step, a, shared, x):
    y, x, source = x
    (back,) = jax.vjp(lambda y: step(y, shared, x), y)[1](a)
    return back if source is None else jax.tree.map(jnp.add, back, source)


def _collect(plan, finest, turned, points):
    """The cotangents of what all steps share and of what drives each, along the adjoint's points."""

    def slice_of(shared, a, rows):
        def body(carry, row):
            a, total = carry
            y, x, source = row
            back, part, xbar = jax.vjp(finest.step, y, shared, x)[1](a)
            back = back if source is None else jax.tree.map(jnp.add, back, source)
            return (back, jax.tree.map(jnp.add, total, part)), xbar

        zero = jax.tree.map(jnp.zeros_like, shared)
        (_, total), xbars = lax.scan(body, (a, zero), rows)
        return total, xbars

    rows = _multigrid.cut(turned.drive, turned.slices)
    totals, xbars = plan.spread(slice_of, turned.shared, _multigrid.starts(points), rows)
    total = jax.tree.map(lambda leaf: leaf.sum(axis=0), totals)
    return total, _turned(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), xbars))
