"""Depth as a parallel dimension: the layers of an equation solved side by side, by parareal and multigrid (MGRIT).

    parareal              slices of depth, a serial sweep of long steps to join them
    multigrid             the same with relaxation and any number of levels (MGRIT, FCF)
    value_and_gradient    a loss at the end and its gradient, the adjoint equation by the same cycles (layer-parallel)
    adjoint               the same two as a value of `adjoint`: for `integrate`, and for networks that are integrated

The arguments of the equation are those of `integrate`; steps are layers. Slices run under `vmap`; on a mesh, those of
an axis's devices each, under `shard_map`, and what every cycle sends are the states where slices end. Without `coarse`
the long step over a slice is the scheme's own, with the parameters that stand at the slice's beginning. Nothing is
approximated in the limit: the residual is the gap between where a slice ends and where the next begins.

    >>> import jax.numpy as jnp
    >>> from numdl.ode import parallel, tableaus
    >>> def decay(t, y, theta):
    ...     return -theta * y
    >>> theta = jnp.ones(32)  # 32 layers
    >>> options = {"t1": 1.0, "steps": 32, "tableau": tableaus.euler, "interpolation": "constant"}
    >>> found = parallel.parareal(decay, jnp.ones(2), theta, slices=4, iterations=4, **options)
    >>> print(found.states.shape, bool(found.converged), f"{found.states[-1, 0]:.4f}")
    (5, 2) True 0.3621
"""

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import ArrayLike, PyTree

from numdl import checks
from numdl._compiled import jit
from numdl.ode import _depth, _grids, _multigrid, _plans
from numdl.ode._plans import Options
from numdl.precision import narrow, widen
from numdl.records import record
from numdl.typing import Field


@record
class Sliced:
    """A solution at the slices of the grid."""

    times: jax.Array  # [slices + 1]
    states: object  # leaves [slices + 1, ...]: y0 first
    iterations: jax.Array  # []: cycles done
    residuals: jax.Array  # [iterations + 1]: of the guess, then after each cycle; relative; the last one repeated
    converged: jax.Array  # []: the last residual is within the tolerance, and everything finite


@record
class SlicedGradient:
    """A loss at the end of the last slice, and its gradient."""

    value: jax.Array  # []
    y0: object  # like y0
    theta: object  # like theta
    outer: object  # like outer
    states: object  # leaves [slices + 1, ...]
    adjoints: object  # leaves [slices + 1, ...]: d value / d state at the slices
    residuals: jax.Array  # [iterations + 1]: of the states
    adjoint_residuals: jax.Array  # [adjoint_iterations + 1]: of the adjoints
    converged: jax.Array  # []: both are within the tolerance, and everything finite


def parareal(
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    steps: int,
    slices: int,
    iterations: int,
    **options: Unpack[Options],
) -> Sliced:
    """The states at the slices by parareal, exact up to rounding after `slices` iterations.

        new[j+1] = F(old[j]) + G(new[j]) - G(old[j])        F: the steps of slice j, G: one step over all of it

    Parameters
    ----------
    field, y0, theta, t1, steps : as for `integrate.trajectory`
    slices : int                a divisor of steps
    iterations : int            at most this many, >= 1
    **options : Options         as for `multigrid`
    Raises
    ------
    ValueError, TypeError       slices that do not divide steps; else as for `multigrid`
    Source: Lions, Maday & Turinici 2001, C. R. Acad. Sci. Paris 332, 661-668; Gander & Vandewalle 2007.
    Twin: theory.layer_parallel.parareal.    Experiment: c12.
    """
    coarsening = _plans.equal(steps, slices)
    return multigrid(
        field, y0, theta, t1=t1, steps=steps, coarsening=coarsening, iterations=iterations, relaxations=0, **options
    )


def multigrid(
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    steps: int,
    coarsening: Sequence[int],
    iterations: int,
    relaxations: int = 1,
    guess: PyTree | None = None,
    **options: Unpack[Options],
) -> Sliced:
    """The states at the slices by multigrid reduction in time (MGRIT): V-cycles with F and C relaxation.

    Parameters
    ----------
    field, y0, theta, t1, steps : as for `integrate.trajectory`
    coarsening : sequence       m for each level but the coarsest: m of its steps are one step of the next; the first
                                one is the length of a slice
    iterations : int            cycles at most, >= 1
    relaxations : int           0: F, 1: FCF, 2: FCFCF; with one coarsening and 0 it is parareal
    guess : pytree              states at the slices to begin with (warm start), leaves [slices + 1, ...]
    **options : Options         tableau or scheme, t0, interpolation as for `integrate.trajectory`; coarse, tolerance;
                                mesh, axis: where slices are travelled
    Raises
    ------
    ValueError, TypeError       coarsening that does not divide steps, an implicit tableau, a mesh without such an
                                axis or with more devices than slices; else as for `integrate.trajectory`
    Source: Falgout et al. 2014, SIAM J. Sci. Comput. 36, C635-C661; Günther et al. 2020, arXiv:1812.04352.
    Twin: theory.layer_parallel.multigrid.    Experiment: c12.
    """
    options = _plans.taken(options)
    plan = _plans.plan(steps, coarsening, iterations, relaxations, options)
    guess = None if guess is None else _points("guess", guess, y0, steps, plan)
    problem = _plans.problem(field, y0, theta, t1, steps, options)
    return _solve(*problem, plan, guess)


def value_and_gradient(
    loss: Callable,
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    steps: int,
    coarsening: Sequence[int],
    iterations: int,
    adjoint_iterations: int | None = None,
    relaxations: int = 1,
    outer: PyTree = None,
    guess: tuple[PyTree, PyTree] | None = None,
    **options: Unpack[Options],
) -> SlicedGradient:
    """A loss at t1 and its gradient, states and adjoints each by a few cycles: layer-parallel training.

        a[n] = (d y[n+1] / d y[n])^T a[n+1],    gradient[n] = (d y[n+1] / d theta[n])^T a[n+1]

    With one iteration each and the guess of the step before this is one-shot training.

    Parameters
    ----------
    loss : function             (state at t1, outer) -> real scalar
    field, y0, theta, t1, steps, coarsening, iterations, relaxations, **options : as for `multigrid`
    adjoint_iterations : int    cycles of the adjoint at most; as many as `iterations` if None
    outer : pytree              what else the loss is differentiated by: a readout's parameters
    guess : pair                states, adjoints of an earlier record
    Raises
    ------
    ValueError, TypeError       a loss that is not one real number; else as for `multigrid`
    Source: Günther, Ruthotto, Schroder, Cyr & Gauger 2020, arXiv:1812.04352.
    Experiment: c12.
    """
    loss = checks.returning("loss", loss, 2, "loss(y, outer)", scalar=True)
    options = _plans.taken(options)
    plan = _plans.plan(steps, coarsening, iterations, relaxations, options, adjoint_iterations)
    outer = checks.floats("outer", outer, empty=True)
    jax.eval_shape(loss, checks.floats("y0", y0), outer)
    guess = (None, None) if guess is None else _pair(guess, y0, steps, plan)
    problem = _plans.problem(field, y0, theta, t1, steps, options)
    return _differentiate(*problem, plan, guess, outer, loss)


def adjoint(
    *,
    coarsening: Sequence[int],
    iterations: int,
    adjoint_iterations: int | None = None,
    relaxations: int = 1,
    coarse: Callable | None = None,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Callable:
    """A value of `adjoint` that solves forward and backward by multigrid over the layers, at every depth it divides.

    `integrate.trajectory` says in `residual` how well slices meet, and in `converged` whether they do. Of the way back
    a derivative cannot tell: `value_and_gradient` does.

    Parameters
    ----------
    coarsening, iterations, relaxations, coarse, tolerance, mesh, axis : as for `multigrid`
    adjoint_iterations : int    cycles of the way back at most; as many as `iterations` if None
    Returns
    -------
    function                    a value for `adjoint`; it refuses steps that the coarsening does not divide
    Raises
    ------
    ValueError, TypeError       as for `multigrid`
    Source: Günther, Ruthotto, Schroder, Cyr & Gauger 2020, arXiv:1812.04352.
    """
    options = {"coarse": coarse, "tolerance": tolerance, "mesh": mesh, "axis": axis}
    return _adjoint(_plans.plan(None, coarsening, iterations, relaxations, options, adjoint_iterations))


@functools.lru_cache(maxsize=256)
def _adjoint(plan):
    return functools.partial(_integrate, plan)


def _integrate(plan, recurrence, y, shared, drive, save):
    if recurrence.coarsen is None:
        raise checks.BadValue("adjoint=parallel.adjoint(...) needs the recurrence of an integrator; got one by hand")
    row = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), drive)
    if jax.eval_shape(recurrence.step, y, shared, row)[1] is not None:  # nobody would see whether it is small
        raise checks.BadValue("adjoint=parallel.adjoint(...) needs an explicit step; got one that solves equations")
    return _depth.integrate(_plans.fitting(plan, _multigrid.length(drive)), recurrence, save, y, shared, drive)


@functools.partial(jit, static_argnames=("field", "scheme", "steps", "interpolation", "plan"))
def _solve(y0, theta, t0, t1, field, scheme, steps, interpolation, plan, guess):
    start = widen(y0)
    shared, drive, times = _grids.grid(theta, t0, t1, steps, interpolation)
    recurrence = _grids.recurrence(field, scheme, interpolation)
    points, count, residuals = _depth.forward(plan, recurrence, start, shared, drive, guess)
    converged = (residuals[-1] <= _depth.solved(plan, start)) & _finite(points)
    return Sliced(times[:: plan.coarsening[0]], narrow(points, y0), count, residuals, converged)


@functools.partial(jit, static_argnames=("field", "scheme", "steps", "interpolation", "plan"))
def _differentiate(y0, theta, t0, t1, field, scheme, steps, interpolation, plan, guess, outer, loss):
    start = widen(y0)
    (shared, drive), to_theta = jax.vjp(lambda theta: _grids.grid(theta, t0, t1, steps, interpolation)[:2], theta)
    recurrence = _grids.recurrence(field, scheme, interpolation)
    points, _, residuals = _depth.forward(plan, recurrence, start, shared, drive, guess[0])
    last = narrow(jax.tree.map(lambda leaf: leaf[-1], points), y0)
    value, (cotangent, of_outer) = jax.value_and_grad(loss, argnums=(0, 1))(last, outer)
    turned = None if guess[1] is None else jax.tree.map(lambda leaf: leaf[::-1], guess[1])
    back = _depth.backward(plan, recurrence, points, shared, drive, widen(cotangent), guess=turned)
    adjoint_states = jax.tree.map(lambda leaf: leaf[::-1], back.solution.points)
    of_y0 = narrow(jax.tree.map(lambda leaf: leaf[0], adjoint_states), y0)
    (of_theta,) = to_theta(back.cotangents)
    limit = _depth.solved(plan, start)
    met = (residuals[-1] <= limit) & (back.solution.residuals[-1] <= limit)
    result = value, of_y0, of_theta, of_outer
    converged = met & _finite((result, points, adjoint_states))
    states = narrow(points, y0), narrow(adjoint_states, y0)
    return SlicedGradient(*result, *states, residuals, back.solution.residuals, converged)


def _finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _pair(guess, y0, steps, plan):
    if not (isinstance(guess, tuple) and len(guess) == 2):
        raise checks.BadType(f"guess must be a pair (states, adjoints); got {checks.shown(guess)}")
    return tuple(_points(f"guess[{i}]", one, y0, steps, plan) for i, one in enumerate(guess))


def _points(name, guess, y0, steps, plan):
    """States at the slices, shaped like y0 with an axis in front."""
    slices = steps // plan.coarsening[0]
    form = jax.eval_shape(widen, checks.floats("y0", y0))
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((slices + 1, *leaf.shape), leaf.dtype), form)
    return widen(checks.like(name, checks.floats(name, guess), wanted, of="the slices' states"))
